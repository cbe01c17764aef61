"""The randomness of fine-tuning: augmented training images, their order in an epoch, test-time views.

Every draw comes from a generator seeded by its purpose (seed, epoch, image), so a training that is resumed, or uses
other workers, sees the same images. Draws follow torchvision's rules and order, so its own transforms give the same
bits if the global generator has the same state (tests/protocols/test_augment.py).

Symbols: N training images, K classes.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as F

from panderm_utils.data import (
    CROP_SIZE,
    EVALUATION_MEAN,
    EVALUATION_STD,
    ImageCopies,
    ImageFiles,
    limit_aspect,
    open_image,
    resize_shorter,
    resized_size,
    stamp_of,
)
from panderm_utils.messages import UserError
from panderm_utils.protocols.training import IMAGE, ORDER, VIEWS, generator_for

SCALE, RATIO = (0.75, 1.0), (3 / 4, 4 / 3)  # of the random crop: fraction of the area, width over height
DEGREES, HUE = 45.0, 0.2
TTA_RESIZED = 246  # shorter side in pixels; not the evaluation's 256
TTA_PROBABILITY, TTA_DEGREES, TTA_JITTER = 0.3, 270.0, 0.25
TTA_STD = (0.229, 0.224, 0.225)  # ImageNet's red here, unlike the evaluation's 0.228: upstream's


class TrainTransform:
    """The published training augmentation, for images whose shorter side is 256.

    Random crop of 75-100% of the area, resized to 224 (bilinear), both flips, rotation by up to 45 degrees (nearest,
    black corners), hue shifted by up to 0.2, normalised as in evaluation.
    """

    def __init__(self):
        self.mean = torch.tensor(EVALUATION_MEAN).view(3, 1, 1)
        self.std = torch.tensor(EVALUATION_STD).view(3, 1, 1)

    def __call__(self, image: Image.Image | np.ndarray, generator: torch.Generator) -> torch.Tensor:
        """Returns float32 [3, 224, 224] of a PIL RGB image or its pixels [H, W, 3] uint8."""
        pixels = isinstance(image, np.ndarray)
        height, width = image.shape[:2] if pixels else image.size[::-1]
        top, left, height, width = random_crop(height, width, generator)
        flip_h, flip_v = (_uniform(0, 1, generator) < 0.5 for _ in range(2))
        angle = _uniform(-DEGREES, DEGREES, generator)
        torch.randperm(4, generator=generator)  # torchvision shuffles four colour changes; only hue is enabled
        hue = _uniform(-HUE, HUE, generator)
        if pixels:
            image = Image.fromarray(np.ascontiguousarray(image[top : top + height, left : left + width]))
        else:
            image = image.crop((left, top, left + width, top + height))
        image = image.resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BILINEAR)
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip_h else image
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if flip_v else image
        image = image.rotate(angle, Image.Resampling.NEAREST, fillcolor=(0, 0, 0))
        shifted = torch.from_numpy(shift_hue(image, hue))
        return shifted.to(torch.float32).div_(255).sub_(self.mean).div_(self.std)


class TurnTransform(TrainTransform):
    """Only flips and quarter turns of the evaluation's pixels, for images whose shorter side is 256.

    The published augmentation hides colours and edges. A few hundred images may be too few to learn without them.
    """

    def __call__(self, image: Image.Image | np.ndarray, generator: torch.Generator) -> torch.Tensor:
        pixels = np.asarray(image)
        top, left = ((side - CROP_SIZE) // 2 for side in pixels.shape[:2])
        turns, flip = torch.randint(4, (1,), generator=generator).item(), _uniform(0, 1, generator) < 0.5
        turned = np.rot90(pixels[top : top + CROP_SIZE, left : left + CROP_SIZE], turns)[:, :: -1 if flip else 1]
        return torch.from_numpy(turned.transpose(2, 0, 1).astype(np.float32)).div_(255).sub_(self.mean).div_(self.std)


AUGMENTATIONS = {"published": TrainTransform, "turns": TurnTransform}


def train_transform(augmentation: str = "published") -> TrainTransform:
    """Returns a training augmentation: (PIL RGB image or uint8 pixels, generator) -> [3, 224, 224]."""
    return AUGMENTATIONS[augmentation]()


def random_crop(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of a random crop, like torchvision's RandomResizedCrop.

    Tries ten times to draw a fitting area and ratio, then takes the largest central crop of an allowed ratio.
    """
    low, high = torch.log(torch.tensor(RATIO)).tolist()
    for _ in range(10):
        area = height * width * _uniform(*SCALE, generator)
        ratio = torch.exp(torch.empty(1).uniform_(low, high, generator=generator)).item()
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(0, height - h + 1, (1,), generator=generator).item()
            left = torch.randint(0, width - w + 1, (1,), generator=generator).item()
            return top, left, h, w
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def shift_hue(image: Image.Image, hue: float) -> np.ndarray:
    """Returns uint8 [3, H, W], equal to torchvision's adjust_hue of a PIL RGB image, in half the time.

    Red, green and blue of an HSV pixel are v times a number that depends only on h and s: a table of 65,536 entries
    replaces Pillow's conversion back, and the hue shift becomes a shift of the table index.
    """
    h, s, v = np.moveaxis(np.asarray(image.convert("HSV")), 2, 0)
    index = (h + np.uint8(int(hue * 255) % 256)).astype(np.uint16) << 8 | s  # truncated, and wraps, as torchvision's
    result = np.empty((3, *v.shape), dtype=np.uint8)
    for channel, table in zip(result, _hue_tables(), strict=True):
        product = table.take(index)
        product *= v
        product += 0.5
        channel[:] = product  # truncates
    return result


