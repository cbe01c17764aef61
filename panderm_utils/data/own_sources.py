"""Reads what `--new-dataset` names into one table: a CSV, several CSVs with their splits, or a folder per class."""

import itertools
import os
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import pandas as pd

from panderm_utils.data.column_contents import SPLIT_NAMES, role_of
from panderm_utils.data.csv_tables import DataError, Problems, read_text
from panderm_utils.data.image_files import SUFFIXES, ImageIndex
from panderm_utils.data.own_masks import split_off_masks
from panderm_utils.workspace import settle_path

INDEX_NAMES = ("index", "indexes", "indices", "idx")  # headers of row numbers, counted from 0


@dataclass(frozen=True)
class Source:
    """What the user gave.

    Attributes:
        table: The cells as text, after a first column `row` for messages: a line, or `file:line` if there are several.
        images: The images that the cells may name; masks: the masks, if the user named their folder.
        place: The file or folder, for messages.
        csv: The CSV if it is the only one; it may then be used as it is.
        split: The column of splits that the user stated by files or folders, "" if none.
        messages: What was noted on reading.
    """

    table: pd.DataFrame
    images: ImageIndex
    place: Path
    masks: ImageIndex | None = None
    csv: Path | None = None
    split: str = ""
    messages: list[str] = field(default_factory=list)


def read_source(paths: list[str | Path], image_dir: str | Path | None, mask_dir: str | Path | None = None) -> Source:
    """Returns the table and images that the user named.

    Args:
        paths: One CSV; several CSVs, each named after its split or written `split=file`, of which one may be the whole
            table that the others list rows of; or a folder with a folder of images per class.
        image_dir: The folder that contains the images, at any depth; None for a folder per class, which has them.
        mask_dir: The folder that contains the images' masks, if any; a folder of images then needs no classes.

    Raises:
        DataError: Something is missing, empty or damaged, or the files' splits are unclear.
    """
    places = [_split_and_path(str(path), several=len(paths) > 1) for path in paths]
    for _, path in places:
        if not path.exists() or (path.is_dir() and len(paths) > 1):
            raise DataError(f"there is no CSV {path}; give the path of an existing file")
    folder = places[0][1] if places[0][1].is_dir() else None
    if folder and image_dir and settle_path(image_dir) != folder:
        raise DataError(f"{folder} is a folder, whose images are its own; leave --images out, or give a CSV")
    if not folder and not image_dir:
        raise DataError(f"{places[0][1]} needs --images DIR, the folder that contains its images")
    images, masks = split_off_masks(_index_images(folder or settle_path(image_dir)), mask_dir)
    if folder:
        return _read_folder(images, masks)
    if len(places) == 1:
        path = places[0][1]
        table, messages = _read_csv(path)
        header = [name for name in table.columns if name != "row"]
        if any(map(images.find, header)) and not any(map(role_of, header)):
            found = f"the first line is data ({', '.join(header)})"
            raise DataError(f"{path}:1: {found}; add a line of column names, such as image,label")
        return Source(table, images, path, masks, csv=path, messages=messages)
    return replace(_read_files(places, images), masks=masks)


def _index_images(root: Path) -> ImageIndex:
    if not root.is_dir():
        raise DataError(f"there is no image folder {root}; give --images the folder that contains the images")
    images = ImageIndex(root)
    if not images.files:
        others = Counter(Path(name).suffix.lower() or "(none)" for *_, names in os.walk(root) for name in names)
        contents = ", ".join(f"{n:,} x {suffix}" for suffix, n in others.most_common(5)) or "nothing"
        raise DataError(f"{root} has no image ({', '.join(SUFFIXES)}) but {contents}; give --images another folder")
    return images


def _split_and_path(text: str, several: bool) -> tuple[str, Path]:
    """Returns the split ("" if none) and the path of `train=a.csv`, or of a file named after its split."""
    stated, _, path = text.partition("=")
    if path and stated.lower() in SPLIT_NAMES:
        return SPLIT_NAMES[stated.lower()], settle_path(path)
    words = {SPLIT_NAMES[word] for word in re.split(r"[\W_]+", Path(text).stem.lower()) if word in SPLIT_NAMES}
    return (words.pop() if several and len(words) == 1 else ""), settle_path(text)


def _read_csv(path: Path) -> tuple[pd.DataFrame, list[str]]:
    problems = Problems(path)
    table = read_text(path.read_bytes(), problems)
    problems.stop(path.name)
    if table.empty:
        raise DataError(f"{path}: the CSV has no rows; it needs a header line and one row per image")
    return table, [problem["message"] for problem in problems.found][:5]


