"""The paper's fine-tuning recipe: settings, the learning rate of every step, and per-parameter scales and decay.

N is the number of training images, B the images per optimizer step, S = floor(N / B) the steps per epoch, L the blocks
of the encoder. The learning rate of parameter p at step t is `schedule[t] * scale(p)`, its weight decay is
`recipe.weight_decay` or 0:

| parameter | scale | decayed |
|---|---|---|
| cls_token | layer_decay^(L + 1) | no |
| patch_embed | layer_decay^(L + 1) | weight |
| block b | layer_decay^(L - b) | matrices, the relative position tables included |
| fc_norm, head | 1 | head.weight |

The position embedding is not trained. All numbers are upstream's.
"""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import nn

from panderm_utils.manifests import batches_of
from panderm_utils.protocols.fine_tune.protocol import BATCH_SIZE, EPOCHS, RATE, RECIPE
from panderm_utils.protocols.training import Recipe, TrainingError, build_recipe

NEVER_DECAYED = ("cls_token", "pos_embed")  # not weight matrices, though they have three dimensions


@dataclass(frozen=True)
class FineTuneRecipe(Recipe):
    """All settings that affect the result, except data, encoder and precision; the defaults are published.

    Attributes:
        batch_size: B, images per optimizer step, over all processes and micro-batches.
        lr: The peak learning rate, of `fc_norm` and head.
        min_lr: Where the half cosine ends.
        epochs, warmup_epochs: All epochs, and how many of them are warm-up.
        layer_decay: Factor of the learning rate from a layer to the one below it.
        drop_path: Rate in the last block, rising linearly from 0 in the first.
        weight_decay, beta1, beta2, eps: AdamW's.
        mixup, cutmix: Their alphas; 0 switches one off. `mix_prob`: fraction of batches that are mixed;
            `switch_prob`: fraction of these that use CutMix.
        smoothing: Label smoothing.
        weighted_sampling: Whether each class is drawn equally often, with replacement.
        monitor: Metric that chooses the best epoch on val: "recall" (macro) or "acc"; always AUROC for two classes.
        head_init: "random", or "probe": the head begins as a linear probe of the training images, so that the first
            steps do not distort the features (Kumar et al. 2022, arXiv:2202.10054).
        augmentation: Of training images: "published", or "turns", flips and quarter turns alone.
        ema_decay: Decay of a moving average of the weights, which is then evaluated instead; None (published): off.
        seed: Initialises the head and draws everything else.
    """

    batch_size: int = BATCH_SIZE
    lr: float = 5e-4
    min_lr: float = 1e-6
    epochs: int = EPOCHS
    warmup_epochs: int = 10
    layer_decay: float = 0.65
    drop_path: float = 0.2
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    mixup: float = 0.8
    cutmix: float = 1.0
    mix_prob: float = 1.0
    switch_prob: float = 0.5
    smoothing: float = 0.1
    weighted_sampling: bool = True
    monitor: str = "recall"
    head_init: str = "random"
    augmentation: str = "published"
    ema_decay: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises TrainingError listing all invalid settings."""
        wrong = []
        if not 0 <= self.warmup_epochs <= self.epochs:
            wrong.append(f"warmup_epochs {self.warmup_epochs} is not in 0..{self.epochs}, the epochs: lower it too")
        if not 0 <= self.min_lr <= self.lr:
            wrong.append(f"lr {self.lr} is not above min_lr {self.min_lr} >= 0")
        self.check({**RECIPE, **dict.fromkeys(("mix_prob", "switch_prob"), RATE)}, wrong)

    @property
    def mixes(self) -> bool:
        return self.mix_prob > 0 and (self.mixup > 0 or self.cutmix > 0)


def make_recipe(defaults: dict, **overrides) -> FineTuneRecipe:
    """Returns the published recipe with a profile's defaults and, over those, all overrides that are not None.

    Raises:
        TrainingError: An unknown name, or an invalid value.
    """
    changes = {**defaults, **{name: value for name, value in overrides.items() if value is not None}}
    if "epochs" in changes and "warmup_epochs" not in changes:
        changes["warmup_epochs"] = min(FineTuneRecipe.warmup_epochs, changes["epochs"] // 5)
    return build_recipe(FineTuneRecipe, changes)


def steps_of_epoch(images: int, recipe: FineTuneRecipe) -> tuple[int, int]:
    """Returns S and B for N training images; the last, smaller batch is dropped, as published.

    With fewer images than a batch there would be no step (upstream then trains nothing), so B becomes the largest even
    number up to N.

    Raises:
        TrainingError: N < 2.
    """
    if images < 2:
        raise TrainingError(f"{images} training images are too few; use a larger fraction")
    return batches_of(images, recipe.batch_size)


def learning_rates(recipe: FineTuneRecipe, steps: int) -> np.ndarray:
    """Returns the learning rate [epochs * S] of every step, before each layer's scale.

    Linear from 0 to lr over the warm-up, both ends included, so the first step changes nothing; then a half cosine that
    starts at lr and would reach min_lr one step after the last.
    """
    warmup = np.linspace(0, recipe.lr, recipe.warmup_epochs * steps)
    rest = (recipe.epochs - recipe.warmup_epochs) * steps
    half_cosine = (1 + np.cos(np.pi * np.arange(rest) / max(rest, 1))) / 2
    return np.concatenate([warmup, recipe.min_lr + (recipe.lr - recipe.min_lr) * half_cosine])


def layer_of(name: str, depth: int) -> int:
    """Returns the layer of a parameter: 0 for embeddings, b + 1 for block b, L + 1 for `fc_norm` and head."""
    if name.startswith(("cls_token", "pos_embed", "patch_embed.")):
        return 0
    if found := re.match(r"blocks\.(\d+)\.", name):
        return int(found[1]) + 1
    if name.startswith(("fc_norm.", "head.")):
        return depth + 1
    raise TrainingError(f"{name}: not a parameter of PanDerm; its blocks are `blocks.N`, its head is `head`")


def parameter_table(model: nn.Module, recipe: FineTuneRecipe) -> pd.DataFrame:
    """Returns one row per trained parameter, in the model's order: `parameter`, `values`, `layer`, `scale`, `decay`.

    `scale` multiplies the learning rate; `decay` is the weight decay.
    """
    depth, rows = len(model.blocks), []
    for name, value in model.named_parameters():
        if not value.requires_grad:
            continue
        layer = layer_of(name, depth)
        decayed = value.ndim > 1 and not name.endswith(".bias") and name not in NEVER_DECAYED
        scale = recipe.layer_decay ** (depth + 1 - layer)
        rows.append((name, value.numel(), layer, scale, recipe.weight_decay if decayed else 0.0))
    return pd.DataFrame(rows, columns=["parameter", "values", "layer", "scale", "decay"])


def parameter_groups(model: nn.Module, recipe: FineTuneRecipe) -> list[dict]:
    """Returns torch's parameter groups, one per layer and weight decay: `params`, `names`, `scale`, `weight_decay`."""
    parameters = dict(model.named_parameters())
    groups = []
    for (_, scale, decay), rows in parameter_table(model, recipe).groupby(["layer", "scale", "decay"]):
        names = rows["parameter"].tolist()
        params = [parameters[name] for name in names]
        groups.append(
            {"params": params, "names": names, "scale": float(scale), "weight_decay": float(decay), "lr": 0.0}
        )
    return groups
