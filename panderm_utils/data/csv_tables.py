"""Reads a dataset's CSV as text, with each row's line number, and collects all problems in one report."""

import csv
import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from panderm_utils.manifests import SPLITS, DatasetManifest
from panderm_utils.messages import UserError, printable

MISSING = ("", "nan", "na", "n/a", "none", "null", "<na>")  # compared in lower case
MAX_SHOWN = 10  # problems of one kind in a message; the table has all of them
MAX_COLUMNS = 10_000


class DataError(UserError):
    """The dataset cannot be used as it is; the message lists every fatal problem with file, row and remedy.

    `problems` is `Problems.table()`, with all problems found before the error.
    """

    problems: pd.DataFrame | None = None


@dataclass
class Problems:
    """The problems of one CSV file and its images.

    Severity is "error" (fatal: results would be wrong), "warning" (the user should know) or "note" (fixed on reading).

    Attributes:
        file: The CSV; of a dataset without one, the folder of its images.
    """

    file: Path
    found: list[dict] = field(default_factory=list)

    def add(self, severity: str, kind: str, message: str, row: int | None = None, image: str = "") -> None:
        """Adds one problem; `row` is the 1-based line in the file, None if the whole file is concerned."""
        self.found.append({"severity": severity, "kind": kind, "row": row, "image": image, "message": message})

    def place(self, row: int | None) -> str:
        """Returns where a problem is: `file:line`, or the file or folder alone."""
        return f"{self.file}" if row is None or self.file.is_dir() else f"{self.file}:{row}"

    def table(self) -> pd.DataFrame:
        """Returns all problems as DataFrame(severity, kind, row, image, message), most severe first."""
        table = pd.DataFrame(self.found, columns=["severity", "kind", "row", "image", "message"])
        table["row"] = table["row"].astype("Int64")
        order = table["severity"].map({"error": 0, "warning": 1, "note": 2})
        return table.iloc[order.argsort(kind="stable")].reset_index(drop=True)

    def stop(self, dataset: str) -> None:
        """Raises DataError with the first few fatal problems of each kind and a count of the rest, if there are any."""
        fatal = [problem for problem in self.found if problem["severity"] == "error"]
        if not fatal:
            return
        counts = Counter(problem["kind"] for problem in fatal)
        lines = [f"{dataset}: {', '.join(f'{n:,} x {kind}' for kind, n in counts.items())}"]
        for kind, count in counts.items():
            members = [problem for problem in fatal if problem["kind"] == kind]
            for problem in members[:MAX_SHOWN]:
                place = self.place(problem["row"])
                image = f"[{problem['image']}] " if problem["image"] else ""
                lines.append(f"  {place}: {printable(image + problem['message'])}")
            if count > MAX_SHOWN:
                lines.append(f"  ... and {count - MAX_SHOWN:,} more of this kind ({kind})")
        error = DataError("\n".join(lines))
        error.problems = self.table()
        raise error


def is_missing(values: pd.Series) -> pd.Series:
    """Returns which text cells mean "no value" (empty, nan, NA, None, ...)."""
    return values.str.strip().str.lower().isin(MISSING)


def read_text(raw: bytes, problems: Problems) -> pd.DataFrame:
    """Returns the cells of a CSV's bytes as stripped text, with a first column `row`: the 1-based line in the file.

    Accepts, with a note, what spreadsheets produce: a byte order mark, Windows line endings, blanks around a cell,
    semicolons or tabs as separators, empty lines. Ragged rows, unclosed quotes and unreadable encodings are errors.
    """
    empty = pd.DataFrame({"row": pd.Series(dtype="int64")})
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        problems.add("error", "encoding", 'the file is UTF-16; save it as "CSV UTF-8"')
        return empty
    if raw.startswith(b"\xef\xbb\xbf"):
        problems.add("note", "byte order mark", "the file starts with a byte order mark; ignored")
    if b"\r" in raw:
        problems.add("note", "line ends", "the file has Windows or old Mac line endings; read as line breaks")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = raw[: error.start].count(b"\n") + 1
        problems.add("error", "encoding", 'the line is not UTF-8; save the file as "CSV UTF-8"', row)
        return empty
    if "\0" in text:
        problems.add("error", "encoding", "the file contains NUL characters: it is damaged; download it again")
        return empty
    head = text.split("\n", 1)[0]
    separator = "," if "," in head else max(";\t", key=head.count) if set(head) & set(";\t") else ","
    if separator != ",":
        problems.add("note", "separator", f"cells are separated by {separator!r}, not commas; read with that separator")
    return _parse(text, separator, problems)


