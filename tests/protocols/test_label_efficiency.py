"""The sweep over label fractions: fit by fit, scores and intervals against plain loops, records read back."""

import numpy as np
import pandas as pd
import pytest

from panderm_utils import workspace
from panderm_utils.protocols import load_protocol
from panderm_utils.protocols.label_efficiency import rivals
from panderm_utils.protocols.label_efficiency import sweep as label_efficiency
from panderm_utils.protocols.label_efficiency.subsets import draw_subsets
from panderm_utils.protocols.linear_probe.probe import fit_linear_probe
from panderm_utils.results import records, selection
from panderm_utils.stats import metrics
from panderm_utils.stats.resampling import resampled_rows

CLASSES, WIDTH = 3, 12


def study(classes=CLASSES, seed=0):
    """A table of 160 training and 60 test images, and their features."""
    rng = np.random.default_rng(seed)
    y = rng.choice(classes, 220, p=np.array([4, 2, 1][:classes]) / sum([4, 2, 1][:classes]))
    x = rng.normal(size=(220, WIDTH)) + 1.2 * rng.normal(size=(classes, WIDTH))[y]
    table = pd.DataFrame({"image": [f"0{i}" for i in range(220)], "label": y, "lesion": np.arange(220) // 2})
    table["split"] = np.where(np.arange(220) < 160, "train", "test")
    return table, x.astype(np.float32), y


def sweep_of(drawing="honest", classes=CLASSES, draws=3, fractions="0.1, 0.4", solver="converged"):
    table, x, y = study(classes)
    drawn = draw_subsets(table, fractions, drawing, draws, 0, ["lesion"])
    sweep = label_efficiency.sweep_probes(x[:160], y[:160], x[160:], drawn, classes, 0, solver)
    return sweep, y[160:], table


@pytest.mark.parametrize("solver", ["published", "converged"])
def test_every_fit_is_the_linear_probe_of_its_rows_whatever_the_order(solver):
    table, x, y = study()
    drawn = draw_subsets(table, "0.1, 0.4", draws=2, group_columns=["lesion"])
    sweep = label_efficiency.sweep_probes(x[:160], y[:160], x[160:], drawn, CLASSES, 0, solver)
    other = label_efficiency.sweep_probes(x[:160], y[:160], x[160:], drawn[::-1], CLASSES, 0, solver)
    assert len(sweep.proba) == 2 * 2 + 1
    for subset, proba, again in zip(drawn, sweep.proba, other.proba[::-1], strict=True):
        alone = fit_linear_probe(x[:160][subset.rows], y[:160][subset.rows], CLASSES, 0, solver).predict_proba(x[160:])
        np.testing.assert_array_equal(proba, alone)
        np.testing.assert_array_equal(proba, again)
    assert sweep.fits["images"].tolist() == [len(s.rows) for s in drawn]
    assert sweep.fits["converged"].all()


def test_the_mean_and_the_spread_over_draws_against_a_loop():
    sweep, y, _ = sweep_of()
    curve = label_efficiency.score_sweep(sweep, y, replicates=50)
    assert curve["fraction"].unique().tolist() == [0.1, 0.4, 1.0]
    for (fraction, metric), row in curve.set_index(["fraction", "metric"]).iterrows():
        here = [i for i, subset in enumerate(sweep.subsets) if subset.fraction == fraction]
        values = [metrics.evaluate(y, sweep.proba[i], 2).loc[metric, "value"] for i in here]
        assert row["value"] == pytest.approx(np.mean(values))
        assert (row["draw_low"], row["draw_high"]) == (min(values), max(values))
        assert row["draws"] == len(here) == (1 if fraction == 1 else 3)
        assert row["images"] == np.mean([len(sweep.subsets[i].rows) for i in here])
        if fraction < 1:
            assert row["draw_sd"] == pytest.approx(np.std(values, ddof=1))


def test_the_bootstrap_is_of_the_mean_over_draws_on_the_same_resamples():
    sweep, y, _ = sweep_of()
    curve = label_efficiency.score_sweep(sweep, y, replicates=40, seed=3).set_index(["fraction", "metric"])
    for fraction in (0.1, 1.0):
        here = [proba for subset, proba in zip(sweep.subsets, sweep.proba, strict=True) if subset.fraction == fraction]
        values = [
            np.mean([(proba[rows].argmax(axis=1) == y[rows]).mean() for proba in here])
            for block in resampled_rows(y, 40, 3)
            for rows in block
        ]
        expected = np.quantile(values, [0.025, 0.975])
        np.testing.assert_allclose(curve.loc[(fraction, "accuracy"), ["low", "high"]].astype(float), expected)


@pytest.mark.parametrize("drawing", ["honest", "published"])
def test_one_draw_and_all_labels_are_scored_as_the_linear_probe_s_protocol_does(drawing):
    sweep, y, _ = sweep_of(drawing, draws=1)
    curve = label_efficiency.score_sweep(sweep, y, replicates=30, seed=1)
    for fraction, proba in zip((0.1, 0.4, 1.0), sweep.proba, strict=True):
        part = curve[curve["fraction"] == fraction].set_index("metric")
        expected = metrics.evaluate(y, proba, 30, 1).filter(regex="^(?!unstratified)")
        pd.testing.assert_frame_equal(part[list(expected)], expected, check_exact=True)
    expected = metrics.evaluate(y, sweep.full, 30, 1).filter(regex="^(?!unstratified)")
    pd.testing.assert_frame_equal(label_efficiency.full_scores(curve), expected)


@pytest.fixture(params=[("honest", 3), ("published", 3), ("honest", 2)], ids=["honest", "published", "two classes"])
def saved(request, tmp_path):
    drawing, classes = request.param
    sweep, y, table = sweep_of(drawing, classes)
    space = workspace.open_workspace("demo", output_root=tmp_path)
    settings = {**load_protocol("label_efficiency").settings, "drawing": drawing}
    run = records.begin_run(load_protocol("label_efficiency"), "demo", "random_tiny", 0, space, **settings)
    curve = label_efficiency.score_sweep(sweep, y, replicates=20)
    names = table["image"].to_numpy()
    more = label_efficiency.record_tables(sweep, curve, names[:160], names[160:], y)
    predictions = records.prediction_table(names[160:], y, sweep.full)
    scores = label_efficiency.full_scores(curve)
    return records.save_record(run, scores, predictions, "accuracy", more), sweep, curve, y, names, space


def test_the_images_of_every_fit_are_read_back_in_its_order(saved):
    folder, sweep, _, _, names, _ = saved
    read = label_efficiency.read_subsets(folder)
    assert read == {(s.fraction, s.draw): names[s.rows].tolist() for s in sweep.subsets}


def test_every_score_can_be_computed_anew_from_the_record(saved):
    folder, sweep, curve, y, names, _ = saved
    read = label_efficiency.read_draw_predictions(folder)
    assert set(read) == {(s.fraction, s.draw) for s in sweep.subsets}
    for subset, proba in zip(sweep.subsets, sweep.proba, strict=True):
        labels, again, images = read[subset.fraction, subset.draw]
        assert labels.tolist() == y.tolist()
        assert images == names[160:].tolist()
        if proba.shape[1] == 2:
            np.testing.assert_array_equal(again[:, 1], proba[:, 1])
        else:
            np.testing.assert_array_equal(again, proba)
    kept = pd.read_csv(folder / "draws.csv").set_index(["fraction", "draw", "metric"])["value"]
    for (fraction, draw), (labels, again, _) in read.items():
        for metric, value in metrics.evaluate(labels, again, 2)["value"].items():
            assert kept[fraction, draw, metric] == pytest.approx(value, abs=1e-12)
    assert curve.groupby("metric")["value"].last()["accuracy"] == kept[1.0, 0, "accuracy"]


def test_curves_are_read_from_records_with_whose_they_are(saved):
    folder, _, curve, _, _, space = saved
    runs = records.read_records(space.records, "label_efficiency")
    scores = selection.paper_scores(runs, "demo", load_protocol("label_efficiency"), drawing=runs["drawing"].iloc[0])
    read = label_efficiency.read_curves(scores)
    assert set(read["run_id"]) == {folder.name}
    assert set(read["dataset_label"]) == {"demo"}
    assert set(read.loc[read["headline"], "metric"]) == {"accuracy"}
    pd.testing.assert_frame_equal(read[list(curve)], curve, check_exact=True)
    draws = label_efficiency.read_curves(scores, "draws.csv")
    assert len(draws) == len(metrics.METRICS) * len(draws[["fraction", "draw"]].drop_duplicates())


def test_no_record_is_an_empty_curve(tmp_path):
    read = label_efficiency.read_curves(records.read_records(tmp_path))
    assert read.empty
    assert read[read["headline"]].empty


def test_the_table_has_a_cell_a_fraction(saved):
    _, _, curve, *_ = saved
    named = curve[curve["metric"] == "auroc"].assign(dataset_label="demo", encoder_label="DINOv2")
    other = named[named["fraction"] > 0.2].assign(encoder_label="PanDerm")
    table = label_efficiency.label_efficiency_table(pd.concat([named, other]))
    assert list(table) == ["Dataset", "Encoder", "metric", "10%", "40%", "100%"]
    assert table["Encoder"].tolist() == ["DINOv2", "PanDerm"]
    first, last = named.iloc[0], named.iloc[-1]
    spread = "" if first["draws"] == 1 else f" ± {first['draw_sd']:.3f}"
    assert table.loc[0, "10%"] == f"{first['value']:.3f}{spread} [{first['low']:.3f}, {first['high']:.3f}]"
    assert table.loc[1, "100%"] == f"{last['value']:.3f} [{last['low']:.3f}, {last['high']:.3f}]"
    assert table.loc[1, "10%"] == ""


def test_a_rival_without_weights_is_a_warning_and_the_studied_encoder_is_no_rival(tmp_path):
    with pytest.warns(rivals.RivalWarning, match="no comparison with panderm_base: .*its weights file is missing"):
        assert rivals.load_rival("panderm_base", "panderm_tiny", "cpu", weights_root=tmp_path) == []
    assert rivals.load_rival("random_tiny", "random_tiny") == []
    (rival,) = rivals.load_rival("random_tiny", "panderm_tiny", "cpu")
    assert rival.manifest.name == "random_tiny"


def test_curves_side_by_side_are_one_metric_each_under_its_label(saved):
    _, sweep, curve, y, *_ = saved
    both = label_efficiency.side_by_side("ab", [curve, label_efficiency.score_draws(sweep, y)], "aupr")
    assert both["encoder_label"].tolist() == ["a"] * 3 + ["b"] * len(sweep.subsets)
    assert set(both["metric"]) == {"aupr"}
