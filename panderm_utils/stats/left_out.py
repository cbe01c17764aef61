"""What a score would be without some of the test images, and how sure the difference is: arrays in, a table out.

Both scores are of one model, and most of their images are the same, so the difference is taken within each resample,
where what they share cancels. The resamples are those of the score itself: stratified by class, whatever is left out;
so the number of images left out of a class varies, as it would from test set to test set. A resample that leaves a
metric undefined, such as AUROC without one of its classes, is left out of the interval.

Symbols: N images, K classes, M metrics.
"""

import warnings

import numpy as np
import pandas as pd

from panderm_utils.stats.image_scores import mean_scorer
from panderm_utils.stats.metrics import METRICS, Scorer, on_test_set
from panderm_utils.stats.resampling import LEVEL, MetricError, bootstrap


def without_images(y, proba, left_out, replicates: int = 1000, seed: int = 0, class_names=None) -> pd.DataFrame:
    """Returns one row per metric: score, rest (without some images), difference (rest - score), low and high.

    Args:
        y: True labels [N]; proba: class probabilities [N, K].
        left_out: Which images to leave out, [N] bool.
        class_names: As in `metrics.evaluate`.

    Raises:
        MetricError: No image is left.
    """
    y, proba, rest = np.asarray(y), np.asarray(proba), _rest(left_out, len(y))
    whole = Scorer(y, proba, class_names)
    part = Scorer(y[rest], proba[rest], class_names)
    return _compare(whole, on_test_set(part), lambda counts: part(counts[rest]), METRICS, replicates, seed)


def without_image_scores(
    scores: pd.DataFrame, left_out, clusters=None, replicates: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Returns the same as `without_images` for means of scores of each image; see `evaluate_image_scores`.

    Args:
        scores: One row per image, one column per metric.
        left_out: Which images to leave out, [N] bool.
        clusters: The cluster of each image [N], or None.
    """
    rest = _rest(left_out, len(scores))
    whole = mean_scorer(scores, clusters)
    part = mean_scorer(scores.where(pd.Series(rest, index=scores.index)), clusters)  # NaN is left out of a mean
    return _compare(whole, on_test_set(part), part, scores.columns, replicates, seed)


def _rest(left_out, images: int) -> np.ndarray:
    left_out = np.asarray(left_out, dtype=bool)
    if left_out.shape != (images,):
        raise MetricError(f"left_out must be one per image, [{images}], got {list(left_out.shape)}")
    if left_out.all():
        raise MetricError("every test image would be left out: nothing remains to score")
    return ~left_out


def _compare(whole, rest: np.ndarray, part, names, replicates: int, seed: int) -> pd.DataFrame:
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a metric that is NaN in all resamples
        differences = bootstrap(lambda counts: part(counts) - whole(counts), whole.y, replicates, seed)
        low, high = np.nanquantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    score = on_test_set(whole)
    columns = {"score": score, "rest": rest, "difference": rest - score, "low": low, "high": high}
    return pd.DataFrame(columns, index=pd.Index(names, name="metric"))
