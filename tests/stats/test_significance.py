"""Paired statistics: against scikit-learn in a loop, SciPy, exact enumeration, and what chance must do."""

import warnings
from functools import cache

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from panderm_utils.stats import metrics, significance
from panderm_utils.stats.resampling import MetricError, resampled_rows


def predictions(images=60, classes=3, gain=1.5, seed=0):
    """Labels and probabilities that are right more often the larger `gain` is; the same labels for every seed."""
    y = np.random.default_rng(99).permutation(np.arange(images) % classes)
    z = gain * np.eye(classes)[y] + np.random.default_rng(seed).normal(size=(images, classes))
    return y, np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


def by_scikit_learn(y, proba):
    said, classes = proba.argmax(axis=1), proba.shape[1]
    several = {} if classes == 2 else {"multi_class": "ovo"}
    score, truth = (proba[:, 1], y) if classes == 2 else (proba, np.eye(classes)[y])
    return [
        sk.accuracy_score(y, said),
        sk.balanced_accuracy_score(y, said),
        sk.cohen_kappa_score(y, said, weights="quadratic"),
        sk.f1_score(y, said, average="weighted"),
        sk.roc_auc_score(y, score, **several),
        sk.average_precision_score(truth, score),
    ]


@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_interval_is_that_of_a_loop_over_the_same_images_for_both(classes):
    (y, a), (_, b) = predictions(classes=classes), predictions(classes=classes, gain=2.5, seed=1)
    table = significance.paired_difference(y, a, b, replicates=50, seed=3)
    rows = np.concatenate(list(resampled_rows(y, 50, 3)))
    in_a, in_b = (np.array([by_scikit_learn(y[r], p[r]) for r in rows]) for p in (a, b))
    low, high = np.quantile(in_b - in_a, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(table["a"], by_scikit_learn(y, a), atol=1e-12)
    np.testing.assert_allclose(table["b"], by_scikit_learn(y, b), atol=1e-12)
    np.testing.assert_allclose(table["difference"], np.subtract(by_scikit_learn(y, b), by_scikit_learn(y, a)))
    np.testing.assert_allclose(table["low"], low, atol=1e-12)
    np.testing.assert_allclose(table["high"], high, atol=1e-12)
    np.testing.assert_allclose(table["a_low"], np.quantile(in_a, 0.025, axis=0), atol=1e-12)
    np.testing.assert_allclose(table["b_high"], np.quantile(in_b, 0.975, axis=0), atol=1e-12)
    np.testing.assert_allclose(table["p_t"], stats.ttest_ind(in_a, in_b).pvalue, rtol=1e-6)
    assert table.index.tolist() == list(metrics.METRICS)


def test_a_paired_interval_is_narrower_than_that_of_two_separate_draws():
    y, a = predictions(images=300)
    b = a.copy()
    b[:10] = np.eye(3)[y[:10]]  # two models that differ in ten images only
    table = significance.paired_difference(y, a, b, 400).loc["accuracy"]
    assert table["low"] >= 0
    assert table["high"] - table["low"] < 0.5 * (table["a_high"] - table["a_low"])


def test_a_model_against_itself_differs_by_exactly_nothing():
    y, a = predictions()
    table = significance.paired_difference(y, a, a, replicates=30)
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)
    assert (table["p_t"] == 1).all()
    assert (significance.permutation_test(y, a, a, 30) == 1).all()


@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_p_values_are_those_of_scipy_over_all_swaps(classes):
    (y, a), (_, b) = predictions(10, classes, gain=0.3), predictions(10, classes, gain=1.5, seed=1)
    both = np.concatenate([a, b])

    @cache
    def scores(rows):
        return metrics.on_test_set(metrics.Scorer(y, both[list(rows)]))

    found = significance.permutation_test(y, a, b, permutations=20_000)
    for i, metric in enumerate(metrics.METRICS):
        exact = stats.permutation_test(  # SciPy swaps numbers: here the rows of `both` that are of one image
            (np.arange(10), np.arange(10, 20)),
            lambda of_a, of_b, i=i: scores(tuple(of_b))[i] - scores(tuple(of_a))[i],
            permutation_type="samples",
            vectorized=False,
            n_resamples=2**10,
        )
        assert found[metric] == pytest.approx(exact.pvalue, abs=0.015)
    assert found.min() < 0.3


