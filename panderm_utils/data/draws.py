"""Draws the splits of a dataset without a published list, and writes them down as its table."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from panderm_utils.data.csv_tables import DataError, Problems, read_text
from panderm_utils.disk import write_file
from panderm_utils.manifests import SPLITS, DatasetManifest


def draw_splits(groups: Mapping[str, int], percent: Mapping[str, int], seed: int) -> dict[str, str]:
    """Returns group -> split of a seeded draw that keeps each group (the images of a lesion) in one split.

    Groups are put in the order of the SHA-256 of `<seed>/<group>`; the first train% of all images, in that order, are
    train, the next val% are val, the rest test; a group on a border goes with its first image. The draw depends on
    the groups, their sizes and the seed alone: not on the order of rows, nor on a library's random numbers.

    Args:
        groups: Group -> number of images.
        percent: Split -> percent of the images; sums to 100.
    """
    order = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest())
    borders = [sum(percent[split] for split in SPLITS[: k + 1]) for k in range(len(SPLITS))]
    total, before, drawn = sum(groups.values()), 0, {}
    for group in order:
        drawn[group] = next(s for s, border in zip(SPLITS, borders, strict=True) if 100 * before < border * total)
        before += groups[group]
    return drawn


def drawn_table(manifest: DatasetManifest, data_root: str | Path) -> bytes:
    """Returns the CSV of a dataset with a `draw`, its rows sorted by image; writes it to `csv` on first use.

    Raises:
        DataError: The metadata are damaged or do not match the CSV on disk, or the CSV cannot be written.
    """
    metadata, path = Path(data_root) / manifest.draw.metadata, Path(data_root) / manifest.csv
    content = _make_table(manifest, metadata)
    try:
        if not path.exists():
            write_file(path, content)
        elif path.read_bytes() != content:
            raise DataError(
                f"{path}: is not the table that is drawn from {metadata}; delete it to draw it again, or restore the "
                "metadata that it was drawn from"
            )
    except OSError as error:
        reason = f"the drawn table cannot be written or read there ({error.strerror})"
        raise DataError(f"{path}: {reason}; make it accessible, at least for the first run") from error
    return content


def _make_table(manifest: DatasetManifest, metadata: Path) -> bytes:
    """Returns the drawn CSV: image, split, and the metadata's columns that the manifest names."""
    draw, (column,) = manifest.draw, manifest.groups.values()
    problems = Problems(metadata)
    table = read_text(metadata.read_bytes(), problems)
    present = ", ".join(name for name in table if name != "row")
    for name in (draw.image, column):
        if name not in table and present:
            problems.add("error", "missing column", f"no column `{name}` among {present}; get the official file", 1)
    problems.stop(manifest.name)
    for name in (draw.image, column):
        for row in table.loc[table[name] == "", "row"]:
            problems.add("error", "empty cell", f"`{name}` is empty; get the official file", row)
    for row, image in table.loc[table[draw.image].duplicated(), ["row", draw.image]].itertuples(index=False):
        problems.add("error", "repeated image", "the image is in two rows; keep one", row, image)
    problems.stop(manifest.name)
    splits = draw_splits(Counter(table[column]), draw.percent, draw.seed)
    names = [image if Path(image).suffix else image + manifest.image_suffix for image in table[draw.image]]
    made = table.assign(image=names, split=table[column].map(splits)).sort_values("image")
    kept = [name for name in dict.fromkeys([column, *manifest.metadata.values()]) if name in table]
    return made[["image", "split", *kept]].to_csv(index=False, lineterminator="\n").encode()
