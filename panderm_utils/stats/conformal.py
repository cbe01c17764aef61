"""Prediction sets: the classes an image may have, so that the true one is among them at a stated rate.

Split conformal prediction: a class is in the set of an image if its probability reaches a threshold, found on the val
split. If val and new images are drawn alike, a new image's set has its true class with at least the stated probability,
whatever the model; over all images, not within each class. A model whose epoch was chosen on val, as in fine-tuning,
may reach slightly less: the coverage is therefore also measured on test. Written here rather than taken from MAPIE,
since all it needs are stored predictions and one order statistic.

Symbols: N images, K classes.
"""

import math

import numpy as np

from panderm_utils.stats.metrics import check_predictions

COVERAGE = 0.9  # of the true class, by the sets


def conformal_threshold(y, proba, coverage: float = COVERAGE) -> float:
    """Returns the probability from which a class is in a set; 0, all classes, if there are too few images.

    It is the k-th largest probability of a true class, k = ceil((N + 1) * coverage): the finite-sample correction. A
    coverage of 0.9 needs nine images.

    Args:
        y: True labels [N] of images that the model was not trained on.
        proba: Their class probabilities [N, K].
    """
    y, proba = check_predictions(y, proba)
    own = np.sort(proba[np.arange(len(y)), y])[::-1]
    rank = math.ceil(round((len(own) + 1) * coverage, 9))  # 10 * 0.9 is 9, not 9.000000000000002
    return float(own[rank - 1]) if rank <= len(own) else 0.0


def prediction_sets(proba, threshold: float) -> np.ndarray:
    """Returns which classes are in the set of each image, bool [N, K]; the most probable one always is."""
    proba = np.asarray(proba)
    sets = proba >= threshold
    sets[np.arange(len(proba)), proba.argmax(axis=1)] = True  # no set is empty; coverage can only rise
    return sets


def evaluate_prediction_sets(val_y, val_proba, y, proba, coverage: float = COVERAGE) -> dict[str, float]:
    """Returns the threshold found on val, and the coverage and mean size of the sets measured on test.

    Args:
        val_y, val_proba: Labels and probabilities of the val split, as in `conformal_threshold`.
        y, proba: Those of the test split.
    """
    threshold = conformal_threshold(val_y, val_proba, coverage)
    y, proba = check_predictions(y, proba)
    sets = prediction_sets(proba, threshold)
    measured = {"coverage": float(sets[np.arange(len(y)), y].mean()), "mean_size": float(sets.sum(axis=1).mean())}
    return {"asked": coverage, "val_images": len(val_y), "threshold": threshold, **measured}
