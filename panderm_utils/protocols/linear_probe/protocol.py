"""The description of linear probing. Loads neither torch nor pandas."""

from panderm_utils import results, stats
from panderm_utils.manifests import Protocol
from panderm_utils.protocols import linear_probe


def methods(record):
    facts, settings = record.get("probe", {}), record["settings"]
    fraction = "" if settings["train_fraction"] == 1 else f"{settings['train_fraction']:.0%} of "
    return (
        "For linear probing, the encoder was frozen: each image was resized to 256 pixels on its shorter side, cropped "
        "to the central 224 x 224 pixels, and turned into one feature vector (the class token after the last "
        "normalisation). A "
        f"multinomial logistic regression was fitted to the features of {fraction}the training images by L-BFGS "
        f"(solver {settings['solver']!r}, C = {facts.get('c', 'as published')}, seed {record['seed']}, "
        f"precision {settings['precision']}); no hyperparameter was tuned, and the validation split was not used."
    )


PROTOCOL = Protocol(
    name="linear_probe",
    title="linear probing",
    question="How well can a linear layer diagnose from the features of a frozen encoder?",
    reproduces="Fig. 2a and Extended Data Fig. 1",
    teaches="how a frozen encoder is evaluated: splits and leakage, features, a logistic regression and its penalty, "
    "metrics for imbalanced classes and their intervals, and how to inspect mistakes",
    seconds_an_image=0.7,  # 123 GFLOP an image of ViT-L at the 175 GFLOP/s of two cores in float32
    demo_time="half a minute",  # 15 to 25 s in the demo's records, two runs at once on two slow cores
    settings={"train_fraction": 1.0, "solver": "published", "precision": "fp32", "replicates": 1000, "weights": None},
    recompute=lambda *run: results.recompute_predictions(stats.evaluate, *run),
    load_classifier=lambda *kept: linear_probe.load_classifier(*kept),
    methods=methods,
)
