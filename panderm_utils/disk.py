"""Says what a full disk had no room for: how many bytes are needed, and how many are free."""

import contextlib
import errno
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path


class DiskFullError(OSError):
    """There was no room; the message says for what, where, how many bytes it needs and how many are free."""


@contextlib.contextmanager
def room_for(what: str, size: int, folder: Path) -> Iterator[None]:
    """Turns the system's "no space left" within into an error that one can act on.

    Args:
        what: What is being written; `size`: its bytes; `folder`: where.

    Raises:
        DiskFullError: Instead of an OSError for want of space or quota; any other is let through.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(no_room(what, size, folder)) from error


def no_room(what: str, size: int, folder: Path) -> str:
    return (
        f"{folder}: the disk is full: {what} needs {size:,} bytes, {free(folder):,} are free; free some space and run "
        "the same again, what is finished is kept"
    )


def free(folder: Path) -> int:
    """Returns the free bytes of the disk that a folder is on, or will be."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(there).free


def temporary(path: Path, suffix: str = ".new") -> Path:
    """Returns the hidden name to write under before renaming to `path`; see `batch.remove_partial_files`."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}{suffix}")


def owner_of(path: Path) -> tuple[str, int]:
    """Returns what a temporary name stands for, and the process that writes it; 0 if that is one of another host."""
    found = re.fullmatch(rf"\.(.+)\.{re.escape(platform.node())}\.(\d+)\.\w+", path.name)
    return (found[1], int(found[2])) if found else (path.name, 0)
