"""Renders the pages of the report: every text is escaped, every file written completely or not at all.

The templates are in templates/. All text is escaped, except what `inline_markdown`, `linked` and `facts` return.
"""

import hashlib
import html
import os
import posixpath
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from panderm_utils import protocols
from panderm_utils.batch import format_duration
from panderm_utils.disk import replacing, write_file
from panderm_utils.manifests import ADDRESS
from panderm_utils.workspace import REPOSITORY

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Site:
    """What every page of a report has: a name, in the title; a brand and a remark; links, as (target, title)."""

    name: str
    brand: str
    remark: str
    nav: tuple[tuple[str, str], ...]
    footer: str = ""


WORDS = {"auroc": "AUROC", "aupr": "AUPR", "tta": "TTA", "f1": "F1", "sha256": "SHA-256", "gpu": "GPU"}
WORDS |= {"csv": "CSV", "tex": "LaTeX", "md": "Markdown", "pdf": "PDF", "png": "PNG"}
GOOD = ("done", "reproduced")
BAD = ("failed", "damaged", "outside")
MARKDOWN = (
    (r"`([^`]+)`", r"<code>\1</code>"),
    (r"\*\*(.+?)\*\*", r"<strong>\1</strong>"),
    (r"\*(.+?)\*", r"<em>\1</em>"),
    (r"\[([^\]]+)\]\((https://[^\s)]+)\)", r'<a href="\2">\1</a>'),
    (r"\[([^\]]+)\]\([^\s)]+\)", r"\1"),  # a link into the repository is broken in a report
)


def write_page(report: Path, name: str, template: str, /, **variables) -> Path:
    """Writes the page `name`, a path below `report`, and returns its path.

    Templates link with `link(target)`: a path below `report`, with or without `#anchor`.
    """
    folder = posixpath.dirname(name) or "."

    def link(target: str | Path) -> str:
        place, hash_, anchor = str(target).replace(os.sep, "/").partition("#")
        return quote(posixpath.relpath(place or ".", folder)) + hash_ + quote(anchor)

    path, text = report / name, _environment().get_template(template).render(link=link, **variables)
    return path if _holds(path, text) else write_file(path, text)


def _holds(path: Path, text: str) -> bool:
    """Whether a file has this text already: reading takes a tenth of the time of replacing."""
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def stamp_of(page: Path) -> str:
    """Returns the digest of what a page was made from, "" if it has none or does not exist."""
    try:
        with page.open(encoding="utf-8") as text:
            found = re.search(r'<meta name="stamp" content="(\w+)">', text.read(2000))
    except OSError:
        return ""
    return found[1] if found else ""


@lru_cache
def code_digest() -> str:
    """Returns the SHA-256 of the package's code and the templates: what numbers and pages are made by."""
    digest = hashlib.sha256()
    for path in [*sorted((REPOSITORY / "panderm_utils").rglob("*.py")), *sorted(TEMPLATES.iterdir())]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def copy_file(source: Path, target: Path) -> Path:
    """Copies a file, unless the copy is there already; returns its path."""
    there = target.stat() if target.is_file() else None
    now = source.stat()
    if there is None or (there.st_size, there.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
        with replacing(target) as new:
            shutil.copy2(source, new)
    return target


def facts(value: Any) -> str:
    """Returns a JSON value as HTML: mappings as nested definition lists. A macro would take ten times as long."""
    if isinstance(value, Mapping) and value:
        rows = "".join(_fact(html.escape(readable_name(key)), part) for key, part in value.items())
        return f"<dl>\n{rows}</dl>"
    if isinstance(value, list | tuple) and value:
        ends = ["" if isinstance(part, Mapping) else "; " for part in value[:-1]] + [""]
        return "".join(facts(part) + end for part, end in zip(value, ends, strict=True))
    if isinstance(value, Mapping | list | tuple):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else html.escape(str(value))


def _fact(name: str, value: Any) -> str:
    nested = ' class="nest"' if isinstance(value, Mapping) and value else ""
    return f"<div{nested}><dt>{name}</dt><dd>{facts(value)}</dd></div>\n"


def inline_markdown(text: str) -> str:
    """Returns a paragraph of Markdown as HTML: code, emphasis and https links; anything else stays text."""
    text = html.escape(" ".join(text.split()))
    for pattern, replacement in MARKDOWN:
        text = re.sub(pattern, replacement, text)
    return text


def linked(text: str) -> str:
    """Returns a plain text as HTML, its addresses as links."""
    parts = [html.escape(part) for part in ADDRESS.split(text)]
    return "".join(f'<a href="{part}" rel="noreferrer">{part}</a>' if i % 2 else part for i, part in enumerate(parts))


@lru_cache(10_000)
def readable_name(name: str) -> str:
    """Returns a name in plain English: `weighted_f1` becomes weighted F1."""
    if " " in name:
        return name
    words = name.replace("_tta", "_with_tta").split("_")
    if name in protocols.list_protocols():
        return protocols.load_protocol(name).title
    return " ".join(WORDS.get(word, word) for word in words)


def short_number(text: str) -> str:
    """Returns a cell of a CSV for display: long numbers with four decimals or digits, anything else unchanged."""
    if not re.fullmatch(r"-?\d+\.\d{4}\d+(e-?\d+)?|-?\d(\.\d+)?e-\d+", text):
        return text
    number = float(text)
    return f"{number:.4f}" if abs(number) >= 1e-3 or number == 0 else f"{number:.4g}"


def score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def brief(value: float | None) -> str:
    """Returns a score with three decimals."""
    return "undefined" if value is None or value != value else f"{value:.3f}"


def interval(numbers: Mapping) -> str:
    """Returns the value of a metric in a record, with its interval."""
    value, low, high = (numbers.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "undefined"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def tone(verdict: str) -> str:
    """Returns the CSS class for the colour of a verdict or status."""
    return "good" if verdict in GOOD else "bad" if verdict.startswith(BAD) else "quiet"


@lru_cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        auto_reload=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"words": readable_name, "number": short_number, "score": score, "duration": format_duration}
    environment.globals["facts"] = facts
    environment.filters |= {"tone": tone, "zip": zip, "markdown": inline_markdown, "brief": brief, "linked": linked}
    return environment
