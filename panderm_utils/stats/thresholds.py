"""Operating points: sensitivity at a fixed specificity, and specificity at a fixed sensitivity.

An image is predicted positive if its score reaches a threshold. Sensitivity at a level is the largest over all
thresholds whose specificity is at least the level, and the reverse for specificity. Nothing is interpolated, and a
threshold above all scores (sensitivity 0, specificity 1) is allowed: every number belongs to a usable threshold.

Two classes: class 1 is positive. More: each class against all others, by its own probability.

Symbols: N images, K classes, R resamples (`bootstrap`), P points (a class, the fixed rate and its level).
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from panderm_utils.stats.metrics import MetricWarning, check_predictions, on_test_set
from panderm_utils.stats.resampling import MetricError, bootstrap, intervals, summing

LEVELS = (0.8, 0.9, 0.95)
GIVEN = {"specificity": "sensitivity", "sensitivity": "specificity"}  # the fixed rate -> the measured one


def operating_points(
    y, proba, class_names: Sequence[str], levels: Sequence[float] = LEVELS, replicates: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Returns one row per operating point: class, images, others, given, level, measured, value, low, high.

    `given` is the rate fixed at `level`, `measured` the other one. `images` counts the class, `others` all other
    classes. low and high are percentiles over the stratified resamples of `bootstrap`; each resample chooses its own
    threshold, so the choice is part of the uncertainty. A class with no test image, or with all of them, is NaN; a
    MetricWarning names it.

    Args:
        y: True labels [N], integers in 0..K-1.
        proba: Class probabilities [N, K].
        class_names: K names, in label order.
        levels: The fixed rates, above 0 and at most 1.
    """
    scorer = OperatingPoints(y, proba, levels)
    names, levels = list(class_names), list(levels)
    if len(names) != proba.shape[1]:
        raise MetricError(f"class_names must be {proba.shape[1]}, one per column of proba, got {len(names)}")
    if bad := [level for level in levels if not 0 < level <= 1]:
        raise MetricError(f"levels must be above 0 and at most 1, got {bad}: write 0.9 for 90%")
    rows = [
        {"class": names[k], "images": (scorer.y == k).sum(), "others": (scorer.y != k).sum(), "given": given}
        | {"level": level, "measured": measured}
        for k in scorer.classes
        for given, measured in GIVEN.items()
        for level in levels
    ]
    ends = intervals(bootstrap(scorer, scorer.y, replicates, seed))
    table = pd.DataFrame(rows).assign(value=on_test_set(scorer), low=ends["low"], high=ends["high"])
    if undefined := table.loc[table["value"].isna(), "class"].unique().tolist():
        text = f"{', '.join(undefined)}: NaN where a class has no test image, or all of them"
        warnings.warn(text, MetricWarning, stacklevel=2)
    return table


class OperatingPoints:
    """Computes the points of every class on any resamples of the images, many at once; used like `metrics.Scorer`.

    scorer(counts)  [R, P]: class by class, at each level of specificity, then of sensitivity; counts [N, R]
    """

    def __init__(self, y, proba, levels: Sequence[float] = LEVELS):
        self.y, proba = check_predictions(y, proba)
        self.classes = [1] if proba.shape[1] == 2 else list(range(proba.shape[1]))
        self._levels = levels
        self._sides = [_Sides(self.y == k, proba[:, k]) for k in self.classes]

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        points = [row for sides in self._sides for row in self._points(*sides(counts))]
        return np.stack(points, axis=1)

    def _points(self, sensitivity: np.ndarray, specificity: np.ndarray):
        """Yields [R] for each point. As the threshold rises, sensitivity falls and specificity rises."""
        resamples = np.arange(sensitivity.shape[1])
        for level in self._levels:
            lowest = (specificity < level).sum(axis=0)
            yield sensitivity[lowest, resamples]
        for level in self._levels:
            highest = (sensitivity >= level).sum(axis=0) - 1
            yield specificity[highest, resamples]


class _Sides:
    """Sensitivity and specificity [G + 1, R] at the G distinct scores of the positive images, and above the last.

    No other threshold is better: lowering it towards the next positive score only adds false positives.
    """

    def __init__(self, positive: np.ndarray, score: np.ndarray):
        self._defined = positive.any() and not positive.all()
        thresholds = np.unique(score[positive])
        self._places = len(thresholds) + 1
        reached = np.searchsorted(thresholds, score, "right")
        self._sums = summing(reached + self._places * positive, 2 * self._places)

    def __call__(self, counts):
        if not self._defined:
            return np.full((2, 1, counts.shape[1]), np.nan)
        cells = (self._sums @ counts).reshape(2, self._places, -1)
        total = cells.sum(axis=1, keepdims=True)
        called = np.zeros_like(cells)  # images at or above each threshold; none above the last
        np.cumsum(cells[:, :0:-1], axis=1, out=called[:, -2::-1])
        # Integers divided once, so that 9 of 10 equals a level of 0.9.
        return called[1] / total[1], (total[0] - called[0]) / total[0]
