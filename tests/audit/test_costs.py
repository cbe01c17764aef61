"""What leakage costs equals what one computes by hand from the predictions that are left."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from panderm_utils import audit, results, stats, workspace
from panderm_utils.audit import labels
from panderm_utils.figures import leakage
from panderm_utils.protocols import external_validation, load_protocol
from panderm_utils.results import records
from tests.audit.planted import draw, make_dataset
from tests.mask_record import PROTOCOL, save_mask_record
from tests.stats.test_significance import predictions

SETTINGS = load_protocol("linear_probe").settings
K = 7


@pytest.fixture
def space(tmp_path):
    return workspace.open_workspace("demo", output_root=tmp_path / "out")


def study(tmp_path, y, shared=(), name="demo"):
    """Returns a dataset with a test image for each of y, of which the `shared` ones have a copy in train."""
    folder = tmp_path / name / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for i in shared:
        draw(1000 + i).save(folder / f"{i}.jpg")
        draw(1000 + i).save(folder / f"train{i}.jpg", quality=40)
    rows = [(f"{i}.jpg", "test", label) for i, label in enumerate(y)]
    rows += [(f"train{i}.jpg", "train", i % K) for i in range(len(y))]
    return make_dataset(tmp_path, rows, name)


def save(space, y, proba, dataset="demo", seed=0, replicates=60, protocol="linear_probe", tables=None, metrics=None):
    run = results.begin_run(load_protocol(protocol), dataset, "panderm_tiny", seed, space, replicates=replicates)
    metrics = stats.evaluate(y, proba, replicates, seed) if metrics is None else metrics
    table = results.prediction_table([f"{i}.jpg" for i in range(len(y))], y, proba)
    headline = "weighted_f1" if proba.shape[1] > 2 else "auroc"
    return results.save_record(run, metrics, table, headline, tables)


@pytest.fixture(autouse=True)
def without_warnings_of_few_images():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.MetricWarning)
        yield


def test_scores_without_leaking_images_are_those_of_the_other_predictions(tmp_path, space):
    y, proba = predictions(48, K)
    y[:K] = range(K)
    shared = [3, 10, 21, 40]
    save(space, y, proba)
    found = audit.audit_datasets([study(tmp_path, y, shared)])
    costs, notes = audit.costs_of_leakage(records.read_records(space.records), found, load_protocol)
    assert notes == []
    assert set(costs["leak"]) == {"copies"}
    rest = np.setdiff1d(np.arange(48), shared)
    by_hand = stats.evaluate(y[rest], proba[rest], 2)["value"]
    for row in costs.itertuples():
        assert (row.images, row.left_out, row.without) == (48, 4, "4 copies")
        assert row.rest == pytest.approx(by_hand[row.metric], abs=1e-12)
        assert row.difference == pytest.approx(row.rest - row.score, abs=1e-12)
        assert row.low <= row.difference <= row.high
    headline = costs[costs["headline"]].iloc[0]
    assert headline["metric"] == "weighted_f1"
    assert headline["score"] == pytest.approx(f1_score(y, proba.argmax(axis=1), average="weighted"))
    said = audit.describe_cost(headline)
    start = f"weighted F1 {headline['score']:.3f}, {headline['rest']:.3f} without 4 copies (difference "
    assert said.startswith(start)
    shown = leakage.costs_table(costs[costs["headline"]]).iloc[0]
    assert (shown["Left out"], shown["Score"], shown["Without"]) == ("4 copies", said[12:17], said[19:24])


def test_nothing_leaks_nothing_changes(tmp_path, space):
    y, proba = predictions(20, K)
    y[:K] = range(K)
    save(space, y, proba)
    found = audit.audit_datasets([study(tmp_path, y)])
    costs, _ = audit.costs_of_leakage(records.read_records(space.records), found, load_protocol)
    assert len(costs) == 6
    assert (costs["left_out"] == 0).all()
    assert (costs[["difference", "low", "high"]] == 0).all(axis=None)
    assert audit.describe_cost(costs[costs["headline"]].iloc[0]).endswith("no test image leaks")
    text = audit.describe_audit(found, costs, pd.DataFrame(columns=labels.COLUMNS), synthetic=True)
    assert "no copy of an image is in two splits or two datasets: drawn images are all different" in text


def test_a_test_split_that_leaks_whole_has_no_score_left(tmp_path, space):
    y = np.arange(K)
    proba = np.full((K, K), 1 / K)
    save(space, y, proba)
    found = audit.audit_datasets([study(tmp_path, y, range(K))])
    costs, _ = audit.costs_of_leakage(records.read_records(space.records), found, load_protocol)
    assert costs[["rest", "difference", "low", "high"]].isna().all(axis=None)
    assert "undefined without 7 copies" in audit.describe_cost(costs[costs["headline"]].iloc[0])


def test_a_record_of_other_images_is_left_out_with_a_note(tmp_path, space):
    y, proba = predictions(20, K)
    y[:K] = range(K)
    save(space, y, proba)
    found = audit.audit_datasets([study(tmp_path, y[:15])])
    costs, notes = audit.costs_of_leakage(records.read_records(space.records), found, load_protocol)
    assert costs.empty
    assert notes == [
        "demo-linear_probe-panderm_tiny-seed0-replicates_60: 5 of its images are not in demo as it is here"
    ]


def test_a_run_on_another_dataset_loses_what_its_source_has(tmp_path, space):
    y, proba = predictions(24, 2)
    targets = {"ham10000": (y, proba, [f"{i}.jpg" for i in range(24)])}
    external = external_validation.score_targets(targets, 60)
    files = {
        "predictions_external.csv.gz": records.prediction_table(targets["ham10000"][2], y, proba).assign(
            dataset="ham10000"
        )
    }
    metrics = external_validation.record_scores(stats.evaluate(y, proba, 60), external)
    save(space, y, proba, protocol="external_validation", tables=files, metrics=metrics)
    source, target = study(tmp_path, y), study(tmp_path, y, name="ham10000")
    for i in (2, 7):
        draw(5000 + i).save(source.path(f"train{i}.jpg"))
        draw(5000 + i).save(target.path(f"{i}.jpg"), quality=40)
    found = audit.audit_datasets([source, target])
    costs, _ = audit.costs_of_leakage(records.read_records(space.records), found, load_protocol)
    costs = costs[costs["headline"]].set_index("tested_on")
    assert costs["left_out"].to_dict() == {"demo": 0, "ham10000": 2}
    rest = np.setdiff1d(np.arange(24), [2, 7])
    assert costs.loc["ham10000", "rest"] == pytest.approx(roc_auc_score(y[rest], proba[rest, 1]))


def test_masks_lose_the_mean_of_the_leaking_images(tmp_path, space):
    names = [f"{i}.jpg" for i in range(12)]
    clusters = [f"L{i // 2}" for i in range(12)]
    folder = save_mask_record(space, names, "demo", clusters=clusters)
    found = audit.audit_datasets([study(tmp_path, np.arange(12) % K, [1, 4])])
    runs = records.read_records(space.records)
    costs, _ = audit.costs_of_leakage(runs, found, lambda name: PROTOCOL)
    scores, _, _ = results.read_image_scores(folder)
    jaccard = costs[costs["headline"]].iloc[0]
    assert jaccard["metric"] == "jaccard"
    assert jaccard["rest"] == pytest.approx(scores["jaccard"].drop([1, 4]).mean())
    assert jaccard["low"] <= jaccard["difference"] <= jaccard["high"]


def test_doubtful_labels_are_those_where_the_model_is_confident_of_another_class():
    y = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    p = np.array([0.9, 0.8, 0.7, 0.1, 0.2, 0.3, 0.45, 0.95])  # of class 0; its mean over class 0 is 0.625
    proba = np.stack([p, 1 - p], axis=1)  # the mean of class 1 over its images is 0.525
    assert labels.doubts(y, proba).tolist() == [-1, -1, -1, 1, -1, -1, -1, 0]
    timid = np.where(y == 0, 0.45, 0.4)  # every image of class 0 is predicted as 1, which is no surprise of any
    timid[0] = 0.2
    assert labels.doubts(y, np.stack([timid, 1 - timid], axis=1)).tolist() == [1, -1, -1, -1, -1, -1, -1, -1]


def test_swapped_labels_are_found_and_other_records_are_not_used(tmp_path, space):
    rng = np.random.default_rng(0)
    y = np.arange(70) % K
    proba = 0.7 * np.eye(K)[y] + 0.3 * rng.dirichlet(np.ones(K), 70)
    y = np.where(np.isin(np.arange(70), [5, 33]), (y + 1) % K, y)
    save(space, y, proba)
    save(space, y, proba, seed=1)
    two = predictions(70, 2)
    save(space, *two, protocol="external_validation")  # of other classes
    save(space, (y + 1) % K, proba, protocol="label_efficiency")  # of other labels
    dataset = study(tmp_path, y)
    found = audit.audit_datasets([dataset])
    doubts = audit.doubtful_labels(records.read_records(space.records), found.images)
    assert set(doubts["image"]) == {"5.jpg", "33.jpg"}
    assert doubts["p_label"].is_monotonic_increasing
    row = doubts.set_index("image").loc["5.jpg"]
    names = dataset.manifest.class_names
    assert (row["label"], row["suggested"], row["runs"]) == (names[6], names[5], 2)
    assert row["path"] == str(dataset.path("5.jpg"))
    images, captions = audit.doubtful_pictures(doubts)
    assert len(images) == 2
    assert f"suggested {names[5]}" in "".join(captions)
