"""Executes a plan on a Slurm cluster: a job array for all runs of one shape, a task a run, the drawings after the last.

A task does on its node what `batch` does here, so the nodes must see this repository, its environment and all folders
under the same paths. Which run is which Slurm job stands in outputs/<profile>/slurm/jobs.json: what is still queued or
running there is waited for, not submitted again.
"""

import contextlib
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from panderm_utils.batch.estimates import Costs
from panderm_utils.batch.execution import Outcome, child_environment, execute
from panderm_utils.batch.parameters import PlanError
from panderm_utils.batch.plan import Job, Plan
from panderm_utils.batch.progress import Progress
from panderm_utils.batch.running import How, draw, leave_out
from panderm_utils.batch.slurm_queue import Watch, read_queue, write_queue
from panderm_utils.workspace import REPOSITORY

LOOK = 1.0  # seconds between looks for outcomes
HOURS = "4:00:00"  # the time limit of a run unless another is given
WARNING = 90  # seconds before its time limit at which a run is ended, to be queued again
TIMEOUTS = 10  # how often a run may reach its time limit and go on
DRAWINGS = 4  # at once, here: a login node is shared
OWN = ("array", "chdir", "error", "job_name", "nodes", "ntasks", "ntasks_per_node", "output", "signal", "wrap")


def run_on_slurm(plan: Plan, how: How, options: Iterable[str], say: Callable[[str], None] = print) -> list[Outcome]:
    """Does as `batch.run_batch`, with the runs on a cluster and the paper notebooks here.

    Args:
        how: As there; `jobs` is how many tasks of an array run at once.
        options: What `settle_options` takes.

    Raises:
        PlanError: submitit or Slurm is not there, or refuses.
    """
    shapes = settle_options(plan.runs, options)
    name, folder, costs = job_name(plan), plan.space.root / "slurm", Costs(plan.space.records)
    note = folder / "jobs.json"
    folder.mkdir(parents=True, exist_ok=True)
    outcomes, waiting = {}, {}
    try:
        with FileLock(folder / ".lock"):  # of two batches that start at once, one attaches to the jobs of the other
            queued = read_queue(note, name)
            waiting |= {run: queued[run.name] for run in plan.runs if run.name in queued}
            if waiting:
                say(f"{len(waiting)} of {len(plan.runs)} runs are in Slurm already, as job {_arrays(waiting)}")
            outcomes |= leave_out([run for run in plan.runs if run not in waiting], how.force)
            todo = [run for run in plan.runs if run not in waiting and run not in outcomes]
            for shape, runs in by_shape(costs.longest_first(todo), shapes):
                with _undisturbed():
                    submitted = _submit(runs, shape, how, folder, name)
                    waiting |= submitted
                    queued |= {run.name: job_id for run, job_id in submitted.items()}
                    write_queue(note, queued)
                these = f"{len(runs)} of {len(plan.runs)} runs"
                say(f"{these} submitted as Slurm job {_arrays(submitted)}, {min(how.jobs, len(runs))} at a time")
        if waiting:
            say(f"logs: {next(iter(waiting)).log.parent}; Slurm's own: {folder}")
        progress = Progress(list(waiting), how.jobs, say, costs, how.live)
        for outcome in _follow(waiting, folder, name, progress):
            outcomes[outcome.job] = outcome
    except KeyboardInterrupt:
        _leave_or_cancel({run: job_id for run, job_id in waiting.items() if run not in outcomes}, say)
        return [outcomes.get(run) or Outcome(run, "interrupted") for run in plan.runs]
    here = replace(how, jobs=min(how.jobs, DRAWINGS))
    return [outcomes[run] for run in plan.runs] + draw(plan, here, costs, say)


def job_name(plan: Plan) -> str:
    """Returns what the Slurm jobs of a plan are called."""
    return f"panderm-{plan.space.profile}"


