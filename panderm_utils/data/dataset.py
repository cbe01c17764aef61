"""Loads a manifest, its CSV and its images as one checked dataset; reports all problems at once.

The CSV contract is upstream's: `image` (a path below the image root), `split` (train, val, test) and `label` (0..K-1)
or, for two classes, `binary_label`; of a dataset with masks also `mask`, unless masks are named after their images. Row
order is kept: the published label fractions depend on it.
"""

import hashlib
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path, PurePosixPath

import pandas as pd

from panderm_utils.data.csv_tables import DataError, Problems, check_table, read_text
from panderm_utils.data.draws import drawn_table
from panderm_utils.data.image_checks import check_pixels, check_repeats, find_images, name_images
from panderm_utils.data.mask_files import find_masks, name_masks
from panderm_utils.data.split_folders import list_split_folders
from panderm_utils.manifests import SPLITS, DatasetManifest


@dataclass(frozen=True, eq=False)
class Dataset:
    """A checked dataset.

    Attributes:
        manifest: The dataset's manifest.
        table: One row per image, in file order: row (1-based line in the CSV), image, split, label (int64, 0..K-1, if
            there are classes), mask (the name of its file, if there are masks), and the CSV's other columns.
        image_root: The folder that image names are relative to.
        problems: Warnings and notes: DataFrame(severity, kind, row, image, message).
        csv: The CSV file; csv_sha256: the digest of its bytes. Without one, the image root, and the digest of the CSV
            that would list it.
        files: Image name -> file, relative to the image root.
        mask_files: Image name -> file of its mask, relative to `mask_root`.
    """

    manifest: DatasetManifest
    table: pd.DataFrame
    image_root: Path
    problems: pd.DataFrame
    csv: Path
    csv_sha256: str
    files: dict[str, str]
    mask_root: Path | None = None
    mask_files: dict[str, str] = field(default_factory=dict)

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

    def mask_path(self, image: str) -> Path:
        """Returns the file of an image's mask; `open_mask` reads it."""
        if image not in self.mask_files:
            raise DataError(f"{self.manifest.name} has no mask of {image!r}; images with one are in the column `image`")
        return self.mask_root / self.mask_files[image]


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
    image_root, masks = Path(data_root) / manifest.image_root, manifest.masks
    csv, content = _read_content(manifest, data_root)
    problems = Problems(csv)
    table = check_table(read_text(content, problems), manifest, problems)
    mask_root = Path(data_root) / masks.root if masks else None
    if masks:
        table = name_masks(table, masks)
    files, mask_files = {}, {}
    if "image" in table:
        if check == "table":
            files = name_images(table, problems)
        else:
            files = find_images(table, image_root, manifest.image_suffix, problems)
        if "mask" in table and masks and check != "table":
            mask_files = find_masks(table, mask_root, masks, problems)
        elif "mask" in table and masks:
            mask_files = dict(zip(table["image"], table["mask"], strict=True))
        if check == "pixels":
            paths = {image: mask_root / file for image, file in mask_files.items()}
            check_pixels(table, image_root, files, paths, problems, masks.other_sizes if masks else ())
        check_repeats(table, files, problems)
    problems.stop(manifest.name)
    table = table.astype({"label": "int64"} if manifest.classes else {}).reset_index(drop=True)
    leaks = leakage_counts(table, files, manifest)
    for kind, row in leaks.iterrows():
        if row["in two splits"] is not pd.NA and row["in two splits"] > 0:
            message = f"{row['in two splits']:,} {kind} ids are in more than one split; see leakage_table"
            problems.add("warning", "leakage", message)
    if manifest.draw:
        shares = ", ".join(f"{split} {n}%" for split, n in manifest.draw.percent.items())
        names = f"SHA-256 of the names and splits: {_digest(table[['image', 'split']])}"
        problems.add("note", "drawn split", f"{csv} was drawn with seed {manifest.draw.seed} ({shares}); {names}")
    digest = hashlib.sha256(content).hexdigest()  # of the bytes read above: the file may have changed since
    return Dataset(manifest, table, image_root, problems.table(), csv, digest, files, mask_root, mask_files)


