"""Calls functions in other processes, which end at once on Ctrl-C and never outlive their parent."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partialmethod

from tqdm import tqdm

from panderm_utils.system import has_parent

POLL = 1.0  # seconds between checks whether the parent is alive
PATIENCE = 1.0  # seconds that processes have to end before they are asked again


def in_processes(function: Callable, items: Iterable, jobs: int, label: str) -> list:
    """Returns `function(item)` for each item, in order, with a progress bar on a terminal.

    Args:
        function: Defined at the top level of a module, so that other processes can import it.
        jobs: Maximum number of processes; never more than items or cores.
        label: Text of the progress bar, such as "verify".
    """
    items = list(items)
    jobs = min(jobs, len(items), os.cpu_count() or 1)
    if jobs <= 1:
        return [function(item) for item in items]
    return _in_pool(function, items, jobs, label)


def in_another_process(function: Callable, item):
    """Returns `function(item)`, called in another process, whose imports take no memory here; it shows its bars."""
    return _in_pool(function, [item], 1)[0]


def _in_pool(function: Callable, items: list, jobs: int, label: str = "") -> list:
    """Returns `function(item)` for each item; without a label, processes show their own bars and may start others."""
    pool = ProcessPoolExecutor(jobs, initializer=_prepare, initargs=(os.getpid(), bool(label)))
    try:
        futures = [pool.submit(function, item) for item in items]
        # disable=None: no bar where stderr is not a terminal
        return [future.result() for future in tqdm(futures, desc=label, leave=False, disable=None if label else True)]
    except BaseException:  # above all Ctrl-C: do not wait for unfinished calls
        _end(multiprocessing.active_children())
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end(processes: list[multiprocessing.Process]) -> None:
    """Ends processes, asking twice: Python loses the exception of a signal that arrives while it forks."""
    for end in (multiprocessing.Process.terminate, multiprocessing.Process.terminate, multiprocessing.Process.kill):
        for process in processes:
            end(process)
        until = time.monotonic() + PATIENCE
        for process in processes:
            process.join(max(0, until - time.monotonic()))
        processes = [process for process in processes if process.is_alive()]


def _prepare(parent: int, leaf: bool) -> None:
    """Makes a process ignore Ctrl-C, end on SIGTERM from its parent, and not outlive the parent.

    Args:
        leaf: The process starts no others, so it may end at once, and shows no progress bars.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL if leaf else signal.default_int_handler)  # not the parent's handler
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if leaf:
        tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)


def _end_with(parent: int) -> None:
    """Ends this process if its parent is killed; it would wait forever for the next item."""
    while has_parent(parent):
        time.sleep(POLL)
    os._exit(1)
