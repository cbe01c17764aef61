"""Figures: what they draw is what they were given, nothing is cut off, and a demo figure says so."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from panderm_utils.figures import comparison_plots, plots
from panderm_utils.figures import embedding as embedding_plots
from panderm_utils.figures import paper as paper_plots
from panderm_utils.protocols import load_protocol

SIDES = load_protocol("linear_probe"), load_protocol("fine_tune")
COLORS = {"PanDerm": "#D55E00", "DINOv2": "#0072B2"}


def bars(datasets=("HAM10000", "DDI", "PAD-UFES-20"), encoders=tuple(COLORS), metric="weighted_f1"):
    rng = np.random.default_rng(0)
    rows = [
        {"dataset_label": d, "encoder_label": e, "metric": metric, "value": v, "low": v - 0.05, "high": v + 0.02}
        for d in datasets
        for e in encoders
        for v in [rng.uniform(0.3, 0.9)]
    ]
    return pd.DataFrame(rows)


def pairs(seeds):
    """Rows as `comparison.compare_protocols` has them, of two datasets and encoders."""
    sides = ["linear_probe", "fine_tune", "difference"]
    rows = pd.concat(
        [bars(("HAM10000", "A dataset with a long name, clean split")).assign(seed=s) for s in seeds or (0,)]
    )
    for i, side in enumerate(sides):
        rows[side] = rows["value"] - 0.2 * i
        rows[f"{side}_low"], rows[f"{side}_high"] = rows[side] - 0.04, rows[side] + 0.03
    rows[["low", "high"]] = rows[["difference_low", "difference_high"]].to_numpy()
    return rows.iloc[: len(rows) * bool(seeds)]


def panel(encoders=tuple(COLORS), targets=("PH2", "MED-NODE", "PAD-UFES-20")):
    """Rows as `external_validation.read_panel` has them: of each encoder the source's own test split first."""
    rows = pd.concat([bars(("HAM10000", *targets), (encoder,), "auroc") for encoder in encoders], ignore_index=True)
    rows["internal"] = rows["dataset_label"] == "HAM10000"
    return rows.assign(images=1232, melanoma=70)


def names(k):
    return [f"class with a rather long name {i}" for i in range(k)]


def umap(encoders, classes, picture, synthetic):
    rng = np.random.default_rng(0)
    columns = {"image": [str(i) for i in range(70)], "label": np.arange(70) % classes, "x": 0.0, "y": 0.0}
    parts = [pd.DataFrame({"encoder_label": f"An encoder with a long name {e}", **columns}) for e in range(encoders)]
    points = pd.concat(parts) if parts else pd.DataFrame(columns=["encoder_label", *columns])
    points[["x", "y"]] = rng.normal(size=(len(points), 2))
    points["example"] = pd.array([*range(1, 25), *[None] * 46] * encoders, dtype="Int64")
    shown = dict.fromkeys(range(1, 25), picture) if picture else {}
    classes = [(f"class_{i}", name) for i, name in enumerate(names(classes))]
    return embedding_plots.figure_umap(points, classes, "UMAP", {}, shown, synthetic)


