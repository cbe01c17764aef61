"""Functions in other processes: quick to end on Ctrl-C, and never outliving the one that started them."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partialmethod

from tqdm import tqdm

LOOK = 1.0  # seconds in which a process notices that nobody waits for it any more


def in_processes(function: Callable, things: Iterable, jobs: int, what: str) -> list:
    """Returns `function(thing)` of each thing, in order, with a progress bar on a terminal.

    Args:
        function: Of a module, so that other processes find it.
        jobs: At most so many processes; never more than there are things or cores.
        what: What the progress bar says, such as "verify".
    """
    things = list(things)
    jobs = min(jobs, len(things), os.cpu_count() or 1)
    if jobs <= 1:
        return [function(thing) for thing in things]
    return _in_pool(function, things, jobs, what)


def in_another_process(function: Callable, thing):
    """Returns `function(thing)`; what it imports and keeps takes no memory here, and its bars are shown."""
    return _in_pool(function, [thing], 1)[0]


def _in_pool(function: Callable, things: list, jobs: int, what: str = "") -> list:
    """Returns `function(thing)` of each thing; without a `what`, its processes show their own bars and start others."""
    pool = ProcessPoolExecutor(jobs, initializer=_prepare, initargs=(os.getpid(), bool(what)))
    try:
        futures = [pool.submit(function, thing) for thing in things]
        # disable=None: silent where stderr is no terminal
        return [future.result() for future in tqdm(futures, desc=what, leave=False, disable=None if what else True)]
    except BaseException:  # Ctrl-C above all: nobody waits for what is half done
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(parent: int, leaf: bool) -> None:
    """Makes a process leave Ctrl-C to its parent, end when that tells it to, and not outlive it.

    Args:
        leaf: It starts no process itself, so it may end at once; and a progress bar is its parent's.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL if leaf else signal.default_int_handler)  # not as its parent has it
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if leaf:
        tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)


def _end_with(parent: int) -> None:
    """Ends this process once its parent was killed; it would wait for ever for the next thing to do."""
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(1)
