"""What operating systems differ in; no other module (but torchvision_shim) asks on which one it runs.

Everything works on Linux. macOS has no abstract sockets, and forking a process with threads is unsafe there. Windows
has neither forks, nor file locks, nor signals to other processes: there a notebook is ended without being asked first.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys

import psutil

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None

LINUX = sys.platform == "linux"
WINDOWS = sys.platform == "win32"
FORKS = LINUX  # whether processes are forked; elsewhere they start anew, and import torch again
SIGKILL = 9  # on every POSIX system; the name is missing in Windows' `signal`
# Signals that end a program, where they exist: Ctrl-C, `kill`, a closed terminal.
END_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Arguments of `subprocess.Popen` for a process that a Ctrl-C in the terminal does not reach; each system ignores one.
DETACHED = {"start_new_session": True, "creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}


def count_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory(children: bool = False) -> int | None:
    """Returns the peak resident memory in MB of this process, or of the largest of its ended children.

    None for children on Windows, which forgets a process when it ends.
    """
    if resource:
        peak = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (1e3 if LINUX else 1e6))  # kilobytes on Linux, bytes on macOS
    memory = psutil.Process().memory_info()
    return None if children else round(getattr(memory, "peak_wset", memory.rss) / 1e6)


def keep_freed_memory() -> None:
    """Lets this process use the memory of freed arrays again, up to 256 MiB of it, instead of returning it at once.

    glibc returns what is free at the end of the heap, and the kernel then clears each page anew: 7% of the time of a
    small network on a CPU, 13% of that of drawing a lesion. Other C libraries are left as they are.
    """
    if LINUX and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
        libc.mallopt(mmap_threshold, 32 << 20)  # what glibc comes to of its own accord, but not once the other is set
        libc.mallopt(trim_threshold, 256 << 20)


def interrupt(process: psutil.Process) -> None:
    """Asks a process to end, as Ctrl-C does; ends it at once on Windows."""
    process.terminate() if WINDOWS else process.send_signal(signal.SIGINT)


def has_parent(pid: int) -> bool:
    """Whether the process that started this one is still alive; Windows keeps the pid of a dead parent."""
    return os.getppid() == pid and psutil.pid_exists(pid)


def try_lock(file) -> bool:
    """Locks an open file with flock and returns True, or returns False at once if another process holds the lock.

    The lock is held until this process and all that inherit the open file have closed it or ended. True as well on a
    file system or an operating system without such locks.
    """
    with contextlib.suppress(OSError):  # a file system without locks
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
    return True