def _parse(text: str, separator: str, problems: Problems) -> pd.DataFrame:
    """Splits the text into cells; a row's line is where it starts, even after quoted line breaks."""
    header: list[str] = []
    lines, cells = [], []
    # strict: otherwise an unclosed quote silently swallows every row after it
    reader, start = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), 1
    try:
        for cell in reader:
            line, start = start, reader.line_num + 1
            stripped = [value.strip() for value in cell]
            if not any(stripped):
                continue
            if stripped != cell:
                padded = ", ".join(repr(value) for value in cell if value != value.strip())
                problems.add("note", "stray blanks", f"blanks around {padded} were stripped", line)
            if not header and len(cell) > MAX_COLUMNS:
                message = f"{len(cell):,} columns, the limit is {MAX_COLUMNS:,}; end each row with a line break"
                problems.add("error", "too many columns", message, line)
                break
            if not header:
                header = _unique(stripped, problems)
            elif len(stripped) < len(header) or any(stripped[len(header) :]):
                counted = f"{len(stripped)} cells under {len(header)} column names"
                problems.add("error", "ragged row", f"{counted}; quote cells with commas, add missing cells", line)
            else:
                lines.append(line)
                cells.append(stripped[: len(header)])
        else:
            if not header:
                problems.add("error", "empty file", "the file is empty; it needs a header line and one row per image")
    except csv.Error as error:
        message = f"the row that starts here cannot be read ({error}); check its quotes: each must be closed"
        problems.add("error", "ragged row", message, start)
    table = pd.DataFrame(cells, columns=header, dtype=object)
    table.insert(0, "row", pd.Series(lines, dtype="int64"))
    return table


def _unique(header: list[str], problems: Problems) -> list[str]:
    """Returns unique column names: unnamed and repeated columns get new ones; `row` is reserved for the line."""
    names: dict[str, None] = {}
    for place, name in enumerate(header):
        new = name or f"column_{place + 1}"
        new = "csv_row" if new == "row" else new
        if new in names:
            problems.add("warning", "repeated column", f"a second column {new!r} is named {new}.{place + 1}", 1)
            new = f"{new}.{place + 1}"
        names[new] = None
    return list(names)


def typed(values: pd.Series) -> pd.Series:
    """Returns a text column as numbers if every non-empty cell is a number; empty cells become missing."""
    values = values.mask(is_missing(values))
    numbers = pd.to_numeric(values, errors="coerce")
    return numbers if numbers.notna().eq(values.notna()).all() and values.notna().any() else values


