"""Executes a plan: skips finished runs, continues after failures, ends all notebooks on Ctrl-C.

The paper notebooks follow the runs, and only if their inputs have changed since they were last executed.
"""

import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from panderm_utils.batch.costs import Costs
from panderm_utils.batch.execution import Outcome, child_environment, execute
from panderm_utils.batch.jobs import Job, Plan
from panderm_utils.batch.leftovers import GRACE
from panderm_utils.batch.progress import Progress
from panderm_utils.batch.warm_kernels import Server
from panderm_utils.manifests import MANIFEST_ROOT
from panderm_utils.results import is_done
from panderm_utils.system import END_SIGNALS
from panderm_utils.workspace import REPOSITORY

MAX_LISTED = 20  # skipped runs that the summary lists one by one


@dataclass(frozen=True)
class BatchOptions:
    """How a batch is executed.

    Attributes:
        jobs: How many notebooks run at once; each gets its share of the cores.
        gpus: Ids of the GPUs, one notebook per GPU, regardless of `jobs`; if empty, a run sees what the batch sees.
        force: Whether to repeat finished runs.
        timeout: Seconds after which a notebook is ended, or None.
        retries: How often to retry a run whose kernel did not start or was killed, as when memory runs out.
        live: Whether to draw progress bars, for a terminal.
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


def run_batch(plan: Plan, options: BatchOptions = BatchOptions(), say: Callable[[str], None] = print) -> list[Outcome]:
    """Executes the runs of a plan that have no complete record, then the paper notebooks whose inputs changed.

    Args:
        say: Prints a line of text.

    Returns:
        An outcome for each run and each paper notebook, in the plan's order.
    """
    outcomes, costs = skipped_or_missing(plan.runs, options.force), Costs(plan)
    todo = [run for run in plan.runs if run not in outcomes]
    at_once = _runs_at_once(plan, options)
    if todo:
        say(f"{len(todo)} of {len(plan.runs)} runs to do, {at_once} at a time; logs: {todo[0].log.parent}")
    with Server() as warm:
        outcomes |= _execute_all(todo, options, at_once, costs, say, warm)
        if exit_status(outcomes.values()) == 130:
            return [outcomes[run] for run in plan.runs]
        return [outcomes[run] for run in plan.runs] + run_paper_notebooks(plan, options, costs, say, warm)


def skipped_or_missing(runs: Sequence[Job], force: bool) -> dict[Job, Outcome]:
    """Returns an outcome for each run not to execute: it has a record (unless `force`), or its data or weights lack."""
    outcomes = {}
    for run in runs:
        if not force and is_done(run.record):
            outcomes[run] = Outcome(run, "skipped")
        elif run.missing:
            outcomes[run] = Outcome(run, "missing", error="; ".join(need.describe_missing() for need in run.missing))
    return outcomes


def exit_status(outcomes) -> int:
    """Returns 130 after Ctrl-C, 1 if any job failed or lacks data or weights, else 0."""
    statuses = {outcome.status for outcome in outcomes}
    return 130 if "interrupted" in statuses else int(bool(statuses & {"failed", "missing"}))


def describe_outcomes(outcomes: Sequence[Outcome]) -> str:
    """Returns the summary: each job's status and seconds, and for failures the cell, the error and the log."""
    skipped = [outcome for outcome in outcomes if outcome.status == "skipped"]
    width = max((len(outcome.job.name) for outcome in outcomes), default=0)
    lines = ["", f"{'status':<11} {'run':<{width}} seconds"]
    for outcome in outcomes:
        if outcome.status == "skipped" and len(skipped) > MAX_LISTED:
            continue
        seconds = f"{outcome.seconds:7.1f}" if outcome.seconds else ""
        lines.append(f"{outcome.status:<11} {outcome.job.name:<{width}} {seconds}".rstrip())
        if outcome.error:
            lines.append(f"            {f'cell {outcome.cell}: ' if outcome.cell else ''}{outcome.error}")
        if outcome.status == "failed":
            lines.append(f"            log: {outcome.job.log}")
    if len(skipped) > MAX_LISTED:
        lines.append(f"{'skipped':<11} {len(skipped)} runs that have a record")
    counts = {}
    for outcome in outcomes:
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
    return "\n".join([*lines, "", ", ".join(f"{count} {status}" for status, count in counts.items())])


