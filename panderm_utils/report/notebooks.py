"""Executed notebooks as pages of the report: no scripts, pictures inside, each with a text alternative.

A page is made anew only when its notebook, the code here, the templates or nbconvert are others than when it was made.
"""

import hashlib
import html
import importlib.metadata
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from panderm_utils.pool import in_processes
from panderm_utils.report.pages import TEMPLATES, write_page
from panderm_utils.workspace import Workspace

# What a page shows of an output: the first of these that there is. Scripts and widgets are left out.
SHOWN = ("text/html", "text/markdown", "image/png", "image/jpeg", "text/plain")
WIDGET = "application/vnd.jupyter.widget-view+json"
RELATIVE_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)[^)]*\)")  # into the repository: leads nowhere from a report


@dataclass(frozen=True)
class NotebookPage:
    """An executed notebook and where it goes.

    Attributes:
        name: The run's, or the paper notebook's.
        page, run_page: Paths below the report; run_page is "" where there is none.
    """

    name: str
    source: Path
    page: str
    run_page: str = ""


def write_notebooks(report: Path, space: Workspace, wanted: list[NotebookPage], jobs: int) -> None:
    """Writes the pages of the notebooks that have none or another one yet, in several processes."""
    code = _code_digest(space)
    stamped = [(page, f"{code}{hashlib.sha256(page.source.read_bytes()).hexdigest()}") for page in wanted]
    todo = [(page, stamp) for page, stamp in stamped if _stamp_of(report / page.page) != stamp]
    in_processes(partial(_write_notebook, report, space), todo, jobs, "notebooks")


def _write_notebook(report: Path, space: Workspace, todo: tuple[NotebookPage, str]) -> None:
    page, stamp = todo
    try:
        body = _body(page)
    except ValueError as error:  # a copy that was cut short, say; the rest of the report is none the worse
        told = f"{page.source} cannot be read ({error}). To have it anew, run the same again with --force."
        body = f"<p>{html.escape(told)}</p>"
    facts = {"name": page.name, "run_page": page.run_page, "body": body, "stamp": stamp}
    write_page(report, page.page, "notebook.html", space=space, **facts)


def _body(page: NotebookPage) -> str:
    """Returns the cells of a notebook as HTML.

    Raises:
        ValueError: The file is no notebook.
    """
    import nbformat  # these two take seconds to load, and mostly there is nothing to do
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    notebook = nbformat.read(page.source, as_version=4)
    heading = page.name
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = next((line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")), heading)
            cell.source = RELATIVE_LINK.sub(r"\1", cell.source)
        cell.outputs = [_shown(output, f"{heading} (cell {cell.id})") for output in _kept(cell)]
    exporter = HTMLExporter(
        template_name="basic",  # the cells alone: no scripts, no fonts, no styles
        exclude_anchor_links=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    # nbconvert lets HTML in Markdown through and so would show a hostile name as markup; our notebooks have none.
    renderer = IPythonRenderer(escape=False, allow_harmful_protocols=False, exclude_anchor_links=True)
    renderer.inline_html = renderer.block_html = html.escape
    exporter.register_filter("markdown2html", MarkdownWithMath(renderer=renderer).render)
    return exporter.from_notebook_node(notebook)[0]


def _kept(cell) -> list:
    """The outputs of a cell without the progress bars, which are widgets."""
    return [output for output in cell.get("outputs", []) if WIDGET not in output.get("data", {})]


def _shown(output, alt: str):
    """An output with the one kind of data that is shown, and a text for whoever cannot see it."""
    if "data" in output:
        scripted = "<script" in output.data.get("text/html", "")
        kind = next((kind for kind in SHOWN[scripted:] if kind in output.data), None)
        output.data = {kind: output.data[kind]} if kind else {"text/plain": ""}
        if kind and kind.startswith("image/"):
            output.metadata[kind] = {**output.metadata.get(kind, {}), "alt": alt}
    return output


def _code_digest(space: Workspace) -> str:
    digest = hashlib.sha256(f"{importlib.metadata.version('nbconvert')} {space.profile}".encode())
    for path in [Path(__file__), *(TEMPLATES / name for name in ("base.html", "parts.html", "notebook.html"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _stamp_of(page: Path) -> str:
    try:
        with page.open(encoding="utf-8") as text:
            found = re.search(r'<meta name="stamp" content="(\w+)">', text.read(2000))
    except OSError:
        return ""
    return found[1] if found else ""
