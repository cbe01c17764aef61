"""Loads a manifest, its CSV and its images as one checked dataset; reports all problems at once.

The CSV contract is upstream's: `image` (a path below the image root), `split` (train, val, test) and `label` (0..K-1)
or, for two classes, `binary_label`. Row order is kept: the published label fractions depend on it.
"""

import hashlib
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pandas as pd

from panderm_utils.data.csv_tables import (
    DataError,
    Problems,
    check_pixels,
    check_repeats,
    check_table,
    find_images,
    name_images,
    read_text,
)
from panderm_utils.manifests import SPLITS, DatasetManifest


@dataclass(frozen=True, eq=False)
class Dataset:
    """A checked dataset.

    Attributes:
        manifest: The dataset's manifest.
        table: One row per image, in file order: row (1-based line in the CSV), image, split, label (int64, 0..K-1), and
            the CSV's other columns.
        image_root: The folder that image names are relative to.
        problems: Warnings and notes: DataFrame(severity, kind, row, image, message).
        csv: The CSV file; csv_sha256: the digest of its bytes.
        files: Image name -> file, relative to the image root.
    """

    manifest: DatasetManifest
    table: pd.DataFrame
    image_root: Path
    problems: pd.DataFrame
    csv: Path
    csv_sha256: str
    files: dict[str, str]

    def split(self, name: str) -> pd.DataFrame:
        """Returns the rows of one split, in file order; an empty table if it has none (val may be missing)."""
        if name not in SPLITS:
            raise DataError(f"split {name!r} is unknown; write one of {', '.join(SPLITS)}")
        return self.table[self.table["split"] == name].reset_index(drop=True)

    def path(self, image: str) -> Path:
        """Returns the file of an image named in the table."""
        if image not in self.files:
            raise DataError(f"{image!r} is not an image of {self.manifest.name}; its names are in the column `image`")
        return self.image_root / self.files[image]


def load_dataset(manifest: DatasetManifest, data_root: str | Path, check: str = "files") -> Dataset:
    """Returns a checked dataset.

    Args:
        manifest: Names the CSV and the image root, both below `data_root` unless absolute.
        data_root: The folder that contains the data.
        check: "table" reads only the CSV; "files" also looks for every image; "pixels" also decodes every image.

    Raises:
        DataError: Lists every problem that would make results wrong, with file, row and remedy.
    """
    if check not in ("table", "files", "pixels"):
        raise DataError(f'check {check!r} is unknown; write "table", "files" or "pixels"')
    csv, image_root = Path(data_root) / manifest.csv, Path(data_root) / manifest.image_root
    if not csv.is_file():
        sources = "".join(f"\n  {access.what}: {access.url} {access.note or ''}".rstrip() for access in manifest.access)
        raise DataError(
            f"{manifest.name}: there is no CSV {csv}; data_root is {data_root}. Set data_root (or PANDERM_DATA_ROOT) "
            f"to the folder that contains {manifest.csv}, or get the data:{sources}"
        )
    problems = Problems(csv)
    content = csv.read_bytes()
    table = check_table(read_text(content, problems), manifest, problems)
    files: dict[str, str] = {}
    if "image" in table:
        if check == "table":
            files = name_images(table, problems)
        else:
            files = find_images(table, image_root, manifest.image_suffix, problems)
        if check == "pixels":
            check_pixels(table, image_root, files, problems)
        check_repeats(table, files, problems)
    problems.stop(manifest.name)
    table = table.astype({"label": "int64"}).reset_index(drop=True)
    leaks = leakage_counts(table, files, manifest)
    for kind, row in leaks.iterrows():
        if row["in two splits"] is not pd.NA and row["in two splits"] > 0:
            message = f"{row['in two splits']:,} {kind} ids are in more than one split; see leakage_table"
            problems.add("warning", "leakage", message)
    digest = hashlib.sha256(content).hexdigest()  # of the bytes read above: the file may have changed since
    return Dataset(manifest, table, image_root, problems.table(), csv, digest, files)


def split_table(dataset: Dataset) -> pd.DataFrame:
    """Returns image counts per class (rows, with a total) and split, beside the published counts if known.

    Cells of `published ...` are missing where the manifest has no number; the demo's stand-ins differ from them.
    """
    manifest = dataset.manifest
    counts = class_counts(dataset)
    counts.index = [manifest.title_of_label(k) for k in range(manifest.num_classes)]
    counts["all"] = counts.sum(axis=1)
    counts.loc["all"] = counts.sum()
    sizes, by_class = manifest.split_sizes or {}, manifest.class_counts or {}
    for name in SPLITS:
        if name in sizes or name in by_class:
            published = list(by_class.get(name, [pd.NA] * manifest.num_classes))
            total = sizes.get(name, sum(published) if name in by_class else pd.NA)
            counts[f"published {name}"] = pd.array([*published, total], dtype="Int64")
    return counts.rename_axis("class")


