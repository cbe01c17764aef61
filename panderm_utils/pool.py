"""One function on many things in several processes, with a progress bar on a terminal and a quick end on Ctrl-C."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partialmethod

from tqdm import tqdm


def in_processes(function: Callable, things: Iterable, jobs: int, what: str) -> list:
    """Returns `function(thing)` of each thing, in order.

    Args:
        function: Of a module, so that other processes find it.
        jobs: At most so many processes; never more than there are things or cores.
        what: What the progress bar says, such as "verify".
    """
    things = list(things)
    jobs = min(jobs, len(things), os.cpu_count() or 1)
    if jobs <= 1:
        return [function(thing) for thing in things]
    pool = ProcessPoolExecutor(jobs, initializer=_prepare)
    try:
        futures = [pool.submit(function, thing) for thing in things]
        # disable=None: silent where stderr is no terminal
        return [future.result() for future in tqdm(futures, desc=what, leave=False, disable=None)]
    except BaseException:  # Ctrl-C above all: nobody waits for what is half done
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare() -> None:
    """Makes a process leave Ctrl-C to its parent, and progress bars too, and end at once when it is told to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's own handler is inherited
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
