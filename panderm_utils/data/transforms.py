"""Turns image files into tensors for an encoder: the published evaluation transform, and a torch dataset."""

import contextlib
import os
import shutil
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
import PIL
import torch
from filelock import FileLock
from PIL import Image, features
from torch.utils.data import Dataset

from panderm_utils.data.image_files import ImageError, open_image
from panderm_utils.workspace import PIXEL_RESERVE, pixels_left

RESIZE_SIZE, CROP_SIZE = 256, 224  # shorter side after resizing, side of the centre crop, in pixels
MAX_ASPECT = 1_000  # of what is resized; otherwise a strip one pixel wide would fill the memory
EVALUATION_MEAN = (0.485, 0.456, 0.406)
EVALUATION_STD = (0.228, 0.224, 0.225)  # upstream's: 0.228 for red, not ImageNet's 0.229; published numbers need it


class EvaluationTransform:
    """The published evaluation transform: a PIL RGB image becomes a float32 tensor [3, 224, 224].

    Bit-identical to torchvision's Resize(256), CenterCrop(224), ToTensor, Normalize on PIL images, but faster, as it
    computes in place. Its first part, `pixels_of`, is the same for every encoder.
    """

    def __init__(self, mean: Sequence[float] = EVALUATION_MEAN, std: Sequence[float] = EVALUATION_STD):
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return self.normalise(torch.from_numpy(pixels_of(image)))

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns uint8 pixels [..., 3, 224, 224] as float32, on their device."""
        whole = torch.full((1,), 255.0, device=pixels.device)  # a GPU would multiply by 1/255, which is not exact
        mean, std = (values.to(pixels.device) for values in (self.mean, self.std))
        return pixels.to(torch.float32).div_(whole).sub_(mean).div_(std)

    def __repr__(self) -> str:
        mean, std = (tuple(round(v, 6) for v in t.flatten().tolist()) for t in (self.mean, self.std))
        return f"EvaluationTransform(resize={RESIZE_SIZE}, crop={CROP_SIZE}, mean={mean}, std={std})"


def evaluation_transform() -> EvaluationTransform:
    """Returns the published evaluation transform: PIL RGB image -> float32 [3, 224, 224]."""
    return EvaluationTransform()


def pixels_of(image: Image.Image) -> np.ndarray:
    """Returns the pixels, uint8 [3, 224, 224], that evaluation sees of a PIL RGB image."""
    return np.ascontiguousarray(np.moveaxis(np.asarray(resize_and_crop(image)), 2, 0))


def resize_and_crop(image: Image.Image) -> Image.Image:
    """Returns the central 224 x 224 pixels after resizing the shorter side to 256 (bilinear, antialiased).

    Resizing straight to the crop by PIL's `resize(box=...)` would save a tenth of the time, but is not pixel-exact:
    it keeps the box in single precision, and PIL 13 orders its two passes by the sizes, so nine of ten noise images
    have some pixels off by one level.
    """
    resized = resize_shorter(image)
    left, top = (round((side - CROP_SIZE) / 2) for side in resized.size)  # rounds half to even, as torchvision does
    return resized.crop((left, top, left + CROP_SIZE, top + CROP_SIZE))


def resize_shorter(image: Image.Image) -> Image.Image:
    """Returns the image with its shorter side resized to 256, as torchvision's Resize(256) does; see `limit_aspect`."""
    image = limit_aspect(image)
    size = resized_size(image.size, RESIZE_SIZE)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def resized_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Returns width and height after resizing the shorter side to `shorter` pixels; the longer side is truncated."""
    width, height = size
    short = min(width, height)
    return int(shorter * width / short), int(shorter * height / short)


def limit_aspect(image: Image.Image) -> Image.Image:
    """Returns the central part of an image whose aspect ratio exceeds 1,000, to bound the memory of resizing.

    Both ends lose equally many whole pixels, so the centre, all that evaluation uses, stays the centre.
    """
    longest = MAX_ASPECT * min(image.size)
    x, y = (max(0, (side - longest) // 2) for side in image.size)
    return image.crop((x, y, image.width - x, image.height - y)) if x or y else image


class ImageFiles(Dataset):
    """A torch dataset of image files: item i is `(i, tensor)`, so a loader may return items in any order.

    Args:
        paths: The image files.
        transform: PIL RGB image -> tensor; by default the evaluation transform.
        rows: The CSV line of each image, named in errors.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        transform: Callable[[Image.Image], torch.Tensor] | None = None,
        rows: Sequence[int] | None = None,
    ):
        # Arrays, not lists: reference counting in forked workers would copy every memory page of a list.
        self.paths = np.array([str(path) for path in paths], dtype=np.str_)
        self.rows = None if rows is None else np.asarray(rows, dtype=np.int64)
        if self.rows is not None and len(self.rows) != len(self.paths):
            raise ValueError(f"{len(self.rows)} rows for {len(self.paths)} paths; give one CSV line per path")
        self.transform = transform or evaluation_transform()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        """Raises ImageError with row, file and reason; never skips an image, so rows never shift."""
        with self.naming(index) as path:
            return index, self.transform(open_image(path))

    @contextmanager
    def naming(self, index: int) -> Iterator[str]:
        """Yields the path of an image; adds its row and file to an ImageError raised inside."""
        path = str(self.paths[index])
        try:
            yield path
        except ImageError as error:
            place = f"image {index} (from 0)" if self.rows is None else f"CSV row {self.rows[index]}"
            named = str(error) if path in str(error) else f"{path}: {error}"
            raise ImageError(f"{place}: {named}") from error


