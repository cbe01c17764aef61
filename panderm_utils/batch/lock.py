"""One batch a folder: a lock that names its owner and dies with it, also between hosts.

    <root>/batch.lock    who owns the folder, as JSON; empty: nobody

The system's lock (flock) on the file ends with the process, however that ends. A file system that hosts share may not
carry such locks from one to the other, so the owner also touches the file every BEAT seconds; whoever finds it free but
with the name of another host watches it for PATIENCE seconds of its own clock before taking over. So no two clocks are
ever compared, and none that is set back or forth matters.
"""

import contextlib
import json
import os
import platform
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import psutil

try:
    import fcntl
except ImportError:  # Windows, where a notebook may be run by hand
    fcntl = None

NAME = "batch.lock"
BEAT = 10.0  # seconds
PATIENCE = 40.0  # seconds: some beats, and the time that a network disk may show an old state
LOOK = 1.0  # seconds
BOOT = Path("/proc/sys/kernel/random/boot_id")


class FolderError(ValueError):
    """A folder that a batch cannot have: another one is at work in it, or it cannot be written."""


@contextlib.contextmanager
def owned(root: Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Keeps any other batch out of a folder, which is made if need be; should it be lost, this process gets a SIGTERM.

    Args:
        say: Takes a line of text.

    Raises:
        FolderError: Another batch is at work in it, which is named; or it cannot be written.
    """
    over = threading.Event()
    with contextlib.ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((root / NAME).open("a+b", buffering=0))
            mine = _take(file, root, say)
        except OSError as error:
            raise FolderError(
                f"{root}: outputs cannot be written there ({error.strerror}); see to it, or name another folder with "
                "--output-root DIR"
            ) from error
        beats = threading.Thread(target=_beat, args=(root / NAME, mine, over, say), daemon=True)
        beats.start()
        try:
            yield
        finally:
            over.set()
            beats.join()
            with contextlib.suppress(OSError):  # the folder may be gone by now
                if _read(root / NAME) == mine:
                    file.truncate(0)


def hold(file) -> bool:
    """Takes the system's lock on an open file; returns False where another process has it, in which case nothing ends.

    It is held until this process and all that inherit the open file have closed it or ended. Where the file system
    knows no locks, it is taken to be free.
    """
    with contextlib.suppress(OSError):  # no locks here
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
    return True


def started(pid: int) -> str | None:
    """Returns what tells a living process from any before it of the same number; None if it is none, or a zombie.

    On Linux in the ticks of a clock that runs since the machine's start and cannot be set.
    """
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    return None


def _take(file, root: Path, say: Callable[[str], None]) -> dict:
    """Writes into the lock who we are, and returns it; or raises."""
    path, free = root / NAME, hold(file)
    owner = _read(path)
    if not free or (owner and _lives(owner, path, say)):
        raise FolderError(f"{_name(owner)} is at work in {root}; wait until it ends, or name another --output-root DIR")
    mine = {
        "host": platform.node(),
        "boot": _boot(),
        "pid": os.getpid(),
        "started": started(os.getpid()),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": shlex.join(sys.argv),
    }
    file.truncate(0)
    file.write(json.dumps(mine).encode())
    return mine


def _lives(owner: dict, path: Path, say: Callable[[str], None]) -> bool:
    """Whether the owner that a free lock names may be alive all the same."""
    if (owner["host"], owner["boot"]) == (platform.node(), _boot()):
        return started(owner["pid"]) == owner["started"]
    say(f"{path} names host {owner['host']}; watching for {PATIENCE:.0f} s whether that batch is still alive ...")
    seen, until = _stamp(path), time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(LOOK)
        if _stamp(path) != seen:
            return True
    return False


def _beat(path: Path, mine: dict, over: threading.Event, say: Callable[[str], None]) -> None:
    """Touches the lock; ends this process, as Ctrl-C would, if another batch has taken it while this one slept."""
    while not over.wait(BEAT):
        with contextlib.suppress(OSError):  # a network disk may be away for a while
            if _read(path) != mine:
                say(f"{_name(_read(path))} has taken over {path.parent} while this one could not be heard; ending")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            os.utime(path)


def _name(owner: dict) -> str:
    if not owner:
        return "another batch"
    return "another batch (process {pid} on {host} since {since}: {command})".format(**owner)


def _read(path: Path) -> dict:
    """Returns the owner, or nothing where there is none or the power failed while it was written."""
    with contextlib.suppress(ValueError):
        return json.loads(path.read_bytes())
    return {}


def _stamp(path: Path) -> tuple[bytes, int]:
    with path.open("rb") as file:  # opened anew: then a network disk asks its server
        return file.read(), os.fstat(file.fileno()).st_mtime_ns


def _boot() -> str:
    return BOOT.read_text().strip() if BOOT.exists() else ""
