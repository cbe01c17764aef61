"""At most one batch per output folder: a lock that names its owner and ends with it, also across hosts.

    <root>/batch.lock    the owner of the folder as JSON; empty while no batch owns it

The operating system's lock (flock) on the file ends with the process, however it ends. A shared file system may not
carry such locks between hosts, so the owner also touches the file every HEARTBEAT seconds. A batch that finds the file
unlocked but owned from another host watches it for STALE_AFTER seconds, by its own clock, before it takes over. The
clocks of two hosts are never compared, so it does not matter whether they are right.
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

from panderm_utils.messages import UserError
from panderm_utils.system import try_lock

NAME = "batch.lock"
HEARTBEAT = 10.0  # seconds
STALE_AFTER = 40.0  # seconds: some heartbeats, and the time for which a network disk may show an old state
POLL = 1.0  # seconds
BOOT = Path("/proc/sys/kernel/random/boot_id")


class FolderError(UserError):
    """An output folder cannot be used: another batch is using it, or it cannot be written."""


@contextlib.contextmanager
def lock_folder(root: Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Keeps other batches out of a folder, which is created if missing; sends this process SIGTERM if the lock is lost.

    Args:
        say: Prints a line of text.

    Raises:
        FolderError: Another batch, named in the message, is using the folder; or it cannot be written.
    """
    released = threading.Event()
    with contextlib.ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((root / NAME).open("a+b", buffering=0))
            owner = _acquire(file, root, say)
        except OSError as error:
            raise FolderError(
                f"{root}: cannot write outputs there ({error.strerror}); fix that, or choose another folder with "
                "--output-root DIR"
            ) from error
        heartbeat = threading.Thread(target=_keep_fresh, args=(root / NAME, owner, released, say), daemon=True)
        heartbeat.start()
        try:
            yield
        finally:
            released.set()
            heartbeat.join()
            with contextlib.suppress(OSError):  # the folder may be gone by now
                if _read_owner(root / NAME) == owner:
                    file.truncate(0)


def start_time(pid: int) -> str | None:
    """Returns when a living process started, or None if there is none or a zombie; unique among processes of one pid.

    On Linux in clock ticks since boot, which no change of the system's time affects.
    """
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    return None


def _acquire(file, root: Path, say: Callable[[str], None]) -> dict:
    """Makes this process the owner and returns the entry written into the lock; raises FolderError if it is taken."""
    path, free = root / NAME, try_lock(file)
    owner = _read_owner(path)
    if not free or (owner and _is_alive(owner, path, say)):
        remedy = "wait until it ends, or choose another folder with --output-root DIR"
        raise FolderError(f"{root}: in use by {_describe(owner)}; {remedy}")
    owner = {
        "host": platform.node(),
        "boot": _boot(),
        "pid": os.getpid(),
        "started": start_time(os.getpid()),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": shlex.join(sys.argv),
    }
    file.truncate(0)
    file.write(json.dumps(owner).encode())
    return owner


def _is_alive(owner: dict, path: Path, say: Callable[[str], None]) -> bool:
    """Whether the owner named in an unlocked file may still be alive."""
    if (owner["host"], owner["boot"]) == (platform.node(), _boot()):
        return start_time(owner["pid"]) == owner["started"]
    say(f"{path}: owned by a batch on {owner['host']}; checking for {STALE_AFTER:.0f} s whether it is still alive ...")
    before, deadline = _content_and_time(path), time.monotonic() + STALE_AFTER
    while time.monotonic() < deadline:
        time.sleep(POLL)
        if _content_and_time(path) != before:
            return True
    return False


def _keep_fresh(path: Path, owner: dict, released: threading.Event, say: Callable[[str], None]) -> None:
    """Touches the lock until it is released; ends this process, as Ctrl-C would, if another batch has taken it."""
    while not released.wait(HEARTBEAT):
        with contextlib.suppress(OSError):  # a network disk may be unavailable for a while
            if (current := _read_owner(path)) != owner:
                say(f"{path.parent}: taken over by {_describe(current)} while this batch was unresponsive; stopping")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            os.utime(path)


def _describe(owner: dict) -> str:
    if not owner:
        return "another batch"
    return "another batch (process {pid} on {host} since {since}: {command})".format(**owner)


def _read_owner(path: Path) -> dict:
    """Returns the owner, {} if there is none or a power failure truncated the entry."""
    with contextlib.suppress(ValueError):
        return json.loads(path.read_bytes())
    return {}


def _content_and_time(path: Path) -> tuple[bytes, int]:
    with path.open("rb") as file:  # opening makes a network disk ask its server
        return file.read(), os.fstat(file.fileno()).st_mtime_ns


def _boot() -> str:
    return BOOT.read_text(encoding="ascii").strip() if BOOT.exists() else ""