@pytest.mark.parametrize(("gained", "lost"), [(30, 10), (9, 6), (4, 0)])
def test_of_accuracy_the_p_value_is_that_of_the_exact_sign_test(gained, lost):
    """Only the images that one model alone gets right count: as many coins, McNemar's exact test."""
    y = np.arange(200) % 2
    right, wrong = np.eye(2)[y], np.eye(2)[1 - y]
    a, b = right.copy(), right.copy()
    a[:gained], b[gained : gained + lost] = wrong[:gained], wrong[gained : gained + lost]
    found = significance.permutation_test(y, a, b, permutations=20_000)["accuracy"]
    assert found == pytest.approx(stats.binomtest(gained, gained + lost).pvalue, abs=0.012)


def two_models(generator, images=40, classes=2, better=0.0):
    """Labels and two models that share some of what they find hard; the second is `better`."""
    y = generator.permutation(np.arange(images) % classes)
    hard = generator.normal(size=(images, classes))
    z = [(1 + gain) * np.eye(classes)[y] + hard + generator.normal(size=hard.shape) for gain in (0, better)]
    return y, *(np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in z)


@pytest.fixture(scope="module")
def by_chance():
    """p-values [400, 6] of two models between which there is nothing to choose, on ever other test sets."""
    generator = np.random.default_rng(0)
    return np.array(
        [significance.permutation_test(*two_models(generator), permutations=99, seed=i) for i in range(400)]
    )


def test_without_a_difference_p_values_are_uniform(by_chance):
    for metric in ("auroc", "aupr"):  # few ties
        p = by_chance[:, metrics.METRICS.index(metric)]
        # Of 99 permutations p is one of 0.01, 0.02, ... 1; spread out between them it is uniform.
        spread = p - 0.01 * np.random.default_rng(1).random(len(p))
        assert stats.kstest(spread, "uniform").pvalue > 0.05


def test_without_a_difference_no_metric_calls_one_more_often_than_it_may(by_chance):
    for share in (0.05, 0.2, 0.5):
        allowed = stats.binom.ppf(0.999, len(by_chance), share) / len(by_chance)
        assert ((by_chance <= share).mean(axis=0) <= allowed).all()
    assert ((by_chance <= 0.5).mean(axis=0) > 0.3).all()  # nor does it say 1 to everything


def test_a_difference_is_found_the_more_often_the_larger_it_is_and_the_more_images_there_are():
    found = {}
    for images, better in ((40, 0.5), (40, 1.5), (160, 1.5)):
        generator = np.random.default_rng(2)
        p = [significance.permutation_test(*two_models(generator, images, 2, better), 99, i) for i in range(60)]
        found[images, better] = np.mean(np.array(p) <= 0.05, axis=0)
    assert (found[40, 0.5] < found[40, 1.5]).all()
    assert (found[40, 1.5] < found[160, 1.5]).all()
    assert (found[160, 1.5] > 0.95).all()


def test_power_is_that_of_the_sign_test_for_a_known_effect():
    """20% of the images only b gets right, 5% only a: what a binomial computation says is found, is found."""
    images, alpha, generator = 80, 0.05, np.random.default_rng(3)
    y, found = np.arange(images) % 2, []
    for i in range(200):
        kind = generator.choice(3, images, p=[0.2, 0.05, 0.75])  # only b right, only a right, both right
        a, b = (np.where((kind == k)[:, None], np.eye(2)[1 - y], np.eye(2)[y]) for k in (0, 1))
        found.append(significance.permutation_test(y, a, b, 199, i)["accuracy"] <= alpha)
    coins = np.arange(images + 1)
    told = stats.binom.pmf(coins, images, 0.25)
    heads = [stats.binom.pmf(np.arange(n + 1), n, 0.8) for n in coins]
    tails = [np.minimum(np.arange(n + 1), np.arange(n + 1)[::-1]) for n in coins]
    calls = [2 * stats.binom.cdf(tail, n, 0.5) <= alpha for n, tail in zip(coins, tails, strict=True)]  # two-sided
    power = sum(told[n] * heads[n] @ calls[n] for n in coins)
    assert 0.5 < power < 0.9
    assert np.mean(found) == pytest.approx(power, abs=0.09)


