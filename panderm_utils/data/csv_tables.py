"""Reads a dataset's CSV as text, with the line of every row, and collects what is wrong with it in one report."""

import csv
import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

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
