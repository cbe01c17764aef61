"""Verdicts on published numbers: only where data, weights and settings are the published ones; else a reason."""

import json

import numpy as np
import pandas as pd
import pytest

from panderm_utils import results, workspace
from panderm_utils.batch import what_is_missing
from panderm_utils.manifests import load_encoder_manifest, load_published_results
from panderm_utils.protocols import load_protocol
from panderm_utils.protocols.fine_tune.metrics import FINE_TUNE_METRICS
from panderm_utils.results.verdicts import why_not_comparable
from panderm_utils.stats import METRICS, Scorer, bootstrap, intervals, widest_interval
from tests.results.published_run import around, begin, facts_of, save

PUBLISHED = load_published_results()
HAM = next(r for r in PUBLISHED if r.protocol == "linear_probe")
BASE = next(r for r in PUBLISHED if r.encoder == "panderm_base")
PAD = next(r for r in PUBLISHED if r.dataset == "pad_ufes")


@pytest.fixture
def space(tmp_path):
    return workspace.open_workspace("paper", tmp_path / "data", tmp_path / "weights", tmp_path / "out")


def verdicts_of(space, result, synthetic=False):
    runs = results.read_records(space.records)
    table = results.published_verdicts(runs, load_protocol(result.protocol), synthetic)
    return table[(table["dataset"] == result.dataset) & (table["encoder"] == result.encoder)].set_index("metric")


@pytest.mark.parametrize("result", PUBLISHED, ids=lambda r: f"{r.dataset}-{r.protocol}-{r.encoder}")
def test_a_run_like_the_published_one_has_a_verdict_on_every_number(space, result):
    ours = around(result)
    first, second = list(ours)[:2]
    ours[first] = (0.5, 0.49, 0.51)
    ours[second] = (result.metrics[second] - 0.01, result.metrics[second] - 0.02, result.metrics[second])  # on its end
    save(begin(space, result), ours)
    table = verdicts_of(space, result)
    assert table["published"].to_dict() == result.metrics
    assert table["verdict"].to_dict() == {
        metric: "outside the interval" if metric == first else "reproduced" for metric in result.metrics
    }
    assert set(table["differs"]) == {"nothing"}
    np.testing.assert_allclose(table.loc[second, "difference"], -0.01, atol=1e-12)
    np.testing.assert_allclose(table.loc[second, "standard_errors"], -0.01 / (0.02 / 2 / 1.959964), rtol=1e-6)


def data_with(**split_sizes):
    return {"data": {"split_sizes": split_sizes}}


@pytest.mark.parametrize(
    ("result", "settings", "facts", "reason"),
    [
        (HAM, {"train_fraction": 0.1}, {}, "train_fraction 0.1, not 1.0"),
        (HAM, {"seed": 1}, {}, "seed 1, not 0"),
        (HAM, {"solver": "converged"}, {}, "solver converged, not published"),
        (HAM, {"precision": "bf16"}, {}, "precision bf16, not fp32"),
        (HAM, {"replicates": 20}, {}, "intervals of 20 replicates, fewer than 200"),
        (PAD, {"monitor": "recall", "seed": 0}, {}, "monitor recall, not acc; seed 0, not 122"),
        (HAM, {}, data_with(train=47, val=12, test=31), "8,207 train images expected, 47 found"),
        (HAM, {}, {"data": {}}, "8,207 train images expected, unknown found"),
        (
            HAM,
            {},
            {"data": {**facts_of(HAM)["data"], "class_counts": {"train": [273, 448, 941, 102, 1020, 5305, 118]}}},
            "train images of mel 1,020, not 1,021, nv 5,305, not 5,304",
        ),
        (HAM, {}, {"encoder_facts": {}}, "weights of an unknown encoder, not of PanDerm (large)"),
        (HAM, {}, {"encoder_facts": {"title": "PanDerm (large)", "num_features": 192}}, "192 features, not 1024"),
        (BASE, {}, {"encoder_facts": {"digest": "f" * 64}}, "with the SHA-256 ffffffffffff, not be1e0fb108b3"),
    ],
)
def test_other_settings_data_or_weights_are_not_comparable_and_the_reason_is_given(
    space, result, settings, facts, reason
):
    run = begin(space, result, **settings)
    run.notes |= facts
    save(run, around(result), images=run.notes["data"].get("split_sizes", {"test": 1232})["test"])
    table = verdicts_of(space, result)
    assert set(table["verdict"]) == {"not comparable"}
    (told,) = set(table["differs"])
    assert reason in told


