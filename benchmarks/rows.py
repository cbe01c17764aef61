"""A table whose rows are measured one by one within a time budget, printed at once, and never stop each other."""

import contextlib
import gc
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from accelerate.utils.memory import should_reduce_batch_size

HEADER = ("what", "result", "times naive", "of the limit", "peak MiB", "remark")
WIDTHS = (80, 30, 11, 12, 9)
RESERVE = 8  # seconds kept for the last lines
OVERTIME = 2  # times as long as expected, and ten seconds, a row may take


class OutOfTime(BaseException):
    """The time is up; not an Exception, so that no row takes it for a failure of its own."""


@dataclass(frozen=True)
class Result:
    """What a row shows.

    Attributes:
        value: With its unit.
        ratio: How many times as fast as the naive way in the same run.
        limit: Fraction of the machine's limit, measured in the same run.
        mib: Peak memory on the GPU.
        remark: A goal and whether it is reached, a published value, or what was compared.
    """

    value: str
    ratio: float | None = None
    limit: float | None = None
    mib: float | None = None
    remark: str = ""

    def cells(self) -> tuple[str, ...]:
        """Returns the columns after the first."""
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        limit = "" if self.limit is None else f"{self.limit:.0%}"
        return self.value, ratio, limit, "" if self.mib is None else f"{self.mib:,.0f}", self.remark


@dataclass(frozen=True)
class Row:
    """A row to measure: its title, how, and about how many seconds it takes."""

    title: str
    measure: Callable[[], Result]
    seconds: float


class Table:
    """Measures rows until the time is up.

    Attributes:
        results: Title and result of each row that was begun.
        left_out: Titles of the rows for which no time was left.
    """

    def __init__(self, seconds: float):
        self.started, self.seconds = time.perf_counter(), seconds
        self.results: list[tuple[str, Result]] = []
        self.left_out: list[str] = []

    def left(self) -> float:
        """Returns the seconds left."""
        return self.seconds - RESERVE - (time.perf_counter() - self.started)

    def run(self, rows: Iterable[Row]) -> None:
        """Measures rows in order; one that would take longer than is left is left out, and those after it are tried."""
        print(_line(0, *HEADER), flush=True)
        for row in rows:
            if row.seconds > self.left():
                self.left_out.append(row.title)
                continue
            result = _guarded(row, min(self.left(), OVERTIME * row.seconds + 10))
            self.results.append((row.title, result))
            print(_line(time.perf_counter() - self.started, row.title, *result.cells()), flush=True)
        if self.left_out:
            print(f"left out, as the time was too short: {'; '.join(self.left_out)}", flush=True)

    def markdown(self) -> str:
        """Returns the table for benchmarks/README.md."""
        rows = [HEADER, ("---",) * len(HEADER), *((title, *result.cells()) for title, result in self.results)]
        text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
        missing = f"\n\nLeft out, as the time was too short: {'; '.join(self.left_out)}." if self.left_out else ""
        return text + missing


def _guarded(row: Row, seconds: float) -> Result:
    """Returns the row's result, or one that says why there is none."""
    try:
        with _limited(seconds):
            return row.measure()
    except OutOfTime:
        failed = Result("cut off", remark=f"was not done after {seconds:.0f} s")
    except Exception as error:  # noqa: BLE001  (whatever one row meets, the others are still measured)
        short = " ".join(str(error).split())[:150]
        out_of_memory = should_reduce_batch_size(error)
        failed = Result("out of memory" if out_of_memory else "failed", remark=f"{type(error).__name__}: {short}")
    # outside the handlers, whose error would hold the memory of the failed row
    if torch.cuda.is_available():
        gc.collect()
        with contextlib.suppress(RuntimeError):  # after an error of the device itself, nothing works any more
            torch.cuda.empty_cache()
    return failed


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises OutOfTime after so many seconds, where the system has alarms."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _line(elapsed: float, *cells: str) -> str:
    padded = [f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=False)]
    return f"{elapsed:4.0f} s  " + "  ".join([*padded, *cells[len(WIDTHS) :]]).rstrip()
