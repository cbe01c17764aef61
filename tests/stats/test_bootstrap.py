"""The bootstrap: pinned draws within each class, intervals as written down, nothing that depends on blocks."""

import tracemalloc

import numpy as np
import pytest
import scipy.stats
from scipy.special import softmax

from panderm_utils.stats import calibration, metrics, significance, subgroups, thresholds
from panderm_utils.stats import resampling as bootstrap


def predictions(n=60, num_classes=3, seed=0):
    generator = np.random.default_rng(seed)
    y = np.concatenate([np.arange(num_classes), generator.integers(0, num_classes, n - num_classes)])
    proba = generator.dirichlet(np.ones(num_classes), size=n).round(2)  # with ties
    return y, proba / proba.sum(axis=1, keepdims=True)


def rows_of(y, **settings):
    return np.concatenate(list(bootstrap.resampled_rows(y, **settings)))


def test_the_draws_of_a_seed_are_pinned():
    y = np.array([0, 1, 0, 1, 1, 2, 0, 1])
    rows = rows_of(y, replicates=2, seed=0)
    assert rows.tolist() == [[2, 3, 0, 1, 7, 5, 2, 4], [2, 7, 6, 1, 7, 5, 6, 1]]
    assert rows_of(y, replicates=1_000, seed=0)[:2].tolist() == rows.tolist()
    assert rows_of(y, replicates=2, seed=1).tolist() != rows.tolist()
    assert rows_of(np.arange(300) % 7, replicates=2, seed=0)[1, -8:].tolist() == [271, 139, 224, 141, 212, 94, 270, 82]


@pytest.mark.parametrize(
    "score",
    [
        metrics.evaluate,
        lambda y, p, *n: calibration.evaluate_calibration(y, softmax(p, axis=1), 15, False, *n),
        lambda y, p, *n: significance.paired_difference(y, p, p[::-1], *n),
        lambda y, p, *n: significance.permutation_test(y, p, p[::-1], *n),
        lambda y, p, *n: subgroups.compare_groups(y, p, y % 1, "auroc", *n)[0][["low", "high"]],
        lambda y, p, *n: thresholds.operating_points(y, p, "abc", thresholds.LEVELS, *n)[["low", "high"]],
        lambda y, p, *n: bootstrap.bootstrap(metrics.Scorer(y, p), y, *n),
    ],
    ids=["evaluate", "calibration", "difference", "permutations", "subgroups", "operating points", "bootstrap"],
)
def test_whoever_asks_for_nothing_gets_the_thousand_draws_of_seed_0(score):
    y, proba = predictions(n=200)
    usual = score(y, proba)
    assert np.array_equal(usual, score(y, proba, 1000, 0), equal_nan=True)
    assert not np.array_equal(usual, score(y, proba, 999, 0), equal_nan=True)
    assert not np.array_equal(usual, score(y, proba, 1000, 1), equal_nan=True)


def test_every_replicate_has_the_labels_of_the_test_set():
    y, _ = predictions(n=200, num_classes=5)
    rows = rows_of(y, replicates=50)
    assert (y[rows] == y).all()
    assert (np.diff(np.sort(rows, axis=1), axis=1) == 0).any(axis=1).all()  # with replacement


def test_every_image_of_a_class_is_drawn_equally_often():
    y = np.repeat([0, 1], [30, 4])
    drawn = np.bincount(rows_of(y, replicates=3_000, seed=3).ravel(), minlength=34)
    for members in (drawn[:30], drawn[30:]):
        assert scipy.stats.chisquare(members).pvalue > 0.001


def test_counts_are_the_rows_counted():
    y, _ = predictions()
    rows = rows_of(y, replicates=20, seed=4)
    counts = np.concatenate(list(bootstrap.resampled_counts(y, 20, seed=4, block=7)), axis=1)
    assert counts.shape == (60, 20)
    for r in range(20):
        assert counts[:, r].tolist() == [(rows[r] == i).sum() for i in range(60)]


