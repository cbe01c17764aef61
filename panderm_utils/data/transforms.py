"""Turns image files into the tensors that an encoder takes: the published evaluation transform, and a torch dataset."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from panderm_utils.data.image_files import ImageError, open_image

RESIZED, CROPPED = 256, 224  # shorter side after resizing, side of the centre crop, in pixels
MAX_ASPECT = 1_000  # of an image's part that is resized; a strip of one pixel's width would otherwise fill the memory
EVALUATION_MEAN = (0.485, 0.456, 0.406)
EVALUATION_STD = (0.228, 0.224, 0.225)  # 0.228 for red, not ImageNet's 0.229: upstream's, so published numbers need it


class EvaluationTransform:
    """The published evaluation transform: a PIL RGB image becomes a float32 tensor [3, 224, 224].

    Bit-equal to torchvision's Resize(256), CenterCrop(224), ToTensor, Normalize on PIL images, in less time, because
    the arithmetic is done in place.
    """

    def __init__(self, mean: Sequence[float] = EVALUATION_MEAN, std: Sequence[float] = EVALUATION_STD):
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(resize_and_crop(image))).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div_(255).sub_(self.mean).div_(self.std)

    def __repr__(self) -> str:
        mean, std = (tuple(round(v, 6) for v in t.flatten().tolist()) for t in (self.mean, self.std))
        return f"EvaluationTransform(resize={RESIZED}, crop={CROPPED}, mean={mean}, std={std})"


def evaluation_transform() -> EvaluationTransform:
    """Returns the published evaluation transform: PIL RGB image -> float32 [3, 224, 224]."""
    return EvaluationTransform()


def resize_and_crop(image: Image.Image) -> Image.Image:
    """Resizes the shorter side to 256 (bilinear, antialiased) and returns the central 224 x 224 pixels.

    The image is resized whole and cropped after: PIL's `resize(box=...)` straight to the crop would save a tenth of
    this step, but is not pixel-exact. It holds the box in single precision, and PIL 13 chooses the order of its two
    passes by the sizes, so that nine of ten noise images come out a level off here and there.
    """
    resized = resize_shorter(image)
    left, top = (round((side - CROPPED) / 2) for side in resized.size)  # halves to even, as torchvision does
    return resized.crop((left, top, left + CROPPED, top + CROPPED))


def resize_shorter(image: Image.Image) -> Image.Image:
    """Resizes the shorter side to 256, bilinear and antialiased, as torchvision's Resize(256) does; see `trim`."""
    image = trim(image)
    size = resized_size(image.size, RESIZED)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def resized_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Returns width and height after resizing the shorter side to `shorter` pixels; the longer side is truncated."""
    width, height = size
    short = min(width, height)
    return int(shorter * width / short), int(shorter * height / short)


def trim(image: Image.Image) -> Image.Image:
    """Cuts a strip, of an aspect ratio beyond 1,000, to its central part, of which resizing needs less memory.

    Both ends lose as many whole pixels, so its centre, all that evaluation looks at, stays the centre.
    """
    longest = MAX_ASPECT * min(image.size)
    x, y = (max(0, (side - longest) // 2) for side in image.size)
    return image.crop((x, y, image.width - x, image.height - y)) if x or y else image


class ImageFiles(Dataset):
    """A torch dataset of image files: item i is `(i, tensor)`, so that a loader may return items in any order.

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
        # Arrays, not lists: workers forked from a notebook would copy every page of a list when they count references.
        self.paths = np.array([str(path) for path in paths], dtype=np.str_)
        self.rows = None if rows is None else np.asarray(rows, dtype=np.int64)
        if self.rows is not None and len(self.rows) != len(self.paths):
            raise ValueError(f"{len(self.rows)} rows for {len(self.paths)} paths; give one CSV line a path")
        self.transform = transform or evaluation_transform()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor]:
        """Raises ImageError naming the row, the file and the reason; never skips, so no later row is shifted."""
        with self.naming(index) as path:
            return index, self.transform(open_image(path))

    @contextmanager
    def naming(self, index: int) -> Iterator[str]:
        """Yields the path of an image; an ImageError inside also names its row and its file."""
        path = str(self.paths[index])
        try:
            yield path
        except ImageError as error:
            place = f"image {index} (from 0)" if self.rows is None else f"CSV row {self.rows[index]}"
            named = str(error) if path in str(error) else f"{path}: {error}"
            raise ImageError(f"{place}: {named}") from error
