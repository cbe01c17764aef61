"""What a report shows, gathered from files alone: records, figures, tables, executed notebooks, what is not there.

The same files give the same contents, and so the same pages; nothing here asks the clock.
"""

import csv
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from panderm_utils import manifests
from panderm_utils.batch import PAPER, Job, Need, diagnose
from panderm_utils.report.pages import in_words, inline_markdown
from panderm_utils.results import read_record
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


ROLES = {"data_root", "weights_root", "output_root", "profile", "encoder", "seed"}  # parameters that have flags


@dataclass(frozen=True)
class Run:
    """A run that left a record, whole or damaged, or failed.

    Attributes:
        status: "done", "failed" (no record) or "damaged".
        record: What record.json holds; {} where there is none.
        files: Of the record's folder.
        notebook: The executed notebook, or the failed one.
        error: What went wrong, and in which cell; of a run that is done, in a later attempt.
    """

    name: str
    status: str
    protocol: str
    record: dict
    files: tuple[Path, ...]
    notebook: Path | None
    log: Path | None
    cell: str = ""
    error: str = ""

    @property
    def headline(self) -> dict:
        return self.record.get("metrics", {}).get(self.record.get("headline_metric"), {})


@dataclass
class Contents:
    """Everything that a report shows; see the functions of this module for each part."""

    space: Workspace
    runs: list[Run]
    figures: list[Exhibit]
    tables: dict[str, list[Exhibit]]
    needs: list[tuple[Need, int]]
    commands: list[tuple[str, int, str]]
    lacking: int
    datasets: list
    encoders: list

    @property
    def done(self) -> list[Run]:
        return [run for run in self.runs if run.status == "done"]

    @property
    def failures(self) -> list[Run]:
        return [run for run in self.runs if run.error]


def gather(space: Workspace, jobs: Iterable[Job]) -> Contents:
    """Reads what there is below `space.root`.

    Args:
        jobs: The runs that there could be; those without a record are told as not run.
    """
    runs = read_runs(space)
    origins = read_origins(space)
    figures = read_figures(space.figures, origins)
    tables: dict[str, list[Exhibit]] = {}
    for table in read_tables(space.tables, origins):
        tables.setdefault(table.origin.title, []).append(table)
    known = {run.name for run in runs}
    lacking = [job for job in jobs if job.name not in known]
    waiting = Counter(need for job in lacking for need in job.missing)
    there = [run.record for run in runs if run.record]
    return Contents(
        space,
        runs,
        figures,
        tables,
        needs=sorted(waiting.items(), key=lambda pair: (pair[0].kind, pair[0].name)),
        commands=commands(space.profile, lacking),
        lacking=len(lacking),
        datasets=_cards(manifests.load_dataset_manifest, (record["dataset"] for record in there)),
        encoders=_cards(manifests.load_encoder_manifest, (record["encoder"] for record in there)),
    )


def read_runs(space: Workspace) -> list[Run]:
    """Returns every run that left a record or failed, by protocol and name; failed paper notebooks too."""
    found: dict[str, Run] = {}
    executed = space.root / "executed"
    folders = sorted(path for path in space.records.glob("[!.]*") if path.is_dir())
    for folder in folders:
        record, error = {}, ""
        try:
            record = read_record(folder)
        except ValueError as problem:
            error = str(problem)
        protocol = str(record.get("protocol", ""))
        notebook, log = executed / protocol / f"{folder.name}.ipynb", space.root / "logs" / f"{folder.name}.log"
        files = tuple(sorted(path for path in folder.iterdir() if path.is_file()))
        status = "damaged" if error else "done"
        found[folder.name] = Run(
            folder.name, status, protocol, record, files, _there(notebook), _there(log), error=error
        )
    for notebook in sorted(executed.glob(f"*/[!.]*{FAILED}")):
        name = notebook.name.removesuffix(FAILED)
        log = space.root / "logs" / f"{name}.log"
        cell, error = diagnose(notebook, log)
        there = found.get(name)
        if there is None:
            found[name] = Run(name, "failed", notebook.parent.name, {}, (), notebook, _there(log), cell, error)
        else:
            again = f"{there.error}; " if there.error else "run again, and failed: "
            found[name] = replace(there, cell=cell, error=f"{again}{error}")
    return sorted(found.values(), key=lambda run: (run.protocol, run.name))


def commands(profile: str, jobs: Iterable[Job]) -> list[tuple[str, int, str]]:
    """Returns (protocol, runs, what to type) for jobs that lack nothing, as few lines as will do."""
    usual = list(manifests.load_profile(profile).seeds)
    runs: dict[tuple, dict[str, list[Job]]] = {}
    for job in jobs:
        if not job.missing:
            given = tuple(f"{k}={v}" for k, v in job.parameters.items() if k not in ROLES)
            key = job.notebook.parent.name, job.parameters["seed"], given
            runs.setdefault(key, {}).setdefault(job.notebook.stem, []).append(job)
    lines: dict[tuple, list[str]] = {}
    for key, by_dataset in runs.items():
        for dataset, those in by_dataset.items():
            lines.setdefault((*key, tuple(job.parameters["encoder"] for job in those)), []).append(dataset)
    told = []
    for (protocol, seed, given, encoders), datasets in lines.items():
        words = ["python run_all.py --profile", profile, "--protocols", protocol, "--datasets", *datasets]
        words += ["--encoders", *encoders, *([] if [seed] == usual else ["--seeds", str(seed)])]
        words += [f"-p {shlex.quote(pair)}" for pair in given]
        told.append((protocol, len(datasets) * len(encoders), " ".join(words)))
    return told


def _cards(load, names: Iterable[str]) -> list:
    """The manifests of some names, each once; a name that has none is left out."""
    cards = []
    for name in dict.fromkeys(names):
        try:
            cards.append(load(name))
        except ValueError:
            continue
    return cards


def _there(path: Path) -> Path | None:
    return path if path.is_file() else None
