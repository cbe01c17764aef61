"""Executes a plan from a pool of threads: skips what is done, goes on after a failure, ends all on Ctrl-C.

The paper notebooks run after the runs, and only when what they read has changed since they were last drawn.
"""

import hashlib
import importlib.metadata
import json
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from panderm_utils.execution import GRACE, Outcome, child_environment, execute
from panderm_utils.manifests import MANIFEST_ROOT
from panderm_utils.plan import Job, Plan, is_done

LISTED = 20  # skipped runs that the closing table names one by one


def run_batch(
    plan: Plan, jobs: int = 1, force: bool = False, timeout: float | None = None, say: Callable[[str], None] = print
) -> list[Outcome]:
    """Executes the runs of a plan that have no whole record, then the paper notebooks whose inputs changed.

    Args:
        jobs: How many at once; each gets its share of the cores.
        force: Whether to repeat what is done.
        timeout: Seconds after which a run is ended, or None.
        say: Takes a line of progress.

    Returns:
        An outcome for each run and each paper notebook, in the plan's order.
    """
    outcomes = {}
    for run in plan.runs:
        if not force and is_done(run.record):
            outcomes[run] = Outcome(run, "skipped")
        elif run.missing:
            outcomes[run] = Outcome(run, "missing", error="; ".join(need.complaint() for need in run.missing))
    todo = [run for run in plan.runs if run not in outcomes]
    if todo:
        say(f"{len(todo)} of {len(plan.runs)} runs to do, {min(jobs, len(todo))} at a time; logs: {todo[0].log.parent}")
    outcomes |= _execute_all(todo, jobs, timeout, say)
    if exit_status(outcomes.values()) == 130:
        return [outcomes[run] for run in plan.runs]
    return [outcomes[run] for run in plan.runs] + _draw(plan, jobs, force, timeout, say)


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


def _execute_all(todo: list[Job], jobs: int, timeout: float | None, say) -> dict[Job, Outcome]:
    """Executes jobs, a line each as they finish; Ctrl-C ends those that run and never starts the rest."""
    stop, environment, started = threading.Event(), child_environment(min(jobs, len(todo) or 1)), time.monotonic()
    width = len(str(len(todo)))
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = {job: pool.submit(execute, job, environment, timeout, stop) for job in todo}
        pending, count = set(futures.values()), 0
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for outcome in (future.result() for future in finished):
                    count += 1
                    left = (time.monotonic() - started) / count * (len(todo) - count)
                    until = f", about {_duration(left)} left" if count < len(todo) else ""
                    took = f"{_duration(outcome.seconds)}{until}"
                    say(f"[{count:{width}}/{len(todo)}] {outcome.status:<7} {outcome.job.name} ({took})")
        except KeyboardInterrupt:
            stop.set()
            # A second Ctrl-C must not leave kernels behind either; this takes no longer than the grace.
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            say(f"ending the notebooks that run, within {GRACE:.0f} s or so ...")
            for future in pending:
                future.cancel()
            wait(futures.values())
            signal.signal(signal.SIGINT, before)
        finally:  # whatever else went wrong here, such as a closed pipe: leave no kernels behind
            stop.set()
    return {job: Outcome(job, "interrupted") if f.cancelled() else f.result() for job, f in futures.items()}


def _draw(plan: Plan, jobs: int, force: bool, timeout: float | None, say) -> list[Outcome]:
    """Executes the paper notebooks; one whose inputs and files are as they were is skipped."""
    if not any(is_done(folder) for folder in plan.space.records.glob("[!.]*")):
        return [Outcome(job, "skipped", error="there is no record to draw from yet") for job in plan.paper]
    digests = {job: _inputs_digest(job, plan) for job in plan.paper}
    todo = [job for job in plan.paper if force or not _is_drawn(job, digests[job])]
    if todo:
        say(f"{len(todo)} tables and figures to draw")
    since = time.time() - 1  # a file system's clock may be coarse
    outcomes = _execute_all(todo, jobs, timeout, say)
    folders = (plan.space.figures, plan.space.tables)
    drawn = [p for folder in folders if folder.is_dir() for p in folder.iterdir() if p.stat().st_mtime >= since]
    for job, outcome in outcomes.items():
        if outcome.status == "done":
            # Notebooks drawn together cannot be told apart by their files, so each answers for all of them.
            _stamp_file(job).write_text(json.dumps({"inputs": digests[job], "files": sorted(map(str, drawn))}))
    return [outcomes.get(job) or Outcome(job, "skipped") for job in plan.paper]


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


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
