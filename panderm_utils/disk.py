"""Writes files completely or not at all; errors of a full disk state the bytes needed and free."""

import contextlib
import errno
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from panderm_utils.messages import UserError


class DiskFullError(OSError, UserError):
    """The disk is full; the message names the folder and what was written, with the bytes needed and free."""


@contextlib.contextmanager
def room_for(what: str, size: int, folder: Path) -> Iterator[None]:
    """Within this context, a "no space left" error of the system becomes a DiskFullError.

    Args:
        what: What is being written, such as "the record"; `size`: its bytes; `folder`: where.

    Raises:
        DiskFullError: Instead of an OSError for lack of space or quota; other errors are passed on.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(no_room(what, size, folder)) from error


def no_room(what: str, size: int, folder: Path) -> str:
    """Returns the message of a DiskFullError."""
    return (
        f"{folder}: the disk is full: {what} needs {size:,} bytes, {free(folder):,} are free; free some space and "
        "repeat the command, finished work is kept"
    )


def free(folder: Path) -> int:
    """Returns the free bytes of the disk that a folder is on, or will be."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(existing).free


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a hidden name to write a file under, which becomes `path` at the end; a kill leaves the old file.

    Creates the folder. If writing fails, the old file stays and the new one is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = temporary(path)
    try:
        yield new
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: str | bytes | memoryview) -> Path:
    """Writes a file, text as UTF-8, by `replacing`; returns its path."""
    with replacing(path) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def temporary(path: Path, suffix: str = ".new") -> Path:
    """Returns the hidden name to write under before renaming to `path`; see `batch.remove_partial_files`."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}{suffix}")


def owner_of(path: Path) -> tuple[str, int]:
    """Returns the final name of a temporary file, and the pid that writes it, 0 for a process of another host."""
    match = re.fullmatch(rf"\.(.+)\.{re.escape(platform.node())}\.(\d+)\.\w+", path.name)
    return (match[1], int(match[2])) if match else (path.name, 0)
