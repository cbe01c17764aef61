"""Masks of new images, by the best checkpoint of a run: the study's own masks for the same images."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from panderm_utils.encoders import available_precision, check_precision, choose_device
from panderm_utils.protocols.segmentation.images import evaluation_transform
from panderm_utils.protocols.segmentation.model import SegmentationModel, load_segmented
from panderm_utils.protocols.segmentation.prediction import mask_of
from panderm_utils.protocols.training import BATCH, forward, load_kept


class SegmentationPredictor:
    """Predicts masks with a segmentation model; a `classifiers.MaskPredictor`."""

    def __init__(self, model: SegmentationModel, device: torch.device, precision: str):
        self.model, self.digest = model.to(device).eval(), model.digest
        self.device, self.precision = device, precision
        self.batch_size, self.view = BATCH[device.type], view
        self._portion = None

    @torch.no_grad()
    def __call__(self, views: Sequence[Tensor]) -> Iterator[np.ndarray]:
        images, sizes = views
        logits, self._portion = forward(self.model, images, self.device, self.precision, self._portion or len(images))
        return (mask_of(one, size) for one, size in zip(logits, sizes.tolist(), strict=True))


def view(image: Image.Image, index: int) -> tuple[Tensor, Tensor]:
    """Returns the model's input of an image, and the image's height and width."""
    return evaluation_transform(image), torch.tensor([image.height, image.width])


def load_segmenter(record: Mapping, folder: Path, device: str) -> SegmentationPredictor:
    """Returns the predictor; see `Protocol.load_segmenter`.

    Raises:
        TrainingError: As `load_kept`. EncoderError: the checkpoint is damaged, or the device lacks the precision.
    """
    model, torch_device = load_kept(record, folder, load_segmented), choose_device(device)
    recorded = record.get("precision", record["training"].get("precision"))  # older records: that of the training
    precision = available_precision(recorded, torch_device, folder.name)
    check_precision(precision, torch_device)
    return SegmentationPredictor(model, torch_device, precision)
