"""What a data root holds: datasets in place, and those nearly in place, with the command that puts them there.

Cheap enough for every plan: each CSV is read and each folder listed once; no image is opened. A run checks more, and so
does `run_all.py --check-data`. Imports neither torch nor pandas.
"""

import os
import shlex
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from panderm_utils import data, manifests
from panderm_utils.manifests import DatasetManifest

DEPTH = 5  # levels of folders that are searched
MAX_FOLDERS = 3_000
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z")


class Finding(NamedTuple):
    """What is wrong with a dataset's files and what to do, such as a command; both are "" if nothing is wrong."""

    problem: str = ""
    remedy: str = ""


class DataRoot:
    """A data root; its folders are listed, and its datasets looked at, only once."""

    def __init__(self, path: Path):
        self.path = path
        self._findings: dict[str, Finding] = {}

    def find(self, card: DatasetManifest) -> Finding:
        """Returns what is wrong with a dataset's table, images and masks, as far as can be seen without opening one."""
        if card.name not in self._findings:
            try:
                self._findings[card.name] = self._look(card)
            except OSError as error:
                self._findings[card.name] = Finding(f"cannot be read: {error}")
        return self._findings[card.name]

    def _look(self, card: DatasetManifest) -> Finding:
        if missing := card.missing_path(self.path):
            if Path(card.csv).is_absolute():  # your own files, which may be anywhere
                return Finding(missing)
            home = PurePosixPath(os.path.commonpath(card.places))
            parts = {PurePosixPath(place).relative_to(home): "images" for place in card.places}
            parts |= {PurePosixPath(place).relative_to(home): "masks" for place in card.mask_places}
            return (
                self._find_folder(home, parts) or self._find_archive(card, home, next(iter(parts))) or Finding(missing)
            )
        problems = count_problems(card, self.path)
        summary = ", ".join(f"{count:,} x {kind}" for kind, count in problems.items())
        return Finding(summary, f"for the rows: python run_all.py --check-data {card.name}" if problems else "")

    def _find_folder(self, home: PurePosixPath, parts: dict[PurePosixPath, str]) -> Finding | None:
        """Returns where a dataset lies whose table is in another folder, or whose files are spelled differently.

        Args:
            home: The folder that it should lie in.
            parts: Path below `home` -> "images" or "masks"; first the table, or the first folder of images.
        """
        goal, (first, *others) = self.path / home, parts
        spelled = [(folder, [self._spelled(folder, part) for part in (first, *others)]) for folder in self._names]
        found = [place for place in spelled if place[1][0]]
        if not found:
            return None
        folder, there = min(found, key=lambda at: (at[1].count(None), at[0] != goal, len(at[0].parts)))
        if None in there:
            lacking = [*parts][there.index(None)]
            holds = ", ".join(sorted(self._names[folder])[:5])
            return Finding(
                f"its {parts[lacking]} are not in {goal / lacking}", f"put them there; {folder} holds {holds}"
            )
        renamed = [(folder / old, folder / new) for old, new in zip(there, parts, strict=True) if old != new]
        commands = [f"mv {_quote(old)} {_quote(new)}" for old, new in renamed]
        if folder == goal:
            wrong = " and ".join(f"{old.name} must be spelled {new.name}" for old, new in renamed)
            return Finding(wrong, _join(commands))
        root = Path(*folder.parts[: len(folder.parts) - len(home.parts)])
        if root / home == folder and goal not in folder.parents and _held(root) > _held(self.path):
            return Finding(f"it lies below {root}", f"--data-root {_quote(root)}")
        if folder == self.path:
            moved = dict.fromkeys(_quote(folder / part.parts[0]) for part in parts if part.parts)
            commands += [f"mkdir -p {_quote(goal)}", f"mv {' '.join(moved)} {_quote(goal)}"]
        else:
            commands.append(f"mv {_quote(folder)}/* {_quote(goal)}" if goal.exists() else _move(folder, goal))
        deeper = ", one folder deeper" * (folder.parent == goal)
        return Finding(f"it lies in {folder}{deeper}", _join(commands))

    def _find_archive(self, card: DatasetManifest, home: PurePosixPath, table: PurePosixPath) -> Finding | None:
        """Returns the archive that holds a dataset's CSV, or else has its name, and the command that unpacks it."""
        archives = [folder / name for folder, names in self._names.items() for name in names]
        archives = [path for path in archives if path.suffix.lower() in ARCHIVES]
        names = {_fold(name) for name in (card.name, card.short_title, home.name)}
        fetch = f"python run_all.py --fetch {card.name} --data-root {_quote(self.path)} --from"
        for archive in archives:
            if any(member.parts[-len(table.parts) :] == table.parts for member in self._members(archive) or ()):
                return Finding(f"it is still packed in {archive}", f"{fetch} {_quote(archive)}")
        for archive in archives:
            if _fold(archive.name.partition(".")[0]) in names:
                if archive.suffix == ".zip" and self._members(archive) is None:
                    return Finding(
                        f"{archive} is damaged or incomplete",
                        "download it again" + "".join(f": {access.url}" for access in card.access[:1]),
                    )
                return Finding(f"it is still packed in {archive}", f"{fetch} {_quote(archive)}")
        return None

    @cached_property
    def _names(self) -> dict[Path, set[str]]:
        """The folders from the data root down, and the names of the folders, CSVs and archives in each."""
        listed, level = {}, [self.path]
        for _ in range(DEPTH):
            deeper = []
            for folder in level[: MAX_FOLDERS - len(listed)]:
                listed[folder] = set()
                try:
                    with os.scandir(folder) as entries:
                        for entry in entries:
                            is_folder = entry.is_dir() and not entry.name.startswith(".")
                            deeper += [folder / entry.name] if is_folder else []
                            if is_folder or Path(entry.name).suffix.lower() in (".csv", *ARCHIVES):
                                listed[folder].add(entry.name)
                except OSError:  # a folder that may not be listed holds nothing for a run either
                    continue
            level = deeper
        return listed

    def _spelled(self, folder: Path, path: PurePosixPath) -> PurePosixPath | None:
        """Returns the path below a folder as its names are spelled there, None if it does not exist."""
        spelled = PurePosixPath()
        for part in path.parts:
            names = self._names.get(folder / spelled, ())
            near = [part] if part in names else [name for name in names if _fold(name) == _fold(part)]
            if len(near) != 1:
                return None
            spelled /= near[0]
        return spelled

    def _members(self, archive: Path) -> list[PurePosixPath] | None:
        """Returns the CSV files in a zip archive; None if it cannot be read."""
        if archive not in self._contents:
            try:
                with zipfile.ZipFile(archive) as file:
                    names = [name for name in file.namelist() if name.lower().endswith(".csv")]
                self._contents[archive] = [PurePosixPath(name) for name in names if not name.startswith("__MACOSX")]
            except (OSError, zipfile.BadZipFile):
                self._contents[archive] = None
        return self._contents[archive]

    @cached_property
    def _contents(self) -> dict[Path, list[PurePosixPath] | None]:
        return {}


