"""Writes the report of a profile: a folder of plain pages that opens in any browser, without a network or a server.

    report/index.html            scoreboard, figures, tables, runs, what was not run and why, environment and licences
    report/runs/<run id>.html    settings, metrics, environment and warnings of a run, links to its predictions
    report/figures/<name>.html   a figure, its data and the records that it was drawn from
    report/notebooks/...         the executed notebooks

It is written from files alone, so it can be written at any time: `python run_all.py --report`.
"""

import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

from panderm_utils import manifests, protocols
from panderm_utils.batch import PAPER, Job
from panderm_utils.report.contents import FAILED, Contents, Exhibit, Run, Sheet, gather, pick_columns
from panderm_utils.report.notebooks import NotebookPage, write_notebooks
from panderm_utils.report.pages import TEMPLATES, write_file, write_page
from panderm_utils.results import ANY, PROFILE_SETTINGS
from panderm_utils.workspace import Workspace

FOLDERS = ("runs", "figures", "tables", "notebooks")  # of the report, all of whose files are its own
BOARD, ITEMS = "scoreboard", "paper_items"  # tables with a section of their own
NOTES = ("differs", "missing", "source")  # columns of the scoreboard that are the same for all numbers of a run
ITEM_COLUMNS = ("item", "shows", "notebooks", "access", "data", "note")
NOTHING = Sheet([], [], 0)
# Keys of a record that its page shows elsewhere, or that are the page.
TOLD = {"schema", "run_id", "status", "dataset", "protocol", "encoder", "seed", "profile", "synthetic", "settings"}
TOLD |= {"headline_metric", "metrics", "warnings"}


def write_report(space: Workspace, jobs: Iterable[Job], processes: int = 2) -> Path | None:
    """Writes space.root/report and returns its index.html, or None where there is nothing to show yet.

    Args:
        jobs: The runs that there could be (`plan.make_plan`); those without a record are listed with the reason.
        processes: How many convert notebooks.
    """
    report = space.root / "report"
    if not any(space.root.glob("records/[!.]*")) and not any(space.root.glob(f"executed/*/[!.]*{FAILED}")):
        return None
    with FileLock(space.root / ".report.lock"):  # of two batches that end together
        contents = gather(space, jobs)
        notebooks = _notebook_pages(contents)
        write_notebooks(report, space, list(notebooks.values()), processes)
        written = {report / page.page for page in notebooks.values()} | _write_pages(report, contents, notebooks)
        for path in report.rglob("*"):
            own = path.name.startswith(".") or path.relative_to(report).parts[0] in FOLDERS
            if own and path.is_file() and path not in written:  # of runs that are gone, or of a writing that was killed
                path.unlink()
    return report / "index.html"


def _notebook_pages(contents: Contents) -> dict[str, NotebookPage]:
    """Run -> its executed notebook, and "paper/name" -> a paper notebook."""
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


def _write_pages(report: Path, contents: Contents, notebooks: dict[str, NotebookPage]) -> set[Path]:
    """Writes all pages but the notebooks', index.html last, and the files beside them; returns their paths."""
    pages = {run.name: f"runs/{run.name}.html" for run in contents.runs}
    shared = {
        "space": contents.space,
        "contents": contents,
        "pages": pages,
        "notebooks": {name: page.page for name, page in notebooks.items()},
    }
    written = {write_file(report / path.name, path.read_bytes()) for path in TEMPLATES.glob("*.[cj]s*")}
    tables = [table for group in contents.tables.values() for table in group]
    for folder, exhibits in (("figures", contents.figures), ("tables", tables)):
        files = [path for exhibit in exhibits for path in exhibit.files.values()]
        written |= {write_file(report / folder / path.name, path.read_bytes()) for path in files}
    for run in contents.runs:
        written.add(write_page(report, pages[run.name], "run.html", **shared, **_run_facts(run, contents, shared)))
    runs = {run.name: run for run in contents.done}
    for figure in contents.figures:
        name = f"figures/{figure.name}.html"
        written.add(write_page(report, name, "figure.html", **shared, figure=figure, runs=runs))
    written.add(write_page(report, "index.html", "index.html", **shared, **_index_facts(contents, tables)))
    return written


