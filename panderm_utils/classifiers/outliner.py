"""Outlines the lesions of images with the model of a record.

    outliner = load_outliner("outputs/demo/records/isic2018_task1-segmentation-panderm_tiny-seed0")
    for part in outliner.stream(paths, range(len(paths))):
        for mask in part.masks: ...

Predictions for research: no model here is a medical device.
"""

import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from tqdm.auto import tqdm

from panderm_utils import protocols
from panderm_utils.classifiers.views import ClassifierError, Viewer, stream_views
from panderm_utils.data import mask_name
from panderm_utils.disk import replacing
from panderm_utils.results import read_record

EIGHT = np.ones((3, 3), dtype=int)  # pixels that touch at a corner belong together


class OutlinePredictor(Viewer, typing.Protocol):
    """What a protocol knows of its model: from a picture to the mask of its lesion."""

    digest: str  # SHA-256 of the weights

    def __call__(self, views: typing.Any) -> Iterator[np.ndarray]:
        """Yields the mask of each view of a batch, bool [H, W] at the size of its image."""


@dataclass(frozen=True, eq=False)
class Outlined:
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
        """Writes the mask of each image as `folder/<its name>_segmentation.png`, black and white.

        Returns:
            One row per image: image, mask (the file below `folder`), lesion_pixels, lesion_percent, components,
            nothing_found; and the number of images in which nothing was found.
        """
        rows = []
        for name, mask in zip(names, self.masks, strict=True):
            file = mask_name(name)
            with replacing(folder / file) as new:
                Image.fromarray(mask.astype(np.uint8) * 255).save(new, "png")
            pixels = int(np.count_nonzero(mask))
            rows.append(
                {
                    "image": name,
                    "mask": file,
                    "lesion_pixels": pixels,
                    "lesion_percent": round(100 * pixels / mask.size, 4),
                    "components": ndimage.label(mask, EIGHT)[1],
                    "nothing_found": not pixels,
                }
            )
        return pd.DataFrame(rows), sum(row["nothing_found"] for row in rows)


@dataclass(frozen=True, eq=False)
class Outliner:
    """The model of a record that outlines lesions; made by `load_outliner`.

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
    predictor: OutlinePredictor = field(repr=False)
    tta: typing.ClassVar[int] = 0
    flag: typing.ClassVar[str] = "in which nothing was found"

    def stream(
        self,
        images: Sequence[str | Path | Image.Image],
        rows: Sequence[int],
        num_workers: int | None = None,
        bar: tqdm | None = None,
    ) -> Iterator[Outlined]:
        """Yields the masks of the images at `rows`, a batch at a time; use each before the next."""
        for readable, views, unreadable in stream_views(images, rows, self.predictor, num_workers, bar):
            masks = self.predictor(views) if readable else iter(())
            yield Outlined([str(images[i]) for i in readable], masks, unreadable)


def load_outliner(record: str | Path, device: str = "auto") -> Outliner:
    """Returns the model that a run of a protocol with masks trained.

    Raises:
        ClassifierError: The protocol predicts no masks. ValueError: the record is damaged, or its checkpoint is gone or
            was replaced.
    """
    folder = Path(record)
    content = read_record(folder)
    protocol = protocols.load_protocol(content["protocol"])
    if protocol.load_outliner is None:
        raise ClassifierError(f"{folder}: is of {protocol.title}, which predicts no masks; see load_classifier")
    predictor = protocol.load_outliner(content, folder, device)
    names = (content[key] for key in ("run_id", "dataset", "encoder"))
    return Outliner(*names, protocol.title, content["synthetic"], predictor.digest, predictor)
