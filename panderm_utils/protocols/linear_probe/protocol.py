"""The description of linear probing. Loads neither torch nor pandas."""

from panderm_utils import results, stats
from panderm_utils.manifests import Protocol
from panderm_utils.protocols import linear_probe

PROTOCOL = Protocol(
    name="linear_probe",
    title="linear probing",
    question="How well can a linear layer diagnose from the features of a frozen encoder?",
    reproduces="Fig. 2a and Extended Data Fig. 1",
    teaches="how a frozen encoder is evaluated: splits and leakage, features, a logistic regression and its penalty, "
    "metrics for imbalanced classes and their intervals, and how to inspect mistakes",
    seconds_an_image=0.7,  # 123 GFLOP an image of ViT-L at the 175 GFLOP/s of two cores in float32
    settings={"train_fraction": 1.0, "solver": "published", "precision": "fp32", "replicates": 1000, "weights": None},
    recompute=lambda *run: results.recompute_predictions(stats.evaluate, *run),
    load_classifier=lambda *kept: linear_probe.load_classifier(*kept),
)
