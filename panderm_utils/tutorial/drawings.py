"""Pictures that only the lessons need: of a line between two classes, of curves, of scores and a threshold."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from panderm_utils.figures import GREY, finish_figure, style

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def line_between(
    points: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: float, names: Sequence[str], synthetic: bool = False
) -> Figure:
    """Draws points [N, 2] of two classes, y 0 or 1, and the line where weight [2] times a point plus bias is 0.

    The sides are tinted in the colour of the class that they are called.
    """
    (left, right), (bottom, top) = ((points[:, i].min(), points[:, i].max()) for i in (0, 1))
    across, up = np.meshgrid(np.linspace(left, right, 200), np.linspace(bottom, top, 200))
    score = weight[0] * across + weight[1] * up + bias
    with style():
        figure, axis = plt.subplots(figsize=(6.4, 4.2))
        axis.contourf(across, up, score > 0, levels=1, colors=COLOURS[:2], alpha=0.12)
        if score.min() < 0 < score.max():
            axis.contour(across, up, score, levels=[0], colors=GREY, linewidths=1.4)
        for k, name in enumerate(names):
            axis.scatter(*points[y == k].T, s=14, color=COLOURS[k], label=name, linewidths=0, alpha=0.8)
        axis.set(xticks=[], yticks=[], xlabel="first component", ylabel="second component")
        axis.set_title("A line between two classes")
        figure.legend(loc="outside right upper", fontsize=8)
        return finish_figure(figure, synthetic)


def curves(
    x: Sequence[float], lines: Mapping[str, Sequence[float]], title: str, x_label: str, synthetic: bool = False
) -> Figure:
    """Draws lines, name -> a value for each x, from zero upwards."""
    with style():
        figure, axis = plt.subplots(figsize=(6.4, 3.2))
        for (name, values), colour in zip(lines.items(), COLOURS, strict=False):
            axis.plot(x, values, marker="." if len(values) <= 30 else None, color=colour, label=name)
        axis.set(title=title, xlabel=x_label)
        axis.set_ylim(bottom=0)
        figure.legend(loc="outside right upper", fontsize=8)
        return finish_figure(figure, synthetic)


def score_histogram(
    p: np.ndarray, y: np.ndarray, threshold: float, names: Sequence[str], synthetic: bool = False
) -> Figure:
    """Draws how the probabilities [N] of two classes, y 0 or 1, are distributed, and a threshold between them."""
    bins = np.linspace(0, 1, 21)
    with style():
        figure, axes = plt.subplots(2, 1, figsize=(6.4, 3.6), sharex=True)
        for k, (axis, name) in enumerate(zip(axes, names, strict=True)):
            axis.hist(p[y == k], bins, color=COLOURS[k], alpha=0.35)
            axis.hist(p[(y == k) & (p >= threshold)], bins, color=COLOURS[k])
            axis.axvline(threshold, color=GREY, lw=1.2, ls="--")
            called = np.mean(p[y == k] >= threshold) if (y == k).any() else np.nan
            axis.set_title(f"{name}: {called:.0%} of {(y == k).sum()} alarm at {threshold:g}", fontsize=10)
            axis.set_ylabel("images")
        axes[-1].set_xlabel("predicted probability of melanoma")
        return finish_figure(figure, synthetic)
