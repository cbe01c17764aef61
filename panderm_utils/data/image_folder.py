"""Lists the images below a folder, for what needs no table: features and predictions of new images."""

import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from panderm_utils.data.csv_tables import DataError
from panderm_utils.data.image_files import SUFFIXES, walk_files
from panderm_utils.workspace import settle_path


@dataclass(frozen=True)
class ListedImages:
    """The images below a folder; what is in the files is unknown until they are decoded.

    Attributes:
        root: The folder.
        names: The images' paths below it, with `/`, sorted.
        unreadable: Name -> reason: images without read permission, broken links, pipes, folders that cannot be listed.
        others: Suffix -> number of files that are no images by their suffix.
    """

    root: Path
    names: tuple[str, ...]
    unreadable: dict[str, str]
    others: dict[str, int]

    @property
    def paths(self) -> list[str]:
        """The files, in the order of `names`."""
        return [os.path.join(self.root, name) for name in self.names]  # noqa: PTH118  (10 times as fast)


def list_images(folder: str | Path) -> ListedImages:
    """Returns the images below a folder, also in its subfolders (those behind symbolic links are left out).

    Raises:
        DataError: There is no such folder, or no image in it.
    """
    root = settle_path(folder)
    if not root.is_dir():
        raise DataError(f"{folder}: no such folder; name the folder of your images")
    unreadable, others, names = {}, Counter(), []

    def unlisted(error: OSError) -> None:
        unreadable[f"{Path(error.filename).relative_to(root).as_posix()}/"] = f"cannot be listed ({error.strerror})"

    for name in sorted(walk_files(root, unlisted)):
        if (suffix := Path(name).suffix.lower()) not in SUFFIXES:
            others[suffix or "without suffix"] += 1
        elif reason := _why_unreadable(os.path.join(root, name)):  # noqa: PTH118
            unreadable[name] = reason
        else:
            names.append(name)
    if not names and not unreadable:
        found = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common(5)) or "nothing"
        raise DataError(f"{folder}: no image below this folder (found: {found}); images end in {', '.join(SUFFIXES)}")
    return ListedImages(root, tuple(names), unreadable, dict(others))


def _why_unreadable(path: str) -> str:
    """Returns why a file cannot be opened, "" if it can; opening a pipe would block for ever."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116  (speed: once per image)
    except OSError as error:
        return f"broken link ({error.strerror})"
    if not stat.S_ISREG(mode):
        return "not a file"
    return "" if os.access(path, os.R_OK) else "no permission to read it"
