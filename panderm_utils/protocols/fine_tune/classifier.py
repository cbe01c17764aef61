"""The classifier that fine-tuning leaves: its best checkpoint, which stays beside the records."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from panderm_utils import results
from panderm_utils.data import ImageFiles, evaluation_transform
from panderm_utils.encoders import check_precision, choose_device
from panderm_utils.protocols.fine_tune.augmentation import tta_views
from panderm_utils.protocols.fine_tune.model import FineTuneModel, load_finetuned
from panderm_utils.protocols.fine_tune.prediction import LabelledImages, predict
from panderm_utils.protocols.training import BATCH, forward, load_kept, score

SEED = 0  # of the random views


class LogitsAndFeatures(nn.Module):
    """Maps images [N, 3, 224, 224] to logits [N, K] and, after them, the features [N, D] that the head sees."""

    def __init__(self, model: FineTuneModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        x = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        # A product of few rows takes another path through a CPU, with another last digit than in the study.
        filled = functional.pad(x, (0, 0, 0, max(0, BATCH["cpu"] - len(x))))
        return torch.cat([self.model.head(filled)[: len(x)], x], dim=1)


def features(model: FineTuneModel, images: LabelledImages, device: torch.device, precision: str) -> np.ndarray:
    """Returns the features [N, D] that the head sees of unaugmented images; leaves the model in eval mode."""
    both, files = LogitsAndFeatures(model).to(device).eval(), ImageFiles(images.paths, rows=images.rows)
    return score(both, files, range(len(images)), device, precision, BATCH[device.type])[:, 0, model.num_classes :]


class FineTunedPredictor:
    """Predicts with a fine-tuned model; a `classifiers.Predictor`.

    With random views, the first view is the evaluation transform, and only its features count.
    """

    def __init__(self, model: FineTuneModel, device: torch.device, precision: str, tta: int):
        self.model = LogitsAndFeatures(model).to(device).eval()
        self.device, self.precision, self.tta = device, precision, tta
        self.batch_size = max(1, BATCH[device.type] // (1 + tta))
        self.view = partial(_views, evaluation_transform(), tta)
        self._num_classes, self._portion = model.num_classes, None

    @torch.no_grad()
    def __call__(self, views: Tensor) -> tuple[np.ndarray, np.ndarray]:
        flat = views.flatten(0, 1)
        outputs, self._portion = forward(self.model, flat, self.device, self.precision, self._portion or len(flat))
        outputs = outputs.unflatten(0, views.shape[:2]).numpy()
        logits = outputs[:, min(1, self.tta) :, : self._num_classes].mean(axis=1)
        return torch.from_numpy(logits).double().softmax(1).numpy(), outputs[:, 0, self._num_classes :]


def _views(transform: Callable, tta: int, image: Image.Image, index: int) -> Tensor:
    plain = transform(image)[None]
    return torch.cat([plain, tta_views(image, tta, SEED, index)]) if tta else plain


def keep_classifier(
    run: results.Run,
    model: FineTuneModel,
    train: LabelledImages,
    val: LabelledImages,
    predictions: pd.DataFrame,
    class_names: Sequence[str],
    device: str = "auto",
    precision: str = "fp32",
) -> pd.DataFrame:
    """Adds what the best checkpoint lacks as a classifier to the run's record; see `results.keep_classifier`.

    Args:
        train: The training images, whose features tell later which images are unlike them.
        val: The val images, possibly none, for the prediction sets.
        device, precision: As in `predict`.
    """
    on_train = features(model, train, choose_device(device), precision)
    facts = {"weights_sha256": model.digest, "precision": precision}
    on_val = None
    if len(val):
        proba = predict(model, val, device=device, precision=precision).proba
        on_val = results.prediction_table(val.image_ids, val.y, proba)
    return results.keep_classifier(run, class_names, on_train, predictions, on_val, {}, **facts)


def load_classifier(
    facts: Mapping,
    tensors: Mapping[str, np.ndarray],
    record: Mapping,
    folder: Path,
    weights_root: str | Path | None,
    device: str,
    tta: int,
) -> FineTunedPredictor:
    """Returns the predictor; see `Protocol.load_classifier`.

    Raises:
        TrainingError: As `load_kept`. EncoderError: the checkpoint is damaged, or the device lacks the precision.
    """
    model = load_kept(record, folder, lambda path: load_finetuned(path, facts["encoder"]))
    torch_device = choose_device(device)
    check_precision(facts["precision"], torch_device)
    return FineTunedPredictor(model, torch_device, facts["precision"], tta)
