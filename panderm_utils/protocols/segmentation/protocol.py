"""The description of segmentation. Loads neither torch nor pandas until the published recipe is requested."""

import dataclasses
from collections.abc import Mapping
from typing import Any

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
from panderm_utils.protocols import segmentation

RATE = number("a number from 0 to 1", lambda value: 0 <= value <= 1)

EPOCHS, BATCH_SIZE, CHANNELS = 100, 2, 1024  # published

# The settings of the recipe that a run may change, and their rules.
RECIPE = {
    "epochs": whole(1),
    "batch_size": whole(2, even=True),  # at least two images for the batch norms of a single pixel
    "lr": number("a number above 0", lambda value: value > 0),
    "drop_path": RATE,
    "weight_decay": number("a number, 0 or more", lambda value: value >= 0),
    "channels": whole(1),
    "frozen": FLAG,
}


def work(images: Mapping[str, int], settings: Mapping[str, Any]) -> Work:
    """Returns the work of a run; settings that are None are published."""
    step = {"channels": settings.get("channels") or CHANNELS} | ({"frozen": True} if settings.get("frozen") else {})
    return training_work(images, settings, EPOCHS, BATCH_SIZE, {"test": 1}, **step)


def methods(record):
    training = record.get("training", {})
    recipe = training.get("recipe", {})
    encoder = "its weights frozen" if recipe.get("frozen") else "all of it trained"
    return (
        f"For segmentation, the encoder ({encoder}) was joined to a feature pyramid and an UPerNet decoder of "
        f"{recipe.get('channels')} channels and trained by cross-entropy on images of 224 x 224 pixels: "
        f"{recipe.get('epochs')} epochs, {training.get('batch')} images a step, AdamW with learning rate "
        f"{recipe.get('lr')} and weight decay {recipe.get('weight_decay')}, photometric augmentation, seed "
        f"{record['seed']}. The epoch that was tested: {training.get('chosen', 'the best on the validation split')}."
    )


PROTOCOL = Protocol(
    name="segmentation",
    title="segmentation",
    question="How well does the encoder, with a decoder on top, outline lesions?",
    reproduces="comparison of lesion segmentation (Extended Data Figs. 5 and 6)",
    teaches="how maps of four blocks become a feature pyramid, how a decoder turns it into an outline, and what Dice "
    "and Jaccard at 224 pixels hide that scores at the original size show",
    seconds_an_image=800.0,  # 100 epochs, each step worth three forward passes, the decoder costs three encoders
    demo_time="two minutes",  # 2 minutes in the demo's records, two runs at once on two slow cores
    settings={
        "train_fraction": 1.0,
        "precision": "auto",
        "replicates": 1000,
        "weights": None,
        "checkpoint": None,
        "variant": "script",
        **dict.fromkeys(RECIPE),
    },
    canonical="isic2018_task1",
    metric="jaccard",
    dataset_keys=("masks",),
    trains=True,
    parameters={
        **{name: rule.or_else(None) for name, rule in RECIPE.items()},  # None: as published, or the profile's
        "variant": one_of("script", "paper"),
        "checkpoint": FILE.or_else(None),
        "precision": PRECISION.or_else("auto"),
        "micro_batch": whole(2, even=True).or_else("auto"),
        "checkpointing": FLAG,
        "processes": whole(1),
        "trackers": text(),
        "train_fraction": FRACTION,
    },
    weights_parameters=("checkpoint", "weights"),
    single_dataset=("checkpoint",),
    published=lambda: dataclasses.asdict(segmentation.SegmentationRecipe()),
    recompute=lambda *run: segmentation.recompute_masks(*run),
    load_segmenter=lambda *kept: segmentation.load_segmenter(*kept),
    work=work,
    trial=lambda *of: segmentation.trial(*of),
    exhibits=lambda *shown: segmentation.study_exhibits(*shown),
    methods=methods,
)