def _run_facts(run: Run, contents: Contents, shared: dict) -> dict:
    given = run.record.get("settings", {})
    columns = dict.fromkeys(column for numbers in run.record.get("metrics", {}).values() for column in numbers)
    return {
        "run": run,
        "record": run.record,
        "notebook": shared["notebooks"].get(run.name),
        "figures": [figure for figure in contents.figures if run.name in figure.records],
        "columns": list(columns),
        "settings": {name: value for name, value in given.items() if value is not None},
        "command": _command(run.record) if run.record else "",
        "usual": [name for name, value in given.items() if value is None],
        "others": {key: value for key, value in run.record.items() if key not in TOLD},
    }


def _command(record: dict) -> str:
    """What to type to repeat a run."""
    words = ["python run_all.py --profile", record["profile"], "--protocols", record["protocol"]]
    words += ["--datasets", record["dataset"], "--encoders", record["encoder"], "--seeds", str(record["seed"])]
    known = record["protocol"] in protocols.list_protocols()
    usual = {PROFILE_SETTINGS: ANY, **(protocols.load_protocol(record["protocol"]).settings if known else {})}
    others = (f"{k}={v}" for k, v in record["settings"].items() if usual.get(k) not in (v, ANY))
    return " ".join([*words[:1], *map(shlex.quote, words[1:]), *(f"-p {shlex.quote(o)}" for o in others), "--force"])


def _index_facts(contents: Contents, tables: list[Exhibit]) -> dict:
    board, items = (next((table for table in tables if table.name == name), None) for name in (BOARD, ITEMS))
    records = [run.record for run in contents.runs if run.record]
    found = [record.get("environment", {}) for record in records]
    environments = Counter(tuple(_shared_by_runs(environment).items()) for environment in found)
    commits = Counter((e.get("git_commit"), bool(e.get("git_changed"))) for e in found)
    sheet = board.sheet if board else NOTHING
    figures = [figure for figure in contents.figures if figure.name != BOARD]
    return {
        "board": board,
        "board_figure": next((figure for figure in contents.figures if figure.name == BOARD), None),
        "figures": [figure for figure in figures if figure.records],
        "empty_figures": [figure for figure in figures if not figure.records],
        "numbers": pick_columns(sheet, [name for name in sheet.columns if name not in NOTES]),
        "notes": pick_columns(sheet, ["dataset", "protocol", "encoder", *NOTES]),
        "items": pick_columns(items.sheet if items else NOTHING, ITEM_COLUMNS),
        "items_files": items,
        "verdicts": Counter(row[0] for row in pick_columns(sheet, ["verdict"], every=True).rows).most_common(),
        "tables": {title: rest for title, group in contents.tables.items() if (rest := _others(group))},
        "count_tables": len(tables),
        "environments": [(dict(environment), count) for environment, count in environments.most_common()],
        "environment_rows": list(dict.fromkeys(name for environment in environments for name, _ in environment)),
        "commits": commits.most_common(),
        "weights": _weights(records),
    }


def _others(tables: list[Exhibit]) -> list[Exhibit]:
    return [table for table in tables if table.name not in (BOARD, ITEMS)]


def _shared_by_runs(environment: dict) -> dict:
    """What two runs must share to have run on the same: all but the threads that they were given, and the commit."""
    plain = {name: environment.get(name) for name in ("platform", "cores", "gpu", "python")}
    return {**plain, **environment.get("versions", {})}


def _weights(records: list[dict]) -> list[dict]:
    """A row an encoder and digest: how many runs had these weights, where they are from, under which licence."""
    counts = Counter((r["encoder"], r.get("encoder_facts", {}).get("digest")) for r in records)
    rows = []
    for (encoder, digest), runs in counts.items():
        row = {"title": encoder, "digest": digest, "runs": runs, "licence": "", "source": ""}
        try:
            card = manifests.load_encoder_manifest(encoder)
        except ValueError:  # no longer in encoders.yaml
            rows.append(row)
            continue
        source = "; ".join(access.url or access.note for access in card.access)
        rows.append({**row, "title": card.title, "licence": card.licence, "source": source})
    return rows
