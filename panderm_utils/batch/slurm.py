"""Executes a plan on a Slurm cluster: a job array per set of sbatch options, a task per run; paper notebooks run here.

A task does on its node what `running` does locally, so the nodes must see this repository, its environment and all
folders under the same paths. outputs/<profile>/slurm/jobs.json maps runs to Slurm jobs: runs that are still queued or
running are waited for, not submitted again.
"""

import contextlib
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

from panderm_utils import system
from panderm_utils.batch.costs import Costs
from panderm_utils.batch.execution import Outcome, child_environment, execute
from panderm_utils.batch.jobs import Job, Plan, count_runs
from panderm_utils.batch.parameters import PlanError
from panderm_utils.batch.progress import Progress
from panderm_utils.batch.running import BatchOptions, run_paper_notebooks, skipped_or_missing
from panderm_utils.batch.slurm_queue import Watch, read_queue
from panderm_utils.batch.slurm_submission import group_into_arrays, job_name, settle_options, submit

POLL = 1.0  # seconds between checks for outcomes
LOCAL_JOBS = 4  # at most so many paper notebooks at once: a login node is shared


def run_on_slurm(
    plan: Plan, options: BatchOptions, sbatch_options: Iterable[str], say: Callable[[str], None] = print
) -> list[Outcome]:
    """Executes a plan as `running.run_batch` does, but the runs on a cluster; the paper notebooks run here.

    Args:
        options: As there; `jobs` is how many tasks of an array run at once.
        sbatch_options: See `settle_options`.

    Raises:
        PlanError: submitit, Slurm or Linux is not available, or Slurm rejects the jobs.
    """
    if not system.LINUX:
        raise PlanError("--slurm: Slurm runs on Linux; give this command on a node of the cluster")
    settled = settle_options(plan.runs, sbatch_options)
    name, folder, costs = job_name(plan), plan.space.root / "slurm", Costs(plan)
    queue_file = folder / "jobs.json"
    folder.mkdir(parents=True, exist_ok=True)
    outcomes, waiting = {}, {}
    try:
        with FileLock(folder / ".lock"):  # if two batches start at once, one attaches to the jobs of the other
            queued = read_queue(queue_file, name, say)
            waiting |= {run: queued[run.name] for run in plan.runs if run.name in queued}
            if waiting:
                say(f"{len(waiting)} of {len(plan.runs)} runs are already in Slurm, as job {_arrays(waiting)}")
            outcomes |= skipped_or_missing([run for run in plan.runs if run not in waiting], options.force)
            todo = [run for run in plan.runs if run not in waiting and run not in outcomes]
            arrays, task = group_into_arrays(costs.longest_first(todo), settled), Task(options.timeout, options.retries)
            for jobs in submit(arrays, task, options.jobs, name, queue_file, queued):
                waiting |= jobs
                count = f"{len(jobs)} of {len(plan.runs)} runs"
                say(f"{count} submitted as Slurm job {_arrays(jobs)}, {min(options.jobs, len(jobs))} at a time")
        if waiting:
            say(f"logs: {next(iter(waiting)).log.parent}; Slurm's logs: {folder}")
        progress = Progress(list(waiting), options.jobs, say, costs, options.live)
        for outcome in _wait_for_outcomes(waiting, folder, name, progress):
            outcomes[outcome.job] = outcome
    except KeyboardInterrupt:
        _leave_or_cancel({run: job_id for run, job_id in waiting.items() if run not in outcomes}, say)
        return [outcomes.get(run) or Outcome(run, "interrupted") for run in plan.runs]
    local = replace(options, jobs=min(options.jobs, LOCAL_JOBS))
    return [outcomes[run] for run in plan.runs] + run_paper_notebooks(plan, local, costs, say)