@pytest.mark.parametrize("num_classes", [2, 3, 12])
def test_the_size_of_a_block_changes_no_bit(num_classes):
    y, proba = predictions(n=300, num_classes=num_classes)
    scorer = metrics.Scorer(y, proba)
    whole = bootstrap.bootstrap(scorer, y, replicates=31, seed=2, block=31)
    assert whole.shape == (31, 6)
    for block in (1, 2, 10, 1_000):
        np.testing.assert_array_equal(bootstrap.bootstrap(scorer, y, replicates=31, seed=2, block=block), whole)


def test_two_models_see_the_same_resamples():
    y, proba = predictions()
    rows = rows_of(y, replicates=9, seed=5)
    both = [
        bootstrap.bootstrap(metrics.Scorer(y, p), y, replicates=9, seed=5) for p in (proba, softmax(3 * proba, axis=1))
    ]
    for scores, scaled in zip(*both, strict=True):
        np.testing.assert_allclose(scores[:4], scaled[:4], atol=1e-15)  # the same predicted classes on the same images
    accuracy = [(proba.argmax(axis=1)[r] == y[r]).mean() for r in rows]
    np.testing.assert_allclose(both[1][:, 0], accuracy, atol=1e-15)


def test_intervals_are_percentiles_and_the_papers_normal_one():
    values = np.random.default_rng(6).normal(size=(1_000, 2))
    found = bootstrap.intervals(values)
    for m, column in enumerate(values.T):
        ordered = sorted(column)
        # Linear between order statistics: the 2.5th percentile of 1,000 lies at 0.025 * 999 = 24.975
        assert found["low"][m] == pytest.approx(0.025 * ordered[24] + 0.975 * ordered[25], abs=1e-14)
        assert found["high"][m] == pytest.approx(0.975 * ordered[974] + 0.025 * ordered[975], abs=1e-14)
        mean = sum(column) / 1_000
        deviation = (sum((v - mean) ** 2 for v in column) / 999) ** 0.5
        t = scipy.stats.t(999).ppf(0.975)
        assert t == pytest.approx(1.962, abs=1e-3)
        assert found["normal_low"][m] == pytest.approx(mean - t * deviation, abs=1e-12)
        assert found["normal_high"][m] == pytest.approx(mean + t * deviation, abs=1e-12)


def test_intervals_of_an_undefined_metric_are_undefined_and_touch_no_other():
    values = np.stack([np.linspace(0, 1, 101), np.full(101, np.nan)], axis=1)
    found = bootstrap.intervals(values)
    assert all(np.isnan(bound[1]) and np.isfinite(bound[0]) for bound in found.values())
    assert found["low"][0] == pytest.approx(0.025)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # Scores of two normal populations d apart have AUROC Phi(d / sqrt 2): 0.8023 for d = 1.2
    truth, hits = scipy.stats.norm.cdf(1.2 / np.sqrt(2)), {"low": 0, "normal_low": 0}
    generator, y, studies = np.random.default_rng(7), np.repeat([0, 1], [60, 40]), 200
    for study in range(studies):
        score = generator.normal(size=100) + 1.2 * y
        table = metrics.evaluate(y, softmax(np.stack([-score, score], axis=1), axis=1), replicates=300, seed=study)
        row = table.loc["auroc"]
        hits["low"] += row["low"] <= truth <= row["high"]
        hits["normal_low"] += row["normal_low"] <= truth <= row["normal_high"]
    for count in hits.values():
        assert 0.90 <= count / studies <= 0.99


def test_memory_stays_that_of_a_block():
    y, proba = predictions(n=20_000, num_classes=3)
    tracemalloc.start()
    metrics.evaluate(y, proba, replicates=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 45e6  # the draws of all replicates at once alone would take 32 MB, their counts 32 more


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicates": 1}, "at least 2, got 1"),
        ({"replicates": 10.5}, "whole number"),
        ({"block": 0}, "at least 1 replicate"),
        ({"y": []}, "labels of the test images"),
        ({"y": [[0, 1]]}, r"got \[1, 2\]"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(bootstrap.MetricError, match=message):
        next(bootstrap.resampled_rows(**{"y": [0, 1, 1], **settings}))
