"""Makes the tables of datasets that come without one: from a folder for each split, or by a seeded draw.

Both are made as the text of a CSV, so that they are read, checked and digested like any other table.
"""

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from panderm_utils.data.csv_tables import DataError, Problems, read_text
from panderm_utils.disk import write_file
from panderm_utils.manifests import SPLITS, DatasetManifest


def list_split_folders(manifest: DatasetManifest, data_root: str | Path) -> list[tuple[str, str]]:
    """Returns the name and the split of each image in a dataset's `split_folders`: by split, then sorted by name."""
    root, rows = Path(data_root) / manifest.image_root, []
    for split, folder in manifest.split_folders.items():
        names = os.listdir(root / folder) if (root / folder).is_dir() else []  # noqa: PTH208  (names alone)
        suffix = manifest.image_suffix.lower()
        chosen = sorted(n for n in names if n.lower().endswith(suffix) and not n.startswith("."))
        rows += [(f"{folder}/{name}", split) for name in chosen]
    return rows


def draw_splits(groups: Mapping[str, int], percent: Mapping[str, int], seed: int) -> dict[str, str]:
    """Returns group -> split of a seeded draw that keeps each group (the images of a lesion) in one split.

    Groups are put in the order of the SHA-256 of `<seed>/<group>`; the first train% of all images, in that order, are
    train, the next val% are val, the rest test; a group on a border goes with its first image. The draw depends on
    the groups, their sizes and the seed alone: not on the order of rows, nor on a library's random numbers.

    Args:
        groups: Group -> number of images.
        percent: Split -> percent of the images, in the order of the splits; sums to 100.
    """
    order = sorted(groups, key=lambda group: (hashlib.sha256(f"{seed}/{group}".encode()).digest(), group))
    total, before, drawn = sum(groups.values()), 0, {}
    for group in order:
        end = 0
        for split in SPLITS:
            end += percent[split]
            if 100 * before < end * total:
                drawn[group] = split
                break
        before += groups[group]
    return drawn


def drawn_table(manifest: DatasetManifest, data_root: str | Path) -> bytes:
    """Returns the table of a dataset with a `draw`, written to its `csv` on first use; rows are sorted by image.

    Raises:
        DataError: The metadata are missing, incomplete or contradict the table on disk, or it cannot be written.
    """
    draw, (column,) = manifest.draw, manifest.groups.values()
    metadata, path = Path(data_root) / draw.metadata, Path(data_root) / manifest.csv
    problems = Problems(metadata)
    table = read_text(metadata.read_bytes(), problems)
    for name in (draw.image, column):
        if name not in table:
            present = ", ".join(list(table)[1:])
            problems.add("error", "missing column", f"no column `{name}` among {present}; get the official file", 1)
    problems.stop(manifest.name)
    for row, image, group in zip(table["row"], table[draw.image], table[column], strict=True):
        if not (image and group):
            problems.add("error", "empty cell", f"`{draw.image}` or `{column}` is empty; fill it in", row, image)
    for image in table.loc[table[draw.image].duplicated(), draw.image]:
        problems.add("error", "repeated image", f"{image} is in two rows; keep one")
    problems.stop(manifest.name)
    splits = draw_splits(Counter(table[column]), draw.percent, draw.seed)
    names = [image if Path(image).suffix else image + manifest.image_suffix for image in table[draw.image]]
    made = table.assign(image=names, split=table[column].map(splits))
    rest = [name for name in (column, *manifest.metadata.values()) if name in made]
    content = as_csv(["image", "split", *rest], made[["image", "split", *rest]].sort_values("image").to_numpy())
    try:
        if not path.is_file():
            write_file(path, content)
        elif path.read_bytes() != content:
            raise DataError(
                f"{path}: is not the table that is drawn from {metadata}; delete it, and it is drawn again, or restore "
                "the metadata that it was drawn from"
            )
    except OSError as error:
        raise DataError(
            f"{path}: the drawn table cannot be written there ({error.strerror}); make the folder writable once"
        ) from error
    return content


def as_csv(header: Sequence[str], rows) -> bytes:
    """Returns a CSV's bytes: UTF-8, comma, `\\n`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()