def figures():
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)) for _ in range(7)]
    line = (np.linspace(0, 1, 9), np.linspace(0, 1, 9) ** 0.5, 0.7)
    history = pd.DataFrame({"iteration": [0, 1, 2], "loss": [2.0, 1.0, 0.5]})
    counts = pd.DataFrame({"train": [10, 200], "test": [0, 30]}, index=["nevus", "melanoma"])
    yield "images", lambda s: plots.labelled_images(pictures, names(3) * 2 + names(1), ["a.jpg"] * 7, s)
    yield "class counts", lambda s: plots.class_counts(counts, s)
    yield "feature map", lambda s: plots.feature_map(rng.normal(size=(50, 8)), np.arange(50) % 23, names(23), s)
    yield "loss", lambda s: plots.loss_curve(history, s)
    yield "confusion 2", lambda s: plots.confusion_matrix(np.array([[3, 1], [0, 0]]), names(2), s)
    yield "confusion 23", lambda s: plots.confusion_matrix(np.eye(23, dtype=int), names(23), s)
    yield "curves", lambda s: plots.roc_pr_curves(dict.fromkeys(names(23), line), dict.fromkeys(names(23), line), s)
    yield "mistakes", lambda s: plots.mistakes(pictures, ["true a\nsaid b"] * 7, s)
    yield "no mistakes", lambda s: plots.mistakes([], [], s)
    yield "figure 2a", lambda s: paper_plots.figure_2a(bars(), COLORS, s)
    yield "one bar", lambda s: paper_plots.figure_2a(bars(("HAM10000",), ("DINOv2",)), COLORS, s)
    four = [bars(metric=m) for m in ("weighted_f1", "auroc", "aupr", "balanced_accuracy")]
    yield "protocols", lambda s: comparison_plots.protocol_differences(pairs((0,)), SIDES, COLORS, s)
    yield "protocols, seeds", lambda s: comparison_plots.protocol_differences(pairs((0, 1, 2)), SIDES, COLORS, s)
    yield "no protocols", lambda s: comparison_plots.protocol_differences(pairs(()), SIDES, COLORS, s)
    panels = {"two encoders": panel(), "one encoder and target": panel(("DINOv2",), ("PH2",))}
    panels |= {"a missing run": panel().drop(index=4), "no record": panel().head(0)}
    yield from ((f"figure 2c, {n}", lambda s, p=p: paper_plots.figure_2c(p, COLORS, s)) for n, p in panels.items())
    long = panel(targets=(*(f"A dataset with a long name, {i}" for i in range(8)),))
    yield "figure 2c, many targets", lambda s: paper_plots.figure_2c(long, COLORS, s)
    ahead = pairs((0,)).assign(reference_label="PanDerm", images=1232, p_holm=[0.01, 0.2, np.nan, 0.04])
    ahead.loc[ahead["p_holm"].isna(), ["difference", "low", "high"]] = np.nan
    yield "encoders", lambda s: comparison_plots.encoder_differences(ahead, COLORS, s)
    yield "one encoder", lambda s: comparison_plots.encoder_differences(ahead.iloc[:1], COLORS, s)
    yield "no encoders", lambda s: comparison_plots.encoder_differences(ahead.iloc[:0], COLORS, s)
    yield "extended data 1", lambda s: paper_plots.extended_data_figure_1(pd.concat(four), COLORS, s)
    yield "figure 2d", lambda s: paper_plots.figure_2d(pd.concat(four).query("dataset_label == 'DDI'"), COLORS, s)
    yield "figure 2d of nothing", lambda s: paper_plots.figure_2d(bars().head(0), COLORS, s)
    many = bars([f"A dataset with a long name {i}" for i in range(10)]).assign(test_images=123456)
    yield "figure 2a of ten", lambda s: paper_plots.figure_2a(many, COLORS, s)
    for encoders, classes in ((0, 2), (1, 2), (2, 7), (5, 23)):
        yield f"umap {encoders}, {classes}", lambda s, e=encoders, k=classes: umap(e, k, pictures[0], s)
    yield "umap without images", lambda s: umap(2, 23, None, s)


@pytest.mark.parametrize(("name", "draw"), list(figures()), ids=[name for name, _ in figures()])
def test_every_figure_draws_and_says_whether_it_is_synthetic(name, draw):
    for synthetic in (True, False):
        figure = draw(synthetic)
        marks = [t for t in figure.findobj(plt.Text) if t.get_text() == plots.SYNTHETIC_MARK]
        assert len(marks) == int(synthetic)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        assert np.asarray(canvas.buffer_rgba())[..., :3].mean(axis=2).std() > 5  # not an empty sheet
        # Nothing reaches over the sheet's edge.
        box, sheet = figure.get_tightbbox(), figure.get_size_inches()
        assert box.x0 > -0.02
        assert box.y0 > -0.02
        assert box.x1 < sheet[0] + 0.02
        assert box.y1 < sheet[1] + 0.02
    assert plt.get_fignums() == []


def test_bars_stand_at_the_scores_with_their_intervals():
    scores = bars()
    axis = paper_plots.scores_by_dataset(scores, COLORS).axes[0]
    heights = sorted(patch.get_height() for patch in axis.patches)
    np.testing.assert_allclose(heights, sorted(scores["value"]))
    ends = np.concatenate([c.get_segments() for c in axis.collections]).reshape(-1, 4)
    np.testing.assert_allclose(sorted(ends[:, 1]), sorted(scores["low"]))
    np.testing.assert_allclose(sorted(ends[:, 3]), sorted(scores["high"]))


