"""Keeps 8-bit copies of training images at 256 px on disk, so that a file is decoded and resized once, not every epoch.

    <folder>/<version>/pixels.bin    the copies, one after the other
    <folder>/<version>/index.bin     a record for each, in the same order: path, times of the file, place, checksums

A copy takes a quarter to a third of a megabyte; the machine's own file cache keeps what was read in memory, and
a folder on a memory disk (/dev/shm) keeps all of it there. Both files only grow, under a lock, pixels first, so any
number of workers, processes and runs may share a folder and be killed at any moment: half a record at the end is
written over, and a copy whose checksum is wrong is not used. A copy is used only while the file's size, times and inode
are those that it was made from. The version names Pillow and its JPEG decoder, which decide the pixels. A folder may be
deleted whenever nothing runs.
"""

import contextlib
import os
import shutil
import struct
import time
import warnings
import zlib
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import PIL
from filelock import FileLock
from PIL import features

from panderm_utils.data.transforms import RESIZED

BUDGET = 8 * 1024**3  # bytes; 33,000 copies of 600 x 450 images
RESERVE = 1024**3  # bytes that stay free on the disk, for checkpoints
# A file that changes again within one tick of its clock looks the same, so one that changed this close to its reading
# is not copied yet: 2 s is FAT's tick, the coarsest in use.
TICK = 2_000_000_000  # ns
# Half of the SHA-256 of the absolute path in hexadecimal; size, times and inode of the file; offset, height, width and
# CRC of the pixels; CRC of all that.
RECORD = struct.Struct("<32s 4q q 2i I I")


class ImageCopiesWarning(UserWarning):
    """Copies that cannot be kept; training goes on and decodes the files every epoch."""