def settle_options(runs: Iterable[Job], options: Iterable[str]) -> dict[Job, dict[str, str | bool]]:
    """Returns the options of sbatch for each run.

    Args:
        options: `name=value`, `name` where sbatch takes no value, or either after `protocol:` for its runs alone.

    Raises:
        PlanError: An option is one that the batch sets itself, or of a protocol without a run.
    """
    settled = {run: {"time": HOURS} for run in runs}
    protocols = {run: run.notebook.parent.name for run in settled}
    for text in options:
        name, equals, value = text.partition("=")
        protocol, _, name = name.rpartition(":")
        name = name.strip("-").replace("-", "_")
        if not name or name in OWN:
            raise PlanError(f"--slurm-option {text}: write name=value of sbatch; not any of {', '.join(OWN)}")
        if protocol and protocol not in protocols.values():
            there = ", ".join(sorted(set(protocols.values())))
            raise PlanError(f"--slurm-option {text}: no run is of protocol {protocol!r}; there are {there}")
        for run in settled:
            if protocol in ("", protocols[run]):
                settled[run][name] = value if equals else True
    for option in settled.values():
        minutes(option["time"])
    return settled


def by_shape(runs: Iterable[Job], settled: dict[Job, dict]) -> list[tuple[dict, list[Job]]]:
    """Returns the options and the runs of each array: runs of the same options share one."""
    shapes = {}
    for run in runs:
        shapes.setdefault(tuple(sorted(settled[run].items())), []).append(run)
    return [(dict(shape), alike) for shape, alike in shapes.items()]


def minutes(limit: str) -> int:
    """Returns the minutes of a time limit as sbatch has it: 90, 90:00, 4:00:00, 1-12, 1-12:30 or 1-12:30:00.

    Raises:
        PlanError: It is none.
    """
    days, dash, clock = str(limit).rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        parts = parts if dash or len(parts) > 2 else [0, *parts]
        hours, mins, seconds = parts + [0] * (3 - len(parts))
        return math.ceil(int(days or 0) * 1440 + hours * 60 + mins + seconds / 60)
    except ValueError as error:
        raise PlanError(f"--slurm-option time={limit}: write it as sbatch has it, as in time={HOURS}") from error


def _submit(runs: list[Job], options: dict, how: How, folder: Path, name: str) -> dict[Job, str]:
    """Submits runs as one array; returns the Slurm job id of each."""
    try:
        import submitit
    except ImportError as error:
        raise PlanError('--slurm needs submitit; install it with: pip install -e ".[cluster]"') from error
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=TIMEOUTS)
        executor.update_parameters(
            job_name=name,
            time=minutes(options["time"]),
            signal_delay_s=WARNING,
            array_parallelism=how.jobs,
            stderr_to_stdout=True,
            # From Slurm 22.05 on, srun does not take this from sbatch by itself.
            setup=['[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK'],
            additional_parameters={"requeue": True, "chdir": REPOSITORY, **options},
        )
        # A batch that itself runs inside a Slurm job must not hand that job's settings down.
        kept = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or k.startswith("SBATCH_")}
        with submitit.helpers.clean_env():
            os.environ.update(kept)
            submitted = executor.map_array(Task(how.timeout, how.retries), runs)
    except RuntimeError as error:  # there is no srun, or sbatch said no
        told = str(error).strip()
        if "Invalid job array specification" in told:
            told = f"{told}\nan array may be too long here; name fewer --datasets or --seeds at a time"
        raise PlanError(f"Slurm did not take {len(runs)} runs: {told}") from error
    for job in submitted:  # a Slurm that was set up anew counts from 1 again, and old outcomes may be there
        job.paths.result_pickle.unlink(missing_ok=True)
    return {run: job.job_id for run, job in zip(runs, submitted, strict=True)}


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Puts Ctrl-C off, so that what is submitted is noted too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow(waiting: dict[Job, str], folder: Path, name: str, progress: Progress) -> Iterator[Outcome]:
    """Yields outcomes as runs finish."""
    left, started, watch = dict(waiting), set(), Watch(name, progress.say)
    try:
        while left:
            running, ended = watch.look(left)
            there = set(os.listdir(folder))  # noqa: PTH208 - and a shared file system looks afresh where it is listed
            for run, job_id in list(left.items()):
                outcome = None
                if f"{job_id}_0_result.pkl" in there:
                    outcome = _read_outcome(run, job_id, folder)
                elif run in ended:
                    outcome = _failed(run, f"Slurm ended job {job_id}: {ended[run]}", job_id, folder)
                if run not in started and (run in running or outcome):
                    started.add(run)
                    progress.started(run)
                if outcome:
                    del left[run]
                    progress.finished(outcome)
                    yield outcome
            progress.look()
            time.sleep(LOOK if left else 0)
    finally:
        progress.close()


