"""Calibration: against scikit-learn, SciPy, loops over the same resamples, and models whose error is known."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from panderm_utils.figures import plots
from panderm_utils.figures import reliability as reliability_plots
from panderm_utils.results import calibration_of_records, records
from panderm_utils.stats import calibration
from panderm_utils.stats.resampling import MetricError, bootstrap, resampled_rows


def predictions(images=300, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, images - classes)])
    return y, rng.dirichlet(np.ones(classes), size=images).round(3)  # ties, and sums that miss 1 by a little


def binary(p, y):
    return np.asarray(y, int), np.stack([1 - np.asarray(p), p], axis=1)


def by_loop(y, proba, bins=15, edges=None):
    """Expected calibration error and Brier score, image by image."""
    edges = np.linspace(0, 1, bins + 1) if edges is None else edges
    two = proba.shape[1] == 2
    held = [(p[1], yi == 1) if two else (max(p), p.argmax() == yi) for yi, p in zip(y, proba, strict=True)]
    error = 0
    for b in range(bins):
        inside = [(p, true) for p, true in held if (edges[b] < p or b == 0) and (p <= edges[b + 1] or b == bins - 1)]
        if inside:
            error += len(inside) / len(y) * abs(np.mean([p for p, _ in inside]) - np.mean([t for _, t in inside]))
    squares = [sum((p[k] - (k == yi)) ** 2 for k in range(len(p))) for yi, p in zip(y, proba, strict=True)]
    return error, np.mean(squares) / (2 if two else 1)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("equal_mass", [False, True])
def test_the_reliability_table_is_scikit_learn_s(classes, equal_mass):
    y, proba = predictions(classes=classes)
    table = calibration.reliability(y, proba, 10, equal_mass)
    p, true = (proba[:, 1], y == 1) if classes == 2 else (proba.max(axis=1), proba.argmax(axis=1) == y)
    strategy = "quantile" if equal_mass else "uniform"
    observed, predicted = calibration_curve(true, p, n_bins=10, strategy=strategy)
    filled = table[table["images"] > 0]
    np.testing.assert_allclose(filled["observed"], observed)
    np.testing.assert_allclose(filled["predicted"], predicted)
    assert table["images"].sum() == len(y)
    if equal_mass:
        assert filled["images"].between(24, 36).all()
    for row in filled.itertuples():
        ends = binomtest(round(row.observed * row.images), row.images).proportion_ci(method="wilson")
        assert (row.low, row.high) == pytest.approx((ends.low, ends.high), abs=1e-9)


@pytest.mark.parametrize("classes", [2, 4])
def test_values_and_intervals_are_those_of_a_loop_over_the_same_images(classes):
    y, proba = predictions(60, classes)
    table = calibration.evaluate_calibration(y, proba, replicates=40, seed=3)
    error, brier = by_loop(y, proba)
    resampled = np.array([by_loop(y[rows], proba[rows]) for rows in np.concatenate(list(resampled_rows(y, 40, 3)))])
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    assert table.loc["brier", ["value", "low", "high"]].tolist() == pytest.approx([brier, low[1], high[1]])
    mirrored = max(0, 2 * error - high[0]), max(error, 2 * error - low[0])
    assert table.loc["ece", ["value", "low", "high"]].tolist() == pytest.approx([error, *mirrored])
    if classes == 2:
        assert brier == pytest.approx(brier_score_loss(y, proba[:, 1]))


def test_bins_of_equal_mass_keep_their_edges_in_every_resample():
    y, proba = predictions(60)
    scorer = calibration.CalibrationScorer(y, proba, 5, equal_mass=True)
    edges = np.quantile(proba.max(axis=1), np.linspace(0, 1, 6))
    for rows in np.concatenate(list(resampled_rows(y, 10))):
        counts = np.bincount(rows, minlength=60)[:, None].astype(float)
        assert scorer(counts)[0] == pytest.approx(by_loop(y[rows], proba[rows], 5, edges))


def test_the_error_of_a_model_that_is_always_as_sure_is_the_distance_to_its_accuracy():
    y = np.arange(1000) % 10 < 7
    value = calibration.evaluate_calibration(*binary(np.full(1000, 0.9), y), replicates=2)["value"]
    assert value["ece"] == pytest.approx(0.2)
    assert value["brier"] == pytest.approx(0.7 * 0.01 + 0.3 * 0.81)
    one_bin = calibration.reliability(*binary(np.full(1000, 0.9), y), equal_mass=True)
    assert one_bin["images"].tolist() == [1000] + [0] * 14  # ties stay together


def calibrated(images, rng, sharper=1.0):
    """Probabilities, and labels that have them; with `sharper` the probabilities are too sure."""
    z = rng.normal(0, 1.2, images)
    return binary(1 / (1 + np.exp(-sharper * z)), rng.random(images) < 1 / (1 + np.exp(-z)))


def test_a_calibrated_model_has_next_to_no_error_and_chance_alone_explains_it():
    rng = np.random.default_rng(1)
    assert calibration.evaluate_calibration(*calibrated(40_000, rng), replicates=2).loc["ece", "value"] < 0.015
    above = [calibration.evaluate_calibration(*calibrated(150, rng), replicates=200) for _ in range(60)]
    share = np.mean([table.loc["ece", "value"] > table.loc["ece", "by_chance"] for table in above])
    assert share <= 0.15  # 5% are meant
    assert np.mean([table.loc["ece", "low"] < 0.02 for table in above]) > 0.5
    too_sure = calibration.evaluate_calibration(*calibrated(1000, rng, 3), replicates=200).loc["ece"]
    assert too_sure["value"] > 2 * too_sure["by_chance"]


def test_the_interval_covers_the_true_error_where_percentiles_would_not():
    rng = np.random.default_rng(2)
    y, proba = calibrated(400_000, rng, 1.6)
    truth = calibration.evaluate_calibration(y, proba, replicates=2).loc["ece", "value"]
    assert truth > 0.05
    covered = percentiles = 0
    for _ in range(60):
        y, proba = calibrated(200, rng, 1.6)
        row = calibration.evaluate_calibration(y, proba, replicates=200).loc["ece"]
        covered += row["low"] <= truth <= row["high"]
        scorer = calibration.CalibrationScorer(y, proba)
        low, high = np.quantile(bootstrap(scorer, y, 200)[:, 0], [0.025, 0.975])
        percentiles += low <= truth <= high
    assert covered >= 48
    assert percentiles < 10


def test_what_is_no_probability_is_refused_with_a_remedy():
    y, proba = predictions()
    with pytest.raises(MetricError, match=r"300 of 300 rows are negative or do not sum to 1, first row 0; .*softmax"):
        calibration.evaluate_calibration(y, 5 * proba)
    with pytest.raises(MetricError, match="bins must be a whole number of at least 1, got 0"):
        calibration.reliability(y, proba, 0)


def folder_of(root, dataset, encoder, images=120, classes=3, seed=0):
    y, proba = predictions(images, classes, seed)
    folder = root / f"{dataset}-{encoder}"
    folder.mkdir()
    records.prediction_table([f"{i}.png" for i in range(images)], y, proba).to_csv(folder / "predictions.csv")
    row = {"dataset": dataset, "encoder": encoder, "dataset_label": dataset.upper(), "encoder_label": encoder}
    return row | {"run_id": folder.name, "seed": 0, "folder": str(folder)}


def calibrate(root, datasets, encoders, **options):
    pairs = [(dataset, encoder) for dataset in range(datasets) for encoder in range(encoders)]
    rows = [folder_of(root, f"set{d}", f"encoder {e}", classes=2 + d % 3, seed=7 * d + e) for d, e in pairs]
    columns = ["dataset", "encoder", "dataset_label", "encoder_label", "run_id", "seed", "folder"]
    return calibration_of_records(pd.DataFrame(rows, columns=columns), replicates=20, **options)


def test_records_are_calibrated_from_their_predictions(tmp_path):
    bins, numbers = calibrate(tmp_path, 2, 2, bins=10)
    assert len(bins) == 4 * 10
    assert numbers["classes"].tolist() == [2, 2, 3, 3]
    for run in numbers.itertuples():
        y, proba, _ = records.read_predictions(tmp_path / run.run_id)
        assert (run.ece, run.brier) == pytest.approx(by_loop(y, proba, 10))
        assert run.images == bins.loc[bins["run_id"] == run.run_id, "images"].sum() == 120
    table = reliability_plots.calibration_table(numbers)
    first = numbers.iloc[0]
    assert table["ECE"][0] == f"{first['ece']:.3f} [{first['ece_low']:.3f}, {first['ece_high']:.3f}]"
    assert f"SET1: encoder 0 {numbers['ece'][2]:.3f} [" in reliability_plots.calibration_alt_text(numbers)


@pytest.mark.parametrize(("datasets", "encoders"), [(0, 0), (1, 1), (2, 2), pytest.param(5, 5, marks=pytest.mark.slow)])
def test_the_figure_fits_its_sheet_and_shows_every_error(tmp_path, datasets, encoders):
    bins, numbers = calibrate(tmp_path, datasets, encoders)
    colors = {f"encoder {e}": f"C{e}" for e in range(encoders)}
    figure = reliability_plots.reliability_diagrams(bins, numbers, colors, synthetic=True)
    texts = [text.get_text() for text in figure.findobj(plt.Text)]
    assert texts.count(plots.SYNTHETIC_MARK) == 1
    for run in numbers.to_dict(orient="records"):
        assert "ECE {ece:.3f} [{ece_low:.3f}, {ece_high:.3f}]".format(**run) in texts
    assert texts.count("fraction in class 1") == sum(d % 3 == 0 for d in range(datasets))
    assert ("no record yet" in texts) == (not datasets)
    figure.draw_without_rendering()
    box, sheet = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0) > -0.02
    assert (box.x1, box.y1) < (sheet[0] + 0.02, sheet[1] + 0.02)
    assert box.y1 < sheet[1] + 0.02
    assert plt.get_fignums() == []


def test_a_line_passes_only_through_bins_of_several_images():
    bins = calibration.reliability(*binary(np.repeat([0.1, 0.5, 0.9], [40, 2, 40]), [0] * 42 + [1] * 40))
    bins = bins.assign(dataset_label="A", run_id="a")
    row = {"dataset_label": "A", "encoder_label": "e", "run_id": "a", "classes": 2, "images": 82, "ece": 0.1}
    numbers = pd.DataFrame([row | {"ece_low": 0.05, "ece_high": 0.15}])
    axis = reliability_plots.reliability_diagrams(bins, numbers, {"e": "C0"}).axes[0]
    (line,) = [line for line in axis.lines if line.get_label().startswith("ECE")]
    assert line.get_xdata().tolist() == pytest.approx([0.1, 0.9])
    assert sum(len(dots.get_offsets()) for dots in axis.collections if hasattr(dots, "get_sizes")) == 3