# A second change within one clock tick goes unnoticed, so a file changed this recently is not copied yet. 2 s is the
# tick of FAT, the coarsest in use.
TICK = 2_000_000_000  # ns
# Half of the absolute path's SHA-256 in hexadecimal; size, times and inode of the file; offset, height, width and CRC
# of the pixels; CRC of all these.
RECORD = struct.Struct("<32s 4q q 2i I I")


class ImageCopiesWarning(UserWarning):
    """Copies cannot be stored; training continues and decodes the files every epoch."""


class ImageCopies:
    """Decoded copies of images below `folder`, at most `budget` bytes; failures warn, never raise.

    `kind` names how the images were resized, so that copies of one kind are never taken for another. By default the
    budget is what other pixels below `folder` leave of `workspace.pixel_budget`.
    """

    def __init__(self, folder: str | Path, budget: int | None = None, kind: str = f"{RESIZE_SIZE}px"):
        jpeg = features.version_feature("libjpeg_turbo") or features.version_codec("jpg")
        self.folder = Path(folder) / f"v1-{kind}-pillow{PIL.__version__}-jpeg{jpeg}"
        self.budget = pixels_left(Path(folder), besides=self.folder) if budget is None else budget
        self._pixels, self._index = self.folder / "pixels.bin", self.folder / "index.bin"
        self._found: dict[bytes, bytes] = {}  # the latest record of each path
        self._seen = self._end = self._largest = 0  # records; offset of the next copy; bytes of the largest copy
        self._warned = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in (self._pixels, self._index):
                path.open("ab").close()
            self.refresh()
        except OSError as error:
            self._give_up(error)

    def __len__(self) -> int:
        """Returns how many images have a copy, as far as this process has seen."""
        return len(self._found)

    @property
    def bytes_used(self) -> int:
        """Size of both files, as far as this process has seen."""
        return self._end + self._seen * RECORD.size

    def prepare(self, paths: Sequence[str]) -> None:
        """Reads the index before worker processes start; warns once if the budget is too small for all files."""
        with contextlib.suppress(OSError):
            self.refresh()
        filled = self.bytes_used + self._largest + RECORD.size > self.budget > 0
        missing = sum(_key(path) not in self._found for path in paths) if filled and not self._warned else 0
        if missing:
            self._warned = True
            warnings.warn(
                f"{self.folder}: the copies fill their budget of {self.budget / 1e9:.1f} GB; {missing:,} of "
                f"{len(paths):,} training images are decoded every epoch: give more (--pixels GB), or delete the "
                "folder if it contains copies of images that are no longer used",
                ImageCopiesWarning,
                stacklevel=3,
            )

    def load(self, path: str, stamp: tuple | None) -> np.ndarray | None:
        """Returns the copy [H, W, 3] uint8 of a file with this stamp, or None."""
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
        del self._found[_key(path)]  # damaged: the next copy replaces it
        return None

    def save(self, path: str, stamp: tuple | None, pixels: np.ndarray) -> None:
        """Stores the copy [H, W, 3] uint8 of a file that had this stamp before it was read, if the budget allows."""
        size = pixels.nbytes + RECORD.size
        if stamp is None or self.bytes_used + size > self.budget:
            return
        pixels = np.ascontiguousarray(pixels)
        try:
            with FileLock(self.folder / "lock").acquire(timeout=60, poll_interval=0.002):
                self.refresh()
                if self._find(path, stamp) is not None or self.bytes_used + size > self.budget:
                    return  # another worker was faster
                if shutil.disk_usage(self.folder).free < PIXEL_RESERVE + size:
                    raise OSError(None, "the disk is nearly full")
                record = RECORD.pack(_key(path), *stamp, self._end, *pixels.shape[:2], zlib.crc32(pixels), 0)[:-4]
                _write(self._pixels, self._end, pixels)
                _write(self._index, self._seen * RECORD.size, record + _crc(record))
                self.refresh()
        except (OSError, NotImplementedError) as error:  # the latter: no locks on this disk
            self._give_up(error)

    def refresh(self) -> bool:
        """Reads what other processes have added; returns whether there was anything new."""
        with self._index.open("rb", buffering=0) as file:
            file.seek(self._seen * RECORD.size)
            content = file.read()
        seen = self._seen
        for start in range(0, len(content) - RECORD.size + 1, RECORD.size):
            record = content[start : start + RECORD.size]
            if _crc(record[:-4]) != record[-4:]:
                break  # still being written, or lost in a power cut
            key, *_, offset, height, width, _, _ = RECORD.unpack(record)
            self._found[key] = record
            self._largest = max(self._largest, 3 * height * width)
            self._end = offset + 3 * height * width
            self._seen += 1
        return self._seen > seen

    def _find(self, path: str, stamp: tuple) -> tuple[int, int, int, int] | None:
        """Returns offset, height, width and checksum of the copy of a file with this stamp, or None."""
        record = self._found.get(_key(path))
        if record is None:
            return None
        _, *copied_stamp, offset, height, width, crc, _ = RECORD.unpack(record)
        return (offset, height, width, crc) if tuple(copied_stamp) == stamp else None

    def _give_up(self, error: BaseException) -> None:
        self.budget = 0
        reason = getattr(error, "strerror", None) or error
        warnings.warn(
            f"{self.folder}: copies of training images cannot be stored there ({reason}); the "
            "files are decoded every epoch: free some space, or give a writable folder",
            ImageCopiesWarning,
            stacklevel=3,
        )


def stamp_of(path: str) -> tuple[int, int, int, int] | None:
    """Returns size, times and inode of a file, or None if they cannot reveal a later change; call it before reading.

    Also None if the file is missing: reading it will raise the error.
    """
    now = time.time_ns()
    with contextlib.suppress(OSError):
        stat = os.stat(path)  # noqa: PTH116  (speed: once per image and epoch)
        if min(abs(now - stat.st_mtime_ns), abs(now - stat.st_ctime_ns)) > TICK:
            return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino & (2**63 - 1)
    return None


def _key(path: str) -> bytes:
    return sha256(os.path.abspath(path).encode(errors="surrogatepass")).hexdigest()[:32].encode()  # noqa: PTH100


def _crc(record: bytes) -> bytes:
    return zlib.crc32(record).to_bytes(4, "little")


def _write(path: Path, offset: int, content: np.ndarray | bytes) -> None:
    """Writes at an offset and truncates the file after it, as a killed process may have left half a write there."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)
        file.truncate()
