"""The images and masks of segmentation: 224 x 224 pixels, aspect ratio not kept, changed in colour only for training.

Symbols: N images. A mask is 1 where the lesion is.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision import transforms
from tqdm.auto import tqdm

from panderm_utils.data import (
    Dataset,
    ImageCopies,
    ImageError,
    ImageFiles,
    connected_groups,
    open_image,
    open_mask,
    stamp_of,
)
from panderm_utils.protocols import label_efficiency
from panderm_utils.protocols.segmentation.masks import SIDE, shrink_mask
from panderm_utils.protocols.training import IMAGE, seed_of

MEAN = STD = 0.5  # of each channel; not the classification's
CHANGE, CHANCE = 0.2, 0.2  # strength of the colour jitter, probability of each of the other changes


def augment() -> transforms.Compose:
    """Returns the published training augmentation: PIL RGB image -> PIL RGB image, random by torch's generator.

    Colour jitter, then with probability 0.2 each: grey, stretched contrast, inverted. No flips, no crops.
    """
    return transforms.Compose(
        [
            transforms.ColorJitter(CHANGE, CHANGE, CHANGE, CHANGE),
            transforms.RandomGrayscale(CHANCE),
            transforms.RandomAutocontrast(CHANCE),
            transforms.RandomInvert(CHANCE),
        ]
    )


def resize_image(image: Image.Image) -> Image.Image:
    """Returns an RGB image at 224 x 224 pixels, cubic without antialiasing, as published."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    resized = functional.interpolate(pixels, (SIDE, SIDE), mode="bicubic", align_corners=False)
    return Image.fromarray(resized[0].round_().clamp_(0, 255).byte().permute(1, 2, 0).numpy())


def normalise(image: Image.Image) -> Tensor:
    """Returns an RGB image as float32 [3, H, W] with values -1 to 1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255).sub_(MEAN).div_(STD)


def picture_of(image: Tensor) -> Image.Image:
    """Returns a normalised image [3, H, W] as a PIL image."""
    pixels = (image * STD + MEAN).mul(255).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def evaluation_transform(image: Image.Image) -> Tensor:
    """Returns an RGB image of any size as float32 [3, 224, 224], the input of the model."""
    return normalise(resize_image(image))


@dataclass(frozen=True, eq=False)
class MaskedImages:
    """The images and masks of one split.

    Attributes:
        paths: N image files.
        mask_paths: N mask files.
        image_ids: N names, independent of the folder.
        rows: The row of each in the dataset's table, for error messages.
        clusters: Numbers of the groups that belong together, such as the images of a lesion; None if not known.
    """

    paths: np.ndarray = field(repr=False)
    mask_paths: np.ndarray = field(repr=False)
    image_ids: np.ndarray = field(repr=False)
    rows: np.ndarray = field(repr=False)
    clusters: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def packed(self) -> np.ndarray:
        """All masks at 224 x 224 pixels, eight pixels a byte: [N, 6272] uint8; read once, with a progress bar."""

        def read(item: tuple[str, int]) -> np.ndarray:
            path, row = item
            try:
                return np.packbits(shrink_mask(open_mask(path)))
            except ImageError as error:
                raise ImageError(f"row {row}: {error}") from error

        items = list(zip(self.mask_paths.tolist(), self.rows.tolist(), strict=True))
        with ThreadPoolExecutor() as pool:  # PIL and NumPy release the GIL
            bar = tqdm(pool.map(read, items), total=len(items), desc="reading masks", unit="mask", delay=1, leave=False)
            found = list(bar)
        return np.stack(found) if found else np.zeros((0, SIDE * SIDE // 8), dtype=np.uint8)

    def mask(self, index: int) -> np.ndarray:
        """Returns a mask at 224 x 224 pixels, uint8, 1 where the lesion is."""
        return np.unpackbits(self.packed[index]).reshape(SIDE, SIDE)


def masked_images(dataset: Dataset, table: pd.DataFrame) -> MaskedImages:
    """Returns the images and masks of rows of a dataset's table, such as `dataset.split("val")`."""
    names = table["image"].tolist()
    paths, masks = (
        np.array([str(find(name)) for name in names], np.str_) for find in (dataset.path, dataset.mask_path)
    )
    columns = [column for column in dataset.manifest.groups.values() if column in table]
    clusters = connected_groups(table, columns) if columns else None
    return MaskedImages(paths, masks, np.array(names, np.str_), table["row"].to_numpy(np.int64), clusters)


def training_rows(dataset: Dataset, fraction: float, seed: int) -> pd.DataFrame:
    """Returns the training rows of a label fraction: an honest draw of label efficiency, nested, lesions kept whole.

    The published loader takes the first files of the folder listing, an order that differs between disks.

    Args:
        fraction: In (0, 1]; 1: all rows, in file order.
        seed: Another seed, another draw.
    """
    train = dataset.split("train")
    if fraction == 1:
        return train
    groups = list(dataset.manifest.groups.values())
    table = dataset.table.assign(label=0)  # one stratum
    subset, *_ = label_efficiency.draw_subsets(table, [fraction], draws=1, seed=seed, group_columns=groups)
    return train.iloc[np.sort(subset.rows)].reset_index(drop=True)


class TrainingImages(ImageFiles):
    """A torch dataset of augmented training images; see `TrainingTask.training_images`.

    Item `(i, repeat)`, or `i`, is `(i, image [3, 224, 224], mask [224, 224] int64)`, determined by seed, epoch and i.

    Args:
        images: The training images.
        seed: Seed of the augmentation, together with the epoch.
        cache: Copies at 224 px, or their folder, so that a file is decoded only once; None decodes it every time.
    """

    def __init__(self, images: MaskedImages, seed: int, cache: ImageCopies | str | Path | None = None):
        super().__init__(images.paths, augment(), images.rows)
        self.masks, self.seed = images, seed
        self.copies = ImageCopies(cache, kind=f"{SIDE}x{SIDE}") if isinstance(cache, str | Path) else cache
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # so that persistent workers see changes

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, from 0; call it before the loader produces the first batch of the epoch."""
        self._epoch[0] = epoch
        if self.copies is not None:
            self.copies.prepare(self.paths)

    def __getitem__(self, item: int | Sequence[int]) -> tuple[int, Tensor, Tensor]:
        """Raises ImageError naming the row, the file and the reason."""
        index, repeat = map(int, item) if isinstance(item, tuple | list) else (int(item), 0)
        with self.naming(index) as path:
            image = self._resized(path)
        with torch.random.fork_rng(devices=[]):
            seed = seed_of(IMAGE, self.seed, self._epoch.item(), index, repeat)
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed GPUs
            changed = self.transform(image)
        return index, normalise(changed), torch.from_numpy(self.masks.mask(index)).long()

    def _resized(self, path: str) -> Image.Image:
        if self.copies is None:
            return resize_image(open_image(path))
        stamp = stamp_of(path)
        pixels = self.copies.load(path, stamp)
        if pixels is None:
            image = resize_image(open_image(path))
            self.copies.save(path, stamp, np.asarray(image))
            return image
        return Image.fromarray(pixels)
