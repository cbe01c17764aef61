"""The figures of label efficiency: a score against the label fraction, and the fraction needed to match a rival.

Two sources of variation are shown separately: the band spans the lowest to the highest draw (which images were
labelled), the bars are the bootstrap interval of their mean (which images were tested).
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator
from sklearn.isotonic import isotonic_regression

from panderm_utils.figures import GREY, METRIC_TITLES, finish_figure, shorten, style, wrap
from panderm_utils.protocols.label_efficiency.data_needed import (
    NOT_REACHED,
    Match,
    percent,
    sentence,
    with_interval,
)


def efficiency_curves(
    curve: pd.DataFrame,
    colors: dict[str, str],
    match: Match | None = None,
    log: bool = True,
    synthetic: bool = False,
    axis=None,
    tuned: pd.DataFrame | None = None,
) -> Figure:
    """Draws one curve per encoder: mean over draws, band of draws, bootstrap bars; labelled at their ends.

    Args:
        curve: One metric of one dataset: encoder_label, metric, fraction, images, draws, value, draw_low, draw_high,
            low, high, one row per encoder and fraction (`label_efficiency.read_curves`).
        colors: Encoder label -> colour.
        match: Drawn as a dashed line where the encoder reaches the other's score with all labels.
        log: Whether the axis of fractions is logarithmic.
        axis: Axis to draw into, instead of a new figure.
        tuned: Fine-tuning at some fractions: encoder_label, train_fraction, value, low, high; drawn as diamonds.
    """
    alone, tuned = axis is None, _of_encoders(tuned, colors)
    with style():
        if alone:
            _, axis = plt.subplots(figsize=(7.2, 4.2))
        shown = [name for name in colors if name in set(curve["encoder_label"])]
        for name in shown:
            rows = curve[curve["encoder_label"] == name].sort_values("fraction")
            drawn = rows["images"] / _total(curve)  # with whole groups it only approximates the fraction
            axis.fill_between(
                drawn, rows["draw_low"], rows["draw_high"], color=colors[name], alpha=0.22, lw=0, zorder=1
            )
            errors = np.clip([rows["value"] - rows["low"], rows["high"] - rows["value"]], 0, None)
            bars = {"elinewidth": 0.9, "capsize": 2.5, "markersize": 4}
            axis.errorbar(drawn, rows["value"], errors, color=colors[name], marker="o", lw=1.6, zorder=3, **bars)
        for point in tuned.itertuples():
            errors = np.clip([[point.value - point.low], [point.high - point.value]], 0, None)
            look = {"marker": "D", "markersize": 6, "mfc": "white", "elinewidth": 0.9, "capsize": 2.5, "zorder": 5}
            axis.errorbar(point.train_fraction, point.value, errors, color=colors[point.encoder_label], **look)
        if not shown:
            axis.text(0.5, 0.5, "no record yet", ha="center", transform=axis.transAxes, color=GREY)
            return finish_figure(axis.figure, synthetic)
        _fraction_axis(axis, curve, log)
        axis.margins(y=0.08)
        axis.set_ylim(axis.get_ylim())  # the line below must not change it
        _label_ends(axis, curve, {name: colors[name] for name in shown})
        if match is not None:
            _draw_match(axis, match, colors)
        metric = METRIC_TITLES[curve["metric"].iloc[0]]
        if alone:
            axis.set_title(wrap(sentence(*match), 62) if match else "Score against the fraction of training labels")
            axis.set(ylabel=f"{metric} on the test split")
            handles = _chance_handles(curve, tuned)
            axis.figure.legend(handles=handles, loc="outside lower left", ncols=2, fontsize=8)
        return finish_figure(axis.figure, synthetic)


def figure_2b(
    curves: pd.DataFrame,
    colors: dict[str, str],
    matches: dict[str, Match | None],
    log: bool = True,
    synthetic: bool = False,
    tuned: pd.DataFrame | None = None,
    study: str = "linear probing",
    draw: str = "draws of labels",
) -> Figure:
    """Draws Fig. 2b: one panel per dataset, two in a row.

    Args:
        curves: As in `efficiency_curves`, plus dataset_label; one metric per dataset.
        matches: Dataset label -> its dashed line, or None.
        tuned: As in `efficiency_curves`, plus dataset_label.
        study, draw: What was done with the labels, and what the band spans, in words.
    """
    datasets = list(dict.fromkeys(curves["dataset_label"]))
    across = min(2, max(1, len(datasets)))
    down = -(-max(1, len(datasets)) // across)
    with style():
        figure, axes = plt.subplots(down, across, figsize=(5.6 * across, 3.3 * down + 0.5), squeeze=False)
        for axis in axes.flat[len(datasets) :]:
            axis.axis("off")
        for axis, dataset in zip(axes.flat, datasets, strict=False):
            rows = curves[curves["dataset_label"] == dataset]
            points = None if tuned is None else tuned[tuned["dataset_label"] == dataset]
            efficiency_curves(rows, colors, matches.get(dataset), log, axis=axis, tuned=points)
            axis.set_title(wrap(dataset, 44))
            axis.set_ylabel(METRIC_TITLES[rows["metric"].iloc[0]])
        if datasets:
            heading = wrap(_heading([match for match in matches.values() if match], study), 70 * across)
            options = {"title": heading, "alignment": "left", "title_fontsize": 10}
            handles = _chance_handles(curves, _of_encoders(tuned, colors), draw)
            figure.legend(handles=handles, loc="outside upper left", ncols=2, fontsize=8, **options)
        else:
            axes[0, 0].text(0.5, 0.5, "no record yet", ha="center", color=GREY)
        return finish_figure(figure, synthetic)


def _heading(matches: list[Match], study: str) -> str:
    """Explains the dashed lines, with the names of the encoders if they are the same in all panels."""
    if not matches:
        return f"Label efficiency of {study}"
    encoders, rivals = {encoder for _, encoder, _ in matches}, {rival for _, _, rival in matches}
    encoder = encoders.pop() if len(encoders) == 1 else "an encoder"
    rival = rivals.pop() if len(rivals) == 1 else "another"
    return f"Label efficiency of {study}; dashed: the labels with which {encoder} matches {rival} with all"


def _fraction_axis(axis, curve: pd.DataFrame, log: bool) -> None:
    """Sets the ticks, one per fraction, in percent; labels that would touch their neighbour are left out."""
    fractions, total = sorted(curve["fraction"].unique()), _total(curve)
    low = min(*fractions, (curve["images"] / total).min())
    if log:
        axis.set_xscale("log")
        axis.set_xlim(low / 1.12, 1.06)
    else:
        axis.set_xlim(0, 1.03)
    axis.xaxis.set_major_locator(FixedLocator(fractions))
    axis.xaxis.set_minor_locator(NullLocator())
    place = (np.log(fractions) - np.log(low)) / max(1e-9, -np.log(low)) if log else np.array(fractions)
    names, free = [percent(f) for f in fractions], np.inf
    for i in reversed(range(len(fractions))):  # from the right: 100% always has its label
        if free - place[i] < 0.05:
            names[i] = ""
        else:
            free = place[i]
    axis.set_xticklabels(names)
    axis.set_xlabel(f"fraction of the {total:,.0f} training labels (%)")


def _label_ends(axis, curve: pd.DataFrame, colors: dict[str, str]) -> None:
    """Labels each curve at its end, as close as possible without overlap."""
    last = curve.sort_values("fraction", kind="stable").drop_duplicates("encoder_label", keep="last")
    ends = last.set_index("encoder_label")["value"]
    order = ends[list(colors)].sort_values()
    low, high = axis.get_ylim()
    gap = np.arange(len(order)) * 0.075 * (high - low)
    # The least-squares positions with at least the gap between neighbours.
    for (name, _), y in zip(order.items(), isotonic_regression(order.to_numpy() - gap) + gap, strict=True):
        text = {"va": "center", "fontsize": 9, "fontweight": "bold", "transform": axis.get_yaxis_transform()}
        axis.text(1.015, y, shorten(name, 24), color=colors[name], **text)


def _draw_match(axis, match: Match, colors: dict[str, str]) -> None:
    """Draws the rival's score with all labels (dotted), and the dashed line where the encoder reaches it."""
    needed, _, rival = match
    if needed.state == NOT_REACHED:
        axis.axhline(needed.target, color=colors[rival], lw=1, ls=":", zorder=2)
        return
    axis.plot([needed.fraction, 1], [needed.target] * 2, color=colors[rival], lw=1, ls=":", zorder=2)
    axis.axvline(needed.fraction, color="#222222", lw=1.2, ls="--", zorder=4)
    low, high = axis.get_xlim()
    scale = np.log if axis.get_xscale() == "log" else float
    left = (scale(needed.fraction) - scale(low)) / (scale(high) - scale(low)) > 0.62
    axis.annotate(
        f"{with_interval(needed)} of the labels",
        (needed.fraction, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if left else 4, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="bottom",
        fontsize=9,
        zorder=5,
    )


def _of_encoders(tuned: pd.DataFrame | None, colors: dict[str, str]) -> pd.DataFrame:
    """The fine-tuning points of the encoders that have a curve."""
    if tuned is None or tuned.empty:
        return pd.DataFrame(columns=["encoder_label", "train_fraction", "value", "low", "high"])
    return tuned[tuned["encoder_label"].isin(list(colors))]


def _total(curve: pd.DataFrame) -> float:
    """Returns the number of all training images, also of curves that end before them."""
    largest = curve.loc[curve["fraction"].idxmax()]
    return largest["images"] / largest["fraction"]


def _chance_handles(curve: pd.DataFrame, tuned: pd.DataFrame, draw: str = "draws of labels") -> list:
    """Legend entries for the two sources of variation, and for fine-tuning."""
    bars = Line2D([], [], color=GREY, marker="|", ms=9, mew=1.2, lw=0, label="95% bootstrap of the test images")
    draws, label = int(curve["draws"].max()), "fine-tuned, on the published draw of labels"
    points = [] if tuned.empty else [Line2D([], [], color=GREY, marker="D", mfc="white", lw=0, label=label)]
    if draws == 1:
        return [bars, *points]
    band = Patch(color=GREY, alpha=0.3, lw=0, label=f"lowest to highest of {draws} {draw}")
    return [band, bars, *points]
