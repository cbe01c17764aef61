"""The metrics that the published fine-tuning reports; rules and intervals are those of `metrics`.

| metric | what it is |
|---|---|
| balanced_accuracy | mean recall of the classes |
| accuracy | share of right images |
| top3, top5 | share of images whose class is among the 3 or 5 most probable; 1 where there are no more classes |
| sensitivity, macro_recall | mean recall of the classes: balanced accuracy under its other names |
| specificity | mean over the classes of the share of the other classes' images that are not taken for it |
| auroc | two classes: of class 1; more: one-versus-rest, mean over the classes |
| weighted_f1 | F1 of each class, weighted by its images |
| weighted_recall | recall of each class, weighted by its images: accuracy under its other name |

Equal probabilities are ranked by class number, the first first, so that top1 would be accuracy. A class without a test
image is left out of every mean, and a MetricWarning names it (upstream's AUROC is silently NaN). Where all test images
are of one class, specificity and AUROC have nothing to compare and are NaN, with a MetricWarning.

Symbols: N images, K classes, R resamples.
"""

import warnings

import numpy as np
import pandas as pd

from panderm_utils.bootstrap import Ranking, bootstrap, intervals, summing
from panderm_utils.metrics import MetricWarning, accuracy, balanced_accuracy, check_predictions, weighted_f1

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


def evaluate_fine_tuning(y, proba, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Returns value, low, high, normal_low, normal_high of the ten metrics, as `metrics.evaluate` does.

    Args:
        y: True labels [N], integers in 0..K-1.
        proba: Class probabilities or scores [N, K].
    """
    scorer = FineTuneScorer(y, proba)
    replicate = bootstrap(scorer, scorer.y, replicates, seed)
    table = pd.DataFrame({"value": scorer.value(), **intervals(replicate)}, index=FINE_TUNE_METRICS)
    return table.rename_axis("metric")


class FineTuneScorer:
    """The ten metrics of one set of predictions on any resamples of its images; used as `metrics.Scorer`.

    scorer(counts)  [R, 10] in the order of FINE_TUNE_METRICS; counts [N, R]: how often each image is in each resample
    scorer.value()  [10], of the test set itself
    """

    def __init__(self, y, proba):
        self.y, proba = check_predictions(y, proba)
        self.num_classes = proba.shape[1]
        self.present = np.unique(self.y)
        if missing := sorted(set(range(self.num_classes)) - set(self.present.tolist())):
            warnings.warn(_what_is_left_out(missing, self.present), MetricWarning, stacklevel=3)
        self._cells = summing(self.y * self.num_classes + proba.argmax(axis=1), self.num_classes**2)
        rank = ranks(self.y, proba)
        self._among = np.stack([rank < 3, rank < 5]).astype(np.float64)
        ranked = [1] if self.num_classes == 2 else self.present.tolist()
        # Of two labels only, so that a ranking compares its class with all the rest at once.
        several = len(self.present) > 1
        self._rankings = [Ranking((self.y == k).astype(np.int64), proba[:, k], 1) for k in ranked] if several else []

    def value(self) -> np.ndarray:
        return self(np.ones((len(self.y), 1)))[0]

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        confusions = np.ascontiguousarray((self._cells @ counts).T).reshape(-1, self.num_classes, self.num_classes)
        right, recall = accuracy(confusions), balanced_accuracy(confusions)
        top3, top5 = self._among @ counts / counts.sum(axis=0)
        if self._rankings:
            # One resample a row, so that the order of a sum, and its last digit, is the same in every block.
            areas = np.concatenate([ranking(counts)[0] for ranking in self._rankings], axis=1).mean(axis=1)
            kept = specificity(confusions, self.present)
        else:
            areas = kept = np.full(counts.shape[1], np.nan)
        f1 = weighted_f1(confusions)
        return np.stack([recall, right, top3, top5, recall, kept, areas, f1, recall, right], axis=1)


def ranks(y: np.ndarray, proba: np.ndarray) -> np.ndarray:
    """Returns the rank [N] of the true class among the probabilities [N, K] of its image: 0 for the predicted one."""
    own = np.take_along_axis(proba, y[:, None], axis=1)
    before = np.arange(proba.shape[1]) < y[:, None]
    return ((proba > own) | ((proba == own) & before)).sum(axis=1)


def specificity(confusions: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Mean specificity of some classes, of confusions [..., K, K]; each needs an image of another class."""
    images, predicted = confusions.sum(axis=-1), confusions.sum(axis=-2)
    others = images.sum(axis=-1, keepdims=True) - images
    taken = predicted - np.diagonal(confusions, axis1=-2, axis2=-1)
    return (1 - taken[..., classes] / others[..., classes]).mean(axis=-1)


def _what_is_left_out(missing: list[int], present: np.ndarray) -> str:
    if len(present) == 1:
        return (
            f"all test images are of class {present[0]}: specificity and AUROC compare classes and are NaN; "
            "take a test split with two classes or more"
        )
    return f"no test image of class {', '.join(map(str, missing))}: every mean over classes is over the others"
