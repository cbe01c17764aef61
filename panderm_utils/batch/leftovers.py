"""Ends the processes and removes the partial files that a killed batch left behind. Touches nothing else.

Every papermill process has RUN in its environment: pid and start time of the process that started it, and the log of
its run. Its child processes inherit it (kernel, data loaders, fine-tuning in several processes), even when orphaned. A
process is left over if its starter is dead: no living process has that pid and start time.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil

from panderm_utils import system
from panderm_utils.batch.lock import start_time
from panderm_utils.disk import owner_of
from panderm_utils.system import try_lock

RUN = "PANDERM_RUN"
GRACE = 10.0  # seconds from interrupting to killing
POLL = 0.1  # seconds


def clear_leftovers(root: Path, say: Callable[[str], None] = print) -> None:
    """Ends the processes and removes the partial files that a killed batch left below `root`."""
    ended = end_processes(lambda: leftover_processes(root))
    removed = remove_partial_files(root)
    if ended or removed:
        say(f"a batch was killed here: ended {ended} leftover processes, cleaned up {removed} partial files")


def run_mark(log: Path) -> dict[str, str]:
    """Returns the environment variable by which the processes of a run are found."""
    return {RUN: f"{os.getpid()} {start_time(os.getpid())} {log}"}


def processes_of(log: Path) -> list[psutil.Process]:
    """Returns the living processes of the run with this log, whichever process started it."""
    return [process for process, (_, _, run_log) in _marked_processes() if run_log == str(log)]


def leftover_processes(root: Path) -> list[psutil.Process]:
    """Returns the living processes of runs below `root` whose starter is dead."""
    inside = f"{root / 'logs'}{os.sep}"
    marked = [(process, pid, started) for process, (pid, started, log) in _marked_processes() if log.startswith(inside)]
    return [process for process, pid, started in marked if start_time(int(pid)) != started]


def end_processes(find: Callable[[], list[psutil.Process]]) -> int:
    """Ends the processes that `find` returns and returns their number: SIGINT to the topmost, SIGKILL after GRACE."""
    processes = find()
    pids = {process.pid for process in processes}
    topmost = {process for process in processes if _parent(process) not in pids}
    signalled = set(processes)
    try:
        _end(topmost, system.interrupt)
        _wait_until(lambda: not any(map(_is_alive, topmost)), GRACE)
        _wait_until(lambda: not find(), 5 * POLL)  # time for their children to notice
    finally:  # Ctrl-C cuts the wait short, but no process may remain
        deadline = time.monotonic() + GRACE
        while (rest := find()) and time.monotonic() < deadline:
            _end(rest, psutil.Process.kill)
            signalled.update(rest)
            time.sleep(POLL / 10)
        # A dying process loses its environment, by which it is found, before it closes the log that it has locked.
        _wait_until(lambda: not any(map(_is_alive, signalled)), GRACE)
    return len(processes)


def remove_partial_files(root: Path) -> int:
    """Removes the files that dead processes left incomplete below `root`; returns the number of files and folders.

    A record that was being replaced is restored, and a complete notebook that was not renamed yet is renamed. Files of
    a run that is being executed, such as by a Slurm task, are left alone.
    """
    count = 0
    for path in [*root.glob("executed/*/.*.ipynb"), *root.glob("logs/*.yaml")]:
        name = path.stem.removeprefix(".")
        if _is_locked(root / "logs" / f"{name}.log"):
            continue
        if path.suffix == ".ipynb" and _is_complete(path):
            path.replace(path.with_name(f"{name}.ipynb"))
        else:
            path.unlink()
        count += 1
    for path in [*root.glob("*/.*.new"), *root.glob("*/.*.old")]:
        name, pid = owner_of(path)
        if not pid or start_time(pid):
            continue
        final = path.with_name(name)
        if path.suffix == ".old" and not final.exists():
            path.rename(final)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        count += 1
    return count


def _is_locked(log: Path) -> bool:
    """Whether a living process executes the run with this log; see `execution`."""
    with contextlib.suppress(FileNotFoundError), log.open("r+b") as file:
        return not try_lock(file)
    return False


def _is_complete(notebook: Path) -> bool:
    """Whether papermill executed a notebook to its end, without an error."""
    with contextlib.suppress(ValueError, KeyError):
        execution = json.loads(notebook.read_bytes())["metadata"]["papermill"]
        return bool(execution["end_time"]) and not execution["exception"]
    return False


def _marked_processes() -> Iterator[tuple[psutil.Process, list[str]]]:
    """Yields the living processes with RUN in their environment, and its value as [pid, start time, log]."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # it has ended, or is another user's
            if (parts := process.environ().get(RUN, "").split(" ", 2))[2:] and start_time(process.pid):
                yield process, parts


def _is_alive(process: psutil.Process) -> bool:
    return process.is_running() and start_time(process.pid) is not None


def _parent(process: psutil.Process) -> int | None:
    with contextlib.suppress(psutil.Error):
        return process.ppid()


def _end(processes: Iterable[psutil.Process], how: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            how(process)


def _wait_until(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        time.sleep(POLL / 10)
