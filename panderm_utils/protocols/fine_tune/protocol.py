"""The description of fine-tuning. Loads neither torch nor pandas until the published recipe is requested."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from panderm_utils import results
from panderm_utils.manifests import (
    FILE,
    FLAG,
    FRACTION,
    PRECISION,
    Protocol,
    Work,
    number,
    one_of,
    text,
    training_work,
    whole,
)
from panderm_utils.protocols import fine_tune

RATE = number("a number from 0 to 1", lambda value: 0 <= value <= 1)
WEIGHT = number("a number, 0 or more", lambda value: value >= 0)

EPOCHS, BATCH_SIZE = 50, 128  # published

# The settings of the recipe that a run may change, and their rules.
RECIPE = {
    "epochs": whole(1),
    "warmup_epochs": whole(0),
    "batch_size": whole(2, even=True),  # images are mixed in pairs
    "lr": number("a number above 0", lambda value: value > 0),
    "layer_decay": FRACTION,
    "drop_path": RATE,
    "weight_decay": WEIGHT,
    "mixup": WEIGHT,
    "cutmix": WEIGHT,
    "smoothing": RATE,
    "weighted_sampling": FLAG,
    "monitor": one_of("recall", "acc"),
    "head_init": one_of("random", "probe"),
    "augmentation": one_of("published", "turns"),
    "ema_decay": number("a number from 0, below 1", lambda value: 0 <= value < 1).or_else(None),
}

AUGMENTED = {"turns": "flips and quarter turns"}
PROBED = "The head began as a linear probe of the training images (Kumar et al., ICLR 2022). "


def _conflicts(values: Mapping[str, Any]) -> dict[str, str]:
    epochs, warmup = values.get("epochs"), values.get("warmup_epochs")
    if epochs is None or warmup is None or warmup <= epochs:
        return {}
    return {"warmup_epochs": f"write a whole number, 0 to {epochs}, the epochs, or None"}


def work(images: Mapping[str, int], settings: Mapping[str, Any]) -> Work:
    """Returns the work of a run; settings that are None are published."""
    return training_work(images, settings, EPOCHS, BATCH_SIZE, {"val": 1, "test": 1 + settings["tta"]})


def methods(record):
    training = record.get("training", {})
    recipe, chosen = training.get("recipe", {}), training.get("chosen", "the best epoch on the validation split")
    head = PROBED if recipe.get("head_init") == "probe" else ""
    augmented = AUGMENTED.get(recipe.get("augmentation"), "crops, flips, rotations and hue shifts")
    return (
        "For fine-tuning, the whole network was trained with PanDerm's recipe (AdamW, layer-wise learning-rate decay, "
        f"{augmented}): {recipe.get('epochs')} epochs, {training.get('batch')} images "
        f"a step, peak learning rate {recipe.get('lr')}, mixup {recipe.get('mixup')}, CutMix {recipe.get('cutmix')}, "
        f"label smoothing {recipe.get('smoothing')}, stochastic depth {recipe.get('drop_path')}, seed "
        f"{record['seed']}. {head}The epoch that was tested: {chosen}. Test-time augmentation: the mean over "
        f"{record['settings']['tta']} random views."
    )


PROTOCOL = Protocol(
    name="fine_tune",
    title="fine-tuning",
    question="How much does performance improve when the whole network is trained on the dataset?",
    reproduces="comparison of fine-tuning with linear probing (Supplementary Table 2)",
    teaches="the published recipe step by step: augmentation, mixing of images, layer-wise learning rates, choosing "
    "an epoch on the val split, test-time augmentation, and how to stop and resume training",
    seconds_an_image=100.0,  # 50 epochs, each step worth three forward passes
    demo_time="two minutes",  # 1 to 3 minutes in the demo's records, two runs at once on two slow cores
    settings={
        "train_fraction": 1.0,
        "precision": "auto",
        "tta": 5,
        "replicates": 1000,
        "weights": None,
        "checkpoint": None,
        **dict.fromkeys(RECIPE),
    },
    architectures=("beit",),  # PanDerm's
    trains=True,
    parameters={
        **{name: rule.or_else(None) for name, rule in RECIPE.items()},  # None: as published, or the profile's
        "checkpoint": FILE.or_else(None),
        "precision": PRECISION.or_else("auto"),
        "micro_batch": whole(2, even=True).or_else("auto"),
        "checkpointing": FLAG,
        "processes": whole(1),
        "trackers": text(),
        "tta": whole(0),
    },
    conflicts=_conflicts,
    weights_parameters=("checkpoint", "weights"),
    single_dataset=("checkpoint",),
    published=lambda: dataclasses.asdict(fine_tune.FineTuneRecipe()),
    recompute=lambda *run: results.recompute_predictions(fine_tune.evaluate_fine_tuning, *run),
    load_classifier=lambda *kept: fine_tune.load_classifier(*kept),
    work=work,
    trial=lambda *of: fine_tune.trial(*of),
    methods=methods,
)
