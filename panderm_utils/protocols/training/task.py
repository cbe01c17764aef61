"""The task of a training: everything that the shared loop asks of a protocol.

Symbols: N training images, B images of an optimizer step, S steps of an epoch.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from panderm_utils.data import ImageFiles
from panderm_utils.encoders import tensors_digest
from panderm_utils.protocols.training.processes import Computing
from panderm_utils.protocols.training.recipe import Recipe


@dataclass(frozen=True, eq=False)
class TrainingTask(ABC):
    """What to train, on which images, and how; a protocol's subclass says what is specific to it.

    Attributes:
        model: The initial model; not changed. It has the attributes `encoder` (manifest) and `digest` (of its weights).
        train, val: Images, in a form of the subclass with `len`; val may be None or empty, which is the same.
        recipe: A `Recipe` of all settings that affect the result, AdamW's `beta1`, `beta2` and `eps` among them.
        folder: The folder for checkpoints, of this training only.
        computing: How to compute; by default chosen for this machine.
        cache: The folder for 8-bit copies of training images; None decodes every file in every epoch.
        resume: False starts over and overwrites the folder's checkpoints.
        trackers: Trackers of accelerate, such as "tensorboard".
    """

    name: ClassVar[str]  # for the progress bar

    model: nn.Module
    train: Any
    val: Any
    recipe: Recipe
    folder: str | Path
    computing: Computing | None = None
    cache: str | Path | None = None
    resume: bool = True
    trackers: Sequence[str] = ()

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "val", self.val if self.val is not None and len(self.val) else None)
        set_field(self, "folder", Path(self.folder))
        set_field(self, "computing", self.computing or Computing())
        set_field(self, "cache", None if self.cache is None else Path(self.cache))
        set_field(self, "trackers", tuple(self.trackers))

    @property
    @abstractmethod
    def monitor(self) -> str:
        """The column of the history that chooses the best epoch, without `val_`."""

    @abstractmethod
    def check(self) -> None:
        """Raises TrainingError if the images and the model do not allow this training."""

    @abstractmethod
    def steps_of_epoch(self) -> tuple[int, int]:
        """Returns S and B."""

    @abstractmethod
    def learning_rates(self, steps: int) -> np.ndarray:
        """Returns the learning rate [epochs * S] of every step, before each group's scale."""

    @abstractmethod
    def new_model(self) -> nn.Module:
        """Returns a model like the initial one, on the CPU; its tensors are set afterwards."""

    def fitted_tensors(self, model: nn.Module, device: torch.device) -> dict[str, Tensor]:
        """Returns those initial tensors of a new model, on the device, that are fitted to the training images."""
        return {}

    @abstractmethod
    def parameter_groups(self, model: nn.Module) -> list[dict]:
        """Returns torch's parameter groups: `params`, `names`, `scale` (of the learning rate), `weight_decay`, `lr`."""

    @abstractmethod
    def training_images(self) -> ImageFiles:
        """Returns the augmented images: item `(i, repeat)` is `(i, image, target)`; `set_epoch` sets the epoch."""

    @abstractmethod
    def draw_epoch(self, epoch: int) -> list[tuple[int, int]]:
        """Returns the items of `training_images` in the order in which an epoch draws them, at least S * B."""

    @abstractmethod
    def loss(self, model: nn.Module, images: Tensor, targets: Tensor, epoch: int, step: int) -> Tensor:
        """Returns the mean loss of the images of a micro-batch; may change `images` in place."""

    @abstractmethod
    def val_images(self) -> ImageFiles:
        """Returns the val images: item i is `(i, image)`."""

    @abstractmethod
    def val_scores(self, outputs: np.ndarray) -> dict[str, float]:
        """Returns scores with `val_` before their names, from the model's output for every val image, float32."""

    @abstractmethod
    def origin(self) -> dict:
        """Returns the facts about the model that a checkpoint needs in order to be loaded, JSON-serializable."""

    @abstractmethod
    def describe_images(self, images: Any) -> dict:
        """Returns what a split is made of, so that another one has another description; JSON-serializable."""

    def identity(self) -> dict:
        """Returns the facts in which a checkpoint must agree with this training."""
        splits = {"train": self.train, "val": self.val}
        return {
            "recipe": asdict(self.recipe),
            "encoder": {
                "name": self.model.encoder.name,
                "weights_sha256": self.model.digest,
                "start_sha256": tensors_digest(self.model.state_dict()),
            },
            **self.extra_identity(),
            "data": {name: None if split is None else self.describe_images(split) for name, split in splits.items()},
            "precision": self.computing.precision,
        }

    def extra_identity(self) -> dict:
        """Returns further facts for `identity`."""
        return {}


def digest_of_lines(*columns: Sequence) -> str:
    """Returns the SHA-256 of columns of strings and numbers."""
    return hashlib.sha256(json.dumps(columns).encode()).hexdigest()
