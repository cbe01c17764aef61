"""Writes the report of a profile: a folder of static pages that opens in any browser, without network or server.

    report/index.html            scoreboard, figures, tables, runs, missing runs and why, environment and licences;
                                 of own data: see `own`
    report/runs/<run id>.html    settings, metrics, environment and warnings of a run, links to its predictions
    report/figures/<name>.html   a figure, its data and the records that it was drawn from
    report/notebooks/...         the executed notebooks
    report/cards/, references.bib  the cards of datasets, encoders and kept models, and what to cite: see `cards`
    report/records/, logs/       copies of what the pages link to, so that the folder can be moved or zipped

It depends on files alone, so it can be written at any time: `python run_all.py --report`.
"""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock

from panderm_utils import manifests, protocols
from panderm_utils.batch import PAPER, Job
from panderm_utils.disk import write_file
from panderm_utils.pool import in_processes
from panderm_utils.report import own
from panderm_utils.report.cards import card_places, card_tasks, write_cards
from panderm_utils.report.contents import Contents, Run, gather
from panderm_utils.report.exhibits import FAILED, Exhibit, Sheet, select_columns
from panderm_utils.report.notebooks import NotebookPage, notebook_tasks
from panderm_utils.report.pages import TEMPLATES, Site, copy_file, write_page
from panderm_utils.results import ANY, PROFILE_SETTINGS
from panderm_utils.workspace import Workspace

FOLDERS = (
    "runs",
    "figures",
    "tables",
    "notebooks",
    "cards",
    "records",
    "logs",
    "images",
)  # of the report; any other file in them is deleted
BOARD, ITEMS = "scoreboard", "paper_items"  # tables shown in their own section
NOTES = ("differs", "missing", "source")  # columns of the scoreboard that are equal for all numbers of a run
ITEM_COLUMNS = ("item", "shows", "notebooks", "access", "data", "note")
NOTHING = Sheet([], [], 0)
# Keys of a record that its page shows in another place.
SHOWN = {"schema", "run_id", "status", "dataset", "protocol", "encoder", "seed", "profile", "synthetic", "settings"}
SHOWN |= {"headline_metric", "metrics", "warnings"}


def write_report(space: Workspace, jobs: Iterable[Job], processes: int = 2) -> Path | None:
    """Writes space.root/report and returns its index.html, or None if there is nothing to show yet.

    Args:
        jobs: All runs of the profile (`batch.make_plan`); those without a record are listed with the reason.
        processes: Number of processes that draw the pages of datasets and convert notebooks.
    """
    report = space.root / "report"
    if not any(space.root.glob("records/[!.]*")) and not any(space.root.glob(f"executed/*/[!.]*{FAILED}")):
        return None
    with FileLock(space.root / ".report.lock"):  # two batches may end at the same time
        contents = gather(space, jobs)
        notebooks = _notebook_pages(contents)
        site = own.make_site(contents) if space.profile == "own" else _paper_site(space)
        shared = _shared(site, contents, notebooks)
        studies = own.study_tasks(report, contents, shared) if space.profile == "own" else []
        tasks = [
            *studies,
            *card_tasks(report, contents, shared),
            *notebook_tasks(report, space, site, list(notebooks.values())),
        ]
        drawn = in_processes(_call, tasks, processes, "report")[: len(studies)]
        written = {report / page.page for page in notebooks.values()} | _write_pages(report, contents, shared, drawn)
        for path in report.rglob("*"):
            part = path.relative_to(report).parts[0]
            owned = path.name.startswith(".") or part in FOLDERS or part.endswith(".html")
            if owned and path.is_file() and path not in written:  # of a deleted run, or from a killed process
                path.unlink()
    return report / "index.html"


def _paper_site(space: Workspace) -> Site:
    anchors = ("scoreboard", "figures", "tables", "runs", "not-run", "environment")
    nav = tuple((f"index.html#{anchor}", anchor.replace("-", " ").capitalize()) for anchor in anchors)
    return Site(f"PanDerm, {space.profile} profile", "PanDerm reproduced", f"{space.profile} profile", nav)


def _notebook_pages(contents: Contents) -> dict[str, NotebookPage]:
    """Returns run id -> page of its executed notebook, and "paper/<name>" -> page of a paper notebook."""
    pages = {}
    for run in contents.runs:
        if run.notebook:
            page = f"notebooks/{run.notebook.parent.name}/{run.notebook.name.removesuffix('.ipynb')}.html"
            pages[run.name] = NotebookPage(run.name, run.notebook, page, f"runs/{run.name}.html")
    for source in sorted((contents.space.root / "executed" / PAPER).glob("[!.]*.ipynb")):
        if not source.name.endswith(FAILED):
            page = f"notebooks/{PAPER}/{source.stem}.html"
            pages[f"{PAPER}/{source.stem}"] = NotebookPage(source.stem, source, page)
    return pages


def _call(task: Callable):
    return task()


def _shared(site: Site, contents: Contents, notebooks: dict[str, NotebookPage]) -> dict:
    """Returns what all templates see."""
    return {
        "space": contents.space,
        "site": site,
        "contents": contents,
        "listed": contents.runs,
        "pages": {run.name: f"runs/{run.name}.html" for run in contents.runs},
        "notebooks": {name: page.page for name, page in notebooks.items()},
        "cards": card_places(contents, own.study_places(contents) if contents.space.profile == "own" else {}),
    }