def _read_content(manifest: DatasetManifest, data_root: str | Path) -> tuple[Path, bytes]:
    """Returns the CSV of a dataset and its bytes; of split folders, the image root and the CSV that would list it.

    Raises:
        DataError: There is none.
    """
    place = Path(data_root) / manifest.table
    if not (place.is_dir() if manifest.split_folders else place.is_file()):
        sources = "".join(f"\n  {access.what}: {access.url} {access.note or ''}".rstrip() for access in manifest.access)
        fetch = f" (python run_all.py --fetch {manifest.name})" if any(a.fetch for a in manifest.access) else ""
        raise DataError(
            f"{manifest.name}: there is no {'folder' if manifest.split_folders else 'CSV'} {place}; data_root is "
            f"{data_root}. Set data_root (or PANDERM_DATA_ROOT) to the folder that contains {manifest.table}, or get "
            f"the data{fetch}:{sources}"
        )
    if manifest.split_folders:
        rows = pd.DataFrame(list_split_folders(manifest, data_root), columns=["image", "split"])
        return place, _as_csv(rows)
    if manifest.draw:
        return Path(data_root) / manifest.csv, drawn_table(manifest, data_root)
    return place, place.read_bytes()


def split_table(dataset: Dataset) -> pd.DataFrame:
    """Returns image counts per class (rows, with a total; without classes the total alone) and split.

    Published counts are beside them, if known.

    Cells of `published ...` are missing where the manifest has no number; the demo's stand-ins differ from them.
    """
    manifest, splits = dataset.manifest, dataset.table["split"].value_counts()
    counts = class_counts(dataset)
    counts.index = [manifest.title_of_label(k) for k in range(manifest.num_classes)]
    counts.loc["all"] = [splits.get(name, 0) for name in SPLITS]
    counts["all"] = counts.sum(axis=1)
    sizes, by_class = manifest.split_sizes or {}, manifest.class_counts or {}
    for name in SPLITS:
        if name in sizes or name in by_class:
            published = list(by_class.get(name, [pd.NA] * manifest.num_classes))
            total = sizes.get(name, sum(published) if name in by_class else pd.NA)
            counts[f"published {name}"] = pd.array([*published, total], dtype="Int64")
    return counts.rename_axis("class" if manifest.classes else "images")


def class_counts(dataset: Dataset) -> pd.DataFrame:
    """Returns image counts: a row per class (short name, in label order), a column per split (train, val, test)."""
    table, manifest = dataset.table, dataset.manifest
    if not manifest.classes:
        return pd.DataFrame(columns=list(SPLITS), dtype="int64").rename_axis(index="class")
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
        if kind == "image" and manifest.split_folders:  # a copy of an image in another split's folder
            ids = ids.map(lambda file: PurePosixPath(file).name, na_action="ignore")
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
    manifest, counts, splits = dataset.manifest, class_counts(dataset), dataset.table["split"].value_counts()
    parts = []
    if manifest.draw and (found := len(dataset.table)) != manifest.draw.images:
        parts.append(f"{found:,} images, not {manifest.draw.images:,}")
    for name, size in ({} if "split_sizes" in manifest.unverified else manifest.split_sizes or {}).items():
        if (found := splits.get(name, 0)) != size:
            parts.append(f"{found:,} {name} images, not {size:,}")
    for name, sizes in ({} if parts or "class_counts" in manifest.unverified else manifest.class_counts or {}).items():
        classes = zip(manifest.class_names, counts[name], sizes, strict=True)
        parts += [f"{found:,} {name} images of {k}, not {size:,}" for k, found, size in classes if found != size]
    return ", ".join(parts)


def describe(dataset: Dataset) -> dict:
    """Returns what a record keeps of its data, JSON-serialisable: digests, sizes and problem counts.

    `rows_sha256` covers image, split and label, if any, of every row used, in order; `csv_sha256` the bytes of the CSV.
    `masks_sha256` covers the name of each image, the name of its mask and that file's size in bytes.
    """
    table, counts = dataset.table, class_counts(dataset)
    splits = table["split"].value_counts()
    facts = {
        "dataset": dataset.manifest.name,
        "csv": dataset.manifest.csv or dataset.manifest.image_root,
        "csv_sha256": dataset.csv_sha256,
        "rows_sha256": _digest(table[["image", "split", *(["label"] if dataset.manifest.classes else [])]]),
        "split_sizes": {name: int(splits.get(name, 0)) for name in SPLITS},
        "class_counts": {name: counts[name].tolist() for name in SPLITS},
        "problems": {kind: int(n) for kind, n in dataset.problems["kind"].value_counts(sort=False).items()},
    }
    if dataset.manifest.masks:
        sizes = [dataset.mask_path(image).stat().st_size for image in table["image"]]
        facts["masks_sha256"] = _digest(table[["image", "mask"]].assign(bytes=sizes))
    return facts


def _digest(table: pd.DataFrame) -> str:
    return hashlib.sha256(_as_csv(table)).hexdigest()


def _as_csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n").encode()
