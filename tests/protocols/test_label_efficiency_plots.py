"""Label-efficiency figures: what stands where the numbers say, and that no name covers another."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection

from panderm_utils.figures import plots
from panderm_utils.protocols.label_efficiency import plots as label_efficiency_plots
from panderm_utils.protocols.label_efficiency.data_needed import data_needed

COLORS = {"PanDerm (large)": "#D55E00", "DINOv2 (large)": "#0072B2", "SwAVDerm (ResNet-50)": "#009E73"}
FRACTIONS = np.array([0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0])


def curves(datasets=("HAM10000",), encoders=tuple(COLORS), step=0.04, draws=5, fractions=FRACTIONS):
    rows = []
    for dataset, (j, encoder), f in itertools.product(datasets, enumerate(encoders), fractions):
        value, spread = 0.9 - step * j + 0.1 * np.log10(f), 0.02 * (f < 1)
        cell = {"dataset_label": dataset, "encoder_label": encoder, "metric": "weighted_f1", "fraction": f}
        cell |= {"images": 1000 * f, "draws": draws if f < 1 else 1, "value": value}
        cell |= {"draw_low": value - spread, "draw_high": value + spread / 2}
        rows.append(cell | {"low": value - 0.03, "high": value + 0.01})
    return pd.DataFrame(rows)


def answer(target, encoder="PanDerm (large)", rival="DINOv2 (large)"):
    values = 0.9 + 0.1 * np.log10(FRACTIONS)
    return data_needed(values + np.array([[-0.01], [0.01]]) * (FRACTIONS < 1), FRACTIONS, target), encoder, rival


ANSWERS = {
    "reached": answer(0.86),
    "below": answer(0.5),
    "not reached": answer(0.99),
    "late": answer(0.895),
    "none": None,
}


def draw(log=True, synthetic=False, **options):
    return label_efficiency_plots.efficiency_curves(curves(), COLORS, log=log, synthetic=synthetic, **options)


def figures():
    for name, said in ANSWERS.items():
        yield name, lambda s, said=said: draw(match=said, synthetic=s)
    yield "linear", lambda s: draw(False, match=ANSWERS["reached"], synthetic=s)
    one = curves(encoders=("DINOv2 (large)",), draws=1)
    yield "published", lambda s: label_efficiency_plots.efficiency_curves(one, COLORS, synthetic=s)
    yield (
        "one fraction",
        lambda s: label_efficiency_plots.efficiency_curves(curves(fractions=[1.0]), COLORS, synthetic=s),
    )
    yield "no record", lambda s: label_efficiency_plots.efficiency_curves(curves()[:0], COLORS, synthetic=s)
    for count in (0, 1, 3, 4, 5):
        names = [f"dataset {i}" for i in range(count)]
        table = curves(names) if names else curves()[:0]
        said = dict.fromkeys(names[:2], ANSWERS["reached"])
        yield f"{count} panels", lambda s, t=table, a=said: label_efficiency_plots.figure_2b(t, COLORS, a, synthetic=s)


@pytest.mark.parametrize(("name", "make"), list(figures()), ids=[name for name, _ in figures()])
def test_every_figure_draws_within_its_sheet_and_says_whether_it_is_synthetic(name, make):
    for synthetic in (True, False):
        figure = make(synthetic)
        marks = [t for t in figure.findobj(plt.Text) if t.get_text() == plots.SYNTHETIC_MARK]
        assert len(marks) == int(synthetic)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        assert np.asarray(canvas.buffer_rgba())[..., :3].mean(axis=2).std() > 3
        box, sheet = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0) > -0.02
        assert box.x1 < sheet[0] + 0.02
        assert box.y1 < sheet[1] + 0.02
    assert plt.get_fignums() == []


def test_curves_and_bands_stand_at_their_numbers():
    table = curves()
    axis = draw().axes[0]
    for encoder, color in COLORS.items():
        rows = table[table["encoder_label"] == encoder]
        (line,) = [
            x
            for x in axis.lines
            if x.get_color() == color and x.get_linestyle() == "-" and len(x.get_xdata()) == 7 and x.get_marker() == "o"
        ]
        np.testing.assert_allclose(line.get_xydata(), rows[["fraction", "value"]])
    bands = [c for c in axis.collections if isinstance(c, PolyCollection)]
    points = np.concatenate([c.get_paths()[0].vertices for c in bands])
    for edge in ("draw_low", "draw_high"):
        for x, y in table[["fraction", edge]].to_numpy():
            assert np.abs(points - [x, y]).sum(axis=1).min() < 1e-9
    bars = np.concatenate([c.get_segments() for c in axis.collections if not isinstance(c, PolyCollection)]).reshape(
        -1, 4
    )
    np.testing.assert_allclose(sorted(bars[:, 1]), sorted(table["low"]))
    np.testing.assert_allclose(sorted(bars[:, 3]), sorted(table["high"]))


def test_a_share_is_that_of_the_images_drawn():
    table = curves(encoders=("DINOv2 (large)",))
    table.loc[table["fraction"] == 0.05, "images"] = 80  # whole groups came no nearer
    axis = label_efficiency_plots.efficiency_curves(table, COLORS).axes[0]
    assert axis.lines[0].get_xdata()[0] == pytest.approx(0.08)
    table.loc[table["fraction"] == 0.05, "images"] = 30
    axis = label_efficiency_plots.efficiency_curves(table, COLORS).axes[0]
    assert axis.get_xlim()[0] < 0.03


@pytest.mark.parametrize("state", ["reached", "below", "late"])
@pytest.mark.parametrize("log", [True, False])
def test_the_dashed_line_stands_at_the_labels_needed_and_says_them(state, log):
    needed = ANSWERS[state][0]
    axis = draw(log, match=ANSWERS[state]).axes[0]
    (dashed,) = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert dashed.get_xdata() == [needed.fraction] * 2
    low, high = axis.get_xlim()
    assert low <= needed.fraction <= high
    said = {"reached": "40% [32-50] of the labels", "below": "<5% of the labels", "late": "89% [72-93] of the labels"}
    assert said[state] in [t.get_text() for t in axis.texts]


def test_a_score_that_is_not_reached_has_no_dashed_line():
    axis = draw(match=ANSWERS["not reached"]).axes[0]
    assert not [line for line in axis.lines if line.get_linestyle() == "--"]
    assert "does not reach" in axis.get_title(loc="left")


@pytest.mark.parametrize("step", [0.0, 0.001, 0.04])
@pytest.mark.parametrize("panels", [1, 4])
def test_names_at_the_ends_do_not_touch_and_keep_the_order_of_the_scores(step, panels):
    names = [f"dataset {i}" for i in range(panels)]
    figure = label_efficiency_plots.figure_2b(curves(names, step=step), COLORS, {})
    figure.draw_without_rendering()
    for axis in figure.axes[:panels]:
        boxes = {t.get_text(): t.get_window_extent() for t in axis.texts if t.get_text() in COLORS}
        assert len(boxes) == 3
        for one, other in itertools.combinations(boxes.values(), 2):
            assert not one.overlaps(other)
        if step:
            heights = [boxes[name].y0 for name in COLORS]
            assert heights == sorted(heights, reverse=True)


@pytest.mark.parametrize("log", [True, False])
def test_names_of_shares_do_not_touch(log):
    fractions = [0.016, 0.02, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]
    table = curves(("a", "b"), fractions=fractions)
    figure = label_efficiency_plots.figure_2b(table, COLORS, {}, log)
    figure.draw_without_rendering()
    for axis in figure.axes:
        named = [t for t in axis.get_xticklabels() if t.get_text()]
        assert {"10", "50", "100"} <= {t.get_text() for t in named}
        boxes = [t.get_window_extent() for t in named]
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def test_fine_tuning_is_a_diamond_at_its_share_and_score():
    said = pd.DataFrame(
        {
            "dataset_label": "HAM10000",
            "encoder_label": ["PanDerm (large)", "PanDerm (large)", "of no curve"],
            "train_fraction": [0.1, 1.0, 0.5],
            "value": [0.82, 0.93, 0.5],
            "low": [0.8, 0.9, 0.4],
            "high": [0.84, 0.95, 0.6],
        }
    )
    alone = draw(tuned=said).axes[0]
    panel = label_efficiency_plots.figure_2b(curves(), COLORS, {}, tuned=said).axes[0]
    for axis in (alone, panel):
        diamonds = [line for line in axis.lines if line.get_marker() == "D"]
        assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in diamonds] == [(0.1, 0.82), (1.0, 0.93)]
        assert {line.get_color() for line in diamonds} == {COLORS["PanDerm (large)"]}
        assert "fine-tuned" in str([text.get_text() for text in axis.figure.legends[0].get_texts()])
    assert "fine-tuned" not in str([text.get_text() for text in draw().legends[0].get_texts()])
