"""Fine-tuning as in the paper: train, stop and resume, keep the best epoch, predict with several views.

    model = load_finetune_model("panderm_base", num_classes=7, seed=recipe.seed)
    train, val, test = (labelled_images(study, study.split(name)) for name in ("train", "val", "test"))
    tuned = finetune(model, train, val, recipe, folder)
    predict(tuned.model, test, tta=5).proba

An interrupted training resumes when the same call is made again. The folder holds `last.safetensors` (to resume),
`best.safetensors` (the result), `history.csv` and `facts.json`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from panderm_utils import stats
from panderm_utils.data import ImageFiles
from panderm_utils.manifests import EncoderManifest
from panderm_utils.protocols import linear_probe
from panderm_utils.protocols.fine_tune.augmentation import TrainingImages, draws, epoch_order
from panderm_utils.protocols.fine_tune.classifier import features
from panderm_utils.protocols.fine_tune.mixing import MixedLoss
from panderm_utils.protocols.fine_tune.model import FineTuneModel, load_finetuned
from panderm_utils.protocols.fine_tune.prediction import LabelledImages
from panderm_utils.protocols.fine_tune.recipe import (
    FineTuneRecipe,
    learning_rates,
    parameter_groups,
    steps_of_epoch,
)
from panderm_utils.protocols.training import (
    BEST,
    Computing,
    Trained,
    TrainingError,
    TrainingTask,
    TrialStep,
    digest_of_lines,
    run_training,
)

TRIAL_CLASSES = 7


@dataclass(frozen=True, eq=False)
class FineTuning(TrainingTask):
    """The training of `finetune`; `model` is a FineTuneModel; `train`, `val` are LabelledImages."""

    name: ClassVar[str] = "fine-tuning"

    @property
    def monitor(self) -> str:
        return "auroc" if self.model.num_classes == 2 else self.recipe.monitor

    def check(self) -> None:
        for name, images in (("train", self.train), ("val", self.val)):
            if images is None:
                continue
            outside = np.setdiff1d(images.y, np.arange(self.model.num_classes))
            if len(outside):
                raise TrainingError(
                    f"{name}: labels {outside[:5].tolist()} are outside 0..{self.model.num_classes - 1}: make the "
                    "model with the manifest's number of classes"
                )
        if len(np.unique(self.train.y)) < 2:
            raise TrainingError("all training images are of one class; use a larger fraction")
        if self.val is not None and self.monitor == "auroc" and len(np.unique(self.val.y)) < 2:
            raise TrainingError(
                "all val images are of one class, so AUROC cannot choose the best epoch; pass val=None to keep the last"
            )

    def steps_of_epoch(self) -> tuple[int, int]:
        return steps_of_epoch(len(self.train), self.recipe)

    def learning_rates(self, steps: int) -> np.ndarray:
        return learning_rates(self.recipe, steps)

    def new_model(self) -> FineTuneModel:
        return FineTuneModel(self.model.encoder, self.model.num_classes, self.recipe.drop_path)

    def fitted_tensors(self, model: FineTuneModel, device: torch.device) -> dict[str, Tensor]:
        if self.recipe.head_init == "random":
            return {}
        x = features(model, self.train, device, self.computing.precision)
        probe = linear_probe.fit_linear_probe(x, self.train.y, model.num_classes, self.recipe.seed)
        return {"head.weight": torch.from_numpy(probe.weight), "head.bias": torch.from_numpy(probe.bias)}

    def parameter_groups(self, model: nn.Module) -> list[dict]:
        return parameter_groups(model, self.recipe)

    def training_images(self) -> TrainingImages:
        train, recipe = self.train, self.recipe
        return TrainingImages(train.paths, train.y, recipe.seed, train.rows, self.cache, recipe.augmentation)

    def draw_epoch(self, epoch: int) -> list[tuple[int, int]]:
        classes, weighted = self.model.num_classes, self.recipe.weighted_sampling
        return draws(epoch_order(self.train.y, classes, weighted, self.recipe.seed, epoch))

    @cached_property
    def loss(self) -> MixedLoss:
        return MixedLoss(self.recipe, self.model.num_classes)

    def val_images(self) -> ImageFiles:
        return ImageFiles(self.val.paths, rows=self.val.rows)

    def val_scores(self, outputs: np.ndarray) -> dict[str, float]:
        """Returns loss, accuracy, mean recall and, for two classes, AUROC from logits [N, K]."""
        y, logs = self.val.y, torch.from_numpy(outputs).double().log_softmax(1)
        proba = logs.exp().numpy()
        confusion = stats.confusion(y, proba)
        scores = {
            "val_loss": -logs[torch.arange(len(y)), torch.from_numpy(y.astype(np.int64))].mean().item(),
            "val_acc": float(stats.accuracy(confusion)),
            "val_recall": float(stats.balanced_accuracy(confusion)),
        }
        if self.model.num_classes == 2:
            scores["val_auroc"] = stats.auroc(y, proba)
        return scores

    def origin(self) -> dict:
        model = self.model
        facts = {"encoder": model.encoder.name, "encoder_digest": model.digest, "num_classes": model.num_classes}
        return {**facts, "drop_path": self.recipe.drop_path}

    def extra_identity(self) -> dict:
        return {"classes": self.model.num_classes}

    def describe_images(self, images: LabelledImages) -> dict:
        return {"images": len(images), "sha256": digest_of_lines(images.image_ids.tolist(), images.y.tolist())}


def finetune(
    model: FineTuneModel,
    train: LabelledImages,
    val: LabelledImages | None,
    recipe: FineTuneRecipe,
    folder: str | Path,
    computing: Computing | None = None,
    cache: str | Path | None = None,
    resume: bool = True,
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
    trackers: Sequence[str] = (),
) -> Trained:
    """Returns a model fine-tuned by the recipe; resumes an interrupted call with the same arguments.

    Its history has the columns val_loss, val_acc, val_recall and, for two classes, val_auroc.

    Args:
        model: The initial model; not changed.
        train: The training images, those of the label fraction if there is one.
        val: Images on which the monitor chooses the best epoch, of ties the first; None or empty: the last.
        recipe: The settings of the training.
        folder, computing, cache, resume, trackers: As in `TrainingTask`.
        on_epoch: As in `run_training`, which also lists the errors.
    """
    task = FineTuning(model, train, val, recipe, folder, computing, cache, resume, trackers)
    history, facts = run_training(task, on_epoch)
    return Trained(load_finetuned(task.folder / BEST, model.encoder), history, facts)


def trial(encoder: EncoderManifest, step: Mapping, device: str, precision: str) -> TrialStep:
    """Returns a step to time; see `Protocol.trial`."""

    def make_task(batch: int) -> tuple[FineTuning, torch.Tensor]:
        recipe = FineTuneRecipe(batch_size=batch)
        with torch.device("meta"):
            model = FineTuneModel(encoder, TRIAL_CLASSES, recipe.drop_path)
        return FineTuning(model, None, None, recipe, Path()), torch.arange(batch) % TRIAL_CLASSES

    return TrialStep(make_task, step["batch"], Computing(device, precision))


def evaluate_only(checkpoint: str | Path, encoder: str | None = None, num_classes: int | None = None) -> Trained:
    """Returns a fine-tuned checkpoint, ours or upstream's, like the result of `finetune`.

    Raises:
        TrainingError, EncoderError: As `load_finetuned`; or the model does not have `num_classes` classes.
    """
    model = load_finetuned(checkpoint, encoder)
    if num_classes not in (None, model.num_classes):
        raise TrainingError(
            f"{checkpoint}: has {model.num_classes} classes, the dataset has {num_classes}: it was fine-tuned"
            " on another dataset; choose that dataset, or another checkpoint"
        )
    return Trained(model, pd.DataFrame(columns=["epoch", "loss", "lr"]), {"evaluated_only": True, **model.facts})


def recipe_table(recipe: FineTuneRecipe) -> pd.DataFrame:
    """Returns one row per setting: the recipe, the published one, and a note if they differ."""
    table = pd.DataFrame({"here": asdict(recipe), "published": asdict(FineTuneRecipe())}, dtype=object)
    note = np.where([name in recipe.differences() for name in table.index], "differs", "")
    return table.map(str).assign(note=note).rename_axis("setting")
