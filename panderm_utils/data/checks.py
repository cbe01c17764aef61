"""The checks that a dataset passes before anything is computed from it; what they find goes into one `Problems`.

An error is what would make a result wrong; a warning what the reader must know; a note what was put right here.
"""

import os
import posixpath
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from panderm_utils.data.csv_tables import Problems, is_missing, typed
from panderm_utils.data.image_files import ImageError, ImageFolder, oddity, unsafe
from panderm_utils.manifests import SPLITS, DatasetManifest


def check_table(table: pd.DataFrame, manifest: DatasetManifest, problems: Problems) -> pd.DataFrame:
    """Checks columns, splits and labels; returns the rows of known splits with `image`, `split` and `label` first."""
    splits = ("test",) if manifest.external else ("train", "test")
    if manifest.external:
        table = table.assign(split="test")
    needed = ("image", "split", manifest.label_column)
    present = [name for name in table.columns if name != "row"]
    for name in needed:
        if present and name not in table:  # without any column the file could not be read, which is told already
            near = [other for other in present if other.lower() == name] or present
            problems.add("error", "missing column", f"no column `{name}` among {', '.join(near)}; rename or add it", 1)
    for kind, name in manifest.groups.items():
        if name not in table:
            problems.add("warning", "missing group", f"no column `{name}`: leakage by {kind} cannot be checked", 1)
    if "split" in table:
        known = table["split"].isin(SPLITS)
        for at in table.index[~known]:
            message = (
                f"split {table['split'][at]!r} is none of {', '.join(SPLITS)}: the row is left out, as upstream does"
            )
            problems.add("warning", "unknown split", message, table["row"][at], image_at(table, at))
        table = table[known]
        for name in splits:
            if not (table["split"] == name).any():
                problems.add("error", "empty split", f"no row has the split `{name}`; name splits {', '.join(SPLITS)}")
    if "image" in table:
        for row in table.loc[table["image"] == "", "row"]:
            problems.add("error", "empty image name", "the image name is empty; fill it in or remove the row", row)
    if manifest.label_column in table:
        label = check_labels(table, manifest, problems)
        if manifest.label_column != "label" and "label" in table:
            table = table.rename(columns={"label": "csv_label"})
        table = table.assign(label=label)
        if "split" in table and label.notna().all():
            check_classes(table, splits, manifest, problems)
    first = [name for name in ("row", "image", "split", "label") if name in table]
    ids = set(manifest.groups.values())
    rest = {name: typed(table[name]) for name in table.columns if name not in (*first, *ids)}
    rest |= {name: table[name].mask(is_missing(table[name])) for name in table.columns if name in ids}
    return table[first].assign(**rest)


def check_labels(table: pd.DataFrame, manifest: DatasetManifest, problems: Problems) -> pd.Series:
    """Returns the labels as numbers (missing where unusable) and notes each cell that is no class of the manifest."""
    text = table[manifest.label_column]
    label = pd.to_numeric(text, errors="coerce")
    usable = label.isin(range(manifest.num_classes))
    valid = ", ".join(f"{k} = {name}" for k, name in enumerate(manifest.class_names))
    absent = is_missing(text)
    for at in table.index[~usable]:
        kind = "missing label" if absent[at] else "invalid label"
        given = "the label is empty" if absent[at] else f"label {text[at]!r} is no class"
        message = f"{given} in `{manifest.label_column}`; valid are {valid}; correct or remove the row"
        problems.add("error", kind, message, table["row"][at], image_at(table, at))
    return label.where(usable)


