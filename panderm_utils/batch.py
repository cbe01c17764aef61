"""Executes a plan from a pool of threads: skips what is done, goes on after a failure, ends all on Ctrl-C.

The paper notebooks run after the runs, and only when what they read has changed since they were last drawn.
"""

import hashlib
import importlib.metadata
import json
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from panderm_utils.devices import VARIABLE, gpus_of, sees_gpus
from panderm_utils.estimates import Costs
from panderm_utils.execution import Outcome, child_environment, execute
from panderm_utils.leftovers import GRACE
from panderm_utils.manifests import MANIFEST_ROOT
from panderm_utils.plan import Job, Plan, is_done
from panderm_utils.progress import Progress
from panderm_utils.warm_kernels import Server

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
LISTED = 20  # skipped runs that the closing table names one by one


@dataclass(frozen=True)
class How:
    """How a batch is executed.

    Attributes:
        jobs: How many notebooks at once; each gets its share of the cores.
        gpus: The ids of the GPUs, one notebook a GPU, whatever `jobs` says; without, a run sees what the batch sees.
        force: Whether to repeat what is done.
        timeout: Seconds after which a notebook is ended, or None.
        retries: How often a run is tried again whose kernel did not start or was killed, as when memory runs out.
        live: Whether to draw what the notebooks are doing, for a terminal.
    """

    jobs: int = 1
    gpus: tuple[str, ...] = ()
    force: bool = False
    timeout: float | None = None
    retries: int = 1
    live: bool = False

    @property
    def slots(self) -> tuple[str, ...]:
        return self.gpus or tuple(map(str, range(self.jobs)))


def run_batch(plan: Plan, how: How = How(), say: Callable[[str], None] = print) -> list[Outcome]:
    """Executes the runs of a plan that have no whole record, then the paper notebooks whose inputs changed.

    Args:
        say: Takes a line of progress.

    Returns:
        An outcome for each run and each paper notebook, in the plan's order.
    """
    outcomes, costs = leave_out(plan.runs, how.force), Costs(plan.space.records)
    todo = [run for run in plan.runs if run not in outcomes]
    at_once = min(len(how.slots), len(plan.runs))
    if todo:
        say(f"{len(todo)} of {len(plan.runs)} runs to do, {at_once} at a time; logs: {todo[0].log.parent}")
    with Server() as warm:
        outcomes |= _execute_all(todo, how, at_once, costs, say, warm)
        if exit_status(outcomes.values()) == 130:
            return [outcomes[run] for run in plan.runs]
        return [outcomes[run] for run in plan.runs] + draw(plan, how, costs, say, warm)


def leave_out(runs: Sequence[Job], force: bool) -> dict[Job, Outcome]:
    """Returns an outcome for each run that is not to be executed: it has a record, or lacks what it needs."""
    outcomes = {}
    for run in runs:
        if not force and is_done(run.record):
            outcomes[run] = Outcome(run, "skipped")
        elif run.missing:
            outcomes[run] = Outcome(run, "missing", error="; ".join(need.complaint() for need in run.missing))
    return outcomes


def exit_status(outcomes) -> int:
    """Returns 130 after Ctrl-C, 1 if any job failed or lacks what it needs, else 0."""
    statuses = {outcome.status for outcome in outcomes}
    return 130 if "interrupted" in statuses else int(bool(statuses & {"failed", "missing"}))


def describe_outcomes(outcomes: Sequence[Outcome]) -> str:
    """Returns the closing table: every job's status and seconds; where it failed, why, and where to read more."""
    skipped = [outcome for outcome in outcomes if outcome.status == "skipped"]
    width = max((len(outcome.job.name) for outcome in outcomes), default=0)
    lines = ["", f"{'status':<11} {'run':<{width}} seconds"]
    for outcome in outcomes:
        if outcome.status == "skipped" and len(skipped) > LISTED:
            continue
        seconds = f"{outcome.seconds:7.1f}" if outcome.seconds else ""
        lines.append(f"{outcome.status:<11} {outcome.job.name:<{width}} {seconds}".rstrip())
        if outcome.error:
            lines.append(f"            {f'cell {outcome.cell}: ' if outcome.cell else ''}{outcome.error}")
        if outcome.status == "failed":
            lines.append(f"            log: {outcome.job.log}")
    if len(skipped) > LISTED:
        lines.append(f"{'skipped':<11} {len(skipped)} runs that have a record")
    counts = {}
    for outcome in outcomes:
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
    return "\n".join([*lines, "", ", ".join(f"{count} {status}" for status, count in counts.items())])