def _wait_for_outcomes(waiting: dict[Job, str], folder: Path, name: str, progress: Progress) -> Iterator[Outcome]:
    """Yields outcomes as runs finish."""
    left, started, watch = dict(waiting), set(), Watch(name, progress.say)
    try:
        while left:
            running, ended = watch.poll(left)
            files = set(os.listdir(folder))  # noqa: PTH208 - listing also makes a shared file system refresh
            for run, job_id in list(left.items()):
                outcome = None
                if f"{job_id}_0_result.pkl" in files:
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
            progress.refresh()
            time.sleep(POLL if left else 0)
    finally:
        progress.close()


def _read_outcome(run: Job, job_id: str, folder: Path) -> Outcome:
    """Returns the outcome that submitit saved."""
    kind, result = pickle.loads((folder / f"{job_id}_0_result.pkl").read_bytes())
    if kind == "error":
        return _failed(run, result.strip().splitlines()[-1], job_id, folder)
    return replace(result, job=run)


def _failed(run: Job, reason: str, job_id: str, folder: Path) -> Outcome:
    return Outcome(run, "failed", error=f"{reason}; see {folder / f'{job_id}_0_log.out'}")


def _leave_or_cancel(left: dict[Job, str], say: Callable[[str], None]) -> None:
    """Asks on a terminal whether to leave the runs in Slurm or cancel them; without a terminal, leaves them."""
    if not left:
        return
    answer = ""
    with contextlib.suppress(KeyboardInterrupt, EOFError, OSError):
        if (
            os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
        ):  # not in the background, where reading input would stop the process
            answer = input(f"\nqueued or running: {count_runs(len(left))}. [l]eave them in Slurm or [c]ancel them? ")
    if answer.strip().lower().startswith("c"):
        subprocess.run(["scancel", *left.values()], check=False)
        say(f"cancelled {count_runs(len(left))}")
    else:
        remedy = f"the same command attaches to them, `scancel {_arrays(left)}` cancels them"
        say(f"{count_runs(len(left))} left in Slurm; {remedy}")


def _arrays(queued: dict[Job, str]) -> str:
    return " ".join(dict.fromkeys(job_id.split("_")[0] for job_id in queued.values()))


class Task:
    """Executes a run on a node; submitit sends it there and saves the outcome.

    Slurm sends USR2 before a time limit, and USR2 or TERM before a preemption. The task then ends its notebook cleanly
    and queues itself again, to resume from checkpoints and caches. `scancel` and `scontrol requeue` send TERM too, but
    then the job's state is no longer RUNNING, and Slurm decides what follows.
    """

    def __init__(self, timeout: float | None, retries: int) -> None:
        self.timeout, self.retries = timeout, retries

    def __call__(self, job: Job) -> Outcome:
        stop, queue_again = threading.Event(), signal.getsignal(signal.SIGUSR2)  # the latter is submitit's handler
        # Slurm signals every process of a task. Child processes inherit the blocked signal, so that USR2 does not kill
        # papermill and the kernel before they are ended cleanly.
        with ThreadPoolExecutor(
            1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, [signal.SIGUSR2])
        ) as pool:
            running = pool.submit(execute, job, child_environment(1), self.timeout, stop, self.retries)

            def requeue_or_exit(number, frame):
                for other in (signal.SIGTERM, signal.SIGUSR2):
                    signal.signal(other, signal.SIG_IGN)
                stop.set()
                if running.result().status == "done":  # it finished just in time
                    return
                if _job_state() == "RUNNING":
                    queue_again(number, frame)
                # Without saving an outcome, which the waiting batch would take for the end of the run.
                sys.exit(128 + number)

            for number in (signal.SIGTERM, signal.SIGUSR2):
                signal.signal(number, requeue_or_exit)
            return running.result()

    def checkpoint(self, job: Job):
        """Returns the task for submitit to queue again: the same one, as a run resumes from its files."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def _job_state() -> str:
    """Returns the state of this Slurm job, such as RUNNING, or COMPLETING once it was cancelled or requeued."""
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={os.environ['SLURM_JOB_ID']}"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
