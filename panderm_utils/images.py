"""Turns image files into the tensors that an encoder takes: the published evaluation transform, and a torch dataset."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from panderm_utils.image_files import ImageError, open_image

RESIZED, CROPPED = 256, 224  # shorter side after resizing, side of the centre crop, in pixels
EVALUATION_MEAN = (0.485, 0.456, 0.406)
EVALUATION_STD = (0.228, 0.224, 0.225)  # 0.228 for red, not ImageNet's 0.229: upstream's, so published numbers need it


class EvaluationTransform:
    """The published evaluation transform: a PIL RGB image becomes a float32 tensor [3, 224, 224].

    Bit-equal to torchvision's Resize(256), CenterCrop(224), ToTensor, Normalize on PIL images, in less time: rows and
    columns that the crop throws away are not computed where that cannot change a pixel (see `resize_and_crop`).
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
    """Resizes the shorter side to 256 (bilinear, antialiased) and crops the central 224 x 224 pixels.

    PIL can resize a part (`box`) of the image straight to the crop. It holds the box in single precision, so that is
    pixel-exact only where the scale is a fraction of 256: always along the shorter side, and along the longer side
    where the resized length is a whole number. Elsewhere the longer side is resized whole and cropped afterwards.
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_long = int(RESIZED * long / short)  # truncated, as torchvision does
    margin = (RESIZED - CROPPED) // 2
    offset = round((new_long - CROPPED) / 2)  # halves to even, as torchvision does
    near, far = margin * short / RESIZED, (margin + CROPPED) * short / RESIZED
    exact = RESIZED * long % short == 0
    start, stop = (offset * short / RESIZED, (offset + CROPPED) * short / RESIZED) if exact else (0, long)
    length = CROPPED if exact else new_long
    if short == RESIZED:  # nothing to resize: cropping copies the pixels
        length, resized = new_long, image.crop((0, margin, width, margin + CROPPED))
        if width < height:
            resized = image.crop((margin, 0, margin + CROPPED, height))
    elif width >= height:
        resized = image.resize((length, CROPPED), Image.Resampling.BILINEAR, box=(start, near, stop, far))
    else:
        resized = image.resize((CROPPED, length), Image.Resampling.BILINEAR, box=(near, start, far, stop))
    if length == CROPPED:
        return resized
    if width >= height:
        return resized.crop((offset, 0, offset + CROPPED, CROPPED))
    return resized.crop((0, offset, CROPPED, offset + CROPPED))


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
        try:
            return index, self.transform(open_image(str(self.paths[index])))
        except ImageError as error:
            place = f"image {index} (from 0)" if self.rows is None else f"CSV row {self.rows[index]}"
            raise ImageError(f"{place}: {error}") from error
