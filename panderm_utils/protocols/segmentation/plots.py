"""The figures of masks: contours over images, the distribution of a score, a score against the size of the lesion."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import LogLocator, NullLocator

from panderm_utils.figures import GREY, finish_figure, style, wrap
from panderm_utils.protocols.segmentation.scores import word_correlation

# Colour and width of the contours: distinct on any skin and with any colour vision; the true one shows below the other.
TRUE, PREDICTED = ("#00C8FF", 1.8), ("#FFE000", 0.8)
COLORS = ("#0072B2", "#D55E00", "#009E73")
SIDE = 400  # pixels of the longer side of an image that is drawn
BINS = 5  # groups of equally many images, whose medians are drawn


def mask_contours(
    images: Sequence,
    true: Sequence[np.ndarray],
    predicted: Sequence[np.ndarray] | None = None,
    captions: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    synthetic: bool = False,
) -> Figure:
    """Draws images with the contours of their true and predicted masks, one row per group.

    Args:
        images: PIL images, [H, W].
        true, predicted: Masks of the images, bool [H, W]; without predictions, only the true ones are drawn.
        captions: The text under each image, such as its name and Dice.
        groups: The group of each image, such as "best"; rows are in order of first appearance.
    """
    groups = [""] * len(images) if groups is None else list(groups)
    rows = list(dict.fromkeys(groups))
    columns = max((groups.count(row) for row in rows), default=1)
    with style():
        size = (1.9 * columns + 0.5, 1.75 * max(1, len(rows)) + 0.4)
        figure, axes = plt.subplots(max(1, len(rows)), columns, figsize=size, squeeze=False)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        if not rows:
            axes[0][0].text(0.5, 0.5, "no image to show", ha="center", transform=axes[0][0].transAxes, color=GREY)
        for row, name in enumerate(rows):
            axes[row][0].set_ylabel(wrap(name, 16), fontsize=9)
            members = [i for i, group in enumerate(groups) if group == name]
            for axis, i in zip(axes[row], members, strict=False):
                image = images[i].copy()
                image.thumbnail((SIDE, SIDE))
                axis.imshow(image)
                _contour(axis, true[i], image.size, TRUE)
                if predicted is not None:
                    _contour(axis, predicted[i], image.size, PREDICTED)
                if captions is not None:
                    axis.set_xlabel(captions[i], fontsize=7, labelpad=2)
        if predicted is not None:
            names = {"true": TRUE, "predicted": PREDICTED}
            lines = [plt.Line2D([], [], color=c, lw=w, path_effects=_casing(w), label=n) for n, (c, w) in names.items()]
            figure.legend(handles=lines, loc="outside upper left", ncols=2, fontsize=8)
        return finish_figure(figure, synthetic)


def dice_distribution(scores: Mapping[str, Sequence[float]], synthetic: bool = False) -> Figure:
    """Draws the Dice of all test images from the worst to the best, one curve per way to compute it; medians as dots.

    Args:
        scores: Name of the curve -> the Dice of each image [N].
    """
    with style():
        figure, axis = plt.subplots(figsize=(6.2, 3.1))
        for color, (name, values) in zip(COLORS, scores.items(), strict=False):
            values = np.sort(np.asarray(values, dtype=float))
            place, median = 100 * (np.arange(len(values)) + 0.5) / len(values), np.median(values)
            poor = f"{np.mean(values < 0.5):.0%} below 0.5"
            axis.plot(place, values, color=color, lw=1.6, label=f"{name}: median {median:.3f}, {poor}")
            axis.plot(50, median, "o", color=color, ms=6, mec="white", zorder=3, clip_on=False)
        axis.axvline(50, color=GREY, lw=0.8, ls=":", zorder=0)
        count = len(next(iter(scores.values())))
        axis.set(xlim=(0, 100), ylim=(0, 1.01), ylabel="Dice", title=f"Dice of {count:,} test images, sorted")
        axis.set_xlabel("test images, from the worst to the best")
        axis.xaxis.set_major_formatter("{x:.0f}%")
        axis.legend(loc="lower right", fontsize=8)
        return finish_figure(figure, synthetic)


def dice_against_size(
    sizes: Sequence[float], dice: Sequence[float], correlation: Mapping[str, float | None], synthetic: bool = False
) -> Figure:
    """Draws the Dice of each test image against the size of its lesion, on a logarithmic axis, with moving medians.

    Args:
        sizes: Of the true lesions, in percent of the image [N]; images without a lesion are left out, and counted.
        dice: [N]
        correlation: `correlate_with_size(...)`: value, low, high.
    """
    table = pd.DataFrame({"size": np.asarray(sizes, dtype=float), "dice": np.asarray(dice, dtype=float)})
    shown = table[table["size"] > 0]
    with style():
        figure, axis = plt.subplots(figsize=(6.2, 3.3))
        axis.scatter(shown["size"], shown["dice"], s=12, color=COLORS[0], alpha=0.45, lw=0)
        if len(shown) >= 4 * BINS:
            order = shown.sort_values("size", kind="stable")
            parts = np.array_split(np.arange(len(order)), BINS)
            medians = np.array([order.iloc[rows].median() for rows in parts])
            axis.plot(*medians.T, color=COLORS[1], lw=1.4, marker="o", ms=5, mec="white")
            label = "median of each fifth of the images"
            axis.plot([], [], color=COLORS[1], lw=1.4, marker="o", ms=5, mec="white", label=label)
            axis.legend(loc="lower right", fontsize=8)
        axis.set(xscale="log", ylim=(-0.02, 1.02), ylabel="Dice", xlabel="lesion, percent of the image (logarithmic)")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}%")
        axis.xaxis.set_minor_locator(NullLocator())
        text = word_correlation(correlation)
        left_out = len(table) - len(shown)
        axis.set_title(f"Dice and size: {text}" + (f"; images without a lesion: {left_out:,}" if left_out else ""))
        return finish_figure(figure, synthetic)


def _casing(width: float) -> list:
    """Returns the dark rim of a line, for light skin."""
    return [Stroke(linewidth=width + 0.8, foreground="black", alpha=0.6), Normal()]


def _contour(axis, mask: np.ndarray, size: tuple[int, int], line: tuple[str, float]) -> None:
    """Draws the outline of a mask over an image of width and height `size`."""
    if not mask.any() or mask.all():
        return
    step = max(1, max(mask.shape) // (2 * SIDE))  # finer than the image that is shown
    fine = np.pad(mask[::step, ::step], 1)  # so that an outline closes at the border
    rows, columns = (np.arange(-1, n - 1) + 0.5 for n in fine.shape)
    x, y = columns * step * size[0] / mask.shape[1] - 0.5, rows * step * size[1] / mask.shape[0] - 0.5
    color, width = line
    axis.contour(x, y, fine, levels=[0.5], colors=color, linewidths=width).set_path_effects(_casing(width))
    axis.set(xlim=(-0.5, size[0] - 0.5), ylim=(size[1] - 0.5, -0.5))