class ImageCopies:
    """Copies below `folder`, at most `budget` bytes; what cannot be read or written is a warning, never an error."""

    def __init__(self, folder: str | Path, budget: int = BUDGET):
        jpeg = features.version_feature("libjpeg_turbo") or features.version_codec("jpg")
        self.folder = Path(folder) / f"v1-{RESIZED}px-pillow{PIL.__version__}-jpeg{jpeg}"
        self.budget = budget
        self._pixels, self._index = self.folder / "pixels.bin", self.folder / "index.bin"
        self._found: dict[bytes, bytes] = {}  # the latest record of each path
        self._seen = self._end = self._largest = 0  # records; where the next copy goes; bytes of the largest copy
        self._told = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in (self._pixels, self._index):
                path.open("ab").close()
            self.refresh()
        except OSError as error:
            self._give_up(error)

    def __len__(self) -> int:
        """How many images have a copy, as far as this process has seen."""
        return len(self._found)

    @property
    def bytes_used(self) -> int:
        """Bytes of both files, as far as this process has seen."""
        return self._end + self._seen * RECORD.size

    def prepare(self, paths: Sequence[str]) -> None:
        """Reads what is there before worker processes are started; warns, once, where the budget leaves files out."""
        with contextlib.suppress(OSError):
            self.refresh()
        filled = self.bytes_used + self._largest + RECORD.size > self.budget > 0
        missing = sum(_key(path) not in self._found for path in paths) if filled and not self._told else 0
        if missing:
            self._told = True
            warnings.warn(
                f"{self.folder}: the copies fill their budget of {self.budget / 1e9:.1f} GB; {missing:,} of "
                f"{len(paths):,} training images are decoded every epoch: give a larger budget, or delete the "
                "folder where it holds copies of images that are no longer used",
                ImageCopiesWarning,
                stacklevel=3,
            )

    def load(self, path: str, stamp: tuple | None) -> np.ndarray | None:
        """Returns the copy [H, W, 3] uint8 of a file that has this stamp, or None."""
        if stamp is None:
            return None
        try:
            place = self._find(path, stamp)
            if place is None and self.refresh():
                place = self._find(path, stamp)
            if place is None:
                return None
            offset, height, width, crc = place
            pixels = np.empty((height, width, 3), dtype=np.uint8)
            with self._pixels.open("rb", buffering=0) as file:
                file.seek(offset)
                if file.readinto(pixels) == pixels.nbytes and zlib.crc32(pixels) == crc:
                    return pixels
        except OSError:
            return None
        del self._found[_key(path)]  # damaged: the next copy takes its place
        return None

    def save(self, path: str, stamp: tuple | None, pixels: np.ndarray) -> None:
        """Keeps the copy [H, W, 3] uint8 of a file that had this stamp before it was read, if the budget allows."""
        size = pixels.nbytes + RECORD.size
        if stamp is None or self.bytes_used + size > self.budget:
            return
        pixels = np.ascontiguousarray(pixels)
        try:
            with FileLock(self.folder / "lock").acquire(timeout=60, poll_interval=0.002):
                self.refresh()
                if self._find(path, stamp) is not None or self.bytes_used + size > self.budget:
                    return  # another worker was quicker
                if shutil.disk_usage(self.folder).free < RESERVE + size:
                    raise OSError(None, "the disk is nearly full")
                record = RECORD.pack(_key(path), *stamp, self._end, *pixels.shape[:2], zlib.crc32(pixels), 0)[:-4]
                _write(self._pixels, self._end, pixels)
                _write(self._index, self._seen * RECORD.size, record + _crc(record))
                self.refresh()
        except (OSError, NotImplementedError) as error:  # the latter: a disk without locks
            self._give_up(error)

    def refresh(self) -> bool:
        """Reads what others have added since; returns whether there was anything."""
        with self._index.open("rb", buffering=0) as file:
            file.seek(self._seen * RECORD.size)
            content = file.read()
        seen = self._seen
        for start in range(0, len(content) - RECORD.size + 1, RECORD.size):
            record = content[start : start + RECORD.size]
            if _crc(record[:-4]) != record[-4:]:
                break  # being written, or lost with the power
            key, *_, offset, height, width, _, _ = RECORD.unpack(record)
            self._found[key] = record
            self._largest = max(self._largest, 3 * height * width)
            self._end = offset + 3 * height * width
            self._seen += 1
        return self._seen > seen

    def _find(self, path: str, stamp: tuple) -> tuple[int, int, int, int] | None:
        """Returns offset, height, width and checksum of the copy of a file that has this stamp."""
        record = self._found.get(_key(path))
        if record is None:
            return None
        _, *its_stamp, offset, height, width, crc, _ = RECORD.unpack(record)
        return (offset, height, width, crc) if tuple(its_stamp) == stamp else None

    def _give_up(self, error: BaseException) -> None:
        self.budget = 0
        reason = getattr(error, "strerror", None) or error
        warnings.warn(
            f"{self.folder}: copies of training images cannot be kept there ({reason}); the "
            "files are decoded every epoch: free some space, or give a folder that can be written",
            ImageCopiesWarning,
            stacklevel=3,
        )


def stamp_of(path: str) -> tuple[int, int, int, int] | None:
    """Returns size, times and inode of a file, or None where they cannot tell a later change; take it before reading.

    None also where there is no file: reading it will say what is wrong.
    """
    now = time.time_ns()
    with contextlib.suppress(OSError):
        stat = os.stat(path)  # noqa: PTH116  (speed: once an image and epoch)
        if min(abs(now - stat.st_mtime_ns), abs(now - stat.st_ctime_ns)) > TICK:
            return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino & (2**63 - 1)
    return None


def _key(path: str) -> bytes:
    return sha256(os.path.abspath(path).encode(errors="surrogatepass")).hexdigest()[:32].encode()  # noqa: PTH100


def _crc(record: bytes) -> bytes:
    return zlib.crc32(record).to_bytes(4, "little")


def _write(path: Path, offset: int, content: np.ndarray | bytes) -> None:
    """Writes at an offset and cuts off what was behind it: the half-written end that a killed process left."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)
        file.truncate()
