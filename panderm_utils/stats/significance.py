"""Paired comparison of two sets of predictions on the same test images: arrays in, arrays out.

Overlapping intervals say little: most of the width of each is the choice of test images, which both share. So the
difference is taken within each resample, where the shared part cancels. Both sides use the metrics of `metrics`,
whatever their protocols report: AUROC is one-versus-one for both.

Symbols: N images, K classes, R replicates, M metrics, a and b the two sets of predictions; a difference is b - a.
"""

import warnings

import numpy as np
import pandas as pd
from scipy import stats

from panderm_utils.stats.metrics import METRICS, MetricWarning, Scorer, check_predictions, on_test_set
from panderm_utils.stats.resampling import BLOCK_CELLS, MetricError, bootstrap, intervals

ALPHA = 0.05  # significance level


def paired_difference(y, proba_a, proba_b, replicates: int = 1000, seed: int = 0, class_names=None) -> pd.DataFrame:
    """Returns one row per metric: a, a_low, a_high, b, b_low, b_high, difference (b - a), low and high of it, p_t.

    Intervals are percentiles over the same stratified resamples for a, b and the difference; p_t is the p-value of
    `t_test_on_replicates` on these resamples.

    Args:
        y: True labels [N], integers in 0..K-1.
        proba_a: Class probabilities [N, K].
        proba_b: The same for the other model, with the images in the same order.
        class_names: As in `metrics.evaluate`.

    Raises:
        MetricError: As `metrics.evaluate`, or the two differ in shape.
    """
    return compare_scorers(_scorers(y, proba_a, proba_b, class_names), METRICS, replicates, seed)


def compare_scorers(scorers: tuple, names, replicates: int, seed: int) -> pd.DataFrame:
    """Returns the columns of `paired_difference` for the metrics of any two scorers of the same images."""
    in_a, in_b = (bootstrap(scorer, scorer.y, replicates, seed) for scorer in scorers)
    a, b = (on_test_set(scorer) for scorer in scorers)
    of_a, of_b, of_both = (intervals(values) for values in (in_a, in_b, in_b - in_a))
    columns = {"a": a, "a_low": of_a["low"], "a_high": of_a["high"], "b": b, "b_low": of_b["low"]}
    columns |= {"b_high": of_b["high"], "difference": b - a, "low": of_both["low"], "high": of_both["high"]}
    columns["p_t"] = t_test_on_replicates(in_a, in_b)
    return pd.DataFrame(columns, index=pd.Index(names, name="metric"))


def permutation_test(y, proba_a, proba_b, permutations: int = 1000, seed: int = 0, class_names=None) -> pd.Series:
    """Returns the two-sided p-value of each metric by the paper's permutation test.

    Each permutation swaps the two predictions of each image with probability 1/2: if the models were interchangeable,
    it would not matter which one made which prediction. The observed difference counts as one of the permutations, so
    no p-value is 0.
    """
    scorers = _scorers(y, proba_a, proba_b, class_names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)  # already shown
        both = Scorer(np.tile(y, 2), np.concatenate([proba_a, proba_b]))
    return permute_scorers(scorers, both, METRICS, permutations, seed)


def permute_scorers(scorers: tuple, both, names, permutations: int, seed: int) -> pd.Series:
    """Returns the p-values of `permutation_test` for the metrics of any scorers: of a, of b, and of a followed by b."""
    a, b = (on_test_set(scorer) for scorer in scorers)
    rows = len(scorers[0].y)
    generator, as_large, block = np.random.default_rng(seed), np.zeros(len(names)), max(1, BLOCK_CELLS // rows)
    for start in range(0, permutations, block):
        swapped = generator.random((min(block, permutations - start), rows)).T < 0.5
        # One side takes each image from a (the first N rows) unless swapped; the other side takes the rest.
        counts = np.concatenate([~swapped, swapped]).astype(np.float64)
        differences = both(1 - counts) - both(counts)
        as_large += (np.abs(differences) >= np.abs(b - a) - 1e-12).sum(axis=0)
    p_values = np.where(np.isnan(b - a), np.nan, (1 + as_large) / (1 + permutations))
    return pd.Series(p_values, pd.Index(names, name="metric"), name="p_value")


def t_test_on_replicates(in_a, in_b) -> np.ndarray:
    """Returns the p-value [M] of the paper's two-sided t-test, which treats bootstrap replicates as observations.

    It overstates significance: p shrinks with the number of replicates, which is arbitrary, though no test image is
    added. Use it only to compare with the published value; otherwise use `permutation_test`.

    Args:
        in_a: A metric in each replicate [R], or several [R, M], as `bootstrap.bootstrap` returns them.
        in_b: The same for the other model.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scores that are the same in every replicate
        p_values = stats.ttest_ind(in_a, in_b).pvalue
    one_value = np.ptp(np.concatenate([in_a, in_b]), axis=0) == 0  # two models without errors: 0 / 0
    return np.where(one_value, 1.0, p_values)


def holm(p_values) -> np.ndarray:
    """Returns p-values with Holm's correction: below 0.05, the family-wise error rate is at most 0.05.

    Args:
        p_values: One p-value per hypothesis of the family; NaN is left out and stays NaN.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(p_values))
    tested = tested[np.argsort(p_values[tested], kind="stable")]
    corrected = np.full(len(p_values), np.nan)
    steps = p_values[tested] * np.arange(len(tested), 0, -1)
    corrected[tested] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected


def _scorers(y, proba_a, proba_b, class_names) -> tuple[Scorer, Scorer]:
    shapes = [list(check_predictions(y, proba)[1].shape) for proba in (proba_a, proba_b)]
    if shapes[0] != shapes[1]:
        raise MetricError(f"the two sets of predictions are {shapes[0]} and {shapes[1]}: pass two of the same images")
    scorer_a = Scorer(y, proba_a, class_names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)  # the first scorer has warned
        return scorer_a, Scorer(y, proba_b)
