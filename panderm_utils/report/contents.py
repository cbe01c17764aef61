"""What a report shows, gathered from files alone: records, figures, tables, executed notebooks, what is not there.

The same files give the same contents, and so the same pages; nothing here asks the clock.
"""

import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from panderm_utils import manifests
from panderm_utils.batch import Job, Need, diagnose
from panderm_utils.report.exhibits import FAILED, Exhibit, read_figures, read_origins, read_tables
from panderm_utils.results import read_record
from panderm_utils.workspace import Workspace

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
