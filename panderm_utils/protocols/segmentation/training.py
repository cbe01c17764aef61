"""Segmentation as in the paper: train, stop and resume, keep the best epoch.

    recipe = make_recipe({})
    model = load_segmentation_model("panderm_large", recipe)
    trained = train(model, masked_images(study, study.split("train")), masked_images(study, study.split("val")), ...)

An interrupted training resumes when the same call is made again.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from panderm_utils.data import ImageFiles
from panderm_utils.manifests import EncoderManifest, batches_of
from panderm_utils.protocols.segmentation.images import MaskedImages, TrainingImages, evaluation_transform
from panderm_utils.protocols.segmentation.masks import SIDE
from panderm_utils.protocols.segmentation.model import ENCODER_FACTS, SegmentationModel, load_segmented
from panderm_utils.protocols.segmentation.recipe import SegmentationRecipe, learning_rates
from panderm_utils.protocols.training import (
    BEST,
    ORDER,
    Computing,
    Trained,
    TrainingError,
    TrainingTask,
    TrialStep,
    digest_of_lines,
    run_training,
)

SCORED = 64  # val images at once


@dataclass(frozen=True, eq=False)
class SegmentationTraining(TrainingTask):
    """The training of `train`; `model` is a SegmentationModel; `train`, `val` are MaskedImages."""

    name: ClassVar[str] = "segmentation"

    @property
    def monitor(self) -> str:
        return "jaccard"

    def check(self) -> None:
        if len(self.train) < 2:
            raise TrainingError(f"{len(self.train)} training images are too few; use a larger fraction")
        if not self.train.packed.any():
            raise TrainingError("no training mask has a lesion: look at the masks, python run_all.py --check-data")

    def steps_of_epoch(self) -> tuple[int, int]:
        return batches_of(len(self.train), self.recipe.batch_size)

    def learning_rates(self, steps: int) -> np.ndarray:
        return learning_rates(self.recipe, steps)

    def new_model(self) -> SegmentationModel:
        return SegmentationModel(self.model.encoder, self.recipe.channels, self.recipe.drop_path, self.recipe.frozen)

    def parameter_groups(self, model: nn.Module) -> list[dict]:
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        group = {"params": list(trained.values()), "names": list(trained), "scale": 1.0}
        return [{**group, "weight_decay": self.recipe.weight_decay, "lr": 0.0}]

    def training_images(self) -> TrainingImages:
        return TrainingImages(self.train, self.recipe.seed, self.cache)

    def draw_epoch(self, epoch: int) -> list[tuple[int, int]]:
        rng = np.random.default_rng(np.random.SeedSequence([ORDER, self.recipe.seed, epoch]))
        return [(i, 0) for i in rng.permutation(len(self.train)).tolist()]

    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, epoch: int, step: int) -> Tensor:
        """Returns the mean cross-entropy of all pixels; masks [n, 224, 224] int64."""
        return functional.cross_entropy(enlarge(model(images), SIDE), targets)

    def val_images(self) -> ImageFiles:
        return ImageFiles(self.val.paths, evaluation_transform, self.val.rows)

    def val_scores(self, outputs: np.ndarray) -> dict[str, float]:
        """Returns loss, Dice and Jaccard from logits [N, 2, h, w]: means over all val images, without post-processing.

        Published are means of full batches only, which leave out the last images of the val split.
        """
        parts = [scores_of_batch(*batch) for batch in self._val_batches(outputs)]
        means = torch.cat(parts).mean(dim=0).tolist()
        return dict(zip(("val_loss", "val_dice", "val_jaccard"), means, strict=True))

    def _val_batches(self, outputs: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        for at in range(0, len(outputs), SCORED):
            masks = [self.val.mask(i) for i in range(at, min(at + SCORED, len(outputs)))]
            yield torch.from_numpy(outputs[at : at + SCORED]), torch.from_numpy(np.stack(masks)).long()

    def origin(self) -> dict:
        model = self.model
        return {
            "encoder": model.encoder.name,
            "encoder_manifest": {name: getattr(model.encoder, name) for name in ENCODER_FACTS},
            "encoder_digest": model.digest,
            "channels": self.recipe.channels,
            "frozen": self.recipe.frozen,
        }

    def describe_images(self, images: MaskedImages) -> dict:
        masks = hashlib.sha256(images.packed.tobytes()).hexdigest()
        return {"images": len(images), "sha256": digest_of_lines(images.image_ids.tolist(), masks)}


def enlarge(logits: Tensor, size: int | Sequence[int]) -> Tensor:
    """Returns logits [n, 2, h, w] at another size, bilinear, corners not aligned."""
    return functional.interpolate(logits.float(), size, mode="bilinear", align_corners=False)


def scores_of_batch(logits: Tensor, masks: Tensor) -> Tensor:
    """Returns loss, Dice and Jaccard [n, 3] of logits [n, 2, h, w] and masks [n, 224, 224] int64.

    Dice and Jaccard are 1 where both are empty.
    """
    logits = enlarge(logits, SIDE)
    loss = functional.cross_entropy(logits, masks, reduction="none").mean(dim=(1, 2))
    predicted, true = logits.argmax(dim=1).bool(), masks.bool()
    both = (predicted & true).sum(dim=(1, 2)).double()
    sizes = (predicted.sum(dim=(1, 2)) + true.sum(dim=(1, 2))).double()
    empty = sizes == 0
    dice = torch.where(empty, 1.0, 2 * both / sizes.clamp(min=1))
    jaccard = torch.where(empty, 1.0, both / (sizes - both).clamp(min=1))
    return torch.stack([loss.double(), dice, jaccard], dim=1)


def train(
    model: SegmentationModel,
    train: MaskedImages,
    val: MaskedImages | None,
    recipe: SegmentationRecipe,
    folder: str | Path,
    computing: Computing | None = None,
    cache: str | Path | None = None,
    resume: bool = True,
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
    trackers: Sequence[str] = (),
) -> Trained:
    """Returns a model trained by the recipe; resumes an interrupted call with the same arguments.

    Its history has the columns val_loss, val_dice and val_jaccard. With several micro-batches, the statistics of batch
    norms are those of each micro-batch, over all processes on GPUs.

    Args:
        model: The initial model; not changed.
        train: The training images, those of the label fraction if there is one.
        val: Images on which Jaccard chooses the best epoch, of ties the first; None or empty: the last epoch.
        recipe: The settings of the training, with which the model was made.
        folder, computing, cache, resume, trackers: As in `TrainingTask`.
        on_epoch: As in `run_training`, which also lists the errors.
    """
    task = SegmentationTraining(model, train, val, recipe, folder, computing, cache, resume, trackers)
    history, facts = run_training(task, on_epoch)
    return Trained(load_segmented(task.folder / BEST), history, facts)


def trial(encoder: EncoderManifest, step: Mapping, device: str, precision: str) -> TrialStep:
    """Returns a step to time; see `Protocol.trial`."""
    changes = {name: value for name, value in step.items() if name != "batch"}

    def make_task(batch: int) -> tuple[SegmentationTraining, Tensor]:
        recipe = SegmentationRecipe(batch_size=batch, **changes)
        with torch.device("meta"):
            model = SegmentationModel(encoder, recipe.channels, recipe.drop_path, recipe.frozen)
        masks = torch.arange(SIDE * SIDE).view(1, SIDE, SIDE).expand(batch, -1, -1) % 2
        return SegmentationTraining(model, None, None, recipe, Path()), masks

    return TrialStep(make_task, step["batch"], Computing(device, precision))


def evaluate_only(checkpoint: str | Path) -> Trained:
    """Returns a trained checkpoint of ours like the result of `train`; raises as `load_segmented`."""
    model = load_segmented(checkpoint)
    return Trained(model, pd.DataFrame(columns=["epoch", "loss", "lr"]), {"evaluated_only": True, **model.facts})
