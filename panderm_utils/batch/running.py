"""Executes a plan from a pool of threads: skips what is done, goes on after a failure, ends all on Ctrl-C.

The paper notebooks run after the runs, and only when what they read has changed since they were last drawn.
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

from panderm_utils.batch.estimates import Costs
from panderm_utils.batch.execution import Outcome, child_environment, execute
from panderm_utils.batch.leftovers import GRACE
from panderm_utils.batch.plan import Job, Plan
from panderm_utils.batch.progress import Progress
from panderm_utils.batch.warm_kernels import Server
from panderm_utils.manifests import MANIFEST_ROOT
from panderm_utils.results import is_done
from panderm_utils.workspace import REPOSITORY

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
    code, yamls = (REPOSITORY / "panderm_utils").glob("**/*.py"), MANIFEST_ROOT.glob("**/*.yaml")
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


VARIABLE = "CUDA_VISIBLE_DEVICES"


def read_gpus(text: str) -> tuple[str, ...]:
    """Returns the ids that `--gpus` names: "0,1,3"; "all": those in a preset CUDA_VISIBLE_DEVICES, else all there are.

    Raises:
        ValueError: None is there, one is named twice, or one is not there or not among the preset ones.
    """
    preset = os.environ.get(VARIABLE)
    there = _split(preset) if preset is not None else _numbers()
    whence = f"{VARIABLE}={preset}" if preset is not None else "nvidia-smi -L"
    if not there:
        raise ValueError(f"--gpus {text}: {whence} shows no GPU; leave --gpus out to run on the CPU")
    wanted = there if text == "all" else _split(text)
    known = f"{', '.join(there)} ({whence})"
    if absent := [gpu for gpu in wanted if gpu not in there]:
        raise ValueError(f"--gpus {text}: no GPU {', '.join(absent)} here; write --gpus all, or of these: {known}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"--gpus {text}: name each GPU once, of {known}; or write --gpus all")
    return tuple(wanted)


def sees_gpus() -> bool:
    """Whether a run that is given no GPU of its own may use one."""
    preset = os.environ.get(VARIABLE)
    return bool(_split(preset) if preset is not None else _numbers())


def gpus_of(job: Job) -> int:
    """Returns how many GPUs a run takes: as many as the processes that train together."""
    return job.parameters.get("processes", 1)


def check_gpus(runs: Sequence[Job], gpus: tuple[str, ...]) -> None:
    """Raises ValueError where a run asks for more GPUs than are named."""
    if wide := [run for run in runs if gpus_of(run) > len(gpus)]:
        count = gpus_of(wide[0])
        raise ValueError(f"{wide[0].name} asks for {count} GPUs; name as many with --gpus, or write -p processes=1")


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers() -> list[str]:
    """The numbers of the GPUs that the driver lists; none where there is no driver."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number, line in enumerate(filter(lambda x: x.startswith("GPU "), listed.splitlines()))]
