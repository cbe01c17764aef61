"""Lists the files that a dataset's table asks for, and which of them are missing; opens no image.

Imports no pandas, as every plan calls it. A run checks more: see `load_dataset`.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from panderm_utils.data.image_files import ImageFolder
from panderm_utils.manifests import SPLITS, DatasetManifest


def list_rows(card: DatasetManifest, text: str) -> tuple[set[tuple[str, ...]], Counter]:
    """Returns the rows that a run uses, as (image, split) or (image, split, mask), and the table's problems by kind."""
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="," if "," in head else max(";\t", key=head.count))
    try:
        lines = [[cell.strip() for cell in line] for line in reader]
    except csv.Error:
        return set(), Counter({"ragged row": 1})
    header, *lines = [line for line in lines if any(line)] or [[]]
    if not header:
        return set(), Counter({"empty file": 1})
    image, split = (card.draw.image, None) if card.draw else ("image", None if card.external else "split")
    needed = [image, split, card.label_column or None]
    needed += [*card.groups.values()] if card.draw else []
    needed += ["mask"] if card.masks and not card.masks.suffix else []
    problems = Counter({"missing column": sum(name not in header for name in needed if name)})
    whole = [line for line in lines if len(line) >= len(header) and not any(line[len(header) :])]
    problems["ragged row"] = len(lines) - len(whole)
    if image not in header:
        return set(), +problems
    columns = {name: [line[header.index(name)] for line in whole] for name in needed if name in header}
    splits = columns.get(split, [SPLITS[0]] * len(whole))
    rows = zip(columns[image], splits, *([columns["mask"]] if "mask" in columns else []), strict=True)
    return {row for row in rows if row[0] and row[1] in SPLITS}, +problems


def missing_files(
    card: DatasetManifest, data_root: Path, rows: Iterable[tuple[str, ...]]
) -> tuple[list[str], list[str]]:
    """Returns the names of the images and of the masks that are not on disk; for `rows` see `list_rows`."""
    rows, images, lacking = list(rows), ImageFolder(data_root / card.image_root), []
    names = dict.fromkeys(row[0] for row in rows)
    missing = [name for name in names if images.find(name, card.image_suffix)[0] is None]
    if card.masks:
        masks = ImageFolder(data_root / card.masks.root)
        named = [row[2] if row[2:] else card.masks.name(*row) for row in rows if row[2:] or card.masks.suffix]
        lacking = [name for name in dict.fromkeys(named) if masks.find(name)[0] is None]
    return missing, lacking
