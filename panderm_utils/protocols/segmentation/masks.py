"""masks.zip of a record: the masks of its test images, from which every number is recomputed without a model.

    true/<image>.png           the true mask, at the size of the image
    predicted/<image>.png      the raw prediction at the size of the image
    predicted_224/<image>.png  the raw prediction at the size of the model
    true_224/<image>.png       the true mask at that size; only where it is not `shrink_mask` of the true mask

Each is a 1-bit PNG, a few KB. <image> is the whole name in the dataset, with its folders and suffix, so that no two
images share an entry; what could lead out of a folder or is no plain character is percent-encoded.
"""

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from panderm_utils.messages import UserError

MASKS_FILE = "masks.zip"
SIDE = 224  # pixels of the model's input
KINDS = ("true", "predicted", "predicted_224")
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every entry: the same masks give the same bytes


class MaskError(UserError):
    """Masks that are missing, damaged or do not fit; the message says which and what to do."""


@dataclass(frozen=True, eq=False)
class ImageMasks:
    """The masks of a test image, bool: true and predicted [H, W], predicted_224 and true_224 [S, S].

    true_224 is the nearest resize of the true mask with the published scores; None: `shrink_mask` of it.
    """

    true: np.ndarray
    predicted: np.ndarray
    predicted_224: np.ndarray
    true_224: np.ndarray | None = None

    @property
    def small_true(self) -> np.ndarray:
        return shrink_mask(self.true, self.predicted_224.shape) if self.true_224 is None else self.true_224


def shrink_mask(mask: np.ndarray, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """Returns a mask resized to a height and width by its nearest pixels, as OpenCV and PyTorch choose them."""
    rows, columns = (np.arange(to) * side // to for side, to in zip(mask.shape, size, strict=True))
    return mask[rows[:, None], columns]


def pack_masks(images: Iterable[tuple[str, ImageMasks]]) -> bytes:
    """Returns the content of masks.zip; holds the masks of one image at a time.

    Args:
        images: Name and masks of each test image; an image listed twice is kept once.

    Raises:
        MaskError: Masks of an image that do not fit together, or two different ones of one image.
    """
    content, kept = BytesIO(), {}
    with zipfile.ZipFile(content, "w") as archive:
        for name, masks in images:
            kinds = _check(name, masks)
            if np.array_equal(masks.true_224, shrink_mask(masks.true, masks.predicted_224.shape)):
                del kinds["true_224"]
            pngs = {kind: encode_mask(mask) for kind, mask in kinds.items()}
            digest = hash(tuple(pngs.items()))
            if kept.setdefault(name, digest) != digest:
                raise MaskError(f"{name!r} has two different sets of masks: predict each image once")
            if entry_name("true", name) in archive.NameToInfo:
                continue
            for kind, png in pngs.items():
                entry = zipfile.ZipInfo(entry_name(kind, name), EPOCH)
                entry.external_attr, entry.create_system = 0o644 << 16, 3  # the same on every system
                archive.writestr(entry, png)  # stored: a PNG is compressed
    return content.getvalue()


class MaskArchive:
    """The masks of a record, read one image at a time.

    Args:
        source: The file, or its content.
    """

    def __init__(self, source: str | Path | bytes):
        self.where = "the masks" if isinstance(source, bytes) else str(source)
        try:
            self._zip = zipfile.ZipFile(BytesIO(source) if isinstance(source, bytes) else source)
        except FileNotFoundError as error:
            raise MaskError(f"{self.where} is missing; repeat the run") from error
        except zipfile.BadZipFile as error:
            raise MaskError(f"{self.where}: not a zip file ({error}); repeat the run") from error

    def check(self, names: Iterable[str]) -> None:
        """Raises a MaskError unless the archive holds the masks of exactly these images, once each."""
        names = list(dict.fromkeys(names))
        needed = {entry_name(kind, name) for name in names for kind in KINDS}
        allowed = needed | {entry_name("true_224", name) for name in names}
        found = set(self._zip.namelist())
        if missing := sorted(needed - found):
            raise MaskError(f"{self.where} lacks {_some(missing)}; repeat the run")
        if surplus := sorted(found - allowed):
            raise MaskError(f"{self.where}: {_some(surplus)} belong to no test image; repeat the run")

    def read(self, name: str) -> ImageMasks:
        """Returns the masks of an image; several threads may read."""
        small = entry_name("true_224", name)
        kinds = (*KINDS, "true_224") if small in self._zip.NameToInfo else KINDS
        masks = ImageMasks(**{kind: self._read(entry_name(kind, name)) for kind in kinds})
        _check(name, masks)
        return masks

    def _read(self, entry: str) -> np.ndarray:
        try:
            return decode_mask(self._zip.read(entry))
        except KeyError as error:
            raise MaskError(f"{self.where} lacks {entry}; repeat the run") from error
        except (OSError, ValueError, SyntaxError, zipfile.BadZipFile) as error:
            raise MaskError(f"{self.where}: {entry} is damaged ({error}); repeat the run") from error


def entry_name(kind: str, image: str) -> str:
    """Returns the name of an image's entry: different for different images, and never outside its folder."""
    parts = [quote(part, safe=" ()+,=@", errors="surrogatepass") for part in image.split("/")]
    # "%" alone stands for an empty part; `quote` leaves no other.
    parts = [part.replace(".", "%2E") if part in (".", "..") else part or "%" for part in parts]
    return f"{kind}/{'/'.join(parts)}.png"


def encode_mask(mask: np.ndarray) -> bytes:
    """Returns a mask as a 1-bit PNG."""
    png = BytesIO()
    Image.fromarray(mask).save(png, "png")
    return png.getvalue()


def decode_mask(png: bytes) -> np.ndarray:
    """Returns the mask [H, W] in a 1-bit PNG."""
    with Image.open(BytesIO(png), formats=["png"]) as image:
        if image.mode != "1":
            raise ValueError(f"a mask has 1 bit a pixel, this one has mode {image.mode}")
        width, height = image.size
        pixels = np.frombuffer(image.tobytes("raw", "L"), dtype=np.uint8)  # half the time of np.asarray(image)
    return pixels.reshape(height, width) > 0


def _check(name: str, masks: ImageMasks) -> dict[str, np.ndarray]:
    """Returns an image's masks by kind; raises a MaskError if they do not fit together."""
    kinds = {kind: mask for kind, mask in vars(masks).items() if mask is not None}
    for kind, mask in kinds.items():
        if mask.dtype != bool or mask.ndim != 2 or not mask.size:
            raise MaskError(f"{name}: its mask {kind!r} must be bool [H, W], got {mask.dtype} {list(mask.shape)}")
    for one, other in (("true", "predicted"), ("predicted_224", "true_224")):
        if other in kinds and kinds[one].shape != kinds[other].shape:
            sizes = f"{list(kinds[one].shape)} and {list(kinds[other].shape)}"
            raise MaskError(f"{name}: its masks {one!r} and {other!r} are {sizes}: sizes differ; predict it again")
    return kinds


def _some(entries: list[str], shown: int = 3) -> str:
    more = f" and {len(entries) - shown:,} more" if len(entries) > shown else ""
    return f"{', '.join(entries[:shown])}{more}"
