"""What a Slurm task does on its node: executes one run as `execution` does anywhere, and survives being interrupted."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from panderm_utils.batch.execution import Outcome, child_environment, execute
from panderm_utils.batch.plan import Job


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
