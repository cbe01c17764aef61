"""Reads a dataset's CSV as text, with the line of every row, and collects what is wrong with it in one report."""

import csv
import io
import os
import posixpath
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from panderm_utils.data.image_files import ImageError, ImageFolder, oddity, unsafe
from panderm_utils.manifests import SPLITS, DatasetManifest

MISSING = ("", "nan", "na", "n/a", "none", "null", "<na>")  # spelled without case
SHOWN = 10  # problems of one kind named in a message; all are in the table
COLUMNS = 10_000  # that a table may have


class DataError(ValueError):
    """A dataset that cannot be used as it is; the message lists every fatal problem with file, row and remedy."""


@dataclass
class Problems:
    """What was found wrong with one CSV file and its images.

    Severity is "error" (a result would be wrong: fatal), "warning" (the reader must know) or "note" (put right here).
    """

    file: Path
    found: list[dict] = field(default_factory=list)

    def add(self, severity: str, kind: str, message: str, row: int | None = None, image: str = "") -> None:
        """Notes one problem; `row` is the 1-based line in the file, None if it concerns the whole file."""
        self.found.append({"severity": severity, "kind": kind, "row": row, "image": image, "message": message})

    def table(self) -> pd.DataFrame:
        """Returns all problems as DataFrame(severity, kind, row, image, message), the gravest first."""
        table = pd.DataFrame(self.found, columns=["severity", "kind", "row", "image", "message"])
        table["row"] = table["row"].astype("Int64")
        order = table["severity"].map({"error": 0, "warning": 1, "note": 2})
        return table.iloc[order.argsort(kind="stable")].reset_index(drop=True)

    def stop(self, dataset: str) -> None:
        """Raises DataError if anything is fatal; the text shows the first few of each kind and counts the rest."""
        fatal = [problem for problem in self.found if problem["severity"] == "error"]
        if not fatal:
            return
        counts = Counter(problem["kind"] for problem in fatal)
        lines = [f"{dataset}: {', '.join(f'{n:,} x {kind}' for kind, n in counts.items())}"]
        for kind, count in counts.items():
            members = [problem for problem in fatal if problem["kind"] == kind]
            for problem in members[:SHOWN]:
                place = f"{self.file}:{problem['row']}" if problem["row"] is not None else f"{self.file}"
                image = f"[{problem['image']}] " if problem["image"] else ""
                lines.append(f"  {place}: {shown(image + problem['message'])}")
            if count > SHOWN:
                lines.append(f"  ... and {count - SHOWN:,} more of this kind ({kind})")
        raise DataError("\n".join(lines))


def shown(text: str, length: int = 1000) -> str:
    """Returns text as a message shows it: what a terminal would obey or hide is escaped, what is long cut."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= length else f"{text[: length // 2]} ... {text[-length // 2 :]}"


def is_missing(values: pd.Series) -> pd.Series:
    """Tells which text cells stand for "nothing" (empty, nan, NA, None, ...)."""
    return values.str.strip().str.lower().isin(MISSING)


def read_text(raw: bytes, problems: Problems) -> pd.DataFrame:
    """Returns the cells of a CSV's bytes as stripped text, with a first column `row`: the 1-based line in the file.

    Tolerates, and notes, what spreadsheets do: a byte order mark, Windows line ends, blanks around a cell, semicolons
    or tabs between cells, empty lines. A ragged row, a quote that is not closed and an unreadable encoding are errors.
    """
    empty = pd.DataFrame({"row": pd.Series(dtype="int64")})
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        problems.add("error", "encoding", 'the file is UTF-16; save it as "CSV UTF-8"')
        return empty
    if raw.startswith(b"\xef\xbb\xbf"):
        problems.add("note", "byte order mark", "the file starts with a byte order mark; ignored")
    if b"\r" in raw:
        problems.add("note", "line ends", "the file has Windows or old Mac line ends; read as line ends")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = raw[: error.start].count(b"\n") + 1
        problems.add("error", "encoding", 'the line is not UTF-8; save the file as "CSV UTF-8"', row)
        return empty
    if "\0" in text:
        problems.add("error", "encoding", "the file holds NUL characters: it is damaged; fetch it again")
        return empty
    head = text.split("\n", 1)[0]
    separator = "," if "," in head else max(";\t", key=head.count) if set(head) & set(";\t") else ","
    if separator != ",":
        problems.add("note", "separator", f"the cells are separated by {separator!r} instead of a comma; read so")
    return _parse(text, separator, problems)


def _parse(text: str, separator: str, problems: Problems) -> pd.DataFrame:
    """Splits the text into cells; the line of a row is where it starts, also after quoted line breaks."""
    header: list[str] = []
    lines, cells = [], []
    # strict: a quote that is not closed would else swallow every row after it, in silence
    reader, start = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), 1
    try:
        for cell in reader:
            line, start = start, reader.line_num + 1
            stripped = [value.strip() for value in cell]
            if not any(stripped):
                continue
            if stripped != cell:
                what = ", ".join(repr(value) for value in cell if value != value.strip())
                problems.add("note", "stray blanks", f"blanks around {what} were stripped", line)
            if not header and len(cell) > COLUMNS:
                message = f"{len(cell):,} columns, of which {COLUMNS:,} can be read; end each row with a line break"
                problems.add("error", "too many columns", message, line)
                break
            if not header:
                header = _unique(stripped, problems)
            elif len(stripped) < len(header) or any(stripped[len(header) :]):
                counted = f"{len(stripped)} cells under {len(header)} column names"
                problems.add("error", "ragged row", f"{counted}; quote cells that hold a comma, add missing ones", line)
            else:
                lines.append(line)
                cells.append(stripped[: len(header)])
        else:
            if not header:
                problems.add("error", "empty file", "the file is empty; it needs a header line, and one row an image")
    except csv.Error as error:
        message = f"the row that begins here cannot be read ({error}); check its quotes: none may be open or single"
        problems.add("error", "ragged row", message, start)
    table = pd.DataFrame(cells, columns=header, dtype=object)
    table.insert(0, "row", pd.Series(lines, dtype="int64"))
    return table


def _unique(header: list[str], problems: Problems) -> list[str]:
    """Names nameless and repeated columns, so that every column can be addressed; `row` is taken by the line."""
    names: dict[str, None] = {}
    for place, name in enumerate(header):
        new = name or f"column_{place + 1}"
        new = "csv_row" if new == "row" else new
        if new in names:
            problems.add("warning", "repeated column", f"a second column {new!r} is read as {new}.{place + 1}", 1)
            new = f"{new}.{place + 1}"
        names[new] = None
    return list(names)


def typed(values: pd.Series) -> pd.Series:
    """Turns a text column into numbers where every cell that holds something is one; empty cells become missing."""
    values = values.mask(is_missing(values))
    numbers = pd.to_numeric(values, errors="coerce")
    return numbers if numbers.notna().eq(values.notna()).all() and values.notna().any() else values


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
