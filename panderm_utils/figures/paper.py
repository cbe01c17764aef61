"""The figures of the paper that show scores of datasets and encoders side by side.

Functions take rows of `results.paper_scores`; none computes a metric.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from panderm_utils.figures.plots import GREY, METRIC_TITLES, finish_figure, style, wrap
from panderm_utils.figures.tables import DAGGER, few_images
from panderm_utils.stats import FEW_IMAGES

FOUR_METRICS = ("weighted_f1", "auroc", "aupr", "balanced_accuracy")  # the metrics of Fig. 2d and Extended Data Fig. 1
DATASET_WIDTH = 0.8  # inches; ten datasets are 9 inches wide, and 8-point text prints at 6 points in two columns


def scores_by_dataset(
    scores: pd.DataFrame, colors: dict[str, str], synthetic: bool = False, axis=None, means: bool = True
) -> Figure:
    """Draws the panel of Fig. 2a: datasets side by side, one bar per encoder, 95% intervals, dashed lines at means.

    Args:
        scores: One row per bar: dataset_label, encoder_label, value, low, high, and optionally test_images, shown below
            a dataset's name; a dagger marks intervals that are too narrow. Missing rows leave a gap; means are over the
            datasets that all shown encoders have.
        colors: Encoder label -> colour; its order is the order of the bars.
        axis: Axis to draw into, instead of a new figure.
        means: Whether to draw the dashed lines.
    """
    datasets = list(dict.fromkeys(scores["dataset_label"]))
    encoders = [e for e in colors if e in set(scores["encoder_label"])]
    cells = scores.set_index(["dataset_label", "encoder_label"])
    shared = [d for d in datasets if all((d, e) in cells.index for e in encoders)]
    width = min(0.4, 0.8 / max(1, len(encoders)))
    with style():
        if axis is None:
            _, axis = plt.subplots(figsize=(_width(len(datasets)), 3.6))
        for j, encoder in enumerate(encoders):
            scored = [d for d in datasets if (d, encoder) in cells.index]
            rows = cells.loc[[(d, encoder) for d in scored]]
            at = np.array([datasets.index(d) for d in scored]) + (j - (len(encoders) - 1) / 2) * width
            errors = np.clip([rows["value"] - rows["low"], rows["high"] - rows["value"]], 0, None)
            axis.bar(at, rows["value"], width * 0.92, color=colors[encoder], label=encoder, zorder=2)
            axis.errorbar(at, rows["value"], errors, fmt="none", ecolor="#222222", elinewidth=0.9, capsize=2, zorder=3)
            if means and len(shared) > 1:
                mean = cells.loc[[(d, encoder) for d in shared], "value"].mean()
                axis.axhline(mean, color=colors[encoder], ls="--", lw=1, zorder=1)
        if not datasets:
            axis.text(0.5, 0.5, "no record yet", ha="center", transform=axis.transAxes, color=GREY)
        images = [count_images(scores[scores["dataset_label"] == d]) for d in datasets]
        marked = set(scores.loc[few_images(scores), "dataset_label"])
        letters = 13 if len(datasets) > 3 else 20
        names = [wrap(d, letters) + DAGGER * (d in marked) for d in datasets]
        labels = [f"{name}\n{n}".rstrip() for name, n in zip(names, images, strict=True)]
        axis.set_xticks(range(len(datasets)), labels)
        axis.set(ylim=(0, 1), xlim=(-0.6, max(1, len(datasets)) - 0.4))
        axis.tick_params(axis="x", length=0, labelsize=8)
        return finish_figure(axis.figure, synthetic)


def figure_2a(scores: pd.DataFrame, colors: dict[str, str], synthetic: bool = False) -> Figure:
    """Draws Fig. 2a: the headline metric of every dataset (column `metric`: AUROC of two classes, else weighted F1)."""
    names = scores.drop_duplicates("dataset_label")
    labels = {d: f"{d}\n({METRIC_TITLES[m]})" for d, m in zip(names["dataset_label"], names["metric"], strict=True)}
    figure = scores_by_dataset(
        scores.assign(dataset_label=scores["dataset_label"].map(labels)), colors, synthetic=synthetic
    )
    with style():
        figure.axes[0].set_ylabel("score on the test split")
        _name_encoders(figure, "Linear probing, with 95% bootstrap intervals")
    return figure


def figure_2d(scores: pd.DataFrame, colors: dict[str, str], synthetic: bool = False) -> Figure:
    """Draws the DermNet panel of Fig. 2d for any dataset: four metrics side by side, one bar per encoder.

    Args:
        scores: Rows of one dataset (column `metric`).
        colors: As in `scores_by_dataset`.
    """
    rows = scores[scores["metric"].isin(FOUR_METRICS)].sort_values(
        "metric", key=lambda m: m.map(FOUR_METRICS.index), kind="stable"
    )
    bars = rows.assign(dataset_label=rows["metric"].map(METRIC_TITLES)).drop(columns="test_images", errors="ignore")
    figure = scores_by_dataset(bars, colors, synthetic, means=False)
    with style():
        figure.axes[0].set_ylabel("score on the test split")
        named = ", ".join(filter(None, [*rows["dataset_label"].head(1), count_images(rows)]))
        _name_encoders(figure, f"{named}: linear probing, 95% bootstrap intervals")
    return figure


def extended_data_figure_1(scores: pd.DataFrame, colors: dict[str, str], synthetic: bool = False) -> Figure:
    """Draws Extended Data Fig. 1: a panel each for weighted F1, AUROC, AUPR, balanced accuracy (column `metric`)."""
    return metric_panels(scores, FOUR_METRICS, colors, "Linear probing, with 95% bootstrap intervals", synthetic)


def metric_panels(
    scores: pd.DataFrame,
    metrics: Sequence[str],
    colors: dict[str, str],
    heading: str,
    synthetic: bool = False,
    across: int = 1,
    means: bool = True,
) -> Figure:
    """Draws a panel of `scores_by_dataset` for each metric (column `metric`), `across` of them in a row."""
    down = -(-len(metrics) // across)
    with style():
        size = (across * _width(scores["dataset_label"].nunique()), 2.5 * down)
        figure, axes = plt.subplots(down, across, figsize=size, squeeze=False)
        for axis, metric in zip(axes.flat, metrics, strict=True):
            scores_by_dataset(scores[scores["metric"] == metric], colors, axis=axis, means=means)
            axis.set_ylabel(METRIC_TITLES[metric])
        _name_encoders(figure, heading)
        return finish_figure(figure, synthetic)


def figure_2c(panel: pd.DataFrame, colors: dict[str, str], synthetic: bool = False) -> Figure:
    """Draws Fig. 2c: melanoma against the rest, by a probe trained on one dataset and tested on it and on others.

    Args:
        panel: Rows of `external_validation.read_panel`, of one source. Encoders tested on different images of a dataset
            are drawn separately, since n is part of its label.
    """
    if panel.empty:
        return scores_by_dataset(panel, colors, synthetic=synthetic)
    sizes = zip(panel["dataset_label"], panel["images"], panel["melanoma"], strict=True)
    labels = [f"{label}\nn = {images:,}\n({melanoma:,} mel.)" for label, images, melanoma in sizes]
    labelled = panel.assign(dataset_label=labels)
    parts = {"Source": labelled[labelled["internal"]], "External datasets": labelled[~labelled["internal"]]}
    units = [part["dataset_label"].nunique() + 0.2 for part in parts.values()]
    with style():
        figure, axes = plt.subplots(1, 2, figsize=(_width(sum(units)), 3.6), width_ratios=units, sharey=True)
        for axis, (title, part) in zip(axes, parts.items(), strict=True):
            scores_by_dataset(part, colors, axis=axis)
            axis.axhline(0.5, color=GREY, lw=0.9, ls=":", zorder=1)
            axis.set_title(title)
        axes[0].set_ylabel("AUROC")
        source = panel["dataset_label"].iloc[0]
        heading = f"Melanoma (mel.) against the rest, trained on {source}; 95% bootstrap intervals; dotted: chance"
        _name_encoders(figure, heading)
        return finish_figure(figure, synthetic)


def scoreboard(board: pd.DataFrame, colors: dict[str, str]) -> Figure:
    """Draws each published number (diamond) on our value (dot) and interval, one line each; grey without a verdict.

    It is never marked as synthetic: records of synthetic images are not compared, so it shows none of their numbers.

    Args:
        board: Rows of `results.scoreboard`.
        colors: Encoder label -> colour.
    """
    place, ticks, headings = 0.0, {}, {}
    with style():
        figure, axis = plt.subplots(figsize=(7.0, 1.4 + 0.2 * (len(board) + 1.5 * board["run"].nunique())))
        for run, rows in board.groupby("run", sort=False):
            headings[place] = ", ".join(filter(None, [run, count_images(rows)]))
            for row in rows.itertuples():
                place += 1
                ticks[place] = METRIC_TITLES.get(row.metric, row.metric)
                _draw_verdict(axis, place, row, colors.get(row.encoder_label, GREY))
            place += 1.5
        axis.set_yticks(list(ticks), list(ticks.values()), fontsize=8)
        for at, text in headings.items():
            axis.text(0, at, text, transform=axis.get_yaxis_transform(), fontsize=8, fontweight="bold", va="center")
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.set(ylim=(place - 0.5, -1), xlabel="score on the test split", xlim=(None, 1.01))
        marks = [{"marker": "D", "ms": 5, "mfc": "black"}, {"marker": "o", "ms": 6, "mfc": "white", "ls": "-"}]
        names = ("published", "ours, with 95% interval")
        handles = [plt.Line2D([], [], **{"ls": "", "color": "black", **m}) for m in marks]
        figure.legend(handles, names, loc="outside upper left", ncols=2, fontsize=8)
        return finish_figure(figure, synthetic=False)


def _draw_verdict(axis, place: float, row, color: str) -> None:
    """Draws a line of the scoreboard: our interval, the published mark, and the verdict as text at the right.

    Grey and hollow: the run cannot be compared, or there is none.
    """
    compared = row.verdict not in ("not comparable", "not run")
    if not np.isnan(row.ours):
        axis.hlines(place, row.low, row.high, color=color if compared else GREY, lw=4, alpha=0.45)
        axis.plot(row.ours, place, "o", ms=6, mfc="white", mec=color if compared else GREY, mew=1.5)
    ink, inside = ("black", "black") if compared else (GREY, "white")
    axis.plot(row.published, place, "D", ms=4.5, mfc=inside, mec=ink)
    outside = not np.isnan(row.by_how_much)
    text = f"outside by {row.by_how_much:+.4f}" if outside else row.verdict
    options = {"fontsize": 8, "va": "center", "fontweight": "bold" if outside else "normal"}
    axis.text(1.02, place, text, transform=axis.get_yaxis_transform(), color=ink, **options)


def count_images(scores: pd.DataFrame) -> str:
    """Returns "n = 1,232", the number of test images behind a dataset's scores; "" if the records lack it."""
    counts = sorted(set(scores["test_images"].dropna().astype(int))) if "test_images" in scores else []
    return f"n = {counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "") if counts else ""


def _width(datasets: int) -> float:
    return max(5.0, 1.0 + DATASET_WIDTH * datasets)


def _name_encoders(figure: Figure, heading: str) -> None:
    """Adds the legend of encoders above the figure, with a heading; nothing for a figure without bars."""
    handles = figure.axes[0].get_legend_handles_labels()
    if any(line.get_linestyle() == "--" for axis in figure.axes for line in axis.lines):
        heading += "; dashed: mean over the datasets"
    if any(DAGGER in label.get_text() for axis in figure.axes for label in axis.get_xticklabels()):
        heading += f"; {DAGGER} fewer than {FEW_IMAGES} test images of a class: interval too narrow"
    options = {"title": wrap(heading, int(12 * figure.get_figwidth())), "alignment": "left", "title_fontsize": 10}
    if handles[0]:
        columns = max(1, int(figure.get_figwidth() / 1.7))
        figure.legend(*handles, loc="outside upper left", ncols=columns, fontsize=8, columnspacing=1.2, **options)
