"""Converts executed notebooks to pages of the report: no scripts, images embedded, each with a text alternative.

A page is rewritten only if its notebook, this module, the templates or nbconvert have changed.
"""

import hashlib
import html
import importlib.metadata
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from panderm_utils.report.pages import TEMPLATES, Site, stamp_of, write_page
from panderm_utils.workspace import Workspace

# A page shows the first of these kinds that an output has. Scripts and widgets are left out.
MIME_TYPES = ("text/html", "text/markdown", "image/png", "image/jpeg", "text/plain")
WIDGET = "application/vnd.jupyter.widget-view+json"  # a progress bar
RELATIVE_LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)[^)]*\)")  # into the repository: broken in a report


@dataclass(frozen=True)
class NotebookPage:
    """An executed notebook and its page.

    Attributes:
        name: The run id, or the paper notebook's name.
        page, run_page: Paths below the report; run_page is "" for a paper notebook.
    """

    name: str
    source: Path
    page: str
    run_page: str = ""


def notebook_tasks(report: Path, space: Workspace, site: Site, pages: list[NotebookPage]) -> list[partial]:
    """Returns the functions that write the missing and outdated pages, to be called in any process."""
    code = _code_digest(site)
    stamped = [(page, f"{code}{hashlib.sha256(page.source.read_bytes()).hexdigest()}") for page in pages]
    todo = [(page, stamp) for page, stamp in stamped if stamp_of(report / page.page) != stamp]
    return [partial(_write_notebook, report, space, site, page, stamp) for page, stamp in todo]


def _write_notebook(report: Path, space: Workspace, site: Site, page: NotebookPage, stamp: str) -> None:
    try:
        body = _body(page)
    except ValueError as error:  # such as a truncated file; the other pages are written all the same
        message = f"{page.source} cannot be read ({error}). To recreate it, repeat the run with --force."
        body = f"<p>{html.escape(message)}</p>"
    facts = {"name": page.name, "run_page": page.run_page, "body": body, "stamp": stamp}
    write_page(report, page.page, "notebook.html", space=space, site=site, **facts)


def _body(page: NotebookPage) -> str:
    """Returns the cells of a notebook as HTML.

    Raises:
        ValueError: The file is not a notebook.
    """
    import nbformat  # these take seconds to import, and are rarely needed
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    notebook = nbformat.read(page.source, as_version=4)
    heading = page.name
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = next((line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")), heading)
            cell.source = RELATIVE_LINK.sub(r"\1", cell.source)
        outputs = [output for output in cell.get("outputs", []) if WIDGET not in output.get("data", {})]
        cell.outputs = [_shown(output, f"{heading} (cell {cell.id})") for output in outputs]
    exporter = HTMLExporter(
        template_name="basic",  # the cells alone: no scripts, no fonts, no styles
        exclude_anchor_links=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    # nbconvert passes HTML in Markdown through, also from a hostile name; our notebooks use none, so it is escaped.
    renderer = IPythonRenderer(escape=False, allow_harmful_protocols=False, exclude_anchor_links=True)
    renderer.inline_html = renderer.block_html = html.escape
    exporter.register_filter("markdown2html", MarkdownWithMath(renderer=renderer).render)
    return exporter.from_notebook_node(notebook)[0]


def _shown(output, alt: str):
    """Returns an output with only the kind of data to show, and a text alternative if that is an image."""
    if "data" in output:
        scripted = "<script" in output.data.get("text/html", "")
        kind = next((kind for kind in MIME_TYPES[scripted:] if kind in output.data), None)
        output.data = {kind: output.data[kind]} if kind else {"text/plain": ""}
        if kind and kind.startswith("image/"):
            output.metadata[kind] = {**output.metadata.get(kind, {}), "alt": alt}
    return output


def _code_digest(site: Site) -> str:
    digest = hashlib.sha256(f"{importlib.metadata.version('nbconvert')} {site}".encode())
    for path in [Path(__file__), *(TEMPLATES / name for name in ("base.html", "parts.html", "notebook.html"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
