"""The picture of two protocols side by side: each score, and how far they are apart on the same test images."""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from panderm_utils.plots import GREY, METRIC_TITLES, finish, shorten, style

APART = 0.11  # a point and its interval stand this far from the middle of their line, so that both intervals show


def probing_and_tuning(comparison: pd.DataFrame, colors: dict[str, str], synthetic: bool = False) -> Figure:
    """Linear probing (ring) and fine-tuning (dot) joined by a line; at the right their difference and its interval.

    One line a dataset and encoder. Where there are several seeds: their mean, and below it a smaller line a seed.

    Args:
        comparison: Rows of one metric each (the headline's) of `comparison.compare_protocols`.
        colors: Encoder label -> colour.
    """
    lines = _lines(comparison)
    with style():
        size = (9.5, 1.5 + 0.55 * (lines[-1].place if lines else 1))
        figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, width_ratios=(3, 2))
        for line in lines:
            _draw(left, right, line, colors.get(line.encoder, GREY))
        left.set_yticks([line.place for line in lines], [line.label for line in lines])
        for tick, line in zip(left.get_yticklabels(), lines, strict=True):
            tick.set(color=GREY if line.small else "black", fontsize=7 if line.small else 9)
        for axis in (left, right):
            axis.tick_params(axis="y", length=0)
            axis.spines["left"].set_visible(False)
        left.set(xlabel="score on the test split, with 95% intervals", title="Linear probing and fine-tuning")
        left.xaxis.get_major_locator().set_params(nbins=6)
        right.set_xlabel("fine-tuning minus linear probing\n(right of 0: fine-tuning is better)")
        right.set_title("Difference on the same images")
        if not lines:
            left.text(0.5, 0.5, "no dataset has both records yet", ha="center", transform=left.transAxes, color=GREY)
            return finish(figure, synthetic)
        left.set_ylim(lines[-1].place + 0.6, lines[0].place - 0.75)
        _name_the_points(left, lines[0], colors.get(lines[0].encoder, GREY))
        right.axvline(0, color="#222222", lw=0.8, zorder=0)
        _make_room(right)
        return finish(figure, synthetic)


@dataclass(frozen=True)
class _Line:
    """A line of the picture: where it stands, and the numbers that it shows; the mean of seeds has no intervals."""

    place: float
    label: str
    encoder: str
    small: bool
    numbers: dict
    says: str


def _lines(comparison: pd.DataFrame) -> list[_Line]:
    lines, place, before = [], 0.0, None
    for (dataset, encoder), group in comparison.groupby(["dataset_label", "encoder_label"], sort=False):
        label = f"{shorten(dataset, 26)}\n{shorten(encoder, 22)}, {METRIC_TITLES[group['metric'].iloc[0]]}"
        place += 1.0 if dataset == before else 1.25
        before = dataset
        seeds = group.to_dict(orient="records")
        if len(seeds) == 1:
            lines.append(_Line(place, label, encoder, False, seeds[0], _with_interval(seeds[0])))
            continue
        mean = {name: group[name].mean() for name in ("linear_probe", "fine_tune", "difference")}
        says = f"{mean['difference']:+.3f}: mean of {len(seeds)} seeds"
        lines.append(_Line(place, label, encoder, False, mean, says))
        for seed in seeds:
            place += 0.55
            lines.append(_Line(place, f"seed {seed['seed']}", encoder, True, seed, _with_interval(seed)))
    return lines


def _draw(left, right, line: _Line, color: str) -> None:
    numbers, size = line.numbers, 4.5 if line.small else 8
    ends = [(numbers["linear_probe"], line.place - APART), (numbers["fine_tune"], line.place + APART)]
    left.plot(*zip(*ends, strict=True), color=color, lw=1.0 if line.small else 2.2, alpha=0.45, zorder=1)
    for (x, y), side in zip(ends, ("linear_probe", "fine_tune"), strict=True):
        if f"{side}_low" in numbers:
            left.hlines(y, numbers[f"{side}_low"], numbers[f"{side}_high"], color=color, lw=1.0, zorder=2)
        filled = color if side == "fine_tune" else "white"
        left.plot(x, y, "o", ms=size, mfc=filled, mec=color, mew=1.0 if line.small else 1.6, zorder=3)
    if "low" in numbers:
        right.hlines(line.place, numbers["low"], numbers["high"], color=color, lw=1.0 if line.small else 1.8)
    right.plot(numbers["difference"], line.place, "D", ms=0.8 * size, color=color, zorder=3)
    right.annotate(
        line.says,
        (1, line.place),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=7 if line.small else 9,
        color=GREY if line.small else "black",
    )


def _name_the_points(axis, line: _Line, color: str) -> None:
    """Writes what ring and dot are over those of the first line, each to its own side, and makes room for it."""
    values = line.numbers["linear_probe"], line.numbers["fine_tune"]
    low, high = axis.get_xlim()
    room = 0.3 * (high - low)
    axis.set_xlim(min(low, min(values) - room), max(high, max(values) + room))
    axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= 1 and low <= tick <= high])
    for value, other, text in zip(values, values[::-1], ("linear probing", "fine-tuning"), strict=True):
        before = value < other or (value == other and text == "linear probing")
        axis.annotate(
            text,
            (value, line.place - 0.3),
            xytext=(-3 if before else 3, 0),
            textcoords="offset points",
            ha="right" if before else "left",
            va="bottom",
            fontsize=8,
            color=color,
        )


def _make_room(axis) -> None:
    """The zero line stands well inside, and no difference fills the panel however small it is."""
    low, high = axis.get_xlim()
    reach = 0.12 * max(high - low, 0.02)
    axis.set_xlim(min(low, -reach), max(high, reach))
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:+.2f}" if not np.isclose(x, 0) else "0")
    axis.xaxis.get_major_locator().set_params(nbins=4)


def _with_interval(numbers: dict) -> str:
    return "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**numbers)
