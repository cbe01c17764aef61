"""Stratified bootstrap: resamples of the test images, many at once, and their confidence intervals.

A replicate replaces every image by one drawn with replacement from its class, as upstream does. So every replicate has
the labels y: each class keeps its number of images, and no class is missing.

The draws depend only on y, the seed and the replicate, not on the scores, the number of replicates, the block size or
the number of threads. Two models scored on the same images in the same order with the same seed see the same
resamples, so their replicates can be subtracted row by row:

    bootstrap(Scorer(y, proba_a), y, seed=0) - bootstrap(Scorer(y, proba_b), y, seed=0)

Symbols: N images, K classes, R replicates (or one block of them), M metrics.
"""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.sparse import csr_array
from scipy.special import ndtri, stdtrit
from tqdm.auto import tqdm

from panderm_utils.messages import UserError

LEVEL = 0.95
BLOCK_CELLS = 1 << 19  # images x replicates at once: the counts of a block (4 MB) fit in the CPU cache
KEPT_BYTES = 1 << 24  # of freed memory, kept for the next block: fetching it from the system took a third of the time


class MetricError(UserError):
    """Labels, scores or settings that cannot be evaluated; the message says which and what to do."""


def resampled_rows(y, replicates: int = 1000, seed: int = 0, block: int | None = None) -> Iterator[np.ndarray]:
    """Yields blocks `[R, N]` of row numbers, one replicate per row; `y[rows]` equals y in every replicate.

    Args:
        y: Labels [N], of any sortable type.
        block: Replicates per block; None keeps memory small. Affects speed only.
    """
    y = np.asarray(y)
    if y.ndim != 1 or not len(y):
        raise MetricError(f"y must hold the labels of the test images, [N], got {list(y.shape)}")
    if not isinstance(replicates, int | np.integer) or replicates < 2:
        raise MetricError(f"replicates must be a whole number of at least 2, got {replicates!r}; the paper uses 1000")
    if block is not None and block < 1:
        raise MetricError(f"block must be at least 1 replicate, got {block!r}; leave it out for a good default")
    _, label, sizes = np.unique(y, return_inverse=True, return_counts=True)
    members = np.argsort(label, kind="stable")  # all rows, class by class
    first, size = (np.cumsum(sizes) - sizes)[label], sizes[label].astype(np.float64)
    block = block or max(1, BLOCK_CELLS // len(y))
    generator = np.random.Generator(np.random.PCG64(seed))
    for start in range(0, replicates, block):
        drawn = (generator.random((min(block, replicates - start), len(y))) * size).astype(np.int64)
        drawn += first
        yield members.take(drawn)


def resampled_counts(y, replicates: int = 1000, seed: int = 0, block: int | None = None) -> Iterator[np.ndarray]:
    """Yields blocks `[N, R]` float64 of how often each replicate contains each image, with `resampled_rows`' draws."""
    for rows in resampled_rows(y, replicates, seed, block):
        count, images = rows.shape
        rows += np.arange(count)[:, None] * images
        # Counted replicate by replicate, in the CPU cache, then transposed.
        yield np.bincount(rows.ravel(), minlength=rows.size).reshape(count, images).T.astype(np.float64, order="C")


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], y, replicates: int = 1000, seed: int = 0, block: int | None = None
) -> np.ndarray:
    """Returns a statistic of every replicate, `[R, M]`, in the memory of one block; long runs show a progress bar.

    Args:
        statistic: Maps the counts `[N, R]` of a block to `[R, M]`, such as `metrics.Scorer(y, proba)`.
    """
    results = []
    np.empty(KEPT_BYTES, dtype=np.uint8)  # freed at once, after which glibc keeps as much of what is freed
    with tqdm(total=replicates, desc="bootstrap", unit="replicate", delay=3, leave=False) as bar:
        for counts in resampled_counts(y, replicates, seed, block):
            results.append(statistic(counts))
            bar.update(counts.shape[1])
    return np.concatenate(results)