@functools.cache
def _hue_tables() -> np.ndarray:
    """Factors of v in red, green and blue [3, 256 * 256] by h and s, as in Pillow."""
    h, s = np.meshgrid(np.arange(256) * 6 / 255, np.arange(256, dtype=np.float32) / np.float32(255), indexing="ij")
    sector = np.floor(h).astype(int)
    f = (h - sector).astype(np.float32)
    full, p, q, t = np.ones_like(h), 1.0 - s, 1.0 - s * f, 1.0 - s * (1.0 - f.astype(np.float64))
    sectors = [[full, q, p, p, t, full], [t, full, full, q, p, p], [p, p, t, full, full, q]]
    return np.stack([np.choose(sector % 6, six) for six in sectors]).reshape(3, -1).astype(np.float32)


class TrainingImages(ImageFiles):
    """A torch dataset of augmented training images.

    Item `i` is `(i, image [3, 224, 224], label)`, determined by seed, epoch and i. If an epoch draws an image several
    times, as in weighted sampling, use the items `(i, repeat)` of `draws`: each repeat has its own augmentation, and
    `(i, 0)` is `i`.

    Args:
        paths: The N image files.
        labels: Their labels, integers.
        seed: Seed of the augmentation, together with the epoch.
        rows: The CSV line of each, for error messages.
        cache: Copies at 256 px, or their folder, so that a file is decoded only once; None decodes it every time. The
            items are bit-equal either way.
        augmentation: "published" or "turns".
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        labels: Sequence[int],
        seed: int,
        rows: Sequence[int] | None = None,
        cache: ImageCopies | str | Path | None = None,
        augmentation: str = "published",
    ):
        super().__init__(paths, train_transform(augmentation), rows)
        self.labels = np.asarray(labels)
        if self.labels.shape != self.paths.shape or self.labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels must be {len(self.paths)} integers, one per path, got {self.labels.dtype} "
                f"{list(self.labels.shape)}: pass the table's column `label`"
            )
        self.seed = seed
        self.copies = cache if cache is None or isinstance(cache, ImageCopies) else ImageCopies(cache)
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # so that persistent workers see changes

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, from 0; call it before the loader produces the first batch of the epoch."""
        self._epoch[0] = epoch
        if self.copies is not None:
            self.copies.prepare(self.paths)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[int, torch.Tensor, int]:
        """Raises ImageError naming the row, the file and the reason."""
        index, repeat = map(int, item) if isinstance(item, tuple | list) else (int(item), 0)
        with self.naming(index) as path:
            image = self._resized(path)
        generator = generator_for(IMAGE, self.seed, self._epoch.item(), index, repeat)
        return index, self.transform(image, generator), int(self.labels[index])

    def _resized(self, path: str) -> Image.Image | np.ndarray:
        if self.copies is None:
            return resize_shorter(open_image(path))
        stamp = stamp_of(path)
        pixels = self.copies.load(path, stamp)
        if pixels is None:
            pixels = np.asarray(resize_shorter(open_image(path)))
            self.copies.save(path, stamp, pixels)
        return pixels