def check_classes(table: pd.DataFrame, splits: tuple, manifest: DatasetManifest, problems: Problems) -> None:
    """Notes classes without a row in one of the splits, and split sizes other than the manifest's."""
    counts = pd.crosstab(table["label"], table["split"])
    counts = counts.reindex(index=range(manifest.num_classes), columns=SPLITS, fill_value=0)
    for split in splits:
        for k in counts.index[counts[split] == 0]:
            problems.add("warning", "empty class", f"class {k} ({manifest.class_names[k]}) has no {split} row")
        if (counts[split] > 0).sum() == 1:
            severity = "error" if split == "train" else "warning"
            message = f"all {split} rows are of one class; check the column `{manifest.label_column}`"
            problems.add(severity, "single class", message)
    for split, size in (manifest.split_sizes or {}).items():
        if (found := int((table["split"] == split).sum())) != size:
            message = f"{found:,} {split} rows, {size:,} in the published data: scores are not comparable row by row"
            problems.add("note", "split size", message)


def find_images(table: pd.DataFrame, image_root: Path, suffix: str, problems: Problems) -> dict[str, str]:
    """Returns the file of each image name, relative to the image root; notes what is missing or spelled otherwise."""
    if not image_root.is_dir():
        remedy = "unpack the images there, or correct image_root in the manifest"
        problems.add("error", "missing folder", f"there is no image root {image_root}; {remedy}")
        return {}
    folder, files, looked = ImageFolder(image_root), {}, set()
    for row, name in zip(table["row"], table["image"], strict=True):
        if name in looked or not name:
            continue
        looked.add(name)
        file, remark = folder.find(name, suffix)
        if file is not None:
            files[name] = file
            if remark:
                problems.add("note", "file name", remark, row, name)
        elif "missing" in remark or "differ only" in remark:
            problems.add("error", "missing file", f"{remark} below {image_root}; add it or remove the row", row, name)
        else:
            problems.add("error", "unsafe path", f"{remark}; put the file below {image_root}", row, name)
    return files


def name_images(table: pd.DataFrame, problems: Problems) -> dict[str, str]:
    """Returns the file of each image name by its spelling alone, without looking at the disk."""
    files = {}
    for row, name in zip(table["row"], table["image"], strict=True):
        if reason := unsafe(name) if name else "":
            problems.add("error", "unsafe path", f"{reason}; name a file below the image root", row, name)
        elif name:
            files[name] = posixpath.normpath(name.replace("\\", "/"))
    return files


def check_pixels(table: pd.DataFrame, image_root: Path, files: dict[str, str], problems: Problems) -> None:
    """Decodes every image, with a progress bar, and notes those that cannot be used and those of unusual modes."""

    def look(row_and_name: tuple[int, str]) -> tuple[str, str, str]:
        path = image_root / files[row_and_name[1]]
        try:
            return ("note", "image mode", found) if (found := oddity(path)) else ("", "", "")
        except ImageError as error:
            return "error", "unreadable image", str(error)

    first = table.drop_duplicates("image")
    items = [(row, name) for row, name in zip(first["row"], first["image"], strict=True) if name in files]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes outside Python's lock
        found = tqdm(pool.map(look, items), total=len(items), desc="checking pixels", unit="image")
        for (row, name), (severity, kind, message) in zip(items, found, strict=True):
            if kind:
                problems.add(severity, kind, message, row, name)


def check_repeats(table: pd.DataFrame, files: dict[str, str], problems: Problems) -> None:
    """Notes images that stand in several rows: of different labels (fatal), or twice in one split."""
    if "split" not in table or "label" not in table:
        return
    named = table.assign(file=table["image"].map(files)).dropna(subset=["file"])
    for file, rows in named[named.duplicated("file", keep=False)].groupby("file"):
        lines = ", ".join(str(row) for row in rows["row"])
        first = rows.iloc[0]
        if rows["label"].nunique() > 1:
            labels = ", ".join(f"{label:.0f}" for label in rows["label"])
            message = f"one image has the labels {labels} in the rows {lines}; keep one of the rows"
            problems.add("error", "contradicting labels", message, first["row"], first["image"])
        elif rows["split"].duplicated().any():
            message = f"the file {file} stands in the rows {lines}: it counts as often"
            problems.add("warning", "repeated image", message, first["row"], first["image"])


def image_at(table: pd.DataFrame, at: int) -> str:
    """Returns the image name at an index label, "" where there is no such column."""
    return table["image"][at] if "image" in table else ""