def _write_pages(report: Path, contents: Contents, shared: dict, studies: list[tuple]) -> set[Path]:
    """Writes all other pages, index.html last, and the files that they link to; returns the paths of all.

    Args:
        studies: Of own data, what `study_page.write_study` returned for each dataset.
    """
    written = {write_file(report / path.name, path.read_bytes()) for path in TEMPLATES.glob("*.[cj]s*")}
    tables = [table for group in contents.tables.values() for table in group]
    for folder, exhibits in (("figures", contents.figures), ("tables", tables)):
        files = [path for exhibit in exhibits for path in exhibit.files.values()]
        written |= {write_file(report / folder / path.name, path.read_bytes()) for path in files}
    drawn_in = {}
    for figure in contents.figures:
        for name in figure.records:
            drawn_in.setdefault(name, []).append(figure)
    for run in contents.runs:
        written |= {copy_file(path, report / "records" / run.name / path.name) for path in run.files}
        written |= {copy_file(run.log, report / "logs" / run.log.name)} if run.log else set()
        facts = _run_facts(run, shared) | {"figures": drawn_in.get(run.name, [])}
        written.add(write_page(report, shared["pages"][run.name], "run.html", **shared, **facts))
    written |= write_cards(report, contents, shared)
    runs = {run.name: run for run in contents.done}
    for figure in contents.figures:
        name = f"figures/{figure.name}.html"
        written.add(write_page(report, name, "figure.html", **shared, figure=figure, runs=runs))
    if contents.space.profile == "own":
        written |= own.write_overview(report, [row for row, _ in studies], shared)
        return written.union(*(paths for _, paths in studies))
    written.add(write_page(report, "index.html", "index.html", **shared, **_index_facts(contents, tables)))
    return written


def _run_facts(run: Run, shared: dict) -> dict:
    settings = run.record.get("settings", {})
    columns = dict.fromkeys(column for numbers in run.record.get("metrics", {}).values() for column in numbers)
    return {
        "run": run,
        "record": run.record,
        "notebook": shared["notebooks"].get(run.name),
        "columns": list(columns),
        "settings": {name: value for name, value in settings.items() if value is not None},
        "command": _command(run.record) if run.record else "",
        "defaults": [name for name, value in settings.items() if value is None],
        "other_facts": {key: value for key, value in run.record.items() if key not in SHOWN},
    }


def _command(record: dict) -> str:
    """Returns the command that repeats a run."""
    words = ["python run_all.py --profile", record["profile"], "--protocols", record["protocol"]]
    words += ["--datasets", record["dataset"], "--encoders", record["encoder"], "--seeds", str(record["seed"])]
    exists = record["protocol"] in protocols.list_protocols()
    defaults = {PROFILE_SETTINGS: ANY, **(protocols.load_protocol(record["protocol"]).settings if exists else {})}
    overrides = [f"{k}={v}" for k, v in record["settings"].items() if defaults.get(k) not in (v, ANY)]
    options = [f"-p {shlex.quote(override)}" for override in overrides]
    return " ".join([*words[:1], *map(shlex.quote, words[1:]), *options, "--force"])


def _index_facts(contents: Contents, tables: list[Exhibit]) -> dict:
    board, items = (next((table for table in tables if table.name == name), None) for name in (BOARD, ITEMS))
    records = [run.record for run in contents.runs if run.record]
    recorded = [record.get("environment", {}) for record in records]
    environments = Counter(tuple(_comparable(environment).items()) for environment in recorded)
    commits = Counter((e.get("git_commit"), bool(e.get("git_changed"))) for e in recorded)
    sheet = board.sheet if board else NOTHING
    figures = [figure for figure in contents.figures if figure.name != BOARD]
    others = {title: [t for t in group if t.name not in (BOARD, ITEMS)] for title, group in contents.tables.items()}
    return {
        "board": board,
        "board_figure": next((figure for figure in contents.figures if figure.name == BOARD), None),
        "figures": [figure for figure in figures if figure.records],
        "empty_figures": [figure for figure in figures if not figure.records],
        "numbers": select_columns(sheet, [name for name in sheet.columns if name not in NOTES]),
        "notes": select_columns(sheet, ["dataset", "protocol", "encoder", *NOTES]),
        "items": select_columns(items.sheet if items else NOTHING, ITEM_COLUMNS),
        "items_files": items,
        "verdicts": Counter(row[0] for row in select_columns(sheet, ["verdict"], duplicates=True).rows).most_common(),
        "tables": {title: rest for title, rest in others.items() if rest},
        "count_tables": len(tables),
        "environments": [(dict(environment), count) for environment, count in environments.most_common()],
        "environment_rows": list(dict.fromkeys(name for environment in environments for name, _ in environment)),
        "commits": commits.most_common(),
        "weights": _weights(records),
    }


def _comparable(environment: dict) -> dict:
    """Returns the entries that two runs in the same environment share: all except threads and commit."""
    machine = {name: environment.get(name) for name in ("platform", "cores", "gpu", "python")}
    return {**machine, **environment.get("versions", {})}


def _weights(records: list[dict]) -> list[dict]:
    """Returns a row per encoder and digest: number of runs, source and licence of the weights."""
    counts = Counter((r["encoder"], r.get("encoder_facts", {}).get("digest")) for r in records)
    rows = []
    for (encoder, digest), runs in counts.items():
        row = {"name": encoder, "title": encoder, "digest": digest, "runs": runs, "licence": "", "source": ""}
        try:
            card = manifests.load_encoder_manifest(encoder)
        except ValueError:  # no longer in encoders.yaml
            rows.append(row)
            continue
        source = "; ".join(access.url or access.note for access in card.access)
        rows.append({**row, "title": card.title, "licence": card.licence, "source": source})
    return rows
