"""Masks of new images, with the best checkpoint of a run; bit by bit those of the study on the same images."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from panderm_utils.encoders import check_precision, choose_device
from panderm_utils.protocols.segmentation.images import evaluation_transform
from panderm_utils.protocols.segmentation.model import SegmentationModel, load_segmented
from panderm_utils.protocols.segmentation.prediction import mask_of
from panderm_utils.protocols.training import BATCH, forward, load_kept


class MaskPredictor:
    """Predicts masks with a segmentation model; a `classifiers.OutlinePredictor`."""

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


def load_outliner(record: Mapping, folder: Path, device: str) -> MaskPredictor:
    """Returns the predictor; see `Protocol.load_outliner`.

    Raises:
        TrainingError: The checkpoint is missing, or is not the one that the record is of. EncoderError: it is damaged.
    """
    model = load_kept(record, folder, record["training"]["weights_sha256"], load_segmented)
    chosen, torch_device = record["settings"]["precision"], choose_device(device)
    precision = record["training"].get("precision", "fp32") if chosen == "auto" else chosen
    if precision == "fp16" and torch_device.type == "cpu":
        precision = "fp32"  # which CPUs lack
    check_precision(precision, torch_device)
    return MaskPredictor(model, torch_device, precision)