def _runs_at_once(plan: Plan, options: BatchOptions) -> int:
    return min(len(options.slots), len(plan.runs or plan.paper))


def _execute_all(
    todo: list[Job], options: BatchOptions, at_once: int, costs: Costs, say, warm: Server | None
) -> dict[Job, Outcome]:
    """Executes jobs, the longest first; Ctrl-C ends the running ones and starts no others.

    Args:
        at_once: How many jobs share the cores. A resumed batch must use the same number, however few jobs are left:
            the last digits of a result depend on the number of threads.
    """
    stop, waiting, running, outcomes = threading.Event(), costs.longest_first(todo), {}, {}
    slots = list(options.slots)
    environment = child_environment(at_once or 1)
    if warm and todo and not options.gpus and not sees_gpus():
        warm.prepare(environment, len(todo))
    progress = Progress(todo, len(slots), say, costs, options.live)
    with ThreadPoolExecutor(max_workers=len(slots)) as pool:
        try:
            while waiting or running:
                # In order, so that other runs do not overtake a run that needs several GPUs.
                while waiting and (width := gpus_of(waiting[0]) if options.gpus else 1) <= len(slots):
                    job, used, slots = waiting.pop(0), slots[:width], slots[width:]
                    gpus = {VARIABLE: ",".join(used)} if options.gpus else {}
                    future = pool.submit(execute, job, environment | gpus, options.timeout, stop, options.retries, warm)
                    running[future] = job, used
                    progress.started(job)
                for future in wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    job, used = running.pop(future)
                    slots += used
                    outcomes[job] = future.result()
                    progress.finished(outcomes[job])
                progress.refresh()
        except KeyboardInterrupt:
            stop.set()
            # A second Ctrl-C must not leave kernels behind either; this takes no longer than GRACE.
            before = {number: signal.signal(number, signal.SIG_IGN) for number in END_SIGNALS}
            say(f"stopping the running notebooks, within about {GRACE:.0f} s ...")
            outcomes |= {job: future.result() for future, (job, _) in running.items()}
            for number, handler in before.items():
                signal.signal(number, handler)
        finally:  # also after other errors, such as a closed pipe, no kernel may remain
            stop.set()
            progress.close()
    return {job: outcomes.get(job) or Outcome(job, "interrupted") for job in todo}


def run_paper_notebooks(
    plan: Plan, options: BatchOptions, costs: Costs, say, warm: Server | None = None
) -> list[Outcome]:
    """Executes the paper notebooks, except those whose inputs and output files have not changed."""
    if not any(is_done(folder) for folder in plan.space.records.glob("[!.]*")):
        return [Outcome(job, "skipped", error="no record to draw from yet") for job in plan.paper]
    digests = {job: _inputs_digest(job, plan) for job in plan.paper}
    todo = [job for job in plan.paper if options.force or not _is_drawn(job, digests[job])]
    if todo:
        say(f"{len(todo)} tables and figures to draw")
    before = _files(plan)
    # The threads of the runs, however few notebooks there are: with others, the runs' server could not start them.
    outcomes = _execute_all(todo, options, _runs_at_once(plan, options), costs, say, warm)
    drawn = [path for path, stamp in _files(plan).items() if before.get(path) != stamp]
    for job, outcome in outcomes.items():
        if outcome.status == "done":
            # Of notebooks executed at once, it is not known which wrote which file: each is listed for all of them.
            stamp = json.dumps({"inputs": digests[job], "files": sorted(map(str, drawn))})
            _stamp_file(job).write_text(stamp, encoding="utf-8")
    return [outcomes.get(job) or Outcome(job, "skipped") for job in plan.paper]


