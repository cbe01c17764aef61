"""Metrics against scikit-learn, on the test set and on every resample of it; and what happens at the edges."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
from sklearn.preprocessing import label_binarize

from panderm_utils.figures import plots
from panderm_utils.results import records
from panderm_utils.stats import metrics, per_class
from panderm_utils.stats import resampling as bootstrap

EXACT = {"rtol": 0, "atol": 1e-12}


def by_scikit_learn(y, proba):
    """The six metrics in the order of metrics.METRICS; every class needs an image."""
    num_classes, predicted = proba.shape[1], proba.argmax(axis=1)
    if num_classes == 2:
        ranked = [sk.roc_auc_score(y, proba[:, 1]), sk.average_precision_score(y, proba[:, 1])]
    else:
        one_hot = label_binarize(y, classes=range(num_classes))
        area = sk.roc_auc_score(y, proba, multi_class="ovo", average="macro")
        ranked = [area, sk.average_precision_score(one_hot, proba, average="macro")]
    return np.array(
        [
            sk.accuracy_score(y, predicted),
            sk.balanced_accuracy_score(y, predicted),
            sk.cohen_kappa_score(y, predicted, weights="quadratic"),
            sk.f1_score(y, predicted, average="weighted"),
            *ranked,
        ]
    )


def draw(n, num_classes, seed=0, sharpness=1.5):
    """Labels with every class and probabilities with signal in them, each row of which sums to 1."""
    generator = np.random.default_rng(seed)
    y = np.concatenate([np.arange(num_classes), generator.integers(0, num_classes, n - num_classes)])
    logits = generator.normal(size=(n, num_classes)) + sharpness * np.eye(num_classes)[y]
    proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    order = generator.permutation(n)
    return y[order], proba[order]


def case(name):
    if name == "two classes":
        return draw(150, 2)
    if name == "two classes, ties":
        y, proba = draw(150, 2)
        positive = proba[:, 1].round(1)
        return y, np.stack([1 - positive, positive], axis=1)
    if name == "seven":
        return draw(300, 7)
    if name == "twenty-three":
        return draw(400, 23)
    if name == "float32":
        y, proba = draw(300, 4, sharpness=9)  # many probabilities round to 0 or 1
        return y, proba.astype(np.float32)
    if name == "heavy ties":
        y, proba = draw(300, 5)
        steps = (proba * 4).round() + 1e-9
        return y, steps / steps.sum(axis=1, keepdims=True)
    if name == "imbalanced, a class with one image":
        y, proba = draw(400, 4)
        keep = (y == 0) | (np.arange(400) % 25 == 0)
        keep[np.flatnonzero(y == 3)] = False
        keep[np.flatnonzero(y == 3)[0]] = True
        return y[keep], proba[keep]
    if name == "classes never predicted":
        y, proba = draw(200, 5)
        proba[:, [1, 3]] *= 1e-3
        return y, proba / proba.sum(axis=1, keepdims=True)
    if name == "constant scores":
        return draw(100, 3)[0], np.full((100, 3), 1 / 3)
    if name == "always wrong":
        y, proba = draw(90, 3)
        return y, np.roll(np.eye(3)[y], 1, axis=1)
    if name == "perfect":
        y, _ = draw(90, 3)
        return y, np.eye(3)[y]
    raise KeyError(name)


CASES = [
    "two classes",
    "two classes, ties",
    "seven",
    "twenty-three",
    "float32",
    "heavy ties",
    "imbalanced, a class with one image",
    "classes never predicted",
    "constant scores",
    "always wrong",
    "perfect",
]


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_scikit_learn(name):
    y, proba = case(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "fewer than 20 test images", metrics.MetricWarning)
        table = metrics.evaluate(y, proba, replicates=5)
    np.testing.assert_allclose(table["value"], by_scikit_learn(y, proba), **EXACT)
    assert metrics.auroc(y, proba) == table.loc["auroc", "value"]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_every_replicate_is_that_of_scikit_learn(name):
    y, proba = case(name)
    count = 3 if proba.shape[1] > 10 else 12  # scikit-learn is slow at many pairs of classes
    replicates = bootstrap.bootstrap(metrics.Scorer(y, proba), y, replicates=count, seed=1, block=5)
    rows = np.concatenate(list(bootstrap.resampled_rows(y, replicates=count, seed=1)))
    expected = [by_scikit_learn(y[r], proba[r]) for r in rows]
    np.testing.assert_allclose(replicates, expected, **EXACT)


@pytest.mark.parametrize("seed", range(25))
def test_small_awkward_inputs_agree_with_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    num_classes = int(generator.integers(2, 6))
    n = int(generator.integers(num_classes, 25))
    y = np.concatenate([np.arange(num_classes), generator.integers(0, num_classes, n - num_classes)])
    steps = generator.integers(0, 3, (n, num_classes)) + 0.25
    proba = steps / steps.sum(axis=1, keepdims=True)
    rows = np.concatenate(list(bootstrap.resampled_rows(y, replicates=4, seed=seed)))
    replicates = bootstrap.bootstrap(metrics.Scorer(y, proba), y, replicates=4, seed=seed)
    np.testing.assert_allclose(replicates, [by_scikit_learn(y[r], proba[r]) for r in rows], **EXACT)


def test_the_table_holds_the_intervals_of_a_plain_loop():
    y, proba = draw(120, 3)
    table = metrics.evaluate(y, proba, replicates=60, seed=9)
    rows = np.concatenate(list(bootstrap.resampled_rows(y, replicates=60, seed=9)))
    loop = np.array([by_scikit_learn(y[r], proba[r]) for r in rows])
    assert list(table.index) == list(metrics.METRICS)
    assert table.index.name == "metric"
    assert list(table.columns) == ["value", "low", "high", "normal_low", "normal_high"]
    np.testing.assert_allclose(table["low"], np.percentile(loop, 2.5, axis=0), **EXACT)
    np.testing.assert_allclose(table["high"], np.percentile(loop, 97.5, axis=0), **EXACT)
    reach = 2.0009953780882674 * loop.std(axis=0, ddof=1)  # Student's t, 59 degrees of freedom, two-sided 95%
    np.testing.assert_allclose(table["normal_low"], loop.mean(axis=0) - reach, **EXACT)
    np.testing.assert_allclose(table["normal_high"], loop.mean(axis=0) + reach, **EXACT)
    assert metrics.evaluate(y, proba, replicates=60, seed=9).equals(table)
    assert not metrics.evaluate(y, proba, replicates=60, seed=10).equals(table)


def test_constant_scores_are_chance():
    y, proba = case("constant scores")
    table = metrics.evaluate(y, proba, replicates=20)
    assert (table.loc["auroc"] == 0.5).all()
    assert table.loc["balanced_accuracy", "value"] == pytest.approx(1 / 3)
    assert table.loc["quadratic_kappa", "value"] == 0


@pytest.mark.parametrize("proba", [[[0.7, 0.7], [0.7, 0.7]], [[1.2, -0.2], [0.5, 0.5]], [[5, 0], [0, 5]]])
def test_what_is_no_probability_is_refused(proba):
    with pytest.raises(metrics.MetricError, match="of 2 rows are negative or do not sum to 1, first row 0"):
        metrics.evaluate([0, 1], proba)


def test_probabilities_rounded_to_three_digits_are_taken():
    y, proba = draw(400, 23)
    with pytest.warns(metrics.MetricWarning, match="fewer than 20"):
        metrics.Scorer(y, proba.round(3))


def test_order_of_images_and_their_repetition_change_no_value():
    y, proba = case("heavy ties")
    value = metrics.evaluate(y, proba, replicates=2)["value"]
    for rows in (np.arange(len(y))[::-1], np.tile(np.arange(len(y)), 2)):
        np.testing.assert_allclose(metrics.evaluate(y[rows], proba[rows], replicates=2)["value"], value, **EXACT)


def test_a_class_without_a_test_image_is_left_out_and_named():
    y, proba = draw(300, 6)
    keep = ~np.isin(y, [2, 5])
    y, proba = y[keep], proba[keep]
    with pytest.warns(metrics.MetricWarning, match="no test image of class 2, class 5") as caught:
        table = metrics.evaluate(y, proba, replicates=40)
    assert len(caught) == 1
    with pytest.warns(metrics.MetricWarning, match="no test image of scc, df:"):
        metrics.evaluate(y, proba, replicates=2, class_names=["nv", "mel", "scc", "bcc", "ak", "df"])
    assert table.notna().all(axis=None)
    present, predicted = [0, 1, 3, 4], proba.argmax(axis=1)
    assert {2, 5} <= set(predicted)
    precisions = [sk.average_precision_score(y == k, proba[:, k]) for k in present]
    pairs = [
        sk.roc_auc_score(y[rows] == a, proba[rows, a])
        for a in present
        for b in present
        if a != b
        for rows in [np.isin(y, [a, b])]
    ]
    expected = {
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": sk.recall_score(y, predicted, labels=present, average="macro"),
        "quadratic_kappa": sk.cohen_kappa_score(y, predicted, weights="quadratic"),
        "weighted_f1": sk.f1_score(y, predicted, labels=present, average="weighted"),
        "auroc": np.mean(pairs),
        "aupr": np.mean(precisions),
    }
    np.testing.assert_allclose(table["value"], [expected[m] for m in metrics.METRICS], **EXACT)


def test_kappa_skips_a_class_that_is_neither_true_nor_predicted():
    y, proba = draw(200, 4)
    proba[:, 1] = 0
    proba /= proba.sum(axis=1, keepdims=True)
    y, proba = y[y != 1], proba[y != 1]
    with pytest.warns(metrics.MetricWarning):
        scorer = metrics.Scorer(y, proba)
    kappa = bootstrap.bootstrap(scorer, y, replicates=5)[:, metrics.METRICS.index("quadratic_kappa")]
    rows = np.concatenate(list(bootstrap.resampled_rows(y, replicates=5)))
    expected = [sk.cohen_kappa_score(y[r], proba[r].argmax(axis=1), weights="quadratic") for r in rows]
    np.testing.assert_allclose(kappa, expected, **EXACT)


@pytest.mark.parametrize(("num_classes", "label"), [(2, 0), (2, 1), (4, 2)])
def test_a_split_of_one_class_is_nan_only_with_a_warning(num_classes, label):
    _, proba = draw(40, num_classes)
    with pytest.warns(
        metrics.MetricWarning, match=f"all test images are of class {label}.*undefined.*two classes or more"
    ):
        table = metrics.evaluate(np.full(40, label), proba, replicates=10)
    undefined = ["quadratic_kappa", "auroc", "aupr"]
    assert table.loc[undefined].isna().all(axis=None)
    assert table.drop(undefined).notna().all(axis=None)
    assert table.loc["accuracy", "value"] == (proba.argmax(axis=1) == label).mean()
    assert table.loc["balanced_accuracy", "value"] == table.loc["accuracy", "value"]


def test_a_class_with_one_test_image_stays_in_every_replicate():
    y, proba = case("imbalanced, a class with one image")
    assert (y == 3).sum() == 1
    with pytest.warns(metrics.MetricWarning) as caught:
        table = metrics.evaluate(y, proba, replicates=50, class_names=["nv", "bcc", "df", "mel"])
    assert table.notna().all(axis=None)
    (told,) = [str(warning.message) for warning in caught]
    assert told.startswith("fewer than 20 test images of ")
    assert "mel (1)" in told


def test_few_images_of_a_class_have_an_unstratified_interval_beside_the_one_that_is_too_narrow():
    """One image of class 2, rightly predicted: stratified resamples never miss it, others do."""
    y, proba = draw(200, 2)
    y, proba = np.append(y, 2), np.vstack([np.column_stack([proba, np.zeros(200)]), [0.1, 0.1, 0.8]])
    with pytest.warns(metrics.MetricWarning, match=r"fewer than 20 test images of class 2 \(1\)"):
        table = metrics.evaluate(y, proba, replicates=300)
    width = table["high"] - table["low"]
    unstratified = table["unstratified_high"] - table["unstratified_low"]
    assert unstratified["balanced_accuracy"] > 1.5 * width["balanced_accuracy"]
    assert unstratified["accuracy"] == pytest.approx(width["accuracy"], rel=0.3)
    # By hand: resamples of all rows alike, in which the mean is over the classes that are there.
    generator, recalls = np.random.default_rng(1), []
    for _ in range(2000):
        rows = generator.integers(0, len(y), len(y))
        right = proba[rows].argmax(axis=1) == y[rows]
        recalls.append(np.mean([right[y[rows] == k].mean() for k in np.unique(y[rows])]))
    found = table.loc["balanced_accuracy", ["unstratified_low", "unstratified_high"]].to_numpy(float)
    np.testing.assert_allclose(found, np.quantile(recalls, [0.025, 0.975]), atol=0.03)
    assert "unstratified_low" not in metrics.evaluate(*draw(200, 3), replicates=5)


@pytest.mark.parametrize("name", CASES)
def test_the_per_class_report_is_scikit_learns(name):
    y, proba = case(name)
    num_classes, predicted = proba.shape[1], proba.argmax(axis=1)
    names = [f"lesion {k}" for k in range(num_classes)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = per_class.per_class_report(y, proba, names)
    never = sorted(set(range(num_classes)) - set(predicted))
    assert [str(w.message) for w in caught] == (
        [f"{', '.join(names[k] for k in never)}: never predicted, so precision is set to 0"] if never else []
    )
    assert list(report.index) == names
    columns = ["precision", "recall", "specificity", "f1", "auroc", "average_precision", "support"]
    assert list(report.columns) == columns
    assert report["support"].tolist() == [(y == k).sum() for k in range(num_classes)]
    precision, recall, f1, _ = sk.precision_recall_fscore_support(y, predicted, zero_division=0)
    np.testing.assert_allclose(report[["precision", "recall", "f1"]], np.transpose([precision, recall, f1]), **EXACT)
    for k in range(num_classes):
        row = report.iloc[k]
        assert row["specificity"] == pytest.approx(sk.recall_score(y != k, predicted != k), abs=1e-12)
        assert row["auroc"] == pytest.approx(sk.roc_auc_score(y == k, proba[:, k]), abs=1e-12)
        assert row["average_precision"] == pytest.approx(sk.average_precision_score(y == k, proba[:, k]), abs=1e-12)


def test_the_per_class_report_names_what_it_cannot_tell():
    y, proba = draw(100, 4)
    y, proba = y[y != 2], proba[y != 2]
    with pytest.warns(metrics.MetricWarning, match="^scc: NaN where a measure needs a test image") as caught:
        report = per_class.per_class_report(y, proba, ["nv", "mel", "scc", "df"])
    assert len(caught) == 1
    assert report.loc["scc", ["recall", "f1", "auroc", "average_precision"]].isna().all()
    assert report.loc["scc", "support"] == 0
    assert report.loc["scc", "precision"] == 0  # it was predicted, and never rightly
    assert report.loc["scc", "specificity"] == (proba.argmax(axis=1) != 2).mean()
    assert report.drop("scc").notna().all(axis=None)
    with pytest.warns(metrics.MetricWarning, match="^nv, mel, scc, df: NaN"):
        alone = per_class.per_class_report(np.zeros(len(y), dtype=int), proba, ["nv", "mel", "scc", "df"])
    assert np.isnan(alone.loc["nv", "specificity"])
    assert np.isnan(alone.loc["nv", "auroc"])
    assert alone.loc["nv", "precision"] == 1
    proba[:, 2] = 0
    proba /= proba.sum(axis=1, keepdims=True)
    with pytest.warns(metrics.MetricWarning, match="^scc: NaN"):
        assert np.isnan(per_class.per_class_report(y, proba, ["nv", "mel", "scc", "df"]).loc["scc", "precision"])


@pytest.mark.parametrize("name", CASES)
def test_the_confusion_matrix_is_scikit_learns(name):
    y, proba = case(name)
    counts = metrics.confusion(y, proba)
    expected = sk.confusion_matrix(y, proba.argmax(axis=1), labels=range(proba.shape[1]))
    np.testing.assert_array_equal(counts, expected)
    assert counts.dtype.kind == "i"


def test_the_predicted_class_is_the_one_that_the_record_keeps():
    y, proba = case("heavy ties")
    kept = records.prediction_table(range(len(y)), y, proba)["predicted_label"]
    np.testing.assert_array_equal(metrics.confusion(y, proba).sum(axis=0), np.bincount(kept, minlength=5))
    assert metrics.confusion([0, 1], [[0.5, 0.5], [0.5, 0.5]]).tolist() == [[1, 0], [1, 0]]


def assert_on_line(points, line):
    """Every point lies on a segment of the line, which takes each straight step up or to the right at once."""
    (px, py), (x, y) = (np.asarray(some)[:, :, None] for some in (points, line))
    x0, x1, y0, y1 = x[:-1].T, x[1:].T, y[:-1].T, y[1:].T
    inside = (px >= x0 - 1e-12) & (px <= x1 + 1e-12) & (py >= y0 - 1e-12) & (py <= y1 + 1e-12)
    assert (inside & (abs((px - x0) * (y1 - y0) - (py - y0) * (x1 - x0)) < 1e-12)).any(axis=1).all()
    for values in (x, y):
        assert not ((values[2:] == values[1:-1]) & (values[1:-1] == values[:-2])).any()


def assert_same_heights(ours, full):
    """Both have the same abscissas, and at each reach from the same lowest to the same highest point."""
    ours, full = (np.round(some, 12) for some in (ours, full))
    assert set(ours[0]) == set(full[0])
    for x in set(full[0]):
        here, expected = (some[1][some[0] == x] for some in (ours, full))
        assert (here.min(), here.max()) == (expected.min(), expected.max())


@pytest.mark.parametrize("name", CASES)
def test_curves_are_those_of_scikit_learn(name):
    y, proba = case(name)
    names = [f"lesion {k}" for k in range(proba.shape[1])]
    roc, pr = per_class.roc_curves(y, proba, names), per_class.pr_curves(y, proba, names)
    assert list(roc) == list(pr) == (names if len(names) > 2 else names[1:])
    for label in roc:
        k = names.index(label)
        fpr, tpr, area = roc[label]
        assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
        assert area == pytest.approx(sk.roc_auc_score(y == k, proba[:, k]), abs=1e-12)
        assert sk.auc(fpr, tpr) == pytest.approx(area, abs=1e-12)
        assert_on_line(sk.roc_curve(y == k, proba[:, k], drop_intermediate=False)[:2], (fpr, tpr))
        recall, precision, average = pr[label]
        assert_same_heights((recall, precision), sk.precision_recall_curve(y == k, proba[:, k])[1::-1])
        assert average == pytest.approx(sk.average_precision_score(y == k, proba[:, k]), abs=1e-12)


def test_a_class_without_images_has_no_curve_and_the_picture_is_drawn():
    y, proba = draw(100, 4)
    names = ["nv", "mel", "scc", "df"]
    for labels, expected in ((y[y != 2], ["nv", "mel", "df"]), (np.ones(20, dtype=int), [])):
        scores = proba[: len(labels)]
        roc, pr = per_class.roc_curves(labels, scores, names), per_class.pr_curves(labels, scores, names)
        assert list(roc) == list(pr) == expected
        if expected:
            plots.roc_pr_curves(roc, pr)


@pytest.mark.parametrize(
    ("y", "proba", "message"),
    [
        ([0, 1], [[0.5, np.nan], [0.5, 0.5]], "NaN or infinity in 1 of 2 rows, first in row 0"),
        ([0, 1], [[0.5, 0.5], [np.inf, 0.5]], "first in row 1"),
        ([0, 1], [0.2, 0.8], r"got \[2\].*np\.stack\(\[1 - p, p\], axis=1\)"),
        ([0, 0], [[1.0], [1.0]], r"at least two classes, got \[2, 1\]"),
        ([0, 1, 1], [[0.5, 0.5], [0.5, 0.5]], r"\[2\], got \[3\]"),
        ([[0], [1]], [[0.5, 0.5], [0.5, 0.5]], r"got \[2, 1\]"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], r"labels \[2\] are outside 0\.\.1"),
        ([-1, 1], [[0.5, 0.5], [0.5, 0.5]], r"labels \[-1\] are outside"),
        ([0.0, 1.0], [[0.5, 0.5], [0.5, 0.5]], r"float64: convert them with y\.astype\(int\)"),
        (["nv", "mel"], [[0.5, 0.5], [0.5, 0.5]], "labels must be integers"),
        ([0, 1], [["a", "b"], ["c", "d"]], "proba must be numbers"),
        (np.zeros(0, dtype=int), np.zeros((0, 3)), "empty"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_the_remedy(y, proba, message):
    names = [f"lesion {k}" for k in range(np.shape(proba)[-1])]
    for function in (
        lambda: metrics.evaluate(y, proba),
        lambda: metrics.confusion(y, proba),
        lambda: per_class.per_class_report(y, proba, names),
        lambda: per_class.roc_curves(y, proba, names),
        lambda: per_class.pr_curves(y, proba, names),
    ):
        with pytest.raises(metrics.MetricError, match=message):
            function()
    assert issubclass(metrics.MetricError, ValueError)


@pytest.mark.parametrize("names", [["nv"], ["nv", "mel", "df"], ["nv", "nv"]])
def test_names_must_fit_the_columns(names):
    y, proba = draw(20, 2)
    for function in (per_class.per_class_report, per_class.roc_curves, per_class.pr_curves):
        with pytest.raises(metrics.MetricError, match="2 different names"):
            function(y, proba, names)


def test_inputs_are_left_as_they_were():
    y, proba = draw(50, 3)
    before = y.copy(), proba.copy()
    metrics.evaluate(y, proba, replicates=5)
    per_class.per_class_report(y, proba, ["a", "b", "c"])
    np.testing.assert_array_equal(y, before[0])
    np.testing.assert_array_equal(proba, before[1])


def test_metrics_need_no_torch():
    code = "import sys, panderm_utils.stats.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