def class_counts(dataset: Dataset) -> pd.DataFrame:
    """Returns image counts: a row per class (short name, in label order), a column per split (train, val, test)."""
    table, manifest = dataset.table, dataset.manifest
    counts = pd.crosstab(table["label"], table["split"])
    counts = counts.reindex(index=range(manifest.num_classes), columns=SPLITS, fill_value=0)
    return counts.set_axis(list(manifest.class_names)).rename_axis(index="class", columns=None)


def leakage_table(dataset: Dataset) -> pd.DataFrame:
    """Returns how many images, lesions and patients are in more than one split.

    One row per kind: the CSV column, its distinct ids, those in two or more splits, those shared by each pair of
    splits, the test images affected, and an example id. A kind without a column cannot be checked: missing cells.
    """
    return leakage_counts(dataset.table, dataset.files, dataset.manifest)


def leakage_counts(table: pd.DataFrame, files: dict[str, str], manifest: DatasetManifest) -> pd.DataFrame:
    """Returns `leakage_table` from a dataset's parts; an image is a file, however its name is spelled."""
    kinds = {"image": "image", "lesion": None, "patient": None, **manifest.groups}
    rows = {}
    for kind, column in kinds.items():
        if column not in table:
            rows[kind] = {"column": f"no column {column}" if column else "none in the manifest"}
            continue
        ids = table[column].map(files) if kind == "image" else table[column]
        seen = {split: set(ids[table["split"] == split].dropna()) for split in SPLITS}
        pairs = {f"{one} & {other}": seen[one] & seen[other] for one, other in combinations(SPLITS, 2)}
        shared = set().union(*pairs.values())
        row = {"column": column, "ids": len(set().union(*seen.values())), "in two splits": len(shared)}
        row |= {pair: len(both) for pair, both in pairs.items()}
        row["test images"] = int((ids.isin(shared) & (table["split"] == "test")).sum())
        row["example"] = min(shared, default="")
        rows[kind] = row
    result = pd.DataFrame.from_dict(rows, orient="index").rename_axis("kind")
    numbers = [name for name in result.columns if name not in ("column", "example")]
    return result.astype(dict.fromkeys(numbers, "Int64")).fillna({"example": ""})


def metadata_table(dataset: Dataset, split: str) -> pd.DataFrame:
    """Returns the metadata that a record keeps of a split: filename, and a column per kind (age, sex, ...).

    It has only the kinds that the manifest maps and the CSV contains, possibly none.
    """
    rows, columns = dataset.split(split), dataset.manifest.metadata
    kinds = {kind: rows[column] for kind, column in columns.items() if column in rows}
    return pd.DataFrame({"filename": rows["image"], **kinds})


def shortfall(dataset: Dataset) -> str:
    """Returns in which splits and classes a dataset differs from its manifest's verified numbers; "" if in none."""
    manifest, counts = dataset.manifest, class_counts(dataset)
    parts = []
    for name, size in ({} if "split_sizes" in manifest.unverified else manifest.split_sizes or {}).items():
        if (found := counts[name].sum()) != size:
            parts.append(f"{found:,} {name} images, not {size:,}")
    for name, sizes in ({} if parts or "class_counts" in manifest.unverified else manifest.class_counts or {}).items():
        classes = zip(manifest.class_names, counts[name], sizes, strict=True)
        parts += [f"{found:,} {name} images of {k}, not {size:,}" for k, found, size in classes if found != size]
    return ", ".join(parts)


def describe(dataset: Dataset) -> dict:
    """Returns what a record keeps of its data, JSON-serialisable: digests, sizes and problem counts.

    `rows_sha256` covers image, split and label of every row used, in order; `csv_sha256` the bytes of the CSV.
    """
    used = dataset.table[["image", "split", "label"]].to_csv(index=False, lineterminator="\n")
    counts = class_counts(dataset)
    return {
        "dataset": dataset.manifest.name,
        "csv": dataset.manifest.csv,
        "csv_sha256": dataset.csv_sha256,
        "rows_sha256": hashlib.sha256(used.encode()).hexdigest(),
        "split_sizes": {name: int(counts[name].sum()) for name in SPLITS},
        "class_counts": {name: counts[name].tolist() for name in SPLITS},
        "problems": {kind: int(n) for kind, n in dataset.problems["kind"].value_counts(sort=False).items()},
    }