def sampler_weights(y: Sequence[int], num_classes: int) -> np.ndarray:
    """Returns the sampling weight [N] of each training image: N / (K * images of its class).

    y has the labels of the rows used for training only: with a label fraction, those of the fraction.
    """
    y = np.asarray(y)
    if y.ndim != 1 or not len(y) or y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= num_classes:
        raise ValueError(
            f"y must be the labels [N] of the training images, integers in 0..{num_classes - 1}, got {y.dtype} "
            f"{list(y.shape)}: pass the column `label` of the training rows"
        )
    return len(y) / (num_classes * np.bincount(y, minlength=num_classes)[y])


def epoch_order(y: Sequence[int], num_classes: int, weighted: bool, seed: int, epoch: int) -> np.ndarray:
    """Returns the order in which an epoch draws images: [N] int64, row numbers of y.

    Weighted: N draws with replacement by `sampler_weights`. Otherwise every image once, shuffled.
    """
    weights = sampler_weights(y, num_classes)
    rng = np.random.default_rng(np.random.SeedSequence([ORDER, seed, epoch]))
    if not weighted:
        return rng.permutation(len(weights))
    reached = np.cumsum(weights)
    return np.searchsorted(reached[:-1] / reached[-1], rng.random(len(weights)), side="right")


def draws(order: Sequence[int]) -> list[tuple[int, int]]:
    """Returns an item `(i, repeat)` of TrainingImages for each draw of an epoch; an image's first draw is repeat 0."""
    order = np.asarray(order, dtype=np.int64)
    sorting = np.argsort(order, kind="stable")
    repeat = np.empty_like(order)
    repeat[sorting] = np.arange(len(order)) - np.searchsorted(order[sorting], order[sorting])
    return list(zip(order.tolist(), repeat.tolist(), strict=True))


def tta_views(image: Image.Image, views: int, seed: int, index: int) -> torch.Tensor:
    """Returns random views [views, 3, 224, 224] of a PIL RGB image of any size, determined by seed and index.

    Each view is the central 224 px of the image at 246 px (antialiased, on the float tensor), flipped both ways
    (0.5 each), with probability 0.3 rotated by 0-270 degrees (nearest, black corners), with probability 0.3 changed in
    saturation and hue by up to 0.25, in random order. The image is resized once. Fewer views are a prefix of more.
    """
    if views < 1:
        raise UserError(f"views must be at least 1, got {views}: the published number is 5; without views, use tta=0")
    image = limit_aspect(image)
    width, height = resized_size(image.size, TTA_RESIZED)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
    central = F.center_crop(F.resize(pixels, [height, width], antialias=True), [CROP_SIZE, CROP_SIZE])
    generator = generator_for(VIEWS, seed, index)
    result = torch.stack([_random_view(central, generator) for _ in range(views)])
    return F.normalize(result, EVALUATION_MEAN, TTA_STD, inplace=True)


def _random_view(view: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    for flip in (F.hflip, F.vflip):
        if _uniform(0, 1, generator) < 0.5:
            view = flip(view)
    if _uniform(0, 1, generator) <= TTA_PROBABILITY:
        view = F.rotate(view, _uniform(0, TTA_DEGREES, generator))  # without `fill`: black too, in half the time
    if _uniform(0, 1, generator) <= TTA_PROBABILITY:
        order = torch.randperm(4, generator=generator).tolist()
        saturation = _uniform(1 - TTA_JITTER, 1 + TTA_JITTER, generator)
        hue = _uniform(-TTA_JITTER, TTA_JITTER, generator)
        for change in order:  # 0 brightness and 1 contrast are off
            if change == 2:
                view = F.adjust_saturation(view, saturation)
            elif change == 3:
                view = F.adjust_hue(view, hue)
    return view


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return torch.empty(1).uniform_(low, high, generator=generator).item()