def _execute_all(todo: list[Job], how: How, at_once: int, costs: Costs, say, warm: Server | None) -> dict[Job, Outcome]:
    """Executes jobs, the longest first; Ctrl-C ends those that run and never starts the rest.

    Args:
        at_once: How many share the cores: the same in a batch that goes on, whatever it has left to do, since the last
            digits of a result depend on the number of threads.
    """
    stop, waiting, running, outcomes = threading.Event(), costs.longest_first(todo), {}, {}
    slots = list(how.slots)
    environment = child_environment(at_once or 1)
    if warm and todo and not how.gpus and not sees_gpus():
        warm.prepare(environment, len(todo), at_once)
    progress = Progress(todo, len(slots), say, costs, how.live)
    with ThreadPoolExecutor(max_workers=len(slots)) as pool:
        try:
            while waiting or running:
                # In order, so that a run that asks for several GPUs is not passed by until the end.
                while waiting and (width := gpus_of(waiting[0]) if how.gpus else 1) <= len(slots):
                    job, mine, slots = waiting.pop(0), slots[:width], slots[width:]
                    gpus = {VARIABLE: ",".join(mine)} if how.gpus else {}
                    future = pool.submit(execute, job, environment | gpus, how.timeout, stop, how.retries, warm)
                    running[future] = job, mine
                    progress.started(job)
                for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    job, mine = running.pop(future)
                    slots += mine
                    outcomes[job] = future.result()
                    progress.finished(outcomes[job])
                progress.look()
        except KeyboardInterrupt:
            stop.set()
            # A second Ctrl-C must not leave kernels behind either; this takes no longer than the grace.
            before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
            say(f"ending the notebooks that run, within {GRACE:.0f} s or so ...")
            outcomes |= {job: future.result() for future, (job, _) in running.items()}
            for number, handler in before.items():
                signal.signal(number, handler)
        finally:  # whatever else went wrong here, such as a closed pipe: leave no kernels behind
            stop.set()
            progress.close()
    return {job: outcomes.get(job) or Outcome(job, "interrupted") for job in todo}


def draw(plan: Plan, how: How, costs: Costs, say, warm: Server | None = None) -> list[Outcome]:
    """Executes the paper notebooks; one whose inputs and files are as they were is skipped."""
    if not any(is_done(folder) for folder in plan.space.records.glob("[!.]*")):
        return [Outcome(job, "skipped", error="there is no record to draw from yet") for job in plan.paper]
    digests = {job: _inputs_digest(job, plan) for job in plan.paper}
    todo = [job for job in plan.paper if how.force or not _is_drawn(job, digests[job])]
    if todo:
        say(f"{len(todo)} tables and figures to draw")
    before = _files(plan)
    outcomes = _execute_all(todo, how, min(len(how.slots), len(plan.paper)), costs, say, warm)
    drawn = [path for path, stamp in _files(plan).items() if before.get(path) != stamp]
    for job, outcome in outcomes.items():
        if outcome.status == "done":
            # Notebooks drawn together cannot be told apart by their files, so each answers for all of them.
            _stamp_file(job).write_text(json.dumps({"inputs": digests[job], "files": sorted(map(str, drawn))}))
    return [outcomes.get(job) or Outcome(job, "skipped") for job in plan.paper]


def _files(plan: Plan) -> dict[Path, tuple[int, int, int]]:
    """Returns the tables and figures, each with what tells it from one that is written later."""
    paths = (path for folder in (plan.space.figures, plan.space.tables) for path in folder.glob("[!.]*"))
    return {path: (s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for path in paths for s in [path.stat()]}


def _inputs_digest(job: Job, plan: Plan) -> str:
    """SHA-256 of all that a drawing depends on: the records, its notebook and parameters, the code, the manifests."""
    digest = hashlib.sha256(repr(sorted(job.parameters.items())).encode())
    digest.update(importlib.metadata.version("matplotlib").encode())
    code, yamls = Path(__file__).parent.glob("*.py"), MANIFEST_ROOT.glob("**/*.yaml")
    records = plan.space.records.glob("[!.]*/record.json")
    for path in [job.notebook, *sorted(code), *sorted(yamls), *sorted(records)]:
        digest.update(f"{path}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    for path in sorted(plan.space.records.glob("[!.]*/predictions.csv")):  # large, and renamed in whole
        digest.update(f"{path}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def _is_drawn(job: Job, inputs: str) -> bool:
    try:
        stamp = json.loads(_stamp_file(job).read_text())
    except (OSError, ValueError):
        return False
    return stamp["inputs"] == inputs and all(Path(p).is_file() for p in [*stamp["files"], job.output])


def _stamp_file(job: Job) -> Path:
    return job.output.with_name(f".{job.name}.json")
