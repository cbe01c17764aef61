"""Finds files by name below folders and inside archives, however deep they lie and however their folders are called."""

import hashlib
import os
import shutil
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from panderm_utils import data, disk
from panderm_utils.fetching.archives import list_members, read_members
from panderm_utils.fetching.errors import FetchError

DEPTH = 2  # archives in archives in an archive; deeper ones are files like any other
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".tbz2", ".bz2", ".txz", ".xz", ".7z", ".rar")


class Found(NamedTuple):
    """A file, or a member of an archive.

    Attributes:
        path: Below the folder that was searched; an archive counts as a folder that has its name without suffix.
        holder: The file, or the archive that holds it as `member`.
        size: In bytes.
    """

    path: PurePosixPath
    holder: Path
    size: int
    member: str = ""


class Catalogue:
    """All files below some folders, in the archives there, and in archives inside those.

    Attributes:
        problems: What is wrong with archives that cannot be read.
    """

    def __init__(self, places: Iterable[Path], scratch: Path):
        """Lists the files; archives inside archives are unpacked to the folder `scratch`."""
        self.problems: list[str] = []
        self._scratch = scratch
        self._checksums: dict[Path, dict[str, int]] = {}
        self._named: dict[str, list[Found]] = defaultdict(list)
        each = {(found.holder, found.member): found for place in places for found in self._walk(place.resolve())}
        for found in sorted(each.values()):
            self._named[data.fold(found.path.name)].append(found)

    def __iter__(self) -> Iterator[Found]:
        return (found for group in self._named.values() for found in group)

    def find(self, place: PurePosixPath, near: Callable[[Found], bool] = lambda found: True) -> Found | None:
        """Returns the file of a name whose folders agree best with those of `place`, from the last one up.

        Args:
            near: Whether a file is near others of its dataset. One whose name has no letters, such as 000001.png, must
                be: it could be anybody's.

        Raises:
            FetchError: Files of other content agree as well.
        """
        candidates = self._named.get(data.fold(place.name), [])
        if not any(map(str.isalpha, place.stem)):
            candidates = [found for found in candidates if near(found)]
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        agreeing = [_agreement(found.path, place) for found in candidates]
        best = [found for found, n in zip(candidates, agreeing, strict=True) if n == max(agreeing)]
        if len(best) > 1 and (len({found.size for found in best}) > 1 or len({*map(self._checksum, best)}) > 1):
            where = " and ".join(str(describe(found)) for found in best[:2])
            raise FetchError(
                f"{place}: {len(best)} files of this name differ: {where}; name with --from only the folder that has "
                "the right one"
            )
        return best[0]

    def below(self, names: Iterable[str]) -> list[Found]:
        """Returns the files below a folder, or in an archive, of one of the names."""
        return [found for found in self if is_below(found, names)]

    def _checksum(self, found: Found) -> int:
        """Returns the CRC of a file's content; one archive's are read at once, from its directory if it has them."""
        if not found.member:
            with found.holder.open("rb") as file:
                return _checksum(file)
        if found.holder not in self._checksums:
            members = list_members(found.holder)
            known = {member.name: member.checksum for member in members if member.checksum is not None}
            lacking = {member.name for member in members} - {*known}
            if lacking:
                read_members(found.holder, lacking, lambda name, file: known.update({name: _checksum(file)}))
            self._checksums[found.holder] = known
        return self._checksums[found.holder][found.member]

    def _walk(self, top: Path) -> set[Found]:
        found = set()
        for path in [top] if top.is_file() else _files(top):
            below = PurePosixPath(path.relative_to(top.parent).as_posix())
            if path.suffix.lower() in ARCHIVES:
                found |= self._open(path, below)
            else:
                found.add(Found(below, path, path.stat().st_size))
        return found

    def _open(self, archive: Path, below: PurePosixPath, depth: int = 0) -> set[Found]:
        """Returns what is in an archive, and in archives inside it; `below` is its path from the searched folder."""
        inside = below.with_name(_stem(below.name))
        try:
            members = list_members(archive)
            found = {Found(inside / m.path, archive, m.size, m.name) for m in members}
            nested = [m for m in members if m.path.suffix.lower() in ARCHIVES] if depth < DEPTH else []
            for member in nested:
                # Named after where it comes from, so that none overwrites another.
                origin = hashlib.sha256(f"{archive}/{member.name}".encode()).hexdigest()[:16]
                copy = self._scratch / f"{origin}{member.path.suffix.lower()}"
                with disk.room_for("an archive inside another", member.size, self._scratch):
                    read_members(archive, {member.name}, lambda _, stream, to=copy: _write(stream, to))
                found |= self._open(copy, inside / member.path, depth + 1)
            return found
        except (FetchError, OSError) as error:
            self.problems.append(str(error))
            return set()


def read_all(holder: Path, found: Iterable[Found], use: Callable[[Found, BinaryIO], None]) -> None:
    """Calls `use(found, stream)` for each of the files that one archive holds, in its order."""
    members = {each.member: each for each in found}
    read_members(holder, set(members), lambda name, stream: use(members[name], stream))


def read_bytes(found: Found) -> bytes:
    """Returns the content of a file, such as a table."""
    if not found.member:
        return found.holder.read_bytes()
    content = []
    read_all(found.holder, [found], lambda _, stream: content.append(stream.read()))
    return content[0]


def describe(found: Found) -> str:
    return f"{found.member} in {found.holder}" if found.member else str(found.holder)


def is_below(found: Found, names: Iterable[str]) -> bool:
    """Returns whether a file is below a folder, or in an archive, of one of the names."""
    return not {loose(part) for part in found.path.parts[:-1]}.isdisjoint(map(loose, names))


def loose(name: str) -> str:
    """Returns the letters and digits of a folder's name, in lower case."""
    return "".join(filter(str.isalnum, data.fold(name)))


def _files(top: Path) -> Iterator[Path]:
    """Yields regular files that can be read; what is hidden, partial or behind a link to a folder is left out."""
    for folder, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and not name.endswith((".part", ".part.json")) and path.is_file():
                yield path


def _stem(name: str) -> str:
    stem = name
    while PurePosixPath(stem).suffix.lower() in ARCHIVES:
        stem = PurePosixPath(stem).stem
    return stem


def _agreement(path: PurePosixPath, place: PurePosixPath) -> int:
    """Returns how many folders of two paths agree, from the last one up."""
    agreeing = 0
    for one, other in zip(reversed(path.parts[:-1]), reversed(place.parts[:-1]), strict=False):
        if loose(one) != loose(other):
            break
        agreeing += 1
    return agreeing


def _write(stream: BinaryIO, path: Path) -> None:
    with disk.replacing(path) as new, new.open("wb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)


def _checksum(stream: BinaryIO) -> int:
    checksum = 0
    while block := stream.read(1 << 20):
        checksum = zlib.crc32(block, checksum)
    return checksum