def check_table(table: pd.DataFrame, manifest: DatasetManifest, problems: Problems) -> pd.DataFrame:
    """Returns the rows with a valid split, `image`, `split` and `label` first; checks columns, splits and labels."""
    splits = ("test",) if manifest.external else ("train", "test")
    if manifest.external:
        table = table.assign(split="test")
    labels = [manifest.label_column] if manifest.classes else []
    named = ["mask"] if manifest.masks and not manifest.masks.suffix else []
    needed = ("image", "split", *labels, *named)
    present = [name for name in table.columns if name != "row"]
    for name in needed:
        if present and name not in table:  # a file without any column was reported when it was read
            near = [other for other in present if other.lower() == name] or present
            problems.add("error", "missing column", f"no column `{name}` among {', '.join(near)}; rename or add it", 1)
    for kind, name in manifest.groups.items():
        if name not in table:
            problems.add("warning", "missing group", f"no column `{name}`: leakage by {kind} cannot be checked", 1)
    if "split" in table:
        valid = table["split"].isin(SPLITS)
        for at in table.index[~valid]:
            message = f"split {table['split'][at]!r} is not one of {', '.join(SPLITS)}: row left out, as upstream does"
            problems.add("warning", "unknown split", message, table["row"][at], image_at(table, at))
        table = table[valid]
        for name in splits:
            if not (table["split"] == name).any():
                message = f"no row has the split `{name}`; name splits {', '.join(SPLITS)}"
                if folder := manifest.split_folders.get(name):
                    message = f"no {manifest.image_suffix} file in the folder {folder}; unpack the images there"
                problems.add("error", "empty split", message)
    if "image" in table:
        for row in table.loc[table["image"] == "", "row"]:
            problems.add("error", "empty image name", "the image name is empty; fill it in or remove the row", row)
    if labels and manifest.label_column in table:
        label = check_labels(table, manifest, problems)
        if manifest.label_column != "label" and "label" in table:
            table = table.rename(columns={"label": "csv_label"})
        table = table.assign(label=label)
        if "split" in table and label.notna().all():
            check_classes(table, splits, manifest, problems)
    if "split" in table:
        check_sizes(table, manifest, problems)
    if not labels and "label" in table:
        table = table.rename(columns={"label": "csv_label"})
    first = [name for name in ("row", "image", "split", "label", *named) if name in table]
    ids = set(manifest.groups.values())
    rest = {name: typed(table[name]) for name in table.columns if name not in (*first, *ids)}
    rest |= {name: table[name].mask(is_missing(table[name])) for name in table.columns if name in ids}
    return table[first].assign(**rest)


def check_labels(table: pd.DataFrame, manifest: DatasetManifest, problems: Problems) -> pd.Series:
    """Returns the labels as numbers (missing where invalid) and reports each cell that is not one of the classes."""
    text = table[manifest.label_column]
    label = pd.to_numeric(text, errors="coerce")
    usable = label.isin(range(manifest.num_classes))
    valid = ", ".join(f"{k} = {name}" for k, name in enumerate(manifest.class_names))
    absent = is_missing(text)
    for at in table.index[~usable]:
        kind = "missing label" if absent[at] else "invalid label"
        fault = "the label is empty" if absent[at] else f"label {text[at]!r} is not a class"
        message = f"{fault} in `{manifest.label_column}`; valid are {valid}; correct or remove the row"
        problems.add("error", kind, message, table["row"][at], image_at(table, at))
    return label.where(usable)


def check_classes(table: pd.DataFrame, splits: tuple, manifest: DatasetManifest, problems: Problems) -> None:
    """Reports classes without a row in one of the splits."""
    counts = pd.crosstab(table["label"], table["split"])
    counts = counts.reindex(index=range(manifest.num_classes), columns=SPLITS, fill_value=0)
    for split in splits:
        for k in counts.index[counts[split] == 0]:
            problems.add("warning", "empty class", f"class {k} ({manifest.class_names[k]}) has no {split} row")
        if (counts[split] > 0).sum() == 1:
            severity = "error" if split == "train" else "warning"
            message = f"all {split} rows have one class; check the column `{manifest.label_column}`"
            problems.add(severity, "single class", message)


def check_sizes(table: pd.DataFrame, manifest: DatasetManifest, problems: Problems) -> None:
    """Reports split sizes that differ from the manifest's, or the size of a drawn dataset."""
    if manifest.draw and len(table) != manifest.draw.images:
        message = f"{len(table):,} rows, {manifest.draw.images:,} in the complete data: the draw is another"
        problems.add("note", "split size", message)
    for split, size in (manifest.split_sizes or {}).items():
        if (found := int((table["split"] == split).sum())) != size:
            message = f"{found:,} {split} rows, {size:,} in the published data: scores are not directly comparable"
            problems.add("note", "split size", message)


def image_at(table: pd.DataFrame, at: int) -> str:
    """Returns the image name at an index label, "" if the table has no such column."""
    return table["image"][at] if "image" in table else ""
