"""The figure of features in two dimensions: one panel per encoder, and example images below."""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from panderm_utils.figures.plots import GREY, finish_figure, shorten, style
from panderm_utils.stats import place_labels

# P. Tol's bright scheme, safe for colour-blind readers; more classes than colours also differ in shape.
HUES = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#999999", "#222222")
SHAPES = ("o", "^", "s", "D", "v", "P", "X", "*")
LABEL = 10  # minimum distance of two numbers in a panel, in points
INSIDE = 0.78  # fraction of a panel's side that its points span


def figure_umap(
    points: pd.DataFrame,
    classes: list[tuple[str, str]],
    method: str,
    colors: dict[str, str],
    pictures: dict | None = None,
    synthetic: bool = False,
) -> Figure:
    """Draws the points of `results.embed_features`, coloured by class; a number marks an image that is shown below.

    Args:
        classes: Short and long name of each class, in label order.
        method: Name of the embedding method, for the axes.
        colors: Encoder label -> colour, of the line above its panel.
        pictures: Example number -> image. Without images, numbers are left out too.
    """
    encoders = list(dict.fromkeys(points["encoder_label"]))
    columns = min(3, max(1, len(encoders)))
    lines, side = -(-max(1, len(encoders)) // columns), (4.2, 2.8, 2.2)[columns - 1]
    strip = _strip(points, pictures or {})
    across = max((len(line) for line in strip), default=1)
    picture = min(0.9, columns * side / across)
    heights = [lines * (side + 0.35), len(strip) * (picture + 0.25)]
    with style():
        legend = 0.16 * points["label"].nunique() + 0.5
        figure = plt.figure(figsize=(columns * side + 2.1, max(legend, sum(heights) + 0.3)))
        rows = figure.add_gridspec(1 + bool(strip), 1, height_ratios=heights[: 1 + bool(strip)])
        panels = rows[0].subgridspec(lines, columns)
        for i, encoder in enumerate(encoders):
            axis = figure.add_subplot(panels[i // columns, i % columns])
            here = points[points["encoder_label"] == encoder]
            _scatter(axis, here, INSIDE * 72 * side, bool(strip))
            axis.set(xlabel=f"{method} 1", ylabel=f"{method} 2" if i % columns == 0 else "", xticks=[], yticks=[])
            axis.set_title(f"{shorten(encoder, 26)}\n", fontsize=10)
            axis.text(0, 1.02, f"n = {len(here):,} test images", fontsize=8, color=GREY, transform=axis.transAxes)
            axis.spines["top"].set(visible=True, color=colors.get(encoder, GREY), linewidth=3)
        if not encoders:
            axis = figure.add_subplot(panels[0, 0], xticks=[], yticks=[])
            axis.text(0.5, 0.5, "no features of a record", ha="center", transform=axis.transAxes, color=GREY)
        _name_classes(figure, points, classes)
        pairs = rows[1].subgridspec(len(strip), across) if strip else None
        for r, line in enumerate(strip):
            for c, (number, label) in enumerate(line):
                axis = figure.add_subplot(pairs[r, c], xticks=[], yticks=[])
                axis.imshow(pictures[number])
                name = shorten(classes[label][0], int(72 * columns * side / across / 4.6))
                axis.set_title(name, fontsize=6, fontweight="normal", pad=2)
                _number(axis, (0.06, 0.94), number, ha="left", va="top", transform=axis.transAxes)
                for spine in axis.spines.values():
                    spine.set(visible=True, color=_mark(label)["color"], linewidth=2)
        return finish_figure(figure, synthetic)


def _mark(label: int) -> dict:
    return {"color": HUES[label % len(HUES)], "marker": SHAPES[label // len(HUES) % len(SHAPES)]}


def _scatter(axis, here: pd.DataFrame, reach: float, numbered: bool) -> None:
    """Draws one encoder's points, frequent classes first, and the numbers of the examples."""
    size = np.clip(2500 / max(1, len(here)), 5, 16)
    plane = here[["x", "y"]].to_numpy()
    for label in here["label"].value_counts().index:
        of_class = plane[(here["label"] == label).to_numpy()]
        axis.scatter(*of_class.T, s=size, alpha=0.75, linewidths=0, zorder=2, **_mark(label))
    axis.margins(0.08)
    if not numbered:
        return
    shown = here.dropna(subset=["example"]).sort_values("example")
    points = shown[["x", "y"]].to_numpy()
    scale = reach / max(1e-9, *(plane.max(axis=0) - plane.min(axis=0)))
    for row, point, place in zip(shown.itertuples(), points, place_labels(points * scale, LABEL) / scale, strict=True):
        axis.plot(*zip(point, place, strict=True), color="black", lw=0.6, zorder=3)
        axis.scatter(*point, s=2 * size, ec="black", linewidths=0.8, zorder=3, **_mark(row.label))
        _number(axis, place, row.example, ha="center", va="center", zorder=4)


def _number(axis, place, number: int, **where) -> None:
    text = axis.text(*place, str(number), fontsize=7, fontweight="bold", **where)
    text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def _name_classes(figure: Figure, points: pd.DataFrame, classes: list[tuple[str, str]]) -> None:
    """Adds a legend at the right: the classes present, with their number of images."""
    first = points[points["encoder_label"] == points["encoder_label"].iloc[0]] if len(points) else points
    counts = first["label"].value_counts()
    handles = [
        plt.Line2D([], [], ls="", markersize=5, label=f"{_both(*classes[k])} ({counts[k]:,})", **_mark(k))
        for k in sorted(counts.index)
    ]
    if handles:
        options = {"title": "class (test images)", "title_fontsize": 8, "alignment": "left", "handlelength": 1}
        figure.legend(handles=handles, loc="outside right upper", fontsize=7, **options)


def _both(short: str, long: str) -> str:
    return textwrap.shorten(long if short == long else f"{short}: {long}", 36, placeholder="…")


def _strip(points: pd.DataFrame, pictures: dict) -> list[list[tuple[int, int]]]:
    """Number and label of each picture, in two lines: near the centre of their class, and far from it."""
    rows = points.dropna(subset=["example"]).drop_duplicates("example").sort_values("example")
    shown = [(int(n), int(k)) for n, k in zip(rows["example"], rows["label"], strict=True) if int(n) in pictures]
    half = -(-len(shown) // 2)
    return [line for line in (shown[:half], shown[half:]) if line]
