"""What one sees of a batch: a line a finished run; on a terminal also a bar over all and what each notebook does."""

import json
import re
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from panderm_utils.batch.estimates import Costs, duration
from panderm_utils.batch.execution import Outcome
from panderm_utils.batch.plan import Job

TAIL = 1 << 14  # bytes at the end of a log in which papermill's last word on a cell stands


class Progress:
    """Follows jobs from start to finish.

    Args:
        jobs: All that will be executed.
        slots: How many run at once.
        say: Takes a line of text for each finished job.
        live: Whether to draw the bar and a line a running notebook; without, nothing but lines is written.
    """

    def __init__(self, jobs: list[Job], slots: int, say: Callable[[str], None], costs: Costs, live: bool):
        self._left, self._slots, self._say, self._costs = dict.fromkeys(jobs), slots, say, costs
        self._total, self._seen, self._since = len(jobs), [], {}
        look = {"file": sys.stderr, "leave": False, "dynamic_ncols": True}
        bar = "{desc} {bar} {n_fmt}/{total_fmt}{postfix}"
        rows = range(min(slots, len(jobs)) if live else 0)
        self._bar = tqdm(total=len(jobs), desc="runs", bar_format=bar, disable=not live, **look)
        self._rows = [tqdm(bar_format="{desc}", position=1 + row, total=0, **look) for row in rows]

    def started(self, job: Job) -> None:
        self._since[job] = time.monotonic()

    def finished(self, outcome: Outcome) -> None:
        job = outcome.job
        del self._left[job], self._since[job]
        self._seen.append(outcome.seconds)
        count, width = self._total - len(self._left), len(str(self._total))
        until = f", about {duration(self.seconds_left())} left" if self._left else ""
        line = f"[{count:{width}}/{self._total}] {outcome.status:<7} {job.name} ({duration(outcome.seconds)}{until})"
        self.say(line)
        self._bar.update()

    def say(self, line: str) -> None:
        """Says a line above what is drawn."""
        with tqdm.external_write_mode():
            self._say(line)

    def seconds_left(self) -> float:
        """Returns the seconds that what is left may take: as like runs took, else as those seen here did on average."""
        usual = sum(self._seen) / len(self._seen) if self._seen else 0.0
        now, left = time.monotonic(), 0.0
        for job in self._left:
            whole = cost.seconds if (cost := self._costs.of(job)) else usual
            left += max(0.0, whole - (now - self._since[job] if job in self._since else 0.0))
        return left / min(self._slots, max(1, len(self._left)))

    def look(self) -> None:
        """Draws anew what the running notebooks are doing."""
        if not self._rows:
            return
        running = list(self._since) + [None] * len(self._rows)
        for row, job in zip(self._rows, running, strict=False):
            row.set_description_str(f"  {job.name}: {doing(job)}" if job else "")
        if self._seen or any(self._costs.of(job) for job in self._left):
            self._bar.set_postfix_str(f"about {duration(self.seconds_left())} left")

    def close(self) -> None:
        for bar in (*self._rows, self._bar):
            bar.close()


def doing(job: Job) -> str:
    """Says in which part of its notebook a job is: the heading above the cell that papermill named last in the log."""
    try:
        with job.log.open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - TAIL))
            entered = re.findall(rb"Executing Cell (\d+)-", log.read())
        cells = json.loads(job.notebook.read_bytes())["cells"]
    except (OSError, ValueError):
        return "starting"
    if not entered:
        return "starting"
    # papermill puts a cell with the given parameters after that of the notebook's own
    inside = cells[: int(entered[-1]) - 1]
    texts = ["".join(cell["source"]) for cell in inside if cell["cell_type"] == "markdown"]
    headings = [text.splitlines()[0].lstrip("# ") for text in texts if text.startswith("#")]
    return f"{headings[-1] if headings else 'starting'} ({int(entered[-1])} of {len(cells) + 1} cells)"
