"""The figures and tables of a report, read from their files, and where each comes from: the executed notebook."""

import ast
import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from panderm_utils.batch import PAPER
from panderm_utils.report.pages import inline_markdown, readable_name
from panderm_utils.workspace import Workspace

FAILED = ".failed.ipynb"
WRITERS = ("write_tables", "save_figure")  # (content, folder, name, ...)

ABOUT_NOTEBOOK = re.compile(r"\s*Only reads records.*", re.DOTALL)  # describes the notebook, not its figure


@dataclass(frozen=True)
class Sheet:
    """A CSV file as text: its columns and the first of its `total` rows."""

    columns: list[str]
    rows: list[list[str]]
    total: int


@dataclass(frozen=True)
class Origin:
    """The paper notebook that wrote a figure or table, with its title and caption, and the text above the cell."""

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
        records: Ids of the records that a figure was drawn from, from its metadata.
        alt: Text alternative of a figure.
        size: Width and height of a figure in CSS pixels, at its original size.
    """

    name: str
    origin: Origin
    files: dict[str, Path]
    sheet: Sheet | None = None
    records: tuple[str, ...] = ()
    alt: str = ""
    size: tuple[int, int] = (0, 0)


def read_origins(space: Workspace) -> dict[str, Origin]:
    """Returns pattern of file names -> the executed paper notebook that writes them, with its texts."""
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
            for pattern in _written(text):
                origins.setdefault(pattern, Origin(name, title, caption, heading, note))
    return origins


def _written(code: str) -> Iterator[str]:
    """Yields a pattern of each name under which a cell writes tables or figures."""
    try:
        calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call) and len(node.args) > 2]
    except SyntaxError:  # a cell that could not run
        return
    for call in calls:
        if ast.unparse(call.func).split(".")[-1] in WRITERS:
            name = call.args[2]
            parts = name.values if isinstance(name, ast.JoinedStr) else [name]
            pattern = "".join(re.escape(part.value) if isinstance(part, ast.Constant) else ".+" for part in parts)
            if pattern != ".+":  # a name that only the run knows could be any
                yield pattern


def read_figures(folder: Path, origins: dict[str, Origin]) -> list[Exhibit]:
    """Returns the figures of a folder, those of the paper's main text first."""
    figures = []
    for path in folder.glob("[!.]*.png"):
        metadata, size = read_picture(path)
        origin = _origin_of(path.stem, origins)
        if not origin.notebook:
            origin = replace(origin, title=origin.heading)
        elif path.stem.startswith(f"{origin.notebook}_"):  # not the notebook's first figure, which has its title
            title = f"{origin.title.partition(':')[0]}: {origin.heading[:1].lower()}{origin.heading[1:]}"
            origin = replace(origin, title=title, caption=origin.note)
        figures.append(
            Exhibit(
                name=path.stem,
                origin=origin,
                files=_kinds(path, ("png", "pdf", "csv")),
                sheet=read_sheet(path.with_suffix(".csv")),
                records=tuple(metadata.get("Records", "").split()),
                alt=metadata.get("Description") or origin.title,
                size=size,
            )
        )
    return sorted(figures, key=lambda figure: (not figure.name.startswith("figure"), figure.name))


def read_picture(path: Path) -> tuple[dict[str, str], tuple[int, int]]:
    """Returns the metadata of a PNG, and its width and height in CSS pixels at its original size."""
    with Image.open(path) as image:
        dpi = image.info.get("dpi", (300, 300))[0]
        return dict(image.text), (round(image.width * 96 / dpi), round(image.height * 96 / dpi))


def read_tables(folder: Path, origins: dict[str, Origin]) -> list[Exhibit]:
    """Returns the tables of a folder in the order in which the notebooks write them."""
    paths = sorted(folder.glob("[!.]*.csv"))
    order = list(origins.values())
    tables = [
        Exhibit(p.stem, _origin_of(p.stem, origins), _kinds(p, ("csv", "tex", "md")), read_sheet(p)) for p in paths
    ]
    return sorted(tables, key=lambda t: order.index(t.origin) if t.origin in order else len(order))


def read_sheet(path: Path, max_rows: int = 300) -> Sheet | None:
    """Returns the first rows of a CSV file, or None if the file is missing."""
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.reader(lines))
    return Sheet(rows[0], rows[1 : max_rows + 1], len(rows) - 1) if rows else Sheet([], [], 0)


def select_columns(sheet: Sheet, names: Iterable[str], duplicates: bool = False) -> Sheet:
    """Returns the named columns that a sheet has, with equal rows only once unless `duplicates`."""
    places = [sheet.columns.index(name) for name in names if name in sheet.columns]
    rows = [tuple(row[place] for place in places) for row in sheet.rows]
    rows = [list(row) for row in (rows if duplicates else dict.fromkeys(rows))]
    return Sheet([sheet.columns[place] for place in places], rows, len(rows))


def _origin_of(name: str, origins: dict[str, Origin]) -> Origin:
    """Returns the origin of a file; its name is the title if no notebook writes it."""
    origin = next((origin for pattern, origin in origins.items() if re.fullmatch(pattern, name)), None)
    return origin or Origin("", "Others", "", readable_name(name).capitalize())


def _heading(markdown: str) -> tuple[str, str]:
    """Returns the heading of a cell as text, and its first paragraph as HTML."""
    lines = markdown.strip().split("\n")
    heading = lines.pop(0).lstrip("# ").strip() if lines[0].startswith("#") else ""
    paragraphs = [part for part in "\n".join(lines).split("\n\n") if part.strip()]
    return heading, inline_markdown(ABOUT_NOTEBOOK.sub("", paragraphs[0])) if paragraphs else ""


def _kinds(path: Path, kinds: Iterable[str]) -> dict[str, Path]:
    return {kind: path.with_suffix(f".{kind}") for kind in kinds if path.with_suffix(f".{kind}").is_file()}