def _read_outcome(run: Job, job_id: str, folder: Path) -> Outcome:
    """Returns the outcome that submitit brought back."""
    kind, result = pickle.loads((folder / f"{job_id}_0_result.pkl").read_bytes())
    if kind == "error":
        return _failed(run, result.strip().splitlines()[-1], job_id, folder)
    return replace(result, job=run)


def _failed(run: Job, why: str, job_id: str, folder: Path) -> Outcome:
    return Outcome(run, "failed", error=f"{why}; see {folder / f'{job_id}_0_log.out'}")


def _leave_or_cancel(left: dict[Job, str], say: Callable[[str], None]) -> None:
    """Asks, on a terminal, whether the runs shall go on in Slurm; elsewhere they do."""
    if not left:
        return
    answer = ""
    with contextlib.suppress(KeyboardInterrupt, EOFError, OSError):
        if os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp():  # not in the background, where asking would stop us
            answer = input(f"\n{len(left)} runs are queued or running. [l]eave them in Slurm or [c]ancel them? ")
    if answer.strip().lower().startswith("c"):
        subprocess.run(["scancel", *left.values()], check=False)
        say(f"cancelled {len(left)} runs")
    else:
        say(f"{len(left)} runs go on in Slurm; the same command attaches to them, `scancel {_arrays(left)}` ends them")


def _arrays(queued: dict[Job, str]) -> str:
    return " ".join(dict.fromkeys(job_id.split("_")[0] for job_id in queued.values()))


class Task:
    """Executes a run; submitit carries it to the node and brings the outcome back.

    Slurm warns with USR2 before a time limit, and with it or TERM before a preemption. The notebook is then ended
    cleanly and the task queued again, to go on from its checkpoints and caches. After `scancel`, and after
    `scontrol requeue` by someone else, there is a TERM too, but Slurm no longer calls the job running, and knows what
    comes next.
    """

    def __init__(self, timeout: float | None, retries: int) -> None:
        self.timeout, self.retries = timeout, retries

    def __call__(self, job: Job) -> Outcome:
        stop, queue_again = threading.Event(), signal.getsignal(signal.SIGUSR2)  # the latter is submitit's
        # Slurm signals every process of a task. A blocked signal is inherited as such, so that USR2 does not kill
        # papermill and the kernel before they could be ended cleanly.
        with ThreadPoolExecutor(
            1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, [signal.SIGUSR2])
        ) as pool:
            running = pool.submit(execute, job, child_environment(1), self.timeout, stop, self.retries)

            def leave(number, frame):
                for heard in (signal.SIGTERM, signal.SIGUSR2):
                    signal.signal(heard, signal.SIG_IGN)
                stop.set()
                if running.result().status == "done":  # just in time
                    return
                if _state() == "RUNNING":
                    queue_again(number, frame)
                # No outcome is left behind: whoever waits would take it for the end of the run.
                sys.exit(128 + number)

            for heard in (signal.SIGTERM, signal.SIGUSR2):
                signal.signal(heard, leave)
            return running.result()

    def checkpoint(self, job: Job):
        """Returns what submitit queues again: the same; all that a run needs to go on is in its files."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def _state() -> str:
    """Returns what Slurm says of this job, such as RUNNING, or COMPLETING once it was cancelled or requeued."""
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={os.environ['SLURM_JOB_ID']}"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
