"""Segments images with the model of a record: one mask per image.

    segmenter = load_segmenter("outputs/demo/records/isic2018_task1-segmentation-panderm_tiny-seed0")
    for part in segmenter.stream(paths, range(len(paths))):
        for name, mask in zip(part.images, part.masks): ...

Predictions for research: no model here is a medical device.
"""

import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from panderm_utils import protocols
from panderm_utils.classifiers.views import ClassifierError, Viewer, stream_views
from panderm_utils.data import mask_name
from panderm_utils.results import read_record


class MaskPredictor(Viewer, typing.Protocol):
    """What a protocol knows of its model: from a picture to the mask of its lesion."""

    digest: str  # SHA-256 of the weights

    def __call__(self, views: typing.Any) -> Iterator[np.ndarray]:
        """Yields the mask of each view of a batch, bool [H, W] at the size of its image."""


@dataclass(frozen=True, eq=False)
class Segmented:
    """The masks of a batch of images; those of images that cannot be read are left out.

    Attributes:
        images: Their names.
        masks: One per image, bool [H, W] at the size of the image; computed one by one.
        unreadable: One message per image that cannot be read.
    """

    images: list[str]
    masks: Iterator[np.ndarray] = field(repr=False)
    unreadable: list[str]

    def save(self, names: Sequence[str], folder: Path) -> tuple[pd.DataFrame, int]:
        """Writes each mask as `folder / mask_name(name)`, black and white.

        Returns:
            One row per image: image, mask (the file below `folder`), lesion_pixels, lesion_percent (of the image); and
            the number of images without a lesion pixel.
        """
        rows = []
        for name, mask in zip(names, self.masks, strict=True):
            file = mask_name(name)
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / file)
            pixels = int(np.count_nonzero(mask))
            rows.append((name, file, pixels, round(100 * pixels / mask.size, 4)))
        table = pd.DataFrame(rows, columns=["image", "mask", "lesion_pixels", "lesion_percent"])
        return table, int((table["lesion_pixels"] == 0).sum())


@dataclass(frozen=True, eq=False)
class Segmenter:
    """The segmentation model of a record; made by `load_segmenter`.

    Attributes:
        run_id, dataset, encoder, protocol: The run that trained it, the names of its data and encoder, how it was made.
        synthetic: Whether it was trained on drawn images.
        digest: SHA-256 of its weights.
        flag: What the flagged images of a folder are.
    """

    run_id: str
    dataset: str
    encoder: str
    protocol: str
    synthetic: bool
    digest: str
    predictor: MaskPredictor = field(repr=False)
    tta: typing.ClassVar[int] = 0
    flag: typing.ClassVar[str] = "without a lesion"

    def stream(
        self,
        images: Sequence[str | Path | Image.Image],
        rows: Sequence[int],
        num_workers: int | None = None,
        bar: tqdm | None = None,
    ) -> Iterator[Segmented]:
        """Yields the masks of the images at `rows`, a batch at a time; use each batch before the next."""
        for readable, views, unreadable in stream_views(images, rows, self.predictor, num_workers, bar):
            masks = self.predictor(views) if readable else iter(())
            yield Segmented([str(images[i]) for i in readable], masks, unreadable)


def load_segmenter(record: str | Path, device: str = "auto") -> Segmenter:
    """Returns the segmentation model that a run trained.

    Args:
        record: The record's folder.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "mps".

    Raises:
        ClassifierError: The protocol predicts no masks. ValueError: the record is damaged, or its checkpoint is gone or
            was replaced.
    """
    folder = Path(record)
    content = read_record(folder)
    protocol = protocols.load_protocol(content["protocol"])
    if protocol.load_segmenter is None:
        raise ClassifierError(f"{folder}: is of {protocol.title}, which predicts no masks; use load_classifier")
    predictor = protocol.load_segmenter(content, folder, device)
    names = (content[key] for key in ("run_id", "dataset", "encoder"))
    return Segmenter(*names, protocol.title, content["synthetic"], predictor.digest, predictor)
