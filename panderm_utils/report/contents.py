"""The contents of a report, read from files alone: records, figures, tables, executed notebooks, missing runs.

The same files give the same contents and pages; nothing here depends on the time.
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

FLAGS = {"data_root", "weights_root", "output_root", "profile", "encoder", "seed"}  # parameters that have flags


@dataclass(frozen=True)
class Run:
    """A run that wrote a record, complete or damaged, or failed.

    Attributes:
        status: "done", "failed" (no record) or "damaged".
        record: Content of record.json; {} if there is none.
        files: Files of the record's folder.
        notebook: The executed notebook, or the failed one.
        cell, error: Where and why it failed; for a finished run, in a later attempt.
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
    """Everything that a report shows; see `gather`."""

    space: Workspace
    runs: list[Run]
    figures: list[Exhibit]
    tables: dict[str, list[Exhibit]]
    needs: list[tuple[Need, int]]
    commands: list[tuple[str, int, str]]
    not_run: int
    datasets: list
    encoders: list

    @property
    def done(self) -> list[Run]:
        return [run for run in self.runs if run.status == "done"]

    @property
    def failures(self) -> list[Run]:
        return [run for run in self.runs if run.error]


def gather(space: Workspace, jobs: Iterable[Job]) -> Contents:
    """Returns the contents of the report on the files below `space.root`.

    Args:
        jobs: All runs of the profile; those without a record are shown as not run.
    """
    runs = read_runs(space)
    origins = read_origins(space)
    figures = read_figures(space.figures, origins)
    tables: dict[str, list[Exhibit]] = {}
    for table in read_tables(space.tables, origins):
        tables.setdefault(table.origin.title, []).append(table)
    names = {run.name for run in runs}
    not_run = [job for job in jobs if job.name not in names]
    needs = Counter(need for job in not_run for need in job.missing)
    records = [run.record for run in runs if run.record]
    return Contents(
        space,
        runs,
        figures,
        tables,
        needs=sorted(needs.items(), key=lambda pair: (pair[0].kind, pair[0].name)),
        commands=commands(space.profile, not_run),
        not_run=len(not_run),
        datasets=_load_manifests(manifests.load_dataset_manifest, (record["dataset"] for record in records)),
        encoders=_load_manifests(manifests.load_encoder_manifest, (record["encoder"] for record in records)),
    )


def read_runs(space: Workspace) -> list[Run]:
    """Returns the runs that wrote a record or failed, sorted by protocol and name; failed paper notebooks too."""
    runs: dict[str, Run] = {}
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
        runs[folder.name] = Run(
            folder.name, status, protocol, record, files, _if_file(notebook), _if_file(log), error=error
        )
    for notebook in sorted(executed.glob(f"*/[!.]*{FAILED}")):
        name = notebook.name.removesuffix(FAILED)
        log = space.root / "logs" / f"{name}.log"
        cell, error = diagnose(notebook, log)
        earlier = runs.get(name)
        if earlier is None:
            runs[name] = Run(name, "failed", notebook.parent.name, {}, (), notebook, _if_file(log), cell, error)
        else:
            prefix = f"{earlier.error}; " if earlier.error else "a later attempt failed: "
            runs[name] = replace(earlier, cell=cell, error=f"{prefix}{error}")
    return sorted(runs.values(), key=lambda run: (run.protocol, run.name))


def commands(profile: str, jobs: Iterable[Job]) -> list[tuple[str, int, str]]:
    """Returns (protocol, number of runs, command) for the jobs that lack no data or weights, as few as possible."""
    default_seeds = list(manifests.load_profile(profile).seeds)
    runs: dict[tuple, dict[str, list[Job]]] = {}
    for job in jobs:
        if not job.missing:
            overrides = tuple(f"{k}={v}" for k, v in job.parameters.items() if k not in FLAGS)
            key = job.notebook.parent.name, job.parameters["seed"], overrides
            runs.setdefault(key, {}).setdefault(job.notebook.stem, []).append(job)
    lines: dict[tuple, list[str]] = {}
    for key, by_dataset in runs.items():
        for dataset, members in by_dataset.items():
            lines.setdefault((*key, tuple(job.parameters["encoder"] for job in members)), []).append(dataset)
    found = []
    for (protocol, seed, overrides, encoders), datasets in lines.items():
        words = ["python run_all.py --profile", profile, "--protocols", protocol, "--datasets", *datasets]
        words += ["--encoders", *encoders, *([] if [seed] == default_seeds else ["--seeds", str(seed)])]
        words += [f"-p {shlex.quote(pair)}" for pair in overrides]
        found.append((protocol, len(datasets) * len(encoders), " ".join(words)))
    return found


def _load_manifests(load, names: Iterable[str]) -> list:
    """Returns the manifest of each name once; names without a manifest are left out."""
    cards = []
    for name in dict.fromkeys(names):
        try:
            cards.append(load(name))
        except ValueError:
            continue
    return cards


def _if_file(path: Path) -> Path | None:
    return path if path.is_file() else None
