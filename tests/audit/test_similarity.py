"""The blockwise search finds what comparing everything finds."""

import numpy as np
import pytest

from panderm_utils.audit.fingerprints import HashSimilarities, name_orientations, orientations
from panderm_utils.audit.similarity import Cosines, similar_pairs, unit


@pytest.mark.parametrize("sizes", [(1, 1), (5, 3), (64, 129), (130, 70)])
def test_pairs_and_nearest_are_those_of_one_large_product(sizes, monkeypatch):
    monkeypatch.setattr(Cosines, "size", (16, 32))
    rng = np.random.default_rng(0)
    x, y = (unit(rng.normal(size=(n, 8))) for n in sizes)
    y[: len(y) // 3] = x[0]
    cosines = x.astype(np.float64) @ y.T.astype(np.float64)
    found = similar_pairs(Cosines(x, y), 0.6)
    assert set(zip(found.a.tolist(), found.b.tolist(), strict=True)) == set(map(tuple, np.argwhere(cosines >= 0.6)))
    np.testing.assert_allclose(found.similarity, cosines[found.a, found.b], atol=1e-6)
    np.testing.assert_allclose(found.best, cosines.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(cosines[np.arange(len(x)), found.nearest], cosines.max(axis=1), atol=1e-6)
    assert found.threshold == 0.6


def test_a_threshold_that_is_far_too_low_keeps_the_most_similar(monkeypatch):
    monkeypatch.setattr(Cosines, "size", (16, 4096))
    rng = np.random.default_rng(0)
    x, y = (unit(rng.normal(size=(50, 4))) for _ in range(2))
    found = similar_pairs(Cosines(x, y), -1.0, most=100)
    expected = np.sort((x @ y.T).ravel())[::-1][:100]
    np.testing.assert_allclose(np.sort(found.similarity)[::-1], expected, atol=1e-6)
    assert found.threshold == pytest.approx(expected[-1], abs=1e-6)


def test_nothing_to_compare_with():
    found = similar_pairs(Cosines(np.ones((3, 2), np.float32), np.zeros((0, 2), np.float32)), 0.5)
    assert len(found.a) == 0
    assert (found.best == -np.inf).all()


def test_zeros_are_similar_to_nothing():
    x = unit(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(x, [[0.6, 0.8], [0, 0]], atol=1e-7)


def test_hashes_are_compared_in_the_best_of_eight_orientations(monkeypatch):
    monkeypatch.setattr(HashSimilarities, "size", (16, 32))
    rng = np.random.default_rng(0)
    x, y = (rng.choice(np.array([-1, 1], np.int8), (n, 256)) for n in (40, 70))
    turns = orientations(x[:8])
    for i, (_, turned) in enumerate(turns):
        y[i] = turned[i] * np.where(np.arange(256) < 3 * i, -1, 1)
    found = similar_pairs(HashSimilarities(x, y), 0.8)
    agreement = [(x[:, None] == turned[None]).mean(axis=2) for _, turned in orientations(y)]
    np.testing.assert_allclose(found.best, np.max(agreement, axis=0).max(axis=1), atol=1e-6)
    assert sorted(zip(found.a.tolist(), found.b.tolist(), strict=True)) == [(i, i) for i in range(8)]
    assert sorted(name_orientations(x[:8], y[:8])) == sorted(name for name, _ in turns)
