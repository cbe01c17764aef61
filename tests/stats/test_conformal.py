"""Prediction sets: against the definition by counting, and the promise over many drawn splits."""

import numpy as np
import pytest

from panderm_utils.stats import conformal_threshold, evaluate_prediction_sets, prediction_sets


def draw(images, rng, classes=4):
    proba = rng.dirichlet(np.ones(classes), size=images)
    return np.array([rng.choice(classes, p=p) for p in proba]), proba


@pytest.mark.parametrize("images", [9, 10, 19, 20, 57])
@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_the_threshold_is_the_highest_that_enough_val_images_reach(images, coverage):
    y, proba = draw(images, np.random.default_rng(images))
    threshold = conformal_threshold(y, proba, coverage)
    own = proba[np.arange(images), y]
    needed = next(n for n in range(images + 2) if 10 * n >= round(10 * coverage) * (images + 1))  # in whole numbers
    assert (own >= threshold).sum() == needed
    assert (own > threshold).sum() == needed - 1


def test_with_too_few_val_images_every_class_is_in_the_set():
    y, proba = draw(8, np.random.default_rng(0))
    assert conformal_threshold(y, proba) == 0
    assert prediction_sets(proba, 0.0).all()


def test_the_sets_keep_their_promise_over_many_splits_and_hardly_more():
    rng, covered = np.random.default_rng(1), []
    for _ in range(400):
        val, test = draw(29, rng), draw(50, rng)
        covered.append(evaluate_prediction_sets(*val, *test)["coverage"])
    assert 0.9 < np.mean(covered) < 0.9 + 2 / 30  # without the correction of n + 1: below 0.9


def test_no_set_is_empty_and_what_is_measured_is_what_is_counted():
    val, (y, proba) = draw(40, np.random.default_rng(2)), draw(30, np.random.default_rng(3))
    found = evaluate_prediction_sets(*val, y, proba)
    sets = [{k for k in range(4) if p[k] >= found["threshold"]} | {int(np.argmax(p))} for p in proba]
    assert found["coverage"] == np.mean([k in one for k, one in zip(y, sets, strict=True)])
    assert found["mean_size"] == np.mean([len(one) for one in sets])
    assert prediction_sets(proba, 0.999).sum(axis=1).tolist() == [1] * 30
    assert found["val_images"] == 40
