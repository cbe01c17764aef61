"""The fine-tuning metrics against scikit-learn, on the test set and on every resample of it."""

import warnings

import numpy as np
import pytest
import sklearn.metrics as sk

from panderm_utils.protocols.fine_tune.metrics import FINE_TUNE_METRICS, FineTuneScorer, evaluate_fine_tuning, ranks
from panderm_utils.stats import metrics
from panderm_utils.stats import resampling as bootstrap
from tests.stats.test_metrics import CASES, EXACT, case, draw


def by_scikit_learn(y, proba):
    """The ten metrics in the order of FINE_TUNE_METRICS; every class needs an image."""
    num_classes, predicted = proba.shape[1], proba.argmax(axis=1)
    # Of equal scores scikit-learn ranks the last class first: numbering the classes backwards makes it the first.
    backwards, labels = num_classes - 1 - y, range(num_classes)
    top = [1.0, 1.0]
    if num_classes > 2:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that top 3 of 3 is always 1
            top = [sk.top_k_accuracy_score(backwards, proba[:, ::-1], k=k, labels=labels) for k in (3, 5)]
    area = (
        sk.roc_auc_score(y, proba[:, 1])
        if num_classes == 2
        else sk.roc_auc_score(y, proba, multi_class="ovr", average="macro", labels=labels)
    )
    recall = sk.recall_score(y, predicted, average="macro", labels=labels)
    return np.array(
        [
            sk.balanced_accuracy_score(y, predicted),
            sk.accuracy_score(y, predicted),
            *top,
            recall,
            np.mean([sk.recall_score(y != k, predicted != k) for k in labels]),
            area,
            sk.f1_score(y, predicted, average="weighted"),
            recall,
            sk.recall_score(y, predicted, average="weighted", labels=labels),
        ]
    )


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_scikit_learn(name):
    y, proba = case(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "fewer than 20 test images", metrics.MetricWarning)
        table = evaluate_fine_tuning(y, proba, replicates=5)
    assert list(table.index) == list(FINE_TUNE_METRICS)
    np.testing.assert_allclose(table["value"], by_scikit_learn(y, proba), **EXACT)


@pytest.mark.parametrize("name", CASES)
def test_every_replicate_is_that_of_scikit_learn(name):
    y, proba = case(name)
    replicates = bootstrap.bootstrap(FineTuneScorer(y, proba), y, replicates=8, seed=1, block=3)
    rows = np.concatenate(list(bootstrap.resampled_rows(y, replicates=8, seed=1)))
    np.testing.assert_allclose(replicates, [by_scikit_learn(y[r], proba[r]) for r in rows], **EXACT)


@pytest.mark.parametrize("seed", range(25))
def test_small_awkward_inputs_agree_with_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    num_classes = int(generator.integers(2, 8))
    n = int(generator.integers(num_classes, 25))
    y = np.concatenate([np.arange(num_classes), generator.integers(0, num_classes, n - num_classes)])
    steps = generator.integers(0, 3, (n, num_classes)) + 0.25
    proba = steps / steps.sum(axis=1, keepdims=True)
    rows = np.concatenate(list(bootstrap.resampled_rows(y, replicates=4, seed=seed)))
    replicates = bootstrap.bootstrap(FineTuneScorer(y, proba), y, replicates=4, seed=seed)
    np.testing.assert_allclose(replicates, [by_scikit_learn(y[r], proba[r]) for r in rows], **EXACT)


def test_the_table_is_like_that_of_the_linear_probe():
    y, proba = draw(120, 4)
    ours, probe = evaluate_fine_tuning(y, proba, replicates=60), metrics.evaluate(y, proba, replicates=60)
    assert list(ours.columns) == list(probe.columns)
    assert ours.index.name == "metric"
    for shared in ("accuracy", "balanced_accuracy", "weighted_f1"):  # of the same resamples
        np.testing.assert_array_equal(ours.loc[shared], probe.loc[shared])
    assert evaluate_fine_tuning(y, proba, replicates=60, seed=1).loc["auroc", "low"] != ours.loc["auroc", "low"]


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5, 6])
def test_top_k_is_one_where_there_are_no_more_classes(num_classes):
    y, proba = draw(200, num_classes, sharpness=0)
    table = evaluate_fine_tuning(y, proba, replicates=5)
    for k in (3, 5):
        assert (table.loc[f"top{k}", "value"] == 1) == (num_classes <= k)