def _files(plan: Plan) -> dict[Path, tuple[int, int, int]]:
    """Returns the tables and figures, each with inode and times, which change when it is written again."""
    paths = (path for folder in (plan.space.figures, plan.space.tables) for path in folder.glob("[!.]*"))
    return {path: (s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for path in paths for s in [path.stat()]}


def _inputs_digest(job: Job, plan: Plan) -> str:
    """SHA-256 of the inputs of a paper notebook: records, the notebook, its parameters, code and manifests."""
    digest = hashlib.sha256(repr(sorted(job.parameters.items())).encode())
    digest.update(importlib.metadata.version("matplotlib").encode())
    code, yamls = (REPOSITORY / "panderm_utils").glob("**/*.py"), MANIFEST_ROOT.glob("**/*.yaml")
    records = plan.space.records.glob("[!.]*/record.json")
    for path in [job.notebook, *sorted(code), *sorted(yamls), *sorted(records)]:
        digest.update(f"{path}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    for path in sorted(plan.space.records.glob("[!.]*/predictions.csv")):  # large, and replaced only as a whole
        digest.update(f"{path}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def _is_drawn(job: Job, inputs: str) -> bool:
    try:
        stamp = json.loads(_stamp_file(job).read_bytes())
    except (OSError, ValueError):
        return False
    return stamp["inputs"] == inputs and all(Path(p).is_file() for p in [*stamp["files"], job.output])


def _stamp_file(job: Job) -> Path:
    return job.output.with_name(f".{job.name}.json")


VARIABLE = "CUDA_VISIBLE_DEVICES"


def read_gpus(text: str) -> tuple[str, ...]:
    """Returns the GPU ids of `--gpus`: those in "0,1,3"; for "all" those in CUDA_VISIBLE_DEVICES if set, else all.

    Raises:
        ValueError: There is no GPU, an id is repeated, or it is not among the visible ones.
    """
    preset = os.environ.get(VARIABLE)
    visible = _split(preset) if preset is not None else _driver_gpus()
    source = f"{VARIABLE}={preset}" if preset is not None else "nvidia-smi -L"
    if not visible:
        raise ValueError(f"--gpus {text}: {source} shows no GPU; leave --gpus out to run on the CPU")
    gpus = visible if text == "all" else _split(text)
    valid = f"{', '.join(visible)} ({source})"
    if absent := [gpu for gpu in gpus if gpu not in visible]:
        raise ValueError(f"--gpus {text}: no GPU {', '.join(absent)} here; write --gpus all, or choose from {valid}")
    if not gpus or len(set(gpus)) < len(gpus):
        raise ValueError(f"--gpus {text}: name each GPU once, from {valid}; or write --gpus all")
    return tuple(gpus)


def sees_gpus() -> bool:
    """Whether a run without an assigned GPU may use one."""
    preset = os.environ.get(VARIABLE)
    return bool(_split(preset) if preset is not None else _driver_gpus())


def gpus_of(job: Job) -> int:
    """Returns the number of GPUs that a run uses: one per training process."""
    return job.parameters.get("processes", 1)


def check_gpus(runs: Sequence[Job], gpus: tuple[str, ...]) -> None:
    """Raises ValueError if a run needs more GPUs than there are."""
    if too_wide := [run for run in runs if gpus_of(run) > len(gpus)]:
        count = gpus_of(too_wide[0])
        raise ValueError(f"{too_wide[0].name} needs {count} GPUs; name as many with --gpus, or write -p processes=1")


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _driver_gpus() -> list[str]:
    """Returns the indices of the GPUs that the driver lists, none without a driver."""
    try:
        output = subprocess.run(["nvidia-smi", "-L"], capture_output=True, encoding="utf-8", check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    lines = [line for line in output.splitlines() if line.startswith("GPU ")]
    return [str(index) for index in range(len(lines))]