def count_problems(card: DatasetManifest, data_root: Path) -> Counter:
    """Returns the columns and files that a dataset in place lacks, by kind, as `load_dataset` names them."""
    if card.split_folders:
        rows = data.list_split_folders(card, data_root)
        empty = {"train", "test"} - {split for _, split in rows}
        return +(Counter({"empty split": len(empty)}) + _count_missing(card, data_root, rows))
    rows, problems = data.list_rows(card, (data_root / card.table).read_text(encoding="utf-8-sig", errors="replace"))
    return +(problems + _count_missing(card, data_root, rows))


def _count_missing(card: DatasetManifest, data_root: Path, rows: Iterable[tuple[str, ...]]) -> Counter:
    images, masks = data.missing_files(card, data_root, rows)
    return Counter({"missing file": len(images), "missing mask": len(masks)})


def _held(root: Path) -> int:
    """Returns the number of known datasets whose table is below a folder as a data root."""
    return sum((root / manifests.load_dataset_manifest(name).table).exists() for name in manifests.list_datasets())


def _move(folder: Path, goal: Path) -> str:
    return f"mv {_quote(folder)} {_quote(goal)}"


def _join(commands: list[str]) -> str:
    return " && ".join(commands)


def _quote(path: Path) -> str:
    return shlex.quote(str(path))


def _fold(name: str) -> str:
    """Returns the letters and digits of a name, in lower case."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFC", name).casefold()))
