"""Each class against all others: a table, ROC and precision-recall curves. Symbols and rules as in `metrics`."""

import warnings

import numpy as np
import pandas as pd

from panderm_utils.stats.metrics import MetricWarning, check_predictions, confusion, listed
from panderm_utils.stats.resampling import MetricError, Ranking


def per_class_report(y, proba, class_names) -> pd.DataFrame:
    """Returns precision, recall (sensitivity), specificity, f1, auroc and average_precision (one-versus-rest), support.

    One row per class; support is its number of test images. A class that is never predicted has precision 0, as in
    scikit-learn; a measure that needs images of the class, or of other classes, is NaN without them. A MetricWarning
    names the classes in both cases.
    """
    y, proba = check_predictions(y, proba)
    names = _check_names(class_names, proba.shape[1])
    counts = confusion(y, proba)
    images, predicted, right = counts.sum(axis=1), counts.sum(axis=0), np.diagonal(counts)
    others = len(y) - images
    areas, precisions = np.transpose([_one_versus_rest(y, proba, k) for k in range(len(names))])
    columns = {
        "precision": _ratio(right, predicted, otherwise=np.where(images > 0, 0.0, np.nan)),
        "recall": _ratio(right, images),
        "specificity": _ratio(others - predicted + right, others),
        "f1": np.where(images > 0, _ratio(2 * right, images + predicted), np.nan),
        "auroc": areas,
        "average_precision": precisions,
        "support": images,
    }
    report = pd.DataFrame(columns, index=pd.Index(names, name="class"))
    if undefined := report.index[report.isna().any(axis=1)].tolist():
        text = f"{listed(undefined)}: NaN where a measure needs a test image of the class, or of another class"
        warnings.warn(text, MetricWarning, stacklevel=2)
    if never := report.index[(images > 0) & (predicted == 0)].tolist():
        warnings.warn(f"{listed(never)}: never predicted, so precision is set to 0", MetricWarning, stacklevel=2)
    return report


def roc_curves(y, proba, class_names) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Returns class name -> (false positive rates, true positive rates, area), one-versus-rest, from (0, 0) to (1, 1).

    With two classes only class 1 has a curve; a class with no test image, or with all of them, has none. Points inside
    a straight segment are left out.
    """
    curves = {}
    for name, tp, fp, area, _ in _one_versus_rest_curves(y, proba, class_names):
        corner = np.ones(len(tp), dtype=bool)
        corner[1:-1] = (tp[2:] != tp[:-2]) & (fp[2:] != fp[:-2])
        curves[name] = (fp[corner] / fp[-1], tp[corner] / tp[-1], area)
    return curves


def pr_curves(y, proba, class_names) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Returns class name -> (recalls, precisions, average precision), for the same classes as `roc_curves`.

    From recall 0, where precision is set to 1, to recall 1.
    """
    curves = {}
    for name, tp, fp, _, average_precision in _one_versus_rest_curves(y, proba, class_names):
        corner = np.ones(len(tp), dtype=bool)
        corner[1:-1] = tp[2:] != tp[:-2]
        precision = np.append(1.0, tp[1:] / (tp[1:] + fp[1:]))
        curves[name] = (tp[corner] / tp[-1], precision[corner], average_precision)
    return curves


def _ratio(part, whole, otherwise=np.nan):
    return np.where(whole > 0, part / np.maximum(whole, 1), otherwise)


def _one_versus_rest(y, proba, k) -> tuple[float, float]:
    """Returns AUROC and average precision of class k against all others; NaN if either side has no image."""
    positive = (y == k).astype(np.int64)
    if positive.min() == positive.max():
        return np.nan, np.nan
    area, average_precision = Ranking(positive, proba[:, k], 1)(np.ones((len(y), 1)))
    return area.item(), average_precision.item()


def _one_versus_rest_curves(y, proba, class_names):
    """Yields name, true and false positives from the highest threshold to the lowest, AUROC, average precision."""
    y, proba = check_predictions(y, proba)
    for k, name in enumerate(_check_names(class_names, proba.shape[1])):
        area, average_precision = _one_versus_rest(y, proba, k)
        if np.isnan(area) or (proba.shape[1] == 2 and k == 0):
            continue
        order = np.argsort(-proba[:, k], kind="stable")
        scores = proba[order, k]
        last_of_ties = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
        tp = np.cumsum(y[order] == k)[last_of_ties]
        yield name, np.append(0, tp), np.append(0, last_of_ties + 1 - tp), area, average_precision


def _check_names(class_names, num_classes) -> list[str]:
    names = [str(name) for name in class_names]
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise MetricError(
            f"class_names must be {num_classes} different names, one per column of proba, got {len(names)} "
            f"({len(set(names))} different): pass the manifest's class_names, in label order"
        )
    return names