def test_equal_scores_rank_the_first_class_first():
    y = np.arange(6)
    assert ranks(y, np.full((6, 6), 1 / 6)).tolist() == [0, 1, 2, 3, 4, 5]
    table = evaluate_fine_tuning(y, np.full((6, 6), 1 / 6), replicates=2)
    assert table.loc[["accuracy", "top3", "top5"], "value"].tolist() == [1 / 6, 3 / 6, 5 / 6]
    for name in CASES:
        y, proba = case(name)
        np.testing.assert_array_equal(ranks(y, proba.astype(float)) == 0, proba.argmax(axis=1) == y)


def test_a_class_without_a_test_image_is_left_out_and_named():
    y, proba = draw(300, 6)
    keep = ~np.isin(y, [2, 5])
    y, proba = y[keep], proba[keep]
    with pytest.warns(metrics.MetricWarning, match="no test image of class 2, class 5") as caught:
        table = evaluate_fine_tuning(y, proba, replicates=40)
    assert len(caught) == 1
    with pytest.warns(metrics.MetricWarning, match="no test image of c, f:"):
        evaluate_fine_tuning(y, proba, replicates=2, class_names="abcdef")
    assert table.notna().all(axis=None)
    present, predicted = [0, 1, 3, 4], proba.argmax(axis=1)
    assert {2, 5} <= set(predicted)
    recall = sk.recall_score(y, predicted, labels=present, average="macro")
    expected = {
        "balanced_accuracy": recall,
        "accuracy": sk.accuracy_score(y, predicted),
        "top3": sk.top_k_accuracy_score(y, proba, k=3, labels=range(6)),
        "top5": sk.top_k_accuracy_score(y, proba, k=5, labels=range(6)),
        "sensitivity": recall,
        "specificity": np.mean([sk.recall_score(y != k, predicted != k) for k in present]),
        "auroc": np.mean([sk.roc_auc_score(y == k, proba[:, k]) for k in present]),
        "weighted_f1": sk.f1_score(y, predicted, labels=present, average="weighted"),
        "macro_recall": recall,
        "weighted_recall": sk.recall_score(y, predicted, labels=present, average="weighted"),
    }
    np.testing.assert_allclose(table["value"], [expected[m] for m in FINE_TUNE_METRICS], **EXACT)


@pytest.mark.parametrize(("num_classes", "label"), [(2, 0), (2, 1), (4, 2)])
def test_a_split_of_one_class_is_nan_only_with_a_warning(num_classes, label):
    _, proba = draw(40, num_classes)
    with pytest.warns(
        metrics.MetricWarning, match=f"all test images are of class {label}.*undefined.*two classes or more"
    ):
        table = evaluate_fine_tuning(np.full(40, label), proba, replicates=10)
    undefined = ["specificity", "auroc"]
    assert table.loc[undefined].isna().all(axis=None)
    assert table.drop(undefined).notna().all(axis=None)
    assert table.loc["sensitivity", "value"] == (proba.argmax(axis=1) == label).mean()


def test_what_cannot_be_scored_is_refused_with_the_remedy():
    for y, proba, message in (
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], r"labels \[2\] are outside 0\.\.1"),
        ([0, 1], [[0.5, np.nan], [0.5, 0.5]], "NaN or infinity in 1 of 2 rows"),
        ([0, 1], [0.5, 0.5], "a column for each"),
    ):
        with pytest.raises(metrics.MetricError, match=message):
            evaluate_fine_tuning(y, proba)