def test_dashed_means_are_over_the_datasets_that_all_encoders_have():
    scores = bars().drop(index=0)  # PanDerm was not run on HAM10000
    axis = paper_plots.scores_by_dataset(scores, COLORS).axes[0]
    dashed = [line.get_ydata()[0] for line in axis.lines if line.get_linestyle() == "--"]
    both = scores[scores["dataset_label"] != "HAM10000"].groupby("encoder_label")["value"].mean()
    np.testing.assert_allclose(dashed, [both["PanDerm"], both["DINOv2"]])


def test_figure_2c_sets_the_source_apart_and_averages_over_the_others():
    scores = panel()
    left, right = paper_plots.figure_2c(scores, COLORS).axes
    for axis, rows in ((left, scores[scores["internal"]]), (right, scores[~scores["internal"]])):
        bars_of = [patch.get_height() for patch in axis.patches]
        np.testing.assert_allclose(sorted(bars_of), sorted(rows["value"]))
        labels = [text.get_text() for text in axis.get_xticklabels()]
        assert labels == [f"{name}\nn = 1,232\n(70 mel.)" for name in dict.fromkeys(rows["dataset_label"])]
    assert not [line for line in left.lines if line.get_linestyle() == "--"]
    dashed = [line.get_ydata()[0] for line in right.lines if line.get_linestyle() == "--"]
    means = scores[~scores["internal"]].groupby("encoder_label", sort=False)["value"].mean()
    np.testing.assert_allclose(dashed, means[list(COLORS)])


def test_the_number_of_test_images_stands_below_a_dataset_s_name():
    scores = bars(("HAM10000", "DDI", "HIBA")).assign(test_images=[1232, 1232, 137, 130, None, None])
    for figure in (paper_plots.figure_2a(scores, COLORS), paper_plots.extended_data_figure_1(scores, COLORS)):
        labels = [text.get_text().split("\n") for text in figure.axes[0].get_xticklabels()]
        assert [(lines[0], lines[-1]) for lines in labels[:2]] == [("HAM10000", "n = 1,232"), ("DDI", "n = 130 to 137")]
        assert "n =" not in str(labels[2])


def test_figure_2d_has_its_four_metrics_in_order_and_no_mean_over_them():
    every = pd.concat(
        [bars(("DermNet",), metric=m) for m in ("aupr", "accuracy", *paper_plots.FOUR_METRICS[:2], "auroc")[:4]]
    )
    figure = paper_plots.figure_2d(every.assign(test_images=4002), COLORS)
    (axis,) = figure.axes
    labels = [text.get_text() for text in axis.get_xticklabels()]
    assert labels == ["Weighted F1", "AUROC", "AUPR"]
    for bars_of, (name, rows) in zip(axis.containers[::2], every.groupby("encoder_label", sort=False), strict=True):
        wanted = rows.set_index("metric").loc[["weighted_f1", "auroc", "aupr"], "value"]
        np.testing.assert_allclose([patch.get_height() for patch in bars_of], wanted)
        assert bars_of.get_label() == name
    assert not [line for line in axis.lines if line.get_linestyle() == "--"]
    assert figure.legends[0].get_title().get_text().startswith("DermNet, n = 4,002")


def test_saved_figures_name_their_records(tmp_path):
    pdf, png = plots.save_figure(
        paper_plots.figure_2a(bars(), COLORS), tmp_path / "f", "figure_2a", ["run-b", "run-a", "run-b"], "bars of two"
    )
    assert Image.open(png).text["Records"] == "run-a run-b"
    assert Image.open(png).text["Description"] == "bars of two"
    assert b"run-a run-b" in pdf.read_bytes()
    assert b"/Type3" not in pdf.read_bytes()  # text that stays text, as journals ask
    assert Image.open(png).width > 4.5 * 300  # of a figure 5 inches wide
    assert sorted(p.name for p in pdf.parent.iterdir()) == ["figure_2a.pdf", "figure_2a.png"]


def test_many_classes_fit_a_page_of_their_own():
    """Two hundred and fifty: small print instead of a sheet of ten metres."""
    names = [f"class {k}" for k in range(250)]
    counts = pd.DataFrame(3, index=names, columns=["train", "val", "test"])
    matrix = plots.confusion_matrix(np.eye(250, dtype=int), names)
    grid = plots.labelled_images([Image.new("RGB", (8, 8))] * 250, names, names)
    for figure in (plots.class_counts(counts), matrix, grid):
        assert max(figure.get_size_inches()) < 60
    assert "the first 40 of 250 classes" in [text.get_text() for text in grid.texts]