def intervals(values: np.ndarray, level: float = LEVEL) -> dict[str, np.ndarray]:
    """Returns `low`, `high`, `normal_low` and `normal_high`, `[M]` each, of replicates `[R, M]`.

    low and high are percentiles. The normal interval is the paper's: mean of the replicates -/+ t * their standard
    deviation, with t the quantile of Student's distribution with R - 1 degrees of freedom (1.962 for 1,000). It is
    symmetric about the mean of the replicates, not the value on the test set, and may leave [0, 1].
    A NaN metric has NaN intervals.
    """
    count, tail = len(values), (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    mean, reach = values.mean(axis=0), stdtrit(count - 1, 1 - tail) * values.std(axis=0, ddof=1)
    return {"low": low, "high": high, "normal_low": mean - reach, "normal_high": mean + reach}


def in_standard_errors(difference, low, high):
    """Returns differences from a value in standard errors of its interval; infinite if the interval has no width."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(difference, (high - low) / (2 * ndtri((1 + LEVEL) / 2)))


class Confusions:
    """Computes confusion matrices of labels [N] and class probabilities [N, K] for any resamples.

    Called with counts [N, R] it returns [R, K, K]: true classes in rows, predicted classes in columns.
    """

    def __init__(self, y, proba):
        self.num_classes = proba.shape[1]
        self._cells = summing(y * self.num_classes + proba.argmax(axis=1), self.num_classes**2)

    def __call__(self, counts):
        return np.ascontiguousarray((self._cells @ counts).T).reshape(-1, self.num_classes, self.num_classes)


class Ranking:
    """Computes AUROC and average precision of class k, ranked by one score [N], for any resamples.

    Called with counts [N, R] it returns the area under the ROC curve of class k against each other class, `[R, classes
    - 1]`, and the average precision of class k against all others, `[R]`.

    The G distinct scores of class k, from the highest, divide the scale into 2 G + 1 places: above the first (0), at
    the g-th (2 g + 1), below it (2 g + 2). Images of one class at one place are equivalent, so a resample is first
    summed over them, into cells [C, R]; the first G cells are those of class k.
    """

    def __init__(self, y, score, k):
        thresholds = np.unique(-score[y == k])
        above, reached = (np.searchsorted(thresholds, -score, side) for side in ("left", "right"))
        self._places, width = len(thresholds), 2 * len(thresholds) + 1
        cells, cell = np.unique(np.where(y == k, -1, y) * width + above + reached, return_inverse=True)
        self._sums = summing(cell, len(cells))
        label, place = np.divmod(cells[self._places :], width)
        classes, label = np.unique(label, return_inverse=True)
        above, reached = place // 2, (place + 1) // 2
        self._by_class, self._by_place = summing(label, len(classes)), summing(above, self._places + 1)
        # Twice the wins over an image, as a tie counts half: images of class k above it, and at or above it.
        ends = np.stack([above, reached], axis=1).ravel(), np.arange(0, 2 * len(place) + 1, 2)
        self._won = csr_array((np.ones(2 * len(place), np.float32), *ends), shape=(len(place), self._places + 1))

    def __call__(self, counts):
        cells = self._sums @ counts
        own, others = cells[: self._places], cells[self._places :]
        # Whole numbers, one resample a row: sums of floats, or down a column, take several times as long.
        own, passed = (part.T.astype(np.int32, order="C") for part in (own, (self._by_place @ others)[:-1]))
        ranked = np.zeros((len(own), self._places + 1), dtype=np.int32)  # images of class k above each threshold
        np.cumsum(own, axis=1, dtype=np.int32, out=ranked[:, 1:])
        reached, total = ranked[:, 1:], ranked[:, -1].astype(np.float64)
        won = self._won @ ranked.T.astype(cells.dtype, order="C")
        won = self._by_class @ np.multiply(won, others, dtype=np.float64)
        areas = won / (2 * total * (self._by_class @ others))
        called = np.cumsum(passed, axis=1, dtype=np.int32) + reached
        terms = np.multiply(own, reached, dtype=np.float64) / np.maximum(called, 1)
        return np.ascontiguousarray(areas.T), np.ascontiguousarray(terms[:, ::-1]).sum(axis=1) / total


def summing(group: np.ndarray, groups: int) -> csr_array:
    """Returns the matrix [groups, N] that sums the rows of each group: far faster on many columns than indexing."""
    ones = np.ones(len(group), dtype=np.float32)  # a product has the precision of the rows, or this one
    return csr_array((ones, (group, np.arange(len(group)))), shape=(groups, len(group)))
