"""Predictions of a fine-tuned model: logits and probabilities, from one view per image or the mean of several.

Symbols: N images, K classes, V views.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from panderm_utils.data import FRACTION_SEED, Dataset, ImageFiles, first_fraction, open_image
from panderm_utils.encoders import check_precision, choose_device
from panderm_utils.protocols.fine_tune.augmentation import tta_views
from panderm_utils.protocols.training import BATCH, TrainingError, score


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """The images of one split.

    Attributes:
        paths: N files.
        y: Labels [N], integers in 0..K-1.
        image_ids: N names, independent of the folder; by default the paths.
        rows: The CSV line of each, for error messages.
    """

    paths: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    image_ids: np.ndarray | None = field(default=None, repr=False)
    rows: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "paths", np.array([str(path) for path in self.paths], dtype=np.str_))
        set_field(self, "y", np.asarray(self.y))
        ids = self.paths if self.image_ids is None else np.asarray(self.image_ids).astype(np.str_)
        set_field(self, "image_ids", ids)
        set_field(self, "rows", None if self.rows is None else np.asarray(self.rows, dtype=np.int64))
        sizes = {name: len(part) for name, part in vars(self).items() if part is not None}
        if len(set(sizes.values())) != 1 or self.y.ndim != 1 or (len(self.y) and self.y.dtype.kind not in "iu"):
            raise TrainingError(f"pass one path, one integer label and one name per image, got {sizes}, {self.y.dtype}")

    def __len__(self) -> int:
        return len(self.paths)


def labelled_images(dataset: Dataset, table: pd.DataFrame) -> LabelledImages:
    """Returns the images of rows of a dataset's table, such as `dataset.split("val")`."""
    paths = [str(dataset.path(image)) for image in table["image"]]
    return LabelledImages(paths, table["label"].to_numpy(np.int64), table["image"].to_numpy(), table["row"].to_numpy())


@dataclass(frozen=True, eq=False)
class Predictions:
    """The result of `predict`.

    Attributes:
        y: True labels [N].
        logits: [N, K] float32, the mean over the views.
        image_ids: Names [N].
        views: V; 0: one view, the evaluation transform.
        seconds: Wall-clock time.
    """

    y: np.ndarray = field(repr=False)
    logits: np.ndarray = field(repr=False)
    image_ids: np.ndarray = field(repr=False)
    views: int
    seconds: float

    @property
    def proba(self) -> np.ndarray:
        """Class probabilities [N, K], float64."""
        return torch.from_numpy(self.logits).double().softmax(1).numpy()


def predict(
    model: nn.Module,
    images: LabelledImages,
    tta: int = 0,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int | None = None,
    seed: int = 0,
    num_workers: int | None = None,
) -> Predictions:
    """Returns the predictions of a fine-tuned model for images, in order.

    Args:
        model: Maps [n, 3, 224, 224] to logits [n, K]; it is moved to the device and left in eval mode.
        images: Images of any and of mixed sizes.
        tta: V random views per image (published: 5), whose logits are averaged; 0: the evaluation transform.
        device, precision: As in `load_encoder`.
        batch_size: Views at once; by default chosen for the device. Halved when memory runs out.
        seed: Seed of the views, which do not depend on the batch size.
        num_workers: Number of image-reading processes.

    Raises:
        ImageError: An image cannot be read; names row, file and reason. EncoderError: invalid device or precision.
        LoadingError: An image-reading process was killed.
    """
    if tta < 0:
        raise TrainingError(f"tta {tta} is negative; write 0 for none, 5 for the published number of views")
    torch_device = choose_device(device)
    check_precision(precision, torch_device)
    started = time.perf_counter()
    files = _Views(images, tta, seed)
    size = max(1, (batch_size or BATCH[torch_device.type]) // max(tta, 1))
    model = model.to(torch_device).eval()
    with tqdm(desc="predict", total=len(images), unit="image", delay=1, leave=False) as bar:
        logits = score(model, files, range(len(images)), torch_device, precision, size, num_workers, bar)
    return Predictions(images.y, logits.mean(axis=1), images.image_ids, tta, time.perf_counter() - started)


class _Views(ImageFiles):
    """Item i is `(i, views)`: the evaluation transform, or random views."""

    def __init__(self, images: LabelledImages, views: int, seed: int):
        super().__init__(images.paths, rows=images.rows)
        self.views, self.seed = views, seed

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        if not self.views:
            return super().__getitem__(index)
        with self.naming(index) as path:
            return index, tta_views(open_image(path), self.views, self.seed, index)


def fine_tune_fraction(table: pd.DataFrame, fraction: float, class_names=None) -> pd.DataFrame:
    """Returns the rows that the published fine-tuning trains on at a label fraction, in its shuffled order.

    Upstream's rule differs from the linear probe's, so the two protocols train on different rows at the same fraction:
    the whole table, all splits in file order, is shuffled by `sample(frac=1, random_state=42)`, and the first
    `int(n * fraction)` of its train rows are kept. Not stratified: warns if a class is left without rows.

    Args:
        table: All rows of the dataset, with the column `split`.
        class_names: For the warning, as in `data.label_fraction`.

    Raises:
        ValueError: As `data.label_fraction`.
    """
    if "split" not in table:
        raise ValueError("the table has no column `split`; pass the whole table, study.table, not one of its splits")
    shuffled = table.sample(frac=1, random_state=FRACTION_SEED)
    return first_fraction(shuffled[shuffled["split"] == "train"], fraction, class_names)
