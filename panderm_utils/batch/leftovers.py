"""Finds and ends what a killed batch left behind: processes first, then half-written files. Touches nothing else.

Every papermill process has RUN in its environment: pid and start time of whoever started it, and the log of its run.
All below it inherits that (kernel, data loaders, fine-tuning in several processes), whatever becomes of its parents. So
a process is left over if its starter is dead: no living process has that pid and that start time.
"""

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil

from panderm_utils.batch.lock import hold, started
from panderm_utils.disk import owner_of

RUN = "PANDERM_RUN"
GRACE = 10.0  # seconds from SIGINT to SIGKILL
POLL = 0.1  # seconds


def clear(root: Path, say: Callable[[str], None] = print) -> None:
    """Ends what a killed batch left running below `root`, and removes what it left half written."""
    ended = end(lambda: left_over(root))
    swept = sweep(root)
    if ended or swept:
        say(f"a batch was killed here: ended {ended} processes that it left, tidied {swept} half-written files")


def mark(log: Path) -> dict[str, str]:
    """Returns what the environment of a run's processes must have to be found."""
    return {RUN: f"{os.getpid()} {started(os.getpid())} {log}"}


def family(log: Path) -> list[psutil.Process]:
    """Returns the living processes of a run, whoever started it."""
    return [process for process, (_, _, its_log) in _marked() if its_log == str(log)]


def left_over(root: Path) -> list[psutil.Process]:
    """Returns the living processes of runs below `root` whose starter is dead."""
    inside = f"{root / 'logs'}{os.sep}"
    return [process for process, (pid, born, log) in _marked() if log.startswith(inside) and started(int(pid)) != born]


def end(find: Callable[[], list[psutil.Process]]) -> int:
    """Ends the processes that `find` returns: SIGINT to the topmost, GRACE seconds, SIGKILL; returns how many."""
    found = find()
    pids = {process.pid for process in found}
    top = {process for process in found if _parent(process) not in pids}
    seen = set(found)
    try:
        _signal(top, signal.SIGINT)
        _until(lambda: not any(map(_lives, top)), GRACE)
        _until(lambda: not find(), 5 * POLL)  # time for what was below them to see that it is alone
    finally:  # who presses Ctrl-C meanwhile will not wait, but leaves nothing either
        until = time.monotonic() + GRACE
        while (rest := find()) and time.monotonic() < until:
            _signal(rest, signal.SIGKILL)
            seen.update(rest)
            time.sleep(POLL / 10)
        # A dying process gives up its environment, by which it is found, before its files, by which it holds the log.
        _until(lambda: not any(map(_lives, seen)), GRACE)
    return len(found)


def sweep(root: Path) -> int:
    """Removes what dead processes left half written below `root`; returns how many files and folders.

    A record that was being replaced is put back, and an executed notebook that only lacked its name gets it. A run that
    is executed, such as by a Slurm task, is left alone.
    """
    count = 0
    for path in [*root.glob("executed/*/.*.ipynb"), *root.glob("logs/*.yaml")]:
        name = path.stem.removeprefix(".")
        if _is_executed(root / "logs" / f"{name}.log"):
            continue
        if path.suffix == ".ipynb" and _is_whole(path):
            path.replace(path.with_name(f"{name}.ipynb"))
        else:
            path.unlink()
        count += 1
    for path in [*root.glob("*/.*.new"), *root.glob("*/.*.old")]:
        name, pid = owner_of(path)
        if not pid or started(pid):
            continue
        whole = path.with_name(name)
        if path.suffix == ".old" and not whole.exists():
            path.rename(whole)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        count += 1
    return count


def _is_executed(log: Path) -> bool:
    """Whether a living process writes a run's log; see `execution`."""
    with contextlib.suppress(FileNotFoundError), log.open("r+b") as file:
        return not hold(file)
    return False


def _is_whole(notebook: Path) -> bool:
    """Whether papermill came to the end of a notebook, without an error."""
    with contextlib.suppress(ValueError, KeyError):
        ended = json.loads(notebook.read_bytes())["metadata"]["papermill"]
        return bool(ended["end_time"]) and not ended["exception"]
    return False


def _marked() -> Iterator[tuple[psutil.Process, list[str]]]:
    """Yields the living processes that have RUN in their environment, with its parts."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # ended meanwhile, or another user's
            if (parts := process.environ().get(RUN, "").split(" ", 2))[2:] and started(process.pid):
                yield process, parts


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and started(process.pid) is not None


def _parent(process: psutil.Process) -> int | None:
    with contextlib.suppress(psutil.Error):
        return process.ppid()


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _until(done: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        time.sleep(POLL / 10)