def _read_files(places: list[tuple[str, Path]], images: ImageIndex) -> Source:
    """Returns the rows of several CSVs, one below the other, or those of the whole table that the others list."""
    whole = [path for split, path in places if not split]
    parts = [(split, path) for split, path in places if split]
    if len(whole) > 1 or not {"train", "test"} <= {split for split, _ in parts}:
        raise DataError(
            f"{', '.join(path.name for _, path in places)}: which is which split? Write --new-dataset "
            f"train={places[0][1].name} test={places[-1][1].name}; a file without a split is the whole table"
        )
    tables, messages = [], []
    for split, path in parts:
        table, notes = _read_csv(path)
        table = table.rename(columns={"split": "csv_split"})
        tables.append(table.assign(row=[f"{path.name}:{line}" for line in table["row"]], split=split))
        messages += [f"{path.name}: {note}" for note in notes] + [f"{path.name} is {split}: {len(table):,} rows"]
    if not whole:
        table = pd.concat(tables).fillna("").reset_index(drop=True)
        return Source(table, images, parts[0][1], split="split", messages=messages)
    table, notes = _read_csv(whole[0])
    table = table.rename(columns={"split": "csv_split"}).assign(split="")
    for (split, path), listed in zip(parts, tables, strict=True):
        rows = _listed_rows(table, listed, path, whole[0])
        if twice := int((table.loc[rows, "split"] != "").sum()):
            raise DataError(f"{path}: {twice:,} of its rows are in another split's file too; a row has one split")
        table.loc[rows, "split"] = split
    messages = [f"{whole[0].name}: {note}" for note in notes] + messages
    return Source(table, images, whole[0], split="split", messages=messages)


def _listed_rows(table: pd.DataFrame, listed: pd.DataFrame, path: Path, whole: Path) -> pd.Index:
    """Returns the rows of the whole table that an index file lists: by a column of the same name, or by row numbers."""
    columns = [name for name in listed.columns if name not in ("row", "split")]
    for column in columns:
        if column in table and table[column].is_unique and set(listed[column]) <= set(table[column]):
            return table.index[table[column].isin(listed[column])]
    for column in columns:
        numbers = pd.to_numeric(listed[column], errors="coerce")
        if column.lower() in INDEX_NAMES and numbers.isin(range(len(table))).all():
            return table.index[numbers.astype(int)]
    raise DataError(
        f"{path}: none of its columns ({', '.join(columns)}) lists rows of {whole.name}; give it a column that both "
        f"files have, with a different value in each row, or `index`: row numbers, where 0 is the first row"
    )


def _read_folder(images: ImageIndex, masks: ImageIndex | None) -> Source:
    """Returns a row per image, with a column per level of folders: `split`, and `label` if it is the only other one.

    Several others are `folder_1`, `folder_2`, ...; the user says what they are. Images with masks need no folders.
    """
    root = images.root
    csvs = sorted(root.glob("*.csv"))
    levels = [PurePosixPath(file).parts[:-1] for file in images.files]
    below = {parts for parts in levels if parts}
    alike = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*below, strict=False))
    shared = len(list(alike)) if len(below) > 1 or masks is not None else 0  # folders that all images are in
    depth = max(map(len, levels)) - shared
    if depth < 1 and masks is None:
        remedy = (
            f"give its CSV: --new-dataset {csvs[0]} --images {root}"
            if csvs
            else "sort them into one, or give a CSV, or masks: --masks DIR"
        )
        raise DataError(f"{root} has {len(images.files):,} images but no folder per class; {remedy}")
    padded = [(parts[shared:] + ("",) * depth)[:depth] for parts in levels]
    names = pd.DataFrame(padded, columns=[f"folder_{k + 1}" for k in range(depth)], dtype=object)
    splits = names.get("folder_1", pd.Series(dtype=object)).str.lower().map(SPLIT_NAMES)
    has_splits = splits.nunique() > 1 and (depth > 1 or (masks is not None and splits.notna().all()))
    if has_splits:
        names = names.rename(columns={"folder_1": "split"})
    if len(names.columns) - has_splits == 1:
        names = names.rename(columns={names.columns[-1]: "label"})
    table = pd.DataFrame({"row": images.files, "image": images.files}, dtype=object).join(names.iloc[:, ::-1])
    levels = [text for column, text in (("split", "split"), ("label", "class")) if column in names]
    messages = [f"{root} is read as a folder per {' and '.join(levels)}, such as {images.files[0]}"] if levels else []
    messages += [f"{csv.name} is not read; to read it: --new-dataset {csv} --images {root}" for csv in csvs[:3]]
    return Source(table, images, root, masks, split="split" if has_splits else "", messages=messages)
