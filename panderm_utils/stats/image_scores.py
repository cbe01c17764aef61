"""Means of scores that every test image has, such as Dice: intervals, paired comparison, groups, correlation.

Images that are not independent, such as those of one lesion, can be given as clusters: a resample then draws clusters,
and a permutation swaps clusters. The means remain means over the images. A NaN is left out of the mean of its metric.

Symbols: N images, U clusters (without `clusters`, as many as images), R resamples, M metrics.
"""

import numpy as np
import pandas as pd

from panderm_utils.data import is_missing
from panderm_utils.stats.metrics import score_table
from panderm_utils.stats.resampling import MetricError, summing
from panderm_utils.stats.significance import compare_scorers, permute_scorers
from panderm_utils.stats.subgroups import Gap, compare_group_scorers


def evaluate_image_scores(scores: pd.DataFrame, clusters=None, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Returns value (the mean over the images), low, high, normal_low, normal_high of each metric; see `evaluate`.

    Args:
        scores: One row per image, one column per metric.
        clusters: The cluster of each image [N], such as its lesion's id; an image without an entry is one of its own.
    """
    return score_table(mean_scorer(scores, clusters), scores.columns, replicates, seed)


def compare_image_scores(
    scores_a: pd.DataFrame, scores_b: pd.DataFrame, clusters=None, replicates: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Returns the columns of `paired_difference` and p_value (as `permutation_test`) for two models on the same images.

    Args:
        scores_a, scores_b: As in `evaluate_image_scores`, with the images and metrics in the same order.
        clusters: As there.
        replicates: Resamples, and permutations.
    """
    if scores_a.shape != scores_b.shape or list(scores_a) != list(scores_b):
        found = " and ".join(f"{len(scores)} images with {', '.join(scores)}" for scores in (scores_a, scores_b))
        raise MetricError(f"the scores are of {found}: pass those of the same images and metrics")
    a, b = scorers = mean_scorer(scores_a, clusters), mean_scorer(scores_b, clusters)
    both = MeanScorer(np.concatenate([a.sums, b.sums]), np.concatenate([a.sizes, b.sizes]))
    table = compare_scorers(scorers, scores_a.columns, replicates, seed)
    return table.assign(p_value=permute_scorers(scorers, both, scores_a.columns, replicates, seed))


def compare_group_means(
    values, groups, clusters=None, replicates: int = 1000, seed: int = 0
) -> tuple[pd.DataFrame, Gap]:
    """Returns a table of one row per group, and the largest gap between judged groups, of a score's mean.

    Args:
        values: The score of each image [N].
        groups: The group of each image [N], text; see `group_labels`.
        clusters: As in `evaluate_image_scores`; the images of a cluster that are in one group are drawn together.

    Returns:
        Table with group, images, value, low, high, judged, note, and the gap, as by `compare_groups`. A group is judged
        if it has at least FEWEST_IMAGES clusters.
    """
    values, groups = np.asarray(values, dtype=np.float64), np.asarray(groups).astype(str)
    if values.shape != groups.shape or values.ndim != 1 or not len(values):
        raise MetricError(f"values and groups must be one per image, [N], got {values.shape} and {groups.shape}")
    names, code = np.unique(groups, return_inverse=True)
    keys, unit = np.unique(_cluster_numbers(clusters, len(values)) * len(names) + code, return_inverse=True)
    whole = _totals(values[:, None], unit)
    table, gap = compare_group_scorers(
        lambda rows: MeanScorer(whole.sums[rows], whole.sizes[rows]),
        whole.y,
        names[keys % len(names)],
        0,
        replicates,
        seed,
        unit="images" if clusters is None else "clusters",
        classes=1,
    )
    images = dict(zip(names, np.bincount(code).tolist(), strict=True))
    return table.assign(images=table["group"].map(images)).drop(columns=["classes", "rarest"]), gap


def rank_correlation(a, b, clusters=None, replicates: int = 1000, seed: int = 0) -> pd.Series:
    """Returns Spearman's correlation of two numbers of each image, [N] each: value, low, high, normal_low, normal_high.

    NaN if one of the numbers is the same for all images.
    """
    a, b = (np.asarray(numbers, dtype=np.float64) for numbers in (a, b))
    if a.shape != b.shape or a.ndim != 1 or not len(a) or np.isnan([a, b]).any():
        raise MetricError(f"a and b must be numbers, one per image, [N], got {a.shape} and {b.shape}: leave out NaN")
    scorer = RankCorrelationScorer(a, b, _cluster_numbers(clusters, len(a)))
    return score_table(scorer, ["correlation"], replicates, seed).loc["correlation"]


class MeanScorer:
    """Computes means over images for any resamples of clusters; used like `Scorer`.

        scorer(counts)  [R, M]; counts [U, R]: how often each cluster is in each resample

    The mean over no image is NaN.
    """

    def __init__(self, sums: np.ndarray, sizes: np.ndarray):
        """Takes the sum of each metric over the images of each cluster [U, M], and their number [U, M]."""
        self.sums, self.sizes = sums, sizes
        self.y = np.zeros(len(sums), dtype=np.int64)  # one label: any cluster may be drawn in place of any other

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        # einsum adds in the same order, to the same last digit, in every block.
        sums, sizes = (np.einsum("ur,um->rm", counts, part) for part in (self.sums, self.sizes))
        return np.divide(sums, sizes, out=np.full_like(sums, np.nan), where=sizes > 0)


class RankCorrelationScorer:
    """Computes Spearman's correlation of a and b [N] for any resamples of clusters: [R, 1]; used like `Scorer`."""

    def __init__(self, a: np.ndarray, b: np.ndarray, cluster: np.ndarray):
        self._cluster, self.y = cluster, np.zeros(cluster.max() + 1, dtype=np.int64)
        self._places = [np.unique(numbers, return_inverse=True)[1] for numbers in (a, b)]
        self._sums = [summing(place, place.max() + 1) for place in self._places]

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        images = counts[self._cluster]
        a, b = (
            self._ranks(place, sums, images) - (images.sum(axis=0) + 1) / 2
            for place, sums in zip(self._places, self._sums, strict=True)
        )
        both, of_a, of_b = ((images * one * other).sum(axis=0) for one, other in ((a, b), (a, a), (b, b)))
        with np.errstate(invalid="ignore"):
            return (both / np.sqrt(of_a * of_b))[:, None]

    @staticmethod
    def _ranks(place: np.ndarray, sums, images: np.ndarray) -> np.ndarray:
        """Returns the rank [N, R] of each image in each resample; ties share their mean rank."""
        tied = sums @ images
        return (np.cumsum(tied, axis=0) - (tied - 1) / 2)[place]


def mean_scorer(scores: pd.DataFrame, clusters) -> MeanScorer:
    """Returns the scorer of scores [N, M] of images, and their clusters [N] or None."""
    values = scores.to_numpy(dtype=np.float64)
    if not values.size:
        raise MetricError("there are no scores: pass one row per test image and one column per metric")
    return _totals(values, _cluster_numbers(clusters, len(values)))


def _totals(values: np.ndarray, cluster: np.ndarray) -> MeanScorer:
    add = summing(cluster, cluster.max() + 1)
    return MeanScorer(add @ np.nan_to_num(values), add @ (~np.isnan(values)).astype(np.float64))


def _cluster_numbers(clusters, images: int) -> np.ndarray:
    """Returns the number of the cluster of each image [N], in order of first appearance."""
    if clusters is None:
        return np.arange(images)
    names = pd.Series(clusters, dtype=object)
    if len(names) != images:
        raise MetricError(f"clusters must be one per image, [{images}], got [{len(names)}]")
    texts = names.astype(str)
    alone = names.isna() | is_missing(texts)
    return pd.factorize(texts.mask(alone, [f"alone\0{i}" for i in range(images)]))[0]
