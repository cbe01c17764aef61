"""The metrics that the published fine-tuning reports; rules and intervals are those of `stats.metrics`.

| metric | what it is |
|---|---|
| balanced_accuracy | mean recall of the classes |
| accuracy | fraction of images predicted correctly |
| top3, top5 | fraction of images whose class is among the 3 or 5 most probable; 1 with no more classes than that |
| sensitivity, macro_recall | mean recall of the classes: balanced accuracy under other names |
| specificity | mean over the classes of the fraction of other classes' images that are not predicted as it |
| auroc | two classes: of class 1; more: one-versus-rest, mean over the classes |
| weighted_f1 | F1 of each class, weighted by its images |
| weighted_recall | recall of each class, weighted by its images: accuracy under another name |

Equal probabilities are ranked by class number, so that top1 would equal accuracy. A class without test images is left
out of every mean, and a MetricWarning names it (upstream's AUROC is silently NaN). If all test images are of one class,
specificity and AUROC are NaN, with a MetricWarning.

Symbols: N images, K classes, R resamples.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from panderm_utils.stats import (
    Confusions,
    Ranking,
    accuracy,
    balanced_accuracy,
    check_predictions,
    classes_present,
    score_table,
    weighted_f1,
)

FINE_TUNE_METRICS = (
    "balanced_accuracy",
    "accuracy",
    "top3",
    "top5",
    "sensitivity",
    "specificity",
    "auroc",
    "weighted_f1",
    "macro_recall",
    "weighted_recall",
)


def evaluate_fine_tuning(
    y, proba, replicates: int = 1000, seed: int = 0, class_names: Sequence[str] | None = None
) -> pd.DataFrame:
    """Returns the columns of `stats.evaluate`, and takes its arguments, for the ten metrics."""
    return score_table(FineTuneScorer(y, proba, class_names), FINE_TUNE_METRICS, replicates, seed)


class FineTuneScorer:
    """Computes the ten metrics of one set of predictions on any resamples of its images; used like `stats.Scorer`.

    scorer(counts)  [R, 10] in the order of FINE_TUNE_METRICS; counts [N, R]: how often each image is in each resample
    """

    def __init__(self, y, proba, class_names: Sequence[str] | None = None):
        self.y, proba = check_predictions(y, proba)
        means = "every mean over classes is over the other classes"
        self._present = classes_present(self.y, proba, class_names, "specificity and AUROC", means)
        self._confusions = Confusions(self.y, proba)
        rank = ranks(self.y, proba)
        self._among = np.stack([rank < 3, rank < 5]).astype(np.float64)
        ranked = [1] if proba.shape[1] == 2 else self._present
        # Binary labels, so that a ranking compares its class with all others at once.
        several = len(self._present) > 1
        self._rankings = [Ranking((self.y == k).astype(np.int64), proba[:, k], 1) for k in ranked] if several else []

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        confusions = self._confusions(counts)
        right, recall = accuracy(confusions), balanced_accuracy(confusions)
        top3, top5 = self._among @ counts / counts.sum(axis=0)
        if self._rankings:
            # One resample a row, so that sums have the same order, and the same last digit, in every block.
            areas = np.concatenate([ranking(counts)[0] for ranking in self._rankings], axis=1).mean(axis=1)
            specificities = specificity(confusions, self._present)
        else:
            areas = specificities = np.full(counts.shape[1], np.nan)
        f1 = weighted_f1(confusions)
        return np.stack([recall, right, top3, top5, recall, specificities, areas, f1, recall, right], axis=1)


def ranks(y: np.ndarray, proba: np.ndarray) -> np.ndarray:
    """Returns the rank [N] of the true class among the probabilities [N, K] of its image: 0 for the predicted one."""
    own = np.take_along_axis(proba, y[:, None], axis=1)
    before = np.arange(proba.shape[1]) < y[:, None]
    return ((proba > own) | ((proba == own) & before)).sum(axis=1)


def specificity(confusions: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns the mean specificity of classes from confusions [..., K, K]; each needs an image of another class."""
    images, predicted = confusions.sum(axis=-1), confusions.sum(axis=-2)
    others = images.sum(axis=-1, keepdims=True) - images
    false_positives = predicted - np.diagonal(confusions, axis1=-2, axis2=-1)
    return (1 - false_positives[..., classes] / others[..., classes]).mean(axis=-1)
