"""Makes the table of a dataset from its original release: see `manifests.Release`.

What is made is read as a run reads it, and refused if its images are not as many as the manifest says of each split and
class: another release, or a part of one, is never taken for the published data.
"""

import csv
import io
import tempfile
from collections import defaultdict
from pathlib import Path, PurePosixPath

from panderm_utils import data, disk
from panderm_utils.fetching.catalogue import Catalogue, Found, describe, read_bytes
from panderm_utils.fetching.errors import FetchError
from panderm_utils.manifests import DatasetManifest

Rows = list[dict[str, str]]  # column -> cell


def make_table(card: DatasetManifest, catalogue: Catalogue) -> bytes | None:
    """Returns the CSV of a dataset, in the order of the release; None if the release is not in the catalogue.

    Raises:
        FetchError: The release is another one or not whole, or several differ.
    """
    if card.release is None or card.release.lacks:
        return None
    if card.release.table:
        found = catalogue.find(PurePosixPath(card.release.table))
        return found and _checked(card, _listed(card, found, catalogue), describe(found))
    homes, refusals = class_folders(card, catalogue), []
    for home, names in homes.items():
        rows = [
            {"image": f"{folder}/{name}", "split": "test", card.label_column: _label(card, folder)}
            for folder in card.release.labels
            for name in sorted(names[folder])
        ]
        try:
            return _checked(card, rows, f"the folders {', '.join(card.release.labels)} in {home}")
        except FetchError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]
    return None


def class_folders(card: DatasetManifest, catalogue: Catalogue) -> dict[PurePosixPath, dict[str, set[str]]]:
    """Returns each folder that has the folders of all classes, as a release without a table: {} of any other."""
    homes: dict[PurePosixPath, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    if card.release is None or not card.release.labels or card.release.table:
        return {}
    wanted = {data.fold(folder): folder for folder in card.release.labels}
    for found in catalogue:
        folder = wanted.get(data.fold(found.path.parent.name))
        if folder and found.path.suffix.lower() == card.image_suffix:
            homes[found.path.parent.parent][folder].add(found.path.name)
    return {home: names for home, names in sorted(homes.items()) if len(names) == len(wanted)}


def whole_release(card: DatasetManifest, catalogue: Catalogue) -> set[PurePosixPath]:
    """Returns the folders that have the folders of all classes and, in those, as many images as the dataset."""
    size = sum((card.split_sizes or {}).values())
    found = class_folders(card, catalogue)
    return {home for home, names in found.items() if sum(map(len, names.values())) == size}


def _listed(card: DatasetManifest, found: Found, catalogue: Catalogue) -> Rows:
    """Returns the rows of the release's table that are in the dataset: image, split and label before its own cells."""
    release, made = card.release, []
    rows = _read(found, release.separator)
    _require(rows, found, card, release.image, release.label, release.split)
    splits = _numbered(card, catalogue)
    for number, row in enumerate(rows):
        if release.labels and row[release.label] not in release.labels:
            continue
        name = row[release.image]
        name += "" if name.lower().endswith(card.image_suffix) else card.image_suffix
        split = "test" if card.external else row[release.split] if release.split else splits.get(number, "")
        ours = {"image": name, "split": release.changes.get(name, split)}
        ours[card.label_column] = _label(card, row[release.label])
        made.append(ours | {column: cell for column, cell in row.items() if column not in ours})
    return made


def _numbered(card: DatasetManifest, catalogue: Catalogue) -> dict[int, str]:
    """Returns row -> split from the files that number the rows of each split."""
    splits = {}
    for split, name in card.release.indexes.items():
        place = PurePosixPath(card.release.table).with_name(name)
        if (found := catalogue.find(place)) is None:
            raise FetchError(f"{place}: is not beside {card.release.table}; both are in the release of {card.name}")
        for row in _read(found, ","):
            number = next(reversed(row.values()))  # an unnamed first column may repeat the line
            if not number.isdigit() or int(number) in splits:
                raise FetchError(f"{describe(found)}: {number!r} is no number of a row, or is in two splits")
            splits[int(number)] = split
    return splits


def _label(card: DatasetManifest, value: str) -> str:
    """Returns the label, 0..K-1 as text, of a value in the release."""
    name = card.release.labels.get(value, value)
    if name not in card.class_names:
        raise FetchError(f"{card.name}: {value!r} in its release is none of {', '.join(card.class_names)}")
    return str(card.class_names.index(name))


def _read(found: Found, separator: str) -> Rows:
    """Returns the rows of a table; cells may be between separators (|| a || b ||), and text below them."""
    text = read_bytes(found).decode("utf-8-sig", "replace")
    if len(separator) == 1:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    else:
        lines = [line.split(separator) for line in text.splitlines() if separator in line]
    header, *lines = [[cell.strip() for cell in line] for line in lines if line] or [[]]
    return [dict(zip(header, line, strict=False)) for line in lines]


def _require(rows: Rows, found: Found, card: DatasetManifest, *columns: str) -> None:
    for number, row in enumerate(rows or [{}], 1):
        if lacking := [column for column in columns if column and column not in row]:
            place = f"row {number}" if number > 1 else "it"
            raise FetchError(
                f"{describe(found)}: is not the list of the release of {card.name}, or damaged: {place} lacks the "
                f"column {', '.join(lacking)}; it has {', '.join(filter(None, row)) or 'no rows'}"
            )


def _checked(card: DatasetManifest, rows: Rows, source: str) -> bytes:
    """Returns the rows as a CSV, read as a run reads it and compared with the manifest's numbers."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([rows[0], *map(dict.values, rows)] if rows else [])
    content = text.getvalue().encode()
    with tempfile.TemporaryDirectory() as root:
        disk.write_file(Path(root, card.csv), content)
        try:
            dataset = data.load_dataset(card, root, "table")
        except data.DataError as error:
            raise FetchError(
                f"{source}: the table made of it cannot be used: {str(error).replace(root, '')}"
            ) from error
    wrong = data.shortfall(dataset)
    counts = tuple(data.class_counts(dataset).sum(axis=1))
    if not wrong and card.release.counts not in ((), counts):
        wrong = f"{counts} images of {', '.join(card.class_names)}, not {card.release.counts}"
    if wrong:
        raise FetchError(
            f"{source}: the table made of it has {wrong}: it is another release or a part of one, and is not used"
        )
    return content
