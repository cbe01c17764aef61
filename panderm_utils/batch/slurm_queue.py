"""The states of the batch's Slurm jobs, and the file that maps runs to jobs."""

import json
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from panderm_utils.batch.jobs import Job
from panderm_utils.batch.parameters import PlanError

QUERY_INTERVAL = 15.0  # seconds between queries: all users of a cluster share its controller
# Final states of jobs; in any other, such as REQUEUED, a job is running or will run.
GONE = "it is gone from the queue"  # Slurm forgets a job some minutes after its end
FINAL_STATES = (
    GONE,
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "TIMEOUT",
)
# For pending jobs; not worth a message. Parts of a split array wait for each other.
ROUTINE_REASONS = ("None", "JobArrayTaskLimit", "Dependency", "JobHeldUser")
HELD = "held "  # in the queue file before the id of a job that was noted, and perhaps not released


def ask_slurm(*command: str) -> str:
    """Returns what a command of Slurm prints.

    Raises:
        PlanError: Slurm is not available, or does not answer.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except FileNotFoundError as error:
        remedy = "log in to the cluster, or print a script with --slurm-script"
        raise PlanError(f"no `{command[0]}` here: {remedy}") from error
    except subprocess.SubprocessError as error:
        message = (error.stderr or str(error)).strip().splitlines()[-1]
        raise PlanError(f"Slurm does not answer ({message}); its jobs continue; try again later") from error


def query_jobs(name: str) -> dict[str, tuple[str, str]]:
    """Returns job id -> (state, reason for waiting) of the Slurm jobs of this name, including those just ended.

    Raises:
        PlanError: As `ask_slurm`.
    """
    listing = ask_slurm("squeue", "--noheader", "--array", "--states=all", f"--name={name}", "--format=%i|%T|%r")
    rows = [line.split("|") for line in listing.splitlines()]
    return {job_id: (state, reason) for job_id, state, reason in rows}


def release(job_ids: Iterable[str]) -> None:
    """Lets jobs on hold start."""
    for array in dict.fromkeys(job_id.split("_")[0] for job_id in job_ids):
        ask_slurm("scontrol", "release", array)


def read_queue(file: Path, name: str, say: Callable[[str], None]) -> dict[str, str]:
    """Returns run -> Slurm job id of the runs in `file` that are queued or running; puts right what a kill left.

    Jobs that were noted and not released are released. Jobs that wait and were not noted are cancelled: of those that a
    killed batch submitted, none has run.
    """
    states = query_jobs(name)
    saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    noted = {run: text.removeprefix(HELD) for run, text in saved.items()}
    arrays = {job_id.split("_")[0] for job_id in noted.values()}
    strays = {job_id.split("_")[0] for job_id, (state, _) in states.items() if state == "PENDING"} - arrays
    if strays:
        ask_slurm("scancel", *sorted(strays))
        say(f"cancelled Slurm job {' '.join(sorted(strays))}: a killed batch had submitted it, and it had not started")
    held = [noted[run] for run, text in saved.items() if text.startswith(HELD)]
    release(job_id for job_id in held if states.get(job_id, ("", ""))[1] == "JobHeldUser")
    return {run: job_id for run, job_id in noted.items() if job_id in states and states[job_id][0] not in FINAL_STATES}


class Watch:
    """Queries the states of jobs every QUERY_INTERVAL seconds, and prints what they wait for when that changes."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._queried, self._printed, self._ended = -QUERY_INTERVAL, "", set()

    def poll(self, waiting: dict[Job, str]) -> tuple[set[Job], dict[Job, str]]:
        """Returns the running runs, and run -> final state of those that ended; both empty between queries.

        A run counts as ended after two queries in a row: a shared file system may show its outcome late.

        Args:
            waiting: Runs with their Slurm job ids.
        """
        if time.monotonic() - self._queried < QUERY_INTERVAL:
            return set(), {}
        self._queried = time.monotonic()
        try:
            states = query_jobs(self._name)
        except PlanError as error:
            self._print_once(str(error))
            return set(), {}
        current = {run: states.get(job_id, (GONE, "")) for run, job_id in waiting.items()}
        reasons = {reason for state, reason in current.values() if state == "PENDING"} - set(ROUTINE_REASONS)
        self._print_once(f"Slurm: runs wait for {', '.join(sorted(reasons))}" if reasons else "")
        before, self._ended = self._ended, {run for run, (state, _) in current.items() if state in FINAL_STATES}
        running = {run for run, (state, _) in current.items() if state == "RUNNING"}
        return running, {run: current[run][0] for run in before & self._ended}

    def _print_once(self, line: str) -> None:
        if line not in ("", self._printed):
            self._say(line)
        self._printed = line
