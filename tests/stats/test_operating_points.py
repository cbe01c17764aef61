"""Operating points: against scikit-learn's ROC curve, every threshold tried in a loop, and closed forms."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_curve

from panderm_utils.figures import points_table
from panderm_utils.results import operating_points_of_records, records
from panderm_utils.stats import thresholds as operating_points
from panderm_utils.stats.metrics import MetricWarning
from panderm_utils.stats.resampling import MetricError, resampled_rows

LEVELS = (0.8, 0.9, 0.95)


def predictions(images=80, classes=2, seed=0, digits=1):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, images - classes)])
    z = 1.2 * np.eye(classes)[y] + rng.normal(size=(images, classes))
    proba = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)).round(digits)  # many ties
    return y, proba / proba.sum(axis=1, keepdims=True)


def by_loop(positive, score, levels=LEVELS):
    """Every threshold that could be set, in whole numbers; sensitivities, then specificities."""
    rates = []
    for threshold in [*np.unique(score), np.inf]:
        called = score >= threshold
        rates.append(((called & positive).sum() / positive.sum(), (~called & ~positive).sum() / (~positive).sum()))
    at = [max(sensitivity for sensitivity, specificity in rates if specificity >= level) for level in levels]
    return at + [max(specificity for sensitivity, specificity in rates if sensitivity >= level) for level in levels]


@pytest.mark.parametrize(("classes", "digits"), [(2, 1), (2, 6), (4, 2)])
def test_values_and_intervals_are_those_of_a_loop_over_every_threshold(classes, digits):
    y, proba = predictions(classes=classes, digits=digits)
    names = [f"class {k}" for k in range(classes)]
    table = operating_points.operating_points(y, proba, names, LEVELS, replicates=30, seed=2)
    rows = np.concatenate(list(resampled_rows(y, 30, 2)))
    for k in [1] if classes == 2 else range(classes):
        mine = table[table["class"] == f"class {k}"]
        assert mine["given"].tolist() == ["specificity"] * 3 + ["sensitivity"] * 3
        assert mine["level"].tolist() == [*LEVELS, *LEVELS]
        assert mine["value"].tolist() == by_loop(y == k, proba[:, k])
        resampled = [by_loop(y[r] == k, proba[r, k]) for r in rows]
        np.testing.assert_allclose(mine[["low", "high"]].T, np.quantile(resampled, [0.025, 0.975], axis=0))
        assert set(zip(mine["images"], mine["others"], strict=True)) == {((y == k).sum(), (y != k).sum())}
    assert len(table) == 6 * (1 if classes == 2 else classes)


def test_values_lie_on_scikit_learn_s_curve():
    y, proba = predictions(500, digits=3)
    false, true, _ = roc_curve(y, proba[:, 1], drop_intermediate=False)
    value = operating_points.operating_points(y, proba, ["no", "yes"], replicates=2)["value"]
    assert value[:3].tolist() == pytest.approx([true[1 - false >= level - 1e-12].max() for level in LEVELS])
    assert value[3:].tolist() == pytest.approx([1 - false[true >= level - 1e-12].min() for level in LEVELS])


def test_nine_of_ten_are_the_ninety_percent_that_were_asked_for():
    y = np.repeat([0, 1], 10)
    score = np.concatenate([np.r_[0.1:0.19:10j][:9], [0.95], np.r_[0.2:0.9:9j], [0.05]])
    table = operating_points.operating_points(y, np.stack([1 - score, score], 1), ["no", "yes"], (0.9,), 2)
    assert table["value"].tolist() == [0.9, 0.9]
    tighter = operating_points.operating_points(y, np.stack([1 - score, score], 1), ["no", "yes"], (0.91,), 2)
    assert tighter["value"].tolist() == [0, 0]


@pytest.mark.parametrize(("score", "value"), [([0.2, 0.2, 0.8, 0.8], 1), ([0.5] * 4, 0), ([0.8, 0.8, 0.2, 0.2], 0)])
def test_closed_forms(score, value):
    proba = np.stack([1 - np.array(score), score], axis=1)
    table = operating_points.operating_points([0, 0, 1, 1], proba, ["no", "yes"], (0.6, 1), 20)
    assert (table[["value", "low", "high"]] == value).all(axis=None)


def test_a_class_without_an_image_is_named_and_undefined():
    y, proba = predictions(classes=3)
    keep = y != 2
    with pytest.warns(MetricWarning, match="^third: NaN"):
        table = operating_points.operating_points(y[keep], proba[keep], ["first", "second", "third"], replicates=5)
    assert table.loc[table["class"] == "third", ["value", "low", "high"]].isna().all(axis=None)
    assert table.loc[table["class"] != "third", ["value", "low", "high"]].notna().all(axis=None)


def test_what_cannot_be_meant_is_refused():
    y, proba = predictions()
    with pytest.raises(MetricError, match=r"got \[90\]: write 0.9 for 90%"):
        operating_points.operating_points(y, proba, ["no", "yes"], (90,))
    with pytest.raises(MetricError, match="class_names must be 2"):
        operating_points.operating_points(y, proba, ["yes"])


def test_records_of_two_and_of_more_classes_and_both_measures_side_by_side(tmp_path):
    rows = []
    for dataset, classes in (("ddi", 2), ("ham10000", 7)):
        y, proba = predictions(100, classes, digits=4)
        (tmp_path / dataset).mkdir()
        proba = proba / proba.sum(axis=1, keepdims=True)
        records.prediction_table(map(str, range(100)), y, proba).to_csv(tmp_path / dataset / "predictions.csv")
        row = {"dataset": dataset, "encoder": "e", "dataset_label": dataset, "encoder_label": "E", "run_id": dataset}
        rows.append(row | {"seed": 0, "folder": str(tmp_path / dataset)})
    points = operating_points_of_records(pd.DataFrame(rows), replicates=10)
    assert points.groupby("dataset")["class"].nunique().to_dict() == {"ddi": 1, "ham10000": 7}
    two = points_table(points[points["binary"]])
    assert two["Class"].tolist() == ["malignant"] * 3
    first = points.iloc[0]
    assert two["Sensitivity at this specificity"][0] == "{value:.3f} [{low:.3f}, {high:.3f}]".format(**first)
    assert two["Specificity at this sensitivity"][0] == "{value:.3f} [{low:.3f}, {high:.3f}]".format(**points.iloc[3])
    more = points_table(points[~points["binary"]])
    assert len(more) == 21
    assert more["Level"].tolist() == ["0.8", "0.9", "0.95"] * 7
    last = points.query("dataset == 'ham10000' and given == 'sensitivity'").iloc[-1]
    assert more["Specificity at this sensitivity"].iloc[-1].startswith(f"{last['value']:.3f}")
    assert points_table(operating_points_of_records(pd.DataFrame(rows[:0]))).empty
