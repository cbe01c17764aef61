"""Whether a probability means what it says: reliability tables, expected calibration error, Brier score.

Two classes: the probability of class 1 is held against the share of images that are of class 1. More classes: the
largest probability of each image (its confidence) is held against the share that is right (accuracy).

| metric | what it is |
|---|---|
| ece | expected calibration error: mean over the bins of abs(mean probability - share), weighted by their images |
| brier | mean squared distance of probabilities and truth (1 for the class of the image, 0 for the others) |

The squares of the Brier score are summed over the classes, from 0 to 2; of two classes only class 1 counts, as usual,
from 0 to 1.

Bins are half open, (low, high], the first closed. 15 of equal width from 0 to 1 unless said otherwise; of equal mass:
their edges are quantiles of the probabilities, so that each holds about as many images, and ties stay together.

Symbols: N images, K classes, B bins, R resamples (`bootstrap`).
"""

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.special import ndtri

from panderm_utils.stats.metrics import check_predictions, on_test_set
from panderm_utils.stats.resampling import BLOCK_CELLS, LEVEL, MetricError, bootstrap, intervals, summing

BINS = 15
CALIBRATION_METRICS = ("ece", "brier")


def evaluate_calibration(
    y, proba, bins: int = BINS, equal_mass: bool = False, replicates: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Returns value, low, high and by_chance of `ece` and `brier`, from the stratified resamples of `bootstrap`.

    The interval of the Brier score is of percentiles. Resampling adds noise to every bin, which only ever raises the
    expected calibration error: percentiles of it lie above the truth, and of a hundred images miss it nearly always.
    So its percentiles are mirrored at the value (the basic bootstrap), cut at 0, and reach at least to the value.

    by_chance: what this error stays below in 95 of 100 test sets of a model with the same probabilities that are all
    true. An error below it is no evidence of bad calibration; NaN for the Brier score.

    Args:
        y: True labels [N], integers in 0..K-1.
        proba: Class probabilities [N, K].
        bins: How many; equal_mass: whether each holds as many images, rather than being as wide.

    Raises:
        MetricError: As `metrics.evaluate`, or proba holds scores that are no probabilities.
    """
    scorer = CalibrationScorer(y, proba, bins, equal_mass)
    value = on_test_set(scorer)
    ends = intervals(bootstrap(scorer, scorer.y, replicates, seed))
    low, high, error = ends["low"], ends["high"], value[0]
    low[0], high[0] = max(0, 2 * error - high[0]), max(error, 2 * error - low[0])
    chance = [np.quantile(scorer.errors_if_calibrated(replicates, seed), LEVEL), np.nan]
    columns = {"value": value, "low": low, "high": high, "by_chance": chance}
    return pd.DataFrame(columns, index=pd.Index(CALIBRATION_METRICS, name="metric"))


def reliability(y, proba, bins: int = BINS, equal_mass: bool = False) -> pd.DataFrame:
    """Returns a row a bin: from, to, images, predicted (mean probability), observed (share), low and high of the share.

    low and high are Wilson's 95% interval, which needs no resampling and holds for few images too. A bin without an
    image is NaN. Arguments as in `evaluate_calibration`.
    """
    probability, true = _held_against(*_check(y, proba))
    edges = _edges(probability, bins, equal_mass)
    place = _places(probability, edges)
    images, predicted, observed = (np.bincount(place, weights, bins) for weights in (None, probability, true))
    z, full = ndtri((1 + LEVEL) / 2), np.where(images > 0, images, np.nan)
    middle = (observed + z**2 / 2) / (full + z**2)
    reach = z / (full + z**2) * np.sqrt(observed * (full - observed) / full + z**2 / 4)
    columns = {"from": edges[:-1], "to": edges[1:], "images": images, "predicted": predicted / full}
    return pd.DataFrame(columns | {"observed": observed / full, "low": middle - reach, "high": middle + reach})


class CalibrationScorer:
    """Both metrics of one set of predictions on any resamples of its images; used as `metrics.Scorer`.

    scorer(counts)  [R, 2] in the order of CALIBRATION_METRICS; counts [N, R]: how often each image is in each resample

    Bins of equal mass keep the edges that they have on the test set.
    """

    def __init__(self, y, proba, bins: int = BINS, equal_mass: bool = False):
        self.y, proba = _check(y, proba)
        self._probability, true = _held_against(self.y, proba)
        place = _places(self._probability, _edges(self._probability, bins, equal_mass))
        self._sums = summing(place, bins)
        # Mean probability less share, times the bin's images, is a sum over its images.
        excess = (self._probability - true, (place, np.arange(len(place))))
        self._excess = csr_array(excess, shape=(bins, len(place)))
        squares = (proba - np.eye(proba.shape[1])[self.y]) ** 2
        self._squares = squares[:, 1] if proba.shape[1] == 2 else squares.sum(axis=1)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        sums = np.stack([np.abs(self._excess @ counts).sum(axis=0), self._squares @ counts])
        return (sums / counts.sum(axis=0)).T

    def errors_if_calibrated(self, replicates: int, seed: int) -> np.ndarray:
        """Returns the expected calibration error [R] of labels drawn anew, each with the very probability given."""
        generator, found = np.random.default_rng(seed), []
        images, block = len(self.y), max(1, BLOCK_CELLS // len(self.y))
        for start in range(0, replicates, block):
            uniform = generator.random((min(block, replicates - start), images)).T
            excess = self._probability[:, None] - (uniform < self._probability[:, None])
            found.append(np.abs(self._sums @ excess).sum(axis=0) / images)
        return np.concatenate(found)


def _check(y, proba) -> tuple[np.ndarray, np.ndarray]:
    y, proba = check_predictions(y, proba)
    odd = (proba < 0).any(axis=1) | (np.abs(proba.sum(axis=1) - 1) > 0.01)  # rounded ones will do
    if odd.any():
        raise MetricError(
            f"proba must be probabilities: {odd.sum():,} of {len(y):,} rows are negative or do not sum to 1, first row "
            f"{odd.argmax()}; turn scores into probabilities, such as by a softmax"
        )
    return y, proba


def _held_against(y, proba) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probability [N] that is judged, and whether [N] what it stands for is true, as 0 or 1."""
    if proba.shape[1] == 2:
        return proba[:, 1], (y == 1).astype(np.float64)
    return proba.max(axis=1), (proba.argmax(axis=1) == y).astype(np.float64)


def _edges(probability: np.ndarray, bins: int, equal_mass: bool) -> np.ndarray:
    if not isinstance(bins, int | np.integer) or bins < 1:
        raise MetricError(f"bins must be a whole number of at least 1, got {bins!r}: {BINS} is usual")
    parts = np.linspace(0, 1, bins + 1)
    return np.quantile(probability, parts) if equal_mass else parts


def _places(probability: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.searchsorted(edges[1:-1], probability)
