"""The figures and tables that the paper notebooks left as files, and what those notebooks say of them."""

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from panderm_utils.batch import PAPER
from panderm_utils.report.pages import in_words, inline_markdown
from panderm_utils.workspace import Workspace

FAILED = ".failed.ipynb"
# The first text in a call that leaves a file: `tables.write_tables(table, folder, "name")`.
LEAVES = re.compile(r'(?:write_tables|save_figure)\([^"]*"([^"]+)"')

ABOUT_ITSELF = re.compile(r"\s*Reads records only.*", re.DOTALL)  # of the notebook, not of what it draws


@dataclass(frozen=True)
class Sheet:
    """A CSV file as text: its columns and its first rows, of `total`."""

    columns: list[str]
    rows: list[list[str]]
    total: int


@dataclass(frozen=True)
class Origin:
    """The paper notebook that left a figure or table, and what it says before it."""

    notebook: str
    title: str
    caption: str
    heading: str = ""
    note: str = ""


@dataclass(frozen=True)
class Exhibit:
    """A figure or a table.

    Attributes:
        files: By kind: "png", "pdf", "csv", "tex", "md".
        sheet: The table, or the data of a figure.
        records: The ids of the records that a figure was drawn from, as its metadata has them.
        alt: What a figure shows, in words.
        size: The figure's width and height in CSS pixels, at the size at which it was drawn.
    """

    name: str
    origin: Origin
    files: dict[str, Path]
    sheet: Sheet | None = None
    records: tuple[str, ...] = ()
    alt: str = ""
    size: tuple[int, int] = (0, 0)


def read_origins(space: Workspace) -> dict[str, Origin]:
    """Returns a pattern of file names -> which executed paper notebook leaves them, and what it says of them."""
    origins = {}
    for path in sorted((space.root / "executed" / PAPER).glob("[!.]*.ipynb")):
        try:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        except (ValueError, KeyError):
            continue
        texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
        title, caption = next((_heading(text) for kind, text in texts if kind == "markdown"), ("", ""))
        name, heading, note = path.name.removesuffix(FAILED).removesuffix(".ipynb"), "", ""
        for kind, text in texts:
            if kind == "markdown":
                heading, note = _heading(text)
                continue
            for literal in LEAVES.findall(text):
                pattern = ".+".join(map(re.escape, re.split(r"\{[^}]*\}", literal)))
                origins.setdefault(pattern, Origin(name, title, caption, heading, note))
    return origins


def read_figures(folder: Path, origins: dict[str, Origin]) -> list[Exhibit]:
    """Returns the figures of a folder, those of the paper's main part first."""
    figures = []
    for path in folder.glob("[!.]*.png"):
        with Image.open(path) as image:
            told, size, dpi = dict(image.text), image.size, image.info.get("dpi", (300, 300))[0]
        origin = _origin_of(path.stem, origins)
        origin = origin if origin.notebook else replace(origin, title=origin.heading)
        figures.append(
            Exhibit(
                name=path.stem,
                origin=origin,
                files=_kinds(path, ("png", "pdf", "csv")),
                sheet=read_sheet(path.with_suffix(".csv")),
                records=tuple(told.get("Records", "").split()),
                alt=told.get("Description") or origin.title,
                size=(round(size[0] * 96 / dpi), round(size[1] * 96 / dpi)),
            )
        )
    return sorted(figures, key=lambda figure: (not figure.name.startswith("figure"), figure.name))


def read_tables(folder: Path, origins: dict[str, Origin]) -> list[Exhibit]:
    """Returns the tables of a folder in the order in which the notebooks leave them."""
    paths = sorted(folder.glob("[!.]*.csv"))
    places = list(origins.values())
    tables = [
        Exhibit(p.stem, _origin_of(p.stem, origins), _kinds(p, ("csv", "tex", "md")), read_sheet(p)) for p in paths
    ]
    return sorted(tables, key=lambda t: places.index(t.origin) if t.origin in places else len(places))


def read_sheet(path: Path, most: int = 300) -> Sheet | None:
    """Returns at most so many rows of a CSV file, or None where there is none."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.reader(lines))
    return Sheet(rows[0], rows[1 : most + 1], len(rows) - 1) if rows else Sheet([], [], 0)


def pick_columns(sheet: Sheet, names: Iterable[str], every: bool = False) -> Sheet:
    """Returns those columns that a sheet has of the ones named; rows that are equal then come once, unless `every`."""
    places = [sheet.columns.index(name) for name in names if name in sheet.columns]
    rows = [tuple(row[place] for place in places) for row in sheet.rows]
    rows = [list(row) for row in (rows if every else dict.fromkeys(rows))]
    return Sheet([sheet.columns[place] for place in places], rows, len(rows))


def _origin_of(name: str, origins: dict[str, Origin]) -> Origin:
    """The origin of a file; of one that no notebook claims, its own name."""
    found = next((origin for pattern, origin in origins.items() if re.fullmatch(pattern, name)), None)
    return found or Origin("", "Others", "", in_words(name).capitalize())


def _heading(markdown: str) -> tuple[str, str]:
    """The heading of a cell as text, and its first paragraph as HTML."""
    lines = markdown.strip().split("\n")
    heading = lines.pop(0).lstrip("# ").strip() if lines[0].startswith("#") else ""
    paragraphs = [part for part in "\n".join(lines).split("\n\n") if part.strip()]
    return heading, inline_markdown(ABOUT_ITSELF.sub("", paragraphs[0])) if paragraphs else ""


def _kinds(path: Path, kinds: Iterable[str]) -> dict[str, Path]:
    return {kind: path.with_suffix(f".{kind}") for kind in kinds if path.with_suffix(f".{kind}").is_file()}
