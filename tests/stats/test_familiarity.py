"""Distances from the training images: against refitting without each image, and on images drawn like them or not."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage

from panderm_utils.stats import measure_familiarity
from panderm_utils.stats.familiarity import LEAST_SHRINKAGE


def draw(images, rng, width=24):
    return rng.standard_normal((images, width)) * np.geomspace(1, 0.05, width) + 3


@pytest.mark.parametrize("images", [12, 60])  # fewer than features, and more
def test_the_limit_is_the_percentile_of_distances_from_all_the_others(images):
    x = draw(images, np.random.default_rng(0))
    centred = x - x.mean(axis=0)
    shrinkage = max(LEAST_SHRINKAGE, ledoit_wolf_shrinkage(centred, assume_centered=True))
    target = shrinkage * np.eye(24) * np.square(centred).sum() / centred.size
    distances = []
    for i in range(images):
        others = np.delete(x, i, axis=0)
        covariance = (1 - shrinkage) * np.cov(others.T, bias=True) + target
        from_mean = x[i] - others.mean(axis=0)
        distances.append(np.sqrt(from_mean @ np.linalg.solve(covariance, from_mean)))
    assert measure_familiarity(x).limit == pytest.approx(max(distances), rel=1e-9)


@pytest.mark.parametrize("images", [40, 200])
def test_about_one_new_image_in_a_hundred_is_flagged_also_with_few_training_images(images):
    """Were the 40 images part of what they are measured from, nearly every new one would be flagged."""
    rng, flagged = np.random.default_rng(1), []
    for _ in range(20):
        familiarity = measure_familiarity(draw(images, rng, 192))
        flagged.append((familiarity.distance(draw(200, rng, 192)) > 1).mean())
        assert (familiarity.distance(draw(50, rng, 192) + 2) > 1).all()
    assert 0.002 < np.mean(flagged) < 0.05


def test_features_that_never_vary_and_images_that_are_all_the_same_are_no_error():
    x = draw(50, np.random.default_rng(2))
    x[:, 0] = 7
    familiarity = measure_familiarity(x)
    assert familiarity.mean.dtype == familiarity.factor.dtype == np.float32
    assert (familiarity.distance(x) <= 1.001).mean() > 0.97
    same = measure_familiarity(np.ones((5, 24)))
    assert (same.distance(np.ones((1, 24))) <= 1).all()
    assert (same.distance(np.full((1, 24), 2.0)) > 1).all()
