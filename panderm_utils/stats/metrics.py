"""The metrics of the paper, from true labels and class probabilities: NumPy in, NumPy or a table out.

| metric | what it is |
|---|---|
| accuracy | fraction of images predicted correctly |
| balanced_accuracy | mean recall of the classes |
| quadratic_kappa | Cohen's kappa, disagreement weighted by the squared distance of the classes |
| weighted_f1 | F1 of each class, weighted by its images |
| auroc | two classes: of class 1; more: one-versus-one, mean over all ordered pairs of classes |
| aupr | average precision; two classes: of class 1; more: one-versus-rest, mean over the classes |

The predicted class has the largest probability; of equal ones, the first. All values equal scikit-learn's, also with
tied scores, except where scikit-learn is undefined, raises or returns zero:

- A class without test images: balanced accuracy, AUROC and AUPR average over the other classes, weighted F1 gives it no
  weight. A MetricWarning names it. (Kappa numbers the classes that are true or predicted, like scikit-learn.)
- Test images of one class only: kappa, AUROC and AUPR are NaN, with a MetricWarning.
- Rows of proba that are not probabilities (negative, infinite, not summing to 1) raise a MetricError.

With few test images of a class, the stratified interval is too narrow: with one, its recall is 0 or 1 in all resamples.
The 95% interval of a recall between 0.6 and 0.9 contains it in 40 to 91 of 100 test sets with 5 images, 65 to 96 with
10, 88 to 96 with 20 (simulated). Below FEW_IMAGES, a MetricWarning names the classes, and an unstratified interval is
added, whose resamples also vary the number of images of each class.

Symbols: N images, K classes, R resamples (`bootstrap`).
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import ndtri

from panderm_utils.stats.masks import MASK_METRICS
from panderm_utils.stats.resampling import LEVEL, Confusions, MetricError, Ranking, bootstrap, intervals

METRICS = ("accuracy", "balanced_accuracy", "quadratic_kappa", "weighted_f1", "auroc", "aupr")
# Means over images; others are over classes.
PER_IMAGE = ("accuracy", "weighted_f1", "weighted_recall", "top3", "top5", *MASK_METRICS)
FEW_IMAGES = 20  # test images of a class; with fewer, intervals of means over the classes are too narrow
SUM_TOLERANCE = 0.01  # of the probabilities of an image: 23 of them, rounded to three digits, may be off by 0.0115


class MetricWarning(UserWarning):
    """A metric is undefined, or leaves a class out."""


def evaluate(y, proba, replicates: int = 1000, seed: int = 0, class_names: Sequence[str] | None = None) -> pd.DataFrame:
    """Returns value, low, high (percentiles), normal_low, normal_high (the paper's interval) of the six metrics.

    value is computed on the whole test set; it is not the mean of the replicates. See `bootstrap` for the resamples.
    If a class has fewer than FEW_IMAGES test images, also unstratified_low and unstratified_high.

    Args:
        y: True labels [N], integers in 0..K-1.
        proba: Class probabilities [N, K].
        class_names: K names for warnings, in label order; by default the numbers.
    """
    return score_table(Scorer(y, proba, class_names), METRICS, replicates, seed)


def score_table(scorer, names: Sequence[str], replicates: int, seed: int) -> pd.DataFrame:
    """Returns the columns of `evaluate` for the metrics of any scorer."""
    columns = {"value": on_test_set(scorer), **intervals(bootstrap(scorer, scorer.y, replicates, seed))}
    sizes = np.unique(scorer.y, return_counts=True)[1]
    if len(sizes) > 1 and sizes.min() < FEW_IMAGES:
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a metric that is NaN in all resamples
            values = bootstrap(scorer, np.zeros(len(scorer.y)), replicates, seed)
            # Left out: resamples without a class that the metric needs.
            low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        columns |= {"unstratified_low": low, "unstratified_high": high}
    return pd.DataFrame(columns, index=pd.Index(names, name="metric"))


def widest_interval(metric: str, class_counts: Sequence[float]) -> float:
    """Returns the greatest width of a 95% interval that so many test images per class explain.

    The standard error of a mean over images is at most 0.5 / sqrt(N), that of a mean over classes at most
    0.5 sqrt(sum of 1 / images of a class) / K, of an area (which compares classes) over K - 1 instead of K; a kappa
    ranges over twice as much. A tenth is added for the noise of the bootstrap.

    Args:
        class_counts: Test images of each class [K].
    """
    counts = np.array([count for count in class_counts if count > 0], dtype=float)
    classes = max(1, len(counts) - (metric in ("auroc", "aupr")))
    error = 0.5 / np.sqrt(counts.sum()) if metric in PER_IMAGE else 0.5 * np.sqrt((1 / counts).sum()) / classes
    return float(1.1 * 2 * ndtri((1 + LEVEL) / 2) * error * (2 if metric == "quadratic_kappa" else 1))


def on_test_set(scorer) -> np.ndarray:
    """Returns a scorer's metrics [M] on the test set itself."""
    return scorer(np.ones((len(scorer.y), 1)))[0]


def auroc(y, proba) -> float:
    """Returns AUROC: of class 1 if K = 2, else one-versus-one, macro."""
    return float(on_test_set(Scorer(y, proba))[METRICS.index("auroc")])


def confusion(y, proba) -> np.ndarray:
    """Returns the confusion matrix [K, K]: true classes in rows, predicted classes in columns."""
    y, proba = check_predictions(y, proba)
    num_classes = proba.shape[1]
    cells = y * num_classes + proba.argmax(axis=1)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


# The next four map confusion matrices [..., K, K] to [...].


def accuracy(confusions: np.ndarray) -> np.ndarray:
    return _diagonal(confusions).sum(axis=-1) / confusions.sum(axis=(-2, -1))


def balanced_accuracy(confusions: np.ndarray) -> np.ndarray:
    """Returns the mean recall of the classes that have images."""
    images = confusions.sum(axis=-1)
    recall = _diagonal(confusions) / np.maximum(images, 1)
    return recall.sum(axis=-1) / (images > 0).sum(axis=-1)


def weighted_f1(confusions: np.ndarray) -> np.ndarray:
    images, predicted = confusions.sum(axis=-1), confusions.sum(axis=-2)
    f1 = 2 * _diagonal(confusions) / np.maximum(images + predicted, 1)
    return (f1 * images).sum(axis=-1) / images.sum(axis=-1)


def quadratic_kappa(confusions: np.ndarray) -> np.ndarray:
    """Returns quadratic-weighted kappa; NaN if all images are of one class.

    Quirk, like scikit-learn: a class that is neither true nor predicted is skipped when distances are counted.
    """
    images, predicted = confusions.sum(axis=-1), confusions.sum(axis=-2)
    number = np.cumsum(images + predicted > 0, axis=-1)
    distance = (number[..., :, None] - number[..., None, :]) ** 2
    seen = (distance * confusions).sum(axis=(-2, -1)) * images.sum(axis=-1)
    by_chance = (distance * (images[..., :, None] * predicted[..., None, :])).sum(axis=(-2, -1))
    several = (images > 0).sum(axis=-1) > 1
    return np.where(several, 1 - seen / np.where(several, by_chance, 1), np.nan)


class Scorer:
    """Computes the six metrics of one set of predictions on any resamples of its images, many at once.

    Sorts everything once, when it is made; a resample then needs counts alone.

        scorer(counts)  [R, 6] in the order of METRICS; counts [N, R]: how often each image is in each resample

    In a resample that lacks a class of y, kappa, AUROC and AUPR may be NaN. For a subgroup, make a scorer of its rows.
    """

    def __init__(self, y, proba, class_names: Sequence[str] | None = None):
        self.y, proba = check_predictions(y, proba)
        means = "balanced accuracy, AUROC and AUPR are means over the other classes"
        present = classes_present(self.y, proba, class_names, "kappa, AUROC and AUPR", means)
        self._confusions = Confusions(self.y, proba)
        ranked = [1] if proba.shape[1] == 2 else present
        self._rankings = [Ranking(self.y, proba[:, k], k) for k in ranked] if len(present) > 1 else []

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        confusions = self._confusions(counts)
        from_labels = [f(confusions) for f in (accuracy, balanced_accuracy, quadratic_kappa, weighted_f1)]
        if not self._rankings:
            return np.stack([*from_labels, *np.full((2, counts.shape[1]), np.nan)], axis=1)
        counts = counts.astype(np.float32)  # exact up to 8 million images, and half the memory to read
        areas, precisions = zip(*(ranking(counts) for ranking in self._rankings), strict=True)
        # One resample a row, so that sums have the same order, and the same last digit, in every block.
        means = [np.concatenate(areas, axis=1).mean(axis=1), np.stack(precisions, axis=1).mean(axis=1)]
        return np.stack([*from_labels, *means], axis=1)


def classes_present(y, proba, class_names, comparing: str, means: str) -> np.ndarray:
    """Returns the classes that have a test image; a MetricWarning names the others, and those with few.

    Args:
        class_names: K names, or none.
        comparing: The metrics that are NaN if there is only one class, for the warning.
        means: How metrics treat a missing class, for the warning.
    """
    names = list(class_names or ()) or [f"class {k}" for k in range(proba.shape[1])]
    counts = np.bincount(y, minlength=len(names))
    few = [f"{names[k]} ({n})" for k, n in enumerate(counts) if 0 < n < FEW_IMAGES]
    missing, present = [names[k] for k in np.flatnonzero(counts == 0)], np.flatnonzero(counts)
    if len(present) == 1:
        text = f"all test images are of {names[present[0]]}: {comparing} compare classes and are undefined; "
        warnings.warn(f"{text}use a test split with two classes or more", MetricWarning, stacklevel=4)
    elif missing:
        warnings.warn(f"no test image of {listed(missing)}: {means}", MetricWarning, stacklevel=4)
    if few and len(present) > 1:
        text = f"fewer than {FEW_IMAGES} test images of {listed(few)}: intervals of metrics that average over classes "
        warnings.warn(f"{text}are too narrow; compare unstratified_low and _high", MetricWarning, stacklevel=4)
    return present


def _diagonal(confusions):
    return np.diagonal(confusions, axis1=-2, axis2=-1)


def listed(names) -> str:
    return ", ".join(map(str, names))


def check_predictions(y, proba) -> tuple[np.ndarray, np.ndarray]:
    """Returns y [N] as int64 and proba [N, K] as float64.

    Raises:
        MetricError: They cannot be scored; the message says why and what to do.
    """
    y, proba = np.asarray(y), np.asarray(proba)
    if proba.dtype.kind not in "fiu":
        raise MetricError(f"proba must be numbers, got {proba.dtype}: convert it with proba.astype(float)")
    if proba.ndim != 2 or proba.shape[1] < 2:
        raise MetricError(
            f"proba must be [N, K] with a column for each of at least two classes, got {list(proba.shape)}: "
            "from the probability p [N] of class 1, pass np.stack([1 - p, p], axis=1)"
        )
    if y.shape != proba.shape[:1]:
        raise MetricError(f"y must have one label a row of proba, [{len(proba)}], got {list(y.shape)}")
    if not len(y):
        raise MetricError("y and proba are empty: there is nothing to score; check the split's name")
    if y.dtype.kind not in "iub":
        raise MetricError(f"labels must be integers, got {y.dtype}: convert them with y.astype(int)")
    y, proba, num_classes = y.astype(np.int64), proba.astype(np.float64), proba.shape[1]
    if outside := np.unique(y[(y < 0) | (y >= num_classes)]).tolist():
        raise MetricError(
            f"labels {outside[:5]} are outside 0..{num_classes - 1}, the columns of proba: check the CSV's labels, "
            "or give the model one output per class"
        )
    if len(broken := np.flatnonzero(~np.isfinite(proba).all(axis=1))):
        raise MetricError(
            f"proba has NaN or infinity in {len(broken)} of {len(y)} rows, first in row {broken[0]}: "
            "look at the features of these images, or predict in fp32"
        )
    invalid = (proba < 0).any(axis=1) | (np.abs(proba.sum(axis=1) - 1) > SUM_TOLERANCE)
    if invalid.any():
        raise MetricError(
            f"proba must be probabilities: {invalid.sum():,} of {len(y):,} rows are negative or do not sum to 1, first "
            f"row {invalid.argmax()}; convert scores to probabilities, for example with a softmax"
        )
    return y, proba
