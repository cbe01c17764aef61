"""Records of runs like the published ones, for tests of verdicts: equal data, weights and settings, any scores."""

import numpy as np
import pandas as pd

from panderm_utils.manifests import load_dataset_manifest, load_encoder_manifest
from panderm_utils.protocols import load_protocol
from panderm_utils.results import records


def facts_of(result):
    """Returns the facts that a record has of the published data and weights."""
    card, model = load_dataset_manifest(result.dataset), load_encoder_manifest(result.encoder)
    data = {"split_sizes": dict(result.split_sizes or card.split_sizes)}
    data["class_counts"] = {split: list(counts) for split, counts in (card.class_counts or {}).items()}
    weights = {"title": model.title, "num_features": model.num_features, "digest": model.sha256 or "0" * 64}
    return {"data": data, "encoder_facts": weights}


def begin(space, result, seed=None, **settings):
    """Returns a run in progress with the settings of a published one, unless others are named, and its facts."""
    named = {name: value for name, value in result.settings.items() if name not in ("seed", "tta")}
    seed = result.settings.get("seed", 0) if seed is None else seed
    protocol = load_protocol(result.protocol)
    run = records.begin_run(protocol, result.dataset, result.encoder, seed, space, **{**named, **settings})
    run.note(**facts_of(result))
    return run


def save(run, scores, images=None):
    """Saves a run with scores: metric -> (value, low, high); by default with as many test images as it notes."""
    card = load_dataset_manifest(run.dataset)
    images = run.notes["data"]["split_sizes"]["test"] if images is None else images
    y = np.arange(images) % card.num_classes
    table = records.prediction_table([f"{i}.jpg" for i in range(images)], y, np.eye(card.num_classes)[y])
    return records.save_record(run, pd.DataFrame(scores, index=["value", "low", "high"]).T, table, "weighted_f1")


def around(result, reach=0.01):
    """Returns scores equal to the published ones, in the middle of their intervals."""
    return {metric: (value, value - reach, value + reach) for metric, value in result.metrics.items()}
