"""Predictions of a segmentation model: masks at 224 pixels and at the size of each image.

Symbols: N images.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from panderm_utils.data import ImageFiles, open_mask
from panderm_utils.encoders import check_precision, choose_device
from panderm_utils.protocols.segmentation.images import MaskedImages, evaluation_transform
from panderm_utils.protocols.segmentation.masks import SIDE, ImageMasks
from panderm_utils.protocols.segmentation.training import enlarge
from panderm_utils.protocols.training import BATCH, score


@dataclass(frozen=True, eq=False)
class Segmentations:
    """The result of `predict`.

    Attributes:
        images: The images, in order.
        logits: [N, 2, h, w] float32 at a quarter of 224 pixels: background, lesion.
        seconds: Wall-clock time.
    """

    images: MaskedImages = field(repr=False)
    logits: np.ndarray = field(repr=False)
    seconds: float

    def __len__(self) -> int:
        return len(self.images)

    def mask(self, index: int, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
        """Returns the predicted mask [H, W] bool of an image at a size; the image's own, or the published 224 x 224."""
        return mask_of(torch.from_numpy(self.logits[index]), size)

    def masks(self) -> Iterator[tuple[str, ImageMasks]]:
        """Yields the name and the masks of each image, with a progress bar; reads the true masks one at a time."""
        for i, name in enumerate(
            tqdm(self.images.image_ids.tolist(), desc="masks", unit="image", delay=1, leave=False)
        ):
            true = open_mask(self.images.mask_paths[i])
            yield name, ImageMasks(true, self.mask(i, true.shape), self.mask(i))


def mask_of(logits: torch.Tensor, size: Sequence[int]) -> np.ndarray:
    """Returns the predicted mask, bool [H, W] = `size`, of an image's logits [2, h, w]."""
    return enlarge(logits[None], size)[0].argmax(dim=0).bool().numpy()


def predict(
    model: nn.Module,
    images: MaskedImages,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int | None = None,
    num_workers: int | None = None,
) -> Segmentations:
    """Returns the predictions of a segmentation model for images of any size, in order.

    Args:
        model: Maps [n, 3, 224, 224] to logits [n, 2, h, w]; it is moved to the device and left in eval mode.
        device, precision: As in `load_encoder`.
        batch_size: Images at once; by default chosen for the device. Halved when memory runs out.
        num_workers: Number of image-reading processes.

    Raises:
        ImageError: An image cannot be read; names row, file and reason. EncoderError: invalid device or precision.
        LoadingError: An image-reading process was killed.
    """
    torch_device = choose_device(device)
    check_precision(precision, torch_device)
    started, model = time.perf_counter(), model.to(torch_device).eval()
    files = ImageFiles(images.paths, evaluation_transform, images.rows)
    size = batch_size or BATCH[torch_device.type]
    with tqdm(desc="predict", total=len(images), unit="image", delay=1, leave=False) as bar:
        logits = score(model, files, range(len(images)), torch_device, precision, size, num_workers, bar)
    return Segmentations(images, logits[:, 0], time.perf_counter() - started)
