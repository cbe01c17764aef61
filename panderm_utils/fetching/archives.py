"""Reads zip and tar archives without trusting them: no name in one ever becomes a path on this disk.

`list_members` refuses names that leave the archive, and bombs, by their declared size; `read_members` counts what comes
out. Links, devices and what macOS adds are left out. The caller decides where a member goes.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from panderm_utils.fetching.errors import FetchError
from panderm_utils.messages import printable

RATIO, ALLOWANCE = 100, 1 << 26  # an archive may unpack to 64 MiB and 100 times its size: images hardly shrink
MAX_MEMBERS = 5_000_000
CHUNK = 1 << 18
MAGIC = {b"PK\x03\x04": ".zip", b"PK\x05\x06": ".zip", b"\x1f\x8b": ".tar.gz", b"BZh": ".tar.bz2"}
MAGIC |= {b"\xfd7zXZ\x00": ".tar.xz", b"7z\xbc\xaf\x27\x1c": ".7z", b"Rar!": ".rar"}
OPENERS = {".tar": open, ".tar.gz": gzip.open, ".tar.bz2": bz2.open, ".tar.xz": lzma.open}
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


class DamagedError(FetchError):
    """An archive is not whole."""


class Member(NamedTuple):
    """A regular file in an archive.

    Attributes:
        name: As the archive spells it; `path`: as a path, for comparisons only.
        size: The bytes it unpacks to; `checksum`: its CRC, if the archive has it.
    """

    name: str
    path: PurePosixPath
    size: int
    checksum: int | None


def archive_suffix(path: Path) -> str:
    """Returns ".zip", ".tar", ".tar.gz" and so on by a file's first bytes, "" if it is no archive."""
    with path.open("rb") as file:
        head = file.read(512)
    if head[257:262] == b"ustar":
        return ".tar"
    return next((suffix for magic, suffix in MAGIC.items() if head.startswith(magic)), "")


def list_members(archive: Path) -> list[Member]:
    """Returns the regular files in an archive.

    Raises:
        FetchError: It cannot be read, is damaged, has names that leave it, or is a bomb.
    """
    limit, members, total = _limit(archive), [], 0
    with _explaining(archive):
        for name, size, checksum, regular in _entries(archive):
            path = _checked(name, archive)
            total += size
            if total > limit or len(members) >= MAX_MEMBERS:
                raise _bomb(archive, f"{total:,} bytes or more, in {len(members) + 1:,} files")
            if regular and "__MACOSX" not in path.parts and not path.name.startswith("._"):
                members.append(Member(name, path, size, checksum))
    return members


def read_members(archive: Path, names: set[str], use: Callable[[str, BinaryIO], None]) -> None:
    """Calls `use(name, stream)` for each of the named members, in the order of the archive.

    Raises:
        FetchError: The archive is damaged, or a member unpacks to more than it declares.
    """
    with _explaining(archive):
        if archive_suffix(archive) == ".zip":
            with zipfile.ZipFile(archive) as file:
                for entry in file.infolist():
                    if entry.filename in names:
                        with file.open(entry) as stream:  # ends at the declared size, and checks the CRC there
                            use(entry.filename, stream)
            return
        seen = set()
        with _open_tar(archive) as file:
            for entry in file:
                if entry.name in names - seen and entry.isreg():
                    seen.add(entry.name)
                    use(entry.name, file.extractfile(entry))


def _entries(archive: Path) -> Iterator[tuple[str, int, int | None, bool]]:
    """Yields name, declared size, CRC and whether it is a regular file."""
    if archive_suffix(archive) == ".zip":
        with zipfile.ZipFile(archive) as file:
            for entry in file.infolist():
                if entry.flag_bits & 1:
                    raise _by_hand(archive, "is encrypted")
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise _by_hand(archive, "is compressed in another way than zip's own")
                kind = stat.S_IFMT(entry.external_attr >> 16)
                yield entry.filename, entry.file_size, entry.CRC, not entry.is_dir() and kind in (0, stat.S_IFREG)
    else:
        with _open_tar(archive) as file:
            for entry in file:
                yield entry.name, entry.size if entry.isreg() else 0, None, entry.isreg() and not entry.issparse()


@contextlib.contextmanager
def _open_tar(archive: Path) -> Iterator[tarfile.TarFile]:
    suffix = archive_suffix(archive)
    if suffix not in OPENERS:
        raise _by_hand(archive, f"is a {suffix or 'file of an unknown kind'}, which this program cannot unpack")
    with OPENERS[suffix](archive, "rb") as file:
        counted = _Counted(file, archive)
        with tarfile.open(fileobj=io.BufferedReader(counted, CHUNK), mode="r|") as opened:
            yield opened


class _Counted(io.RawIOBase):
    """A stream that is refused once more has come out of it than an archive of this size may hold."""

    def __init__(self, file: BinaryIO, archive: Path):
        self.file, self.archive, self.left = file, archive, _limit(archive)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        content = self.file.read(len(buffer))
        self.left -= len(content)
        if self.left < 0:
            raise _bomb(self.archive, f"over {_limit(self.archive):,} bytes")
        buffer[: len(content)] = content
        return len(content)


@contextlib.contextmanager
def _explaining(archive: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        raise DamagedError(
            f"{archive}: is cut off or damaged ({printable(str(error), 200)}); remove it and repeat the command, or "
            "download it again"
        ) from error
    except NotImplementedError as error:
        raise _by_hand(archive, f"has a feature that cannot be read ({error})") from error


def _checked(name: str, archive: Path) -> PurePosixPath:
    """Returns a member's path; a name that would leave the folder it is unpacked in is refused with its archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name) or "\0" in name:
        raise FetchError(
            f"{archive}: refused: it has the name {printable(name, 100)}, which leaves the folder that it is unpacked "
            "in; nothing was unpacked: get the archive from its publisher"
        )
    return path


def _limit(archive: Path) -> int:
    return RATIO * archive.stat().st_size + ALLOWANCE


def _bomb(archive: Path, what: str) -> FetchError:
    return FetchError(
        f"{archive}: refused: its {archive.stat().st_size:,} bytes unpack to {what}, which no archive of images does; "
        "get it from its publisher"
    )


def _by_hand(archive: Path, reason: str) -> FetchError:
    return FetchError(f"{archive}: {reason}; unpack it by hand, then repeat the command with --from and that folder")
