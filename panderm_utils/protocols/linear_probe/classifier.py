"""The classifier that a linear probe leaves: its encoder, weight and bias."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from panderm_utils import results
from panderm_utils.encoders import BATCH, Encoder, Features, load_encoder
from panderm_utils.protocols.linear_probe.probe import LinearProbe, ProbeError, predict_proba


class ProbePredictor:
    """Predicts with a frozen encoder and a fitted probe; a `classifiers.Predictor`."""

    def __init__(self, encoder: Encoder, weight: np.ndarray, bias: np.ndarray):
        self.encoder, self.weight, self.bias = encoder, weight, bias
        self.device, self.batch_size = encoder.device, BATCH[encoder.device.type]
        self.view = partial(_view, encoder.transform)

    def __call__(self, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        x = self.encoder(images).cpu().numpy()
        # A product of few rows takes another path through the CPU, with another last digit than in the study.
        filled = np.zeros((max(len(x), self.batch_size), x.shape[1]), dtype=np.float32)
        filled[: len(x)] = x
        return predict_proba(self.weight, self.bias, filled)[: len(x)], x


def _view(transform: Callable, image: Image.Image, index: int) -> torch.Tensor:
    return transform(image)


def keep_classifier(
    run: results.Run,
    probe: LinearProbe,
    train: Features,
    val: Features,
    predictions: pd.DataFrame,
    class_names: Sequence[str],
) -> pd.DataFrame:
    """Adds the probe, fitted on `train`, to the run's record; see `results.keep_classifier`. `val` may be empty."""
    on_val = results.prediction_table(val.image_ids, val.y, probe.predict_proba(val.x)) if len(val.y) else None
    tensors = {"weight": probe.weight, "bias": probe.bias}
    facts = {"solver": probe.solver, "precision": run.notes["encoder_facts"]["precision"]}
    return results.keep_classifier(run, class_names, train.x, predictions, on_val, tensors, **facts)


def load_classifier(
    facts: Mapping,
    tensors: Mapping[str, np.ndarray],
    record: Mapping,
    folder: Path,
    weights_root: str | Path | None,
    device: str,
    tta: int,
) -> ProbePredictor:
    """Returns the predictor; see `Protocol.load_classifier`.

    Raises:
        ProbeError: Views are asked for, or the encoder's weights are not those that the probe was fitted with.
        EncoderError: The encoder cannot be loaded.
    """
    if tta:
        raise ProbeError(
            f"--tta {tta}: test-time augmentation is for fine-tuned classifiers; a probe was fitted on the features of "
            "whole images: leave --tta out"
        )
    weights = record["settings"].get("weights")
    if (
        weights is not None and not Path(weights).exists()
    ):  # on another machine: the digest tells if the right ones come
        weights = None
    encoder = load_encoder(facts["encoder"], weights, device, facts["precision"], weights_root)
    if encoder.digest != facts["encoder_digest"]:
        raise ProbeError(
            f"{folder.name} was fitted on features of {facts['encoder']} with weights {facts['encoder_digest'][:12]} "
            f"(SHA-256), but {encoder.weights or 'the drawn ones'} are {encoder.digest[:12]}: its numbers would mean "
            "nothing. Put the weights of the study there, or name their folder with --weights-root"
        )
    return ProbePredictor(encoder, tensors["weight"], tensors["bias"])