def test_a_record_of_31_images_says_nothing_about_the_paper(space):
    """Few images have wide intervals, in which any published number lies."""
    run = begin(space, HAM)
    run.notes["data"]["split_sizes"] = {"train": 47, "val": 12, "test": 31}
    save(run, dict.fromkeys(HAM.metrics, (0.8, 0.5, 1.0)))
    board = results.scoreboard(results.read_records(space.records), space, load_protocol, what_is_missing)
    rows = board[board["verdict"] != "not run"]
    assert set(rows["verdict"]) == {"not comparable"}
    assert rows["by_how_much"].isna().all()
    assert "1,232 test images expected, 31 found" in rows["differs"].iloc[0]
    sentence = results.scoreboard_sentence(board)
    assert sentence == "0 of 26 numbers reproduced, 0 outside our interval, 6 not comparable, 20 not run"


def test_what_a_record_scored_counts_not_what_it_says_of_its_data(space):
    save(begin(space, HAM), around(HAM), images=31)
    assert "1,232 test images expected, 31 found" in verdicts_of(space, HAM)["differs"].iloc[0]


def test_an_interval_wider_than_the_images_explain_is_no_reproduction(space):
    ours = around(HAM) | {"accuracy": (0.8, 0.5, 1.0), "auroc": (np.nan, np.nan, np.nan)}
    save(begin(space, HAM), ours)
    table = verdicts_of(space, HAM)
    assert table.loc[["accuracy", "auroc"], "verdict"].tolist() == ["not comparable"] * 2
    assert table.loc["accuracy", "differs"].startswith("our interval is 0.500 wide, at most 0.061 expected")
    assert table.loc["auroc", "differs"] == "our value is undefined"
    assert set(table.drop(["accuracy", "auroc"])["verdict"]) == {"reproduced"}


@pytest.mark.parametrize("counts", [(35, 44, 107, 8, 70, 951, 17), (300, 300), (40, 40, 40)])
@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_no_interval_of_real_predictions_is_wider_than_that(counts, strength):
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(len(counts)), counts)
    proba = rng.dirichlet(np.ones(len(counts)), len(y)) + strength * np.eye(len(counts))[y]
    scorer = Scorer(y, proba / proba.sum(axis=1, keepdims=True))
    ends = intervals(bootstrap(scorer, y, 300))
    for metric, low, high in zip(METRICS, ends["low"], ends["high"], strict=True):
        assert high - low < widest_interval(metric, counts)


def test_of_several_runs_the_nearest_is_compared(space):
    for seed, monitor in ((0, "acc"), (122, "recall"), (122, "acc")):
        save(begin(space, PAD, seed=seed, monitor=monitor), around(PAD))
    table = verdicts_of(space, PAD)
    assert set(table["run_id"]) == {
        "pad_ufes-fine_tune-panderm_large-seed122-epochs_50-monitor_acc-weighted_sampling_True"
    }
    assert set(table["settings"]) == {"monitor acc, weighted_sampling True, tta False, seed 122, epochs 50"}
    assert set(table["verdict"]) == {"reproduced"}
    others = results.published_verdicts(results.read_records(space.records), load_protocol("fine_tune"), False)
    others = others[others["dataset"] == "ham10000"]
    assert set(others["verdict"]) == {"not run"}
    assert others["differs"].isna().all()


def test_synthetic_images_are_compared_with_nothing(space):
    save(begin(space, HAM), around(HAM))
    assert set(verdicts_of(space, HAM, synthetic=True)["verdict"]) == {"not run"}


def test_every_published_metric_is_one_that_records_have():
    known = {"linear_probe": METRICS, "fine_tune": FINE_TUNE_METRICS}
    for result in PUBLISHED:
        assert set(result.metrics) <= set(known[result.protocol])
        assert set(result.settings) <= {*load_protocol(result.protocol).settings, "seed"}, "never compared"


def test_the_notebook_gives_the_verdict_that_the_tables_will(space):
    scores = pd.DataFrame({m: dict(zip(("value", "low", "high"), v, strict=True)) for m, v in around(HAM).items()}).T
    scores.loc["another"] = scores.loc["accuracy"]
    table = results.compare_with_published(scores, begin(space, HAM))
    assert set(table["verdict"].drop("another")) == {"reproduced"}
    assert table.loc["another", "verdict"] == "not published"
    short = begin(space, HAM)
    short.notes["data"]["split_sizes"]["test"] = 31
    table = results.compare_with_published(scores, short).drop("another")
    assert set(table["verdict"]) == {"not comparable"}
    assert set(table["differs"]) == {"1,232 test images expected, 31 found"}
    other = results.begin_run(load_protocol("linear_probe"), "ddi", "panderm_large", 0, space)
    assert results.compare_with_published(scores, other).columns.tolist() == ["value", "low", "high"]
    demo = results.begin_run(load_protocol("linear_probe"), "ham10000", "panderm_large", 0, workspace.open_workspace())
    assert "published" not in results.compare_with_published(scores, demo)


def test_a_digest_that_is_known_decides(space):
    model = load_encoder_manifest("panderm_base")
    assert model.sha256
    record = json.loads((save(begin(space, BASE), around(BASE)) / "record.json").read_text())
    assert why_not_comparable(record, load_protocol("fine_tune"), BASE) == []
