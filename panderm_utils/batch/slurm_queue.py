"""The states of the batch's Slurm jobs, and the file that maps runs to jobs."""

import json
import subprocess
import time
from collections.abc import Callable
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
ROUTINE_REASONS = ("None", "JobArrayTaskLimit")  # for pending jobs; not worth a message


def query_jobs(name: str) -> dict[str, tuple[str, str]]:
    """Returns job id -> (state, reason for waiting) of the Slurm jobs of this name, including those just ended.

    Raises:
        PlanError: Slurm is not available, or does not answer.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", f"--name={name}", "--format=%i|%T|%r"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError as error:
        raise PlanError("no `squeue` here: log in to the cluster, or print a script with --slurm-script") from error
    except subprocess.SubprocessError as error:
        message = (error.stderr or str(error)).strip().splitlines()[-1]
        raise PlanError(f"Slurm does not answer ({message}); its jobs continue; try again later") from error
    rows = [line.split("|") for line in listing.stdout.splitlines()]
    return {job_id: (state, reason) for job_id, state, reason in rows}


def read_queue(file: Path, name: str) -> dict[str, str]:
    """Returns run -> Slurm job id of the runs in `file` that are queued or running."""
    states = query_jobs(name)
    saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {run: job_id for run, job_id in saved.items() if job_id in states and states[job_id][0] not in FINAL_STATES}


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
