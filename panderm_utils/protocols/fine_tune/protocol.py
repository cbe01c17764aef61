"""The description of fine-tuning. Loads neither torch nor pandas until the published recipe is requested."""

import dataclasses

from panderm_utils import results
from panderm_utils.manifests import Protocol
from panderm_utils.protocols import fine_tune

RECIPE = ("epochs", "warmup_epochs", "batch_size", "lr", "layer_decay", "drop_path", "weight_decay", "mixup", "cutmix")
RECIPE = (*RECIPE, "smoothing", "weighted_sampling", "monitor", "ema_decay")


PROTOCOL = Protocol(
    name="fine_tune",
    title="fine-tuning",
    question="How much does performance improve when the whole network is trained on the dataset?",
    reproduces="comparison of fine-tuning with linear probing (Supplementary Table 2)",
    teaches="the published recipe step by step: augmentation, mixing of images, layer-wise learning rates, choosing "
    "an epoch on the val split, test-time augmentation, and how to stop and resume training",
    seconds_an_image=100.0,  # 50 epochs, each step worth three forward passes
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
    weights_parameters=("checkpoint", "weights"),
    single_dataset=("checkpoint",),
    published=lambda: dataclasses.asdict(fine_tune.FineTuneRecipe()),
    recompute=lambda *run: results.recompute_predictions(fine_tune.evaluate_fine_tuning, *run),
)
