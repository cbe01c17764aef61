"""Calibration of predicted probabilities: reliability tables, expected calibration error, Brier score.

Two classes: the probability of class 1 is compared with the fraction of images in class 1. More classes: the largest
probability of each image (its confidence) is compared with the fraction predicted correctly (accuracy).

| metric | what it is |
|---|---|
| ece | expected calibration error: mean over bins of abs(mean probability - observed fraction), weighted by images |
| brier | mean squared error of the probabilities against the one-hot true class |

The Brier score sums over all classes (0 to 2), except with two classes, where only class 1 counts (0 to 1).

Bins are half open, (low, high], the first closed. By default there are 15 of equal width from 0 to 1. Edges of
equal-mass bins are quantiles of the probabilities: each bin holds about as many images, and ties stay together.

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

    The Brier score has a percentile interval. The ECE has a basic bootstrap interval (percentiles mirrored at the
    value, clipped at 0, always including the value): resampling adds noise to every bin, which only ever raises the
    ECE, so its percentiles lie above the true value and, with a hundred images, nearly always miss it.

    by_chance: the 95th percentile of the ECE of a perfectly calibrated model with the same probabilities. An ECE below
    it is no evidence of miscalibration; NaN for the Brier score.

    Args:
        y: True labels [N], integers in 0..K-1.
        proba: Class probabilities [N, K].
        bins: Number of bins; equal_mass: bins hold equally many images instead of being equally wide.

    Raises:
        MetricError: As `metrics.evaluate`.
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
    """Returns one row per bin: from, to, images, predicted (mean probability), observed (fraction), low, high.

    low and high are Wilson's 95% interval of the observed fraction, which is valid for few images too. An empty bin is
    NaN. Arguments as in `evaluate_calibration`.
    """
    probability, true = _predicted_and_true(*check_predictions(y, proba))
    edges = _edges(probability, bins, equal_mass)
    bin_index = _bin_indices(probability, edges)
    images, predicted, observed = (np.bincount(bin_index, weights, bins) for weights in (None, probability, true))
    z, count = ndtri((1 + LEVEL) / 2), np.where(images > 0, images, np.nan)
    middle = (observed + z**2 / 2) / (count + z**2)
    reach = z / (count + z**2) * np.sqrt(observed * (count - observed) / count + z**2 / 4)
    columns = {"from": edges[:-1], "to": edges[1:], "images": images, "predicted": predicted / count}
    return pd.DataFrame(columns | {"observed": observed / count, "low": middle - reach, "high": middle + reach})


class CalibrationScorer:
    """Computes both metrics of one set of predictions on any resamples of its images; used like `metrics.Scorer`.

    scorer(counts)  [R, 2] in the order of CALIBRATION_METRICS; counts [N, R]: how often each image is in each resample

    Equal-mass bins keep their test-set edges.
    """

    def __init__(self, y, proba, bins: int = BINS, equal_mass: bool = False):
        self.y, proba = check_predictions(y, proba)
        self._probability, true = _predicted_and_true(self.y, proba)
        bin_index = _bin_indices(self._probability, _edges(self._probability, bins, equal_mass))
        self._sums = summing(bin_index, bins)
        # (mean probability - observed fraction) * images of a bin is a sum over its images.
        excess = (self._probability - true, (bin_index, np.arange(len(bin_index))))
        self._excess = csr_array(excess, shape=(bins, len(bin_index)))
        squares = (proba - np.eye(proba.shape[1])[self.y]) ** 2
        self._squares = squares[:, 1] if proba.shape[1] == 2 else squares.sum(axis=1)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        sums = np.stack([np.abs(self._excess @ counts).sum(axis=0), self._squares @ counts])
        return (sums / counts.sum(axis=0)).T

    def errors_if_calibrated(self, replicates: int, seed: int) -> np.ndarray:
        """Returns the ECE [R] with labels redrawn from the predicted probabilities."""
        generator, errors = np.random.default_rng(seed), []
        images, block = len(self.y), max(1, BLOCK_CELLS // len(self.y))
        for start in range(0, replicates, block):
            uniform = generator.random((min(block, replicates - start), images)).T
            excess = self._probability[:, None] - (uniform < self._probability[:, None])
            errors.append(np.abs(self._sums @ excess).sum(axis=0) / images)
        return np.concatenate(errors)


def _predicted_and_true(y, proba) -> tuple[np.ndarray, np.ndarray]:
    """Returns the assessed probability [N] and whether the predicted event is true [N], 0 or 1."""
    if proba.shape[1] == 2:
        return proba[:, 1], (y == 1).astype(np.float64)
    return proba.max(axis=1), (proba.argmax(axis=1) == y).astype(np.float64)


def _edges(probability: np.ndarray, bins: int, equal_mass: bool) -> np.ndarray:
    if not isinstance(bins, int | np.integer) or bins < 1:
        raise MetricError(f"bins must be a whole number of at least 1, got {bins!r}; the default is {BINS}")
    parts = np.linspace(0, 1, bins + 1)
    return np.quantile(probability, parts) if equal_mass else parts


def _bin_indices(probability: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.searchsorted(edges[1:-1], probability)
