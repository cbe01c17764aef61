"""Progress output: a line per finished run; on a terminal also a bar, and the current step of each notebook."""

import json
import re
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from panderm_utils.batch.costs import Costs, format_duration
from panderm_utils.batch.execution import Outcome, headings_of
from panderm_utils.batch.jobs import Job

TAIL = 1 << 14  # bytes at the end of a log, enough to include papermill's last line about a cell


class Progress:
    """Prints the progress of jobs.

    Args:
        jobs: The jobs to execute.
        slots: How many run at once.
        say: Prints a line of text for each finished job.
        live: Whether to draw a bar and a row per running notebook, for a terminal.
    """

    def __init__(self, jobs: list[Job], slots: int, say: Callable[[str], None], costs: Costs, live: bool):
        self._left, self._slots, self._say, self._costs = dict.fromkeys(jobs), slots, say, costs
        self._total, self._durations, self._start_times = len(jobs), [], {}
        style = {"file": sys.stderr, "leave": False, "dynamic_ncols": True}
        bar = "{desc} {bar} {n_fmt}/{total_fmt}{postfix}"
        rows = range(min(slots, len(jobs)) if live else 0)
        self._bar = tqdm(total=len(jobs), desc="runs", bar_format=bar, disable=not live, **style)
        self._rows = [tqdm(bar_format="{desc}", position=1 + row, total=0, **style) for row in rows]

    def started(self, job: Job) -> None:
        self._start_times[job] = time.monotonic()

    def finished(self, outcome: Outcome) -> None:
        job = outcome.job
        del self._left[job], self._start_times[job]
        self._durations.append(outcome.seconds)
        count, width = self._total - len(self._left), len(str(self._total))
        left = f", about {format_duration(self.seconds_left())} left" if self._left else ""
        seconds = format_duration(outcome.seconds)
        self.say(f"[{count:{width}}/{self._total}] {outcome.status:<7} {job.name} ({seconds}{left})")
        self._bar.update()

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        with tqdm.external_write_mode():
            self._say(line)

    def seconds_left(self) -> float:
        """Returns the estimated seconds left: from similar runs, or else the mean of the jobs finished so far."""
        mean = sum(self._durations) / len(self._durations) if self._durations else 0.0
        now, left = time.monotonic(), 0.0
        for job in self._left:
            expected = cost.seconds if (cost := self._costs.of(job)) else mean
            left += max(0.0, expected - (now - self._start_times.get(job, now)))
        return left / min(self._slots, max(1, len(self._left)))

    def refresh(self) -> None:
        """Redraws the current step of each running notebook."""
        if not self._rows:
            return
        running = list(self._start_times) + [None] * len(self._rows)
        for row, job in zip(self._rows, running, strict=False):
            row.set_description_str(f"  {job.name}: {current_step(job)}" if job else "")
        if self._durations or any(self._costs.of(job) for job in self._left):
            self._bar.set_postfix_str(f"about {format_duration(self.seconds_left())} left")

    def close(self) -> None:
        for bar in (*self._rows, self._bar):
            bar.close()


def current_step(job: Job) -> str:
    """Returns the heading above the cell that a job executes, and its number, from the last cell in papermill's log."""
    try:
        with job.log.open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - TAIL))
            entered = re.findall(rb"Executing Cell (\d+)-", log.read())
        cells = json.loads(job.notebook.read_bytes())["cells"]
    except (OSError, ValueError):
        return "starting"
    if not entered:
        return "starting"
    # papermill inserts a cell with the overrides after the parameters cell
    begun = cells[: int(entered[-1]) - 1]
    headings = headings_of(begun)
    return f"{headings[-1] if headings else 'starting'} ({int(entered[-1])} of {len(cells) + 1} cells)"
