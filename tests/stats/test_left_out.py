"""A score without some of its images, and the paired interval of the difference."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from panderm_utils import stats
from tests.stats.test_significance import predictions

pytestmark = pytest.mark.filterwarnings("ignore::panderm_utils.stats.metrics.MetricWarning")


def test_the_interval_is_of_the_difference_within_each_resample():
    y, proba = predictions(90, 3)
    left_out = np.arange(90) % 6 == 0
    table = stats.without_images(y, proba, left_out, replicates=80, seed=3)
    differences = []
    for rows in np.concatenate(list(stats.resampled_rows(y, 80, 3))):
        kept = rows[~left_out[rows]]
        both = [f1_score(y[r], proba[r].argmax(axis=1), average="weighted") for r in (rows, kept)]
        differences.append(both[1] - both[0])
    expected = np.quantile(differences, [0.025, 0.975])
    assert table.loc["weighted_f1", ["low", "high"]].tolist() == pytest.approx(expected.tolist(), abs=1e-9)


def test_a_class_that_leaks_whole_leaves_the_score_of_the_others():
    y, proba = predictions(40, 3)
    left_out = y == 2
    table = stats.without_images(y, proba, left_out, replicates=30)
    assert table["rest"].to_dict() == pytest.approx(
        stats.evaluate(y[~left_out], proba[~left_out], 2)["value"].to_dict()
    )
    assert table[["low", "high"]].notna().all(axis=None)
    rare = np.concatenate([np.flatnonzero(y == 2)[1:], [0]])  # one image of the class is left, often not drawn
    table = stats.without_images(y, proba, np.isin(np.arange(40), rare), replicates=200)
    assert table.notna().all(axis=None)


def test_all_images_left_out_or_a_wrong_number_are_refused():
    y, proba = predictions(9, 3)
    with pytest.raises(stats.MetricError, match="every test image would be left out"):
        stats.without_images(y, proba, np.ones(9, bool))
    with pytest.raises(stats.MetricError, match=r"one per image, \[9\], got \[8\]"):
        stats.without_images(y, proba, np.zeros(8, bool))


def test_means_of_scores_lose_the_images_and_keep_the_clusters():
    rng = np.random.default_rng(0)
    scores = pd.DataFrame({"jaccard": rng.random(30), "dice": rng.random(30)}, index=range(100, 130))
    left_out, clusters = np.arange(30) % 5 == 0, [f"L{i // 3}" for i in range(30)]
    table = stats.without_image_scores(scores, left_out, clusters, replicates=50, seed=2)
    assert table["rest"].to_dict() == pytest.approx(scores[~left_out].mean().to_dict())
    differences = []
    for rows in np.concatenate(list(stats.resampled_rows(np.zeros(10), 50, 2))):
        images = np.concatenate([np.arange(3 * i, 3 * i + 3) for i in rows])
        jaccard = scores["jaccard"].to_numpy()
        differences.append(jaccard[images[~left_out[images]]].mean() - jaccard[images].mean())
    expected = np.quantile(differences, [0.025, 0.975])
    assert table.loc["jaccard", ["low", "high"]].tolist() == pytest.approx(expected.tolist(), abs=1e-12)
