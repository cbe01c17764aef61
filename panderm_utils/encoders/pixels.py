"""Keeps the evaluation pixels of images on disk, so that a second encoder decodes none of them.

    <cache>/pixels/<key>/<name>.shard    the pixels of up to 128 consecutive images of a list

Every encoder sees the same 224 x 224 pixels of an image (`data.pixels_of`): 150 kB, 19 GB for 129,364 images. They are
kept in shards like those of features, checked in the same way, until the budget is used up, which trainings' copies of
images (`data.ImageCopies`) share; what does not fit is decoded again.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import features

from panderm_utils.data import CROP_SIZE, RESIZE_SIZE
from panderm_utils.disk import free
from panderm_utils.encoders.feature_cache import ShardCache
from panderm_utils.workspace import PIXEL_BYTES, PIXEL_RESERVE, pixels_left

SHAPE = (3, CROP_SIZE, CROP_SIZE)
PIXEL_SHARD = 128  # images; 19 MB


class PixelCache:
    """The kept pixels below `cache`, within the budget; failed reads and writes warn and never raise."""

    def __init__(self, cache: str | Path, images: int):
        """Opens the cache for a list of `images` images."""
        self.folder = Path(cache) / "pixels"
        jpeg = features.version_feature("libjpeg_turbo") or features.version_codec("jpg")
        seen = f"shorter side {RESIZE_SIZE} px, central {CROP_SIZE} px, RGB planes"
        about = {"format": 1, "pixels": seen, "pillow": PIL.__version__, "jpeg": jpeg}
        self._shards = ShardCache(self.folder, about, PIXEL_BYTES, np.uint8, images, what="pixels")
        self._left = pixels_left(self.folder)

    def load(self, names: Sequence[str], paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns pixels [n, 3, 224, 224] uint8 and identities [n], or None unless all are kept and unchanged.

        Args:
            names: The files' names, independent of where their folder is.
            paths: Where they are now.
        """
        if not self._shards.folder.is_dir():
            return None
        pixels, identities = np.empty((len(names), *SHAPE), np.uint8), []
        for part in _parts(len(names)):
            if (found := self._shards.load(names[part], paths[part])) is None:
                return None
            pixels[part] = found[0].reshape(-1, *SHAPE)
            identities.append(found[1])
        return pixels, np.concatenate(identities)

    def save(self, names: Sequence[str], pixels: np.ndarray, identity: np.ndarray) -> None:
        """Keeps pixels [n, 3, 224, 224] uint8 while the budget and the disk have room."""
        for part in _parts(len(names)):
            rows = pixels[part].reshape(-1, PIXEL_BYTES)
            if rows.nbytes > self._left or free(self.folder) < PIXEL_RESERVE + rows.nbytes:
                return
            self._shards.save(names[part], rows, identity[part], "")
            self._left -= rows.nbytes


def _parts(size: int) -> list[slice]:
    return [slice(at, at + PIXEL_SHARD) for at in range(0, size, PIXEL_SHARD)]