def test_p_values_are_small_for_models_far_apart_and_never_0():
    (y, a), (_, b) = predictions(300, gain=0.5), predictions(300, gain=4, seed=1)
    assert (significance.permutation_test(y, a, b, 99) == 0.01).all()


def test_a_class_without_an_image_is_said_once_and_one_class_alone_is_not_defined():
    (y, a), (_, b) = predictions(), predictions(seed=1)
    keep = y != 2
    with pytest.warns(metrics.MetricWarning, match="class 2") as heard:
        table = significance.paired_difference(y[keep], a[keep], b[keep], 20)
    assert len(heard) == 1
    assert table.notna().all(axis=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = significance.permutation_test(y[y == 0], a[y == 0], b[y == 0], 20)
        undefined = significance.paired_difference(y[y == 0], a[y == 0], b[y == 0], 20)["p_t"]
    assert alone[["quadratic_kappa", "auroc", "aupr"]].isna().all()
    assert undefined[["quadratic_kappa", "auroc", "aupr"]].isna().all()
    assert alone["accuracy"] > 0


def test_predictions_of_other_shapes_are_refused():
    y, a = predictions()
    wider = np.pad(a, ((0, 0), (0, 1)))
    with pytest.raises(MetricError, match=r"\[60, 3\] and \[60, 4\]"):
        significance.paired_difference(y, a, wider)
    with pytest.raises(MetricError, match=r"\[60, 4\] and \[60, 3\]"):
        significance.paired_difference(y, wider, a)


def test_the_t_test_is_student_s_and_shrinks_with_the_replicates_alone():
    (y, a), (_, b) = predictions(), predictions(seed=4)
    assert significance.permutation_test(y, a, b)["accuracy"] > 0.3
    p = [significance.paired_difference(y, a, b, replicates)["p_t"]["accuracy"] for replicates in (20, 200, 2000)]
    assert p[0] > 1e3 * p[1] > 1e6 * p[2]
    # By hand: the difference of the means over its standard error, both of equal numbers.
    in_a, in_b = np.random.default_rng(0).normal([[0.5], [0.6]], 0.1, (2, 30))
    t = (in_b.mean() - in_a.mean()) / np.sqrt((in_a.var(ddof=1) + in_b.var(ddof=1)) / 30)
    assert significance.t_test_on_replicates(in_a, in_b) == pytest.approx(2 * stats.t.sf(abs(t), 58))


def test_the_t_test_of_scores_that_never_move():
    alike, apart = np.full((5, 1), 1.0), np.full((5, 1), 0.9)
    assert significance.t_test_on_replicates(alike, alike).item() == 1
    assert significance.t_test_on_replicates(alike, apart).item() == 0
    assert np.isnan(significance.t_test_on_replicates(alike * np.nan, alike)).all()


def test_holm_by_hand():
    corrected = significance.holm([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(corrected, [0.03, 0.06, 0.06, 0.02])  # 3 x .01, 1 x .04 but not below 2 x .03, 4 x .005
    np.testing.assert_allclose(significance.holm([0.5, 0.9]), [1, 1])
    assert significance.holm([]).shape == (0,)


def test_holm_counts_only_the_questions_that_have_a_p_value():
    np.testing.assert_allclose(significance.holm([np.nan, 0.01, np.nan, 0.04]), [np.nan, 0.02, np.nan, 0.04])
    assert np.isnan(significance.holm([np.nan])).all()


def test_holm_rejects_what_the_step_down_procedure_rejects():
    generator = np.random.default_rng(0)
    for _ in range(100):
        p = generator.choice([0.002, 0.01, 0.02, 0.04, 0.3], size=6) * generator.choice([0.1, 1], size=6)
        rejected = set()
        for left in range(6, 0, -1):  # smallest first, each at 0.05 over the number that are left, until one holds
            smallest = min(set(range(6)) - rejected, key=lambda i: p[i])
            if p[smallest] > 0.05 / left:
                break
            rejected.add(smallest)
        assert set(np.flatnonzero(significance.holm(p) <= 0.05)) == rejected
