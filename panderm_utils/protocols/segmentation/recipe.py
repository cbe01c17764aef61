"""The published recipe of segmentation, its variant in the paper's text, and the learning rate of every step.

N is the number of training images, B the images per optimizer step, S = floor(N / B) the steps per epoch. The released
script and the paper's text differ in learning rate and weight decay: two named variants. AdamW has one group: all
trained parameters have the same learning rate and decay, norms and biases included. All numbers are upstream's.
"""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from panderm_utils.protocols.segmentation.protocol import BATCH_SIZE, CHANNELS, EPOCHS, RECIPE
from panderm_utils.protocols.training import Recipe, TrainingError, build_recipe


@dataclass(frozen=True)
class SegmentationRecipe(Recipe):
    """All settings that affect the result, except data, encoder and precision; the defaults are the script's.

    Attributes:
        batch_size: B, images per optimizer step, over all processes and micro-batches; published: one on each of two
            GPUs, with synchronised batch norms, which is a batch of two.
        lr: The learning rate of the first epoch; it falls by a half cosine, epoch by epoch, to 0 after the last.
        epochs: The number of epochs.
        drop_path: Rate in the encoder's last block, rising linearly from 0 in the first.
        weight_decay, beta1, beta2, eps: AdamW's.
        channels: Width of the decoder.
        frozen: Whether the encoder stays as it is, without drop path, and only pyramid and decoder are trained.
        seed: Initialises pyramid and decoder and draws everything else.
    """

    batch_size: int = BATCH_SIZE
    lr: float = 1e-4
    epochs: int = EPOCHS
    drop_path: float = 0.15
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    channels: int = CHANNELS
    frozen: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises TrainingError listing all invalid settings."""
        self.check(RECIPE)


VARIANTS = {"script": {}, "paper": {"lr": 5e-4, "weight_decay": 0.01}}  # what each source changes


def make_recipe(defaults: dict, variant: str = "script", **overrides) -> SegmentationRecipe:
    """Returns a published recipe with a profile's defaults and, over those, all overrides that are not None.

    Args:
        variant: A key of VARIANTS: the released script's settings, or those of the paper's text.

    Raises:
        TrainingError: An unknown name, or an invalid value.
    """
    if variant not in VARIANTS:
        raise TrainingError(f"variant {variant!r} is unknown; write {' or '.join(map(repr, VARIANTS))}")
    given = {name: value for name, value in overrides.items() if value is not None}
    return build_recipe(SegmentationRecipe, {**VARIANTS[variant], **defaults, **given})


def recipe_table(recipe: SegmentationRecipe) -> pd.DataFrame:
    """Returns one row per setting: the recipe, each published variant, and a note if it differs from the script."""
    published = {name: asdict(SegmentationRecipe(**changes)) for name, changes in VARIANTS.items()}
    table = pd.DataFrame({"here": asdict(recipe), **published}, dtype=object)
    note = np.where([name in recipe.differences() for name in table.index], "differs", "")
    return table.map(str).assign(note=note).rename_axis("setting")


def learning_rates(recipe: SegmentationRecipe, steps: int) -> np.ndarray:
    """Returns the learning rate [epochs * S] of every step: constant within an epoch, a half cosine over the epochs."""
    epoch = np.arange(recipe.epochs)
    return np.repeat(recipe.lr * (1 + np.cos(np.pi * epoch / recipe.epochs)) / 2, steps)
