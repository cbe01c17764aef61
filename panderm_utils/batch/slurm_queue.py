"""What Slurm says of the batch's jobs, and the note of which run is which job."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from panderm_utils.batch.parameters import PlanError
from panderm_utils.batch.plan import Job

ASK = 15.0  # seconds from one question to the next: a cluster's controller serves everybody
# States of jobs that come to nothing more; in any other, such as REQUEUED, a job is still to run or running.
GONE = "it is gone from the queue"  # forgotten, minutes after its end
OVER = (GONE, "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
USUAL = ("None", "JobArrayTaskLimit")  # reasons to wait that say nothing new


def ask(name: str) -> dict[str, tuple[str, str]]:
    """Returns by id the state, and what it waits for, of each Slurm job of this name, also of those just ended.

    Raises:
        PlanError: Slurm is not here, or does not answer.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", f"--name={name}", "--format=%i|%T|%r"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError as error:
        raise PlanError("no `squeue` here: log in to the cluster, or print a script with --slurm-script") from error
    except subprocess.SubprocessError as error:
        told = (error.stderr or str(error)).strip().splitlines()[-1]
        raise PlanError(f"Slurm does not answer ({told}); what it runs goes on; try again later") from error
    return {job_id: (state, reason) for job_id, state, reason in (line.split("|") for line in done.stdout.splitlines())}


def read_queue(file: Path, name: str) -> dict[str, str]:
    """Returns the Slurm job id of each run in the note that is queued or running."""
    states = ask(name)
    noted = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {run: job_id for run, job_id in noted.items() if job_id in states and states[job_id][0] not in OVER}


def write_queue(file: Path, queued: dict[str, str]) -> None:
    new = file.with_name(f".{file.name}.new")
    new.write_text(json.dumps(queued, indent=2) + "\n", encoding="utf-8")
    new.replace(file)


class Watch:
    """Asks Slurm every ASK seconds what became of jobs, and says what they wait for where that changes."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._asked, self._said, self._over = -ASK, "", set()

    def look(self, waiting: dict[Job, str]) -> tuple[set[Job], dict[Job, str]]:
        """Returns which of the given runs are running, and how those ended that are over; between questions, none.

        Only what two answers running called over is: a shared file system may show an outcome later than that.

        Args:
            waiting: Runs with their Slurm job ids.
        """
        if time.monotonic() - self._asked < ASK:
            return set(), {}
        self._asked = time.monotonic()
        try:
            states = ask(self._name)
        except PlanError as error:
            self._tell(str(error))
            return set(), {}
        found = {run: states.get(job_id, (GONE, "")) for run, job_id in waiting.items()}
        reasons = {reason for state, reason in found.values() if state == "PENDING"} - set(USUAL)
        self._tell(f"Slurm: runs wait for {', '.join(sorted(reasons))}" if reasons else "")
        before, self._over = self._over, {run for run, (state, _) in found.items() if state in OVER}
        running = {run for run, (state, _) in found.items() if state == "RUNNING"}
        return running, {run: found[run][0] for run in before & self._over}

    def _tell(self, news: str) -> None:
        if news not in ("", self._said):
            self._say(news)
        self._said = news
