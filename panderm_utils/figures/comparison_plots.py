"""Figures and tables of paired comparisons on the same test images: two protocols, or one encoder and the others."""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from panderm_utils.figures.plots import GREY, METRIC_TITLES, finish_figure, shorten, style
from panderm_utils.figures.tables import wide
from panderm_utils.manifests import Protocol, published_value
from panderm_utils.stats import ALPHA

APART = 0.11  # distance of a point and its interval from the middle of their line, so that both intervals show
MINUS = "\N{MINUS SIGN}"  # as wide as a plus, so that numbers align


def protocol_differences(
    comparison: pd.DataFrame, sides: tuple[Protocol, Protocol], colors: dict[str, str], synthetic: bool = False
) -> Figure:
    """Draws the scores of two protocols (ring and dot) joined by a line; at the right, their difference and interval.

    One line per dataset and encoder. Several seeds are drawn as their mean and, below it, one smaller line per seed.

    Args:
        comparison: Headline rows of `results.compare_protocols`; sides: the two protocols.
        colors: Encoder label -> colour.
    """
    titles, names = [side.title for side in sides], [side.name for side in sides]
    lines = _lines(comparison, names)
    with style():
        size = (9.5, 1.5 + 0.55 * (lines[-1].place if lines else 1))
        figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, width_ratios=(3, 2))
        for line in lines:
            _draw(left, right, line, names, colors.get(line.encoder, GREY))
        left.set_yticks([line.place for line in lines], [line.label for line in lines])
        for tick, line in zip(left.get_yticklabels(), lines, strict=True):
            tick.set(color=GREY if line.small else "black", fontsize=7 if line.small else 9)
        for axis in (left, right):
            axis.tick_params(axis="y", length=0)
            axis.spines["left"].set_visible(False)
        left.set(
            xlabel="score on the test split, with 95% intervals", title=f"{titles[0].capitalize()} and {titles[1]}"
        )
        left.xaxis.get_major_locator().set_params(nbins=6)
        right.set_xlabel(f"{titles[1]} minus {titles[0]}\n(right of 0: {titles[1]} is better)")
        right.set_title("Difference on the same images")
        if not lines:
            left.text(0.5, 0.5, "no dataset has both records yet", ha="center", transform=left.transAxes, color=GREY)
            return finish_figure(figure, synthetic)
        left.set_ylim(lines[-1].place + 0.6, lines[0].place - 0.75)
        _name_the_points(left, lines[0], sides, colors.get(lines[0].encoder, GREY))
        right.axvline(0, color="#222222", lw=0.8, zorder=0)
        _make_room(right)
        return finish_figure(figure, synthetic)


def encoder_differences(comparison: pd.DataFrame, colors: dict[str, str], synthetic: bool = False) -> Figure:
    """Draws a forest plot: the reference minus each other encoder, dataset by dataset, with 95% intervals.

    A diamond is filled if the p-value, corrected over the datasets, is below 0.05.

    Args:
        comparison: Headline rows of `results.compare_encoders`, of one seed.
        colors: Encoder label -> colour.
    """
    groups = list(comparison.groupby("dataset_label", sort=False))
    place, names = 0, {}
    with style():
        figure, axis = plt.subplots(figsize=(7.6, 1.7 + 0.25 * (len(comparison) + len(groups))))
        for dataset, rows in groups:
            heading = f"{shorten(dataset, 26)}, {METRIC_TITLES[rows['metric'].iloc[0]]}, n = {rows['images'].iloc[0]:,}"
            axis.axhspan(place - 0.5, place + 0.5, color="#EFEFEF", lw=0, zorder=1)
            at = {"transform": axis.get_yaxis_transform(), "va": "center", "fontsize": 8.5, "fontweight": "bold"}
            axis.text(0.01, place, heading, **at)
            for row in rows.to_dict(orient="records"):
                place += 1
                names[place] = shorten(row["encoder_label"], 26)
                text = f"{_with_interval(row)}   {row['p_holm']:.3f}"
                text = "not defined" if np.isnan(row["difference"]) else text
                color = colors.get(row["encoder_label"], GREY)
                _draw_difference(axis, place, row, text, color, False, full=row["p_holm"] < ALPHA)
            place += 1
        axis.set_yticks(list(names), list(names.values()))
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        if not groups:
            axis.set_xticks([])
            axis.text(0.5, 0.5, "no dataset has two encoders yet", ha="center", transform=axis.transAxes, color=GREY)
            return finish_figure(figure, synthetic)
        axis.set_ylim(place - 0.4, -0.5)
        _beside(axis, 0, "difference [95% interval]   p (Holm)", fontsize=8, color=GREY)
        axis.axvline(0, color="#222222", lw=0.8, zorder=0)
        _make_room(axis)
        reference = comparison["reference_label"].iloc[0]
        axis.set_title(f"{reference} and the other encoders")
        axis.set_xlabel(f"{reference} minus the other, on the same test images\n(right of 0: {reference} is better)")
        look = {"marker": "D", "ls": "", "mec": GREY}
        kinds = {f"p (Holm) below {ALPHA}": GREY, f"{ALPHA} or more": "white"}
        handles = [Line2D([], [], mfc=fill, label=label, **look) for label, fill in kinds.items()]
        figure.legend(handles=handles, loc="outside lower left", ncols=2, fontsize=8)
        return finish_figure(figure, synthetic)


@dataclass(frozen=True)
class _Line:
    """A line of the figure: its position and numbers; the mean of seeds has no intervals."""

    place: float
    label: str
    encoder: str
    small: bool
    numbers: dict
    text: str


def _lines(comparison: pd.DataFrame, names: list[str]) -> list[_Line]:
    lines, place, before = [], 0.0, None
    for (dataset, encoder), group in comparison.groupby(["dataset_label", "encoder_label"], sort=False):
        label = f"{shorten(dataset, 26)}\n{shorten(encoder, 22)}, {METRIC_TITLES[group['metric'].iloc[0]]}"
        place += 1.0 if dataset == before else 1.25
        before = dataset
        seeds = group.to_dict(orient="records")
        if len(seeds) == 1:
            lines.append(_Line(place, label, encoder, False, seeds[0], _with_interval(seeds[0])))
            continue
        mean = {name: group[name].mean() for name in (*names, "difference")}
        text = f"{mean['difference']:+.3f}: mean of {len(seeds)} seeds"
        lines.append(_Line(place, label, encoder, False, mean, text))
        for seed in seeds:
            place += 0.55
            lines.append(_Line(place, f"seed {seed['seed']}", encoder, True, seed, _with_interval(seed)))
    return lines


def _draw(left, right, line: _Line, names: list[str], color: str) -> None:
    numbers, size = line.numbers, 4.5 if line.small else 8
    ends = [(numbers[names[0]], line.place - APART), (numbers[names[1]], line.place + APART)]
    left.plot(*zip(*ends, strict=True), color=color, lw=1.0 if line.small else 2.2, alpha=0.45, zorder=1)
    for (x, y), side in zip(ends, names, strict=True):
        if f"{side}_low" in numbers:
            left.hlines(y, numbers[f"{side}_low"], numbers[f"{side}_high"], color=color, lw=1.0, zorder=2)
        filled = color if side == names[1] else "white"
        left.plot(x, y, "o", ms=size, mfc=filled, mec=color, mew=1.0 if line.small else 1.6, zorder=3)
    _draw_difference(right, line.place, numbers, line.text, color, line.small)


def _draw_difference(axis, place: float, numbers: dict, text: str, color: str, small: bool, full: bool = True) -> None:
    """Draws a diamond with its interval, and its text beside the panel."""
    if "low" in numbers:
        axis.hlines(place, numbers["low"], numbers["high"], color=color, lw=1.0 if small else 1.8)
    size = 3.6 if small else 6.4
    axis.plot(numbers["difference"], place, "D", ms=size, mfc=color if full else "white", mec=color, zorder=3)
    _beside(axis, place, text, fontsize=7 if small else 9, color=GREY if small else "black")


def _beside(axis, place: float, text: str, **look) -> None:
    at = {"xycoords": ("axes fraction", "data"), "xytext": (4, 0), "textcoords": "offset points"}
    axis.annotate(text, (1, place), **at, va="center", **look)


def _name_the_points(axis, line: _Line, sides: tuple[Protocol, Protocol], color: str) -> None:
    """Labels the ring and the dot of the first line with their protocols, one to each side, and makes room for it."""
    values, titles = [line.numbers[side.name] for side in sides], [side.title for side in sides]
    low, high = axis.get_xlim()
    room = 0.3 * (high - low)
    axis.set_xlim(min(low, min(values) - room), max(high, max(values) + room))
    axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= 1 and low <= tick <= high])
    for value, other, text in zip(values, values[::-1], titles, strict=True):
        before = value < other or (value == other and text == titles[0])
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
    """Keeps the zero line well inside the panel, and small differences small."""
    low, high = axis.get_xlim()
    reach = 0.12 * max(high - low, 0.02)
    axis.set_xlim(min(low, -reach), max(high, reach))
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:+.3g}".replace("-", MINUS) if not np.isclose(x, 0) else "0")
    axis.xaxis.get_major_locator().set_params(nbins=4)


def _with_interval(numbers: dict) -> str:
    text = "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**numbers)
    return text.replace("-", MINUS)


# Heading -> column of `results.compare_encoders`.
TESTS = {"p": "p_value", "p (Holm)": "p_holm", "p (t)": "p_t"}


def protocols_table(comparison: pd.DataFrame, sides: tuple[Protocol, Protocol], synthetic: bool) -> pd.DataFrame:
    """Returns Supplementary Table 2: one row per dataset and encoder, with the headline metric by both protocols.

    Args:
        comparison: Rows of `results.compare_protocols`, of one seed; sides: the two protocols.
        synthetic: Leaves out the two columns of published numbers, which synthetic images do not have.
    """
    rows = comparison[comparison["headline"]]
    table = _side_by_side(rows, _columns(sides), {"p": "p_value"})
    for protocol in () if synthetic else sides:
        keys = zip(rows["dataset"], rows["encoder"], rows["metric"], strict=True)
        values = [published_value(dataset, protocol.name, encoder, metric) for dataset, encoder, metric in keys]
        table[f"Published {protocol.title}"] = ["" if v is None else f"{v:.3f}" for v in values]
    return table


def comparisons_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per dataset and other encoder: the headline metric of both, and three p-values.

    Args:
        comparison: Rows of `results.compare_encoders`, of one seed.
    """
    rows = comparison[comparison["headline"]]
    reference = next(iter(rows["reference_label"]), "Reference")
    table = _side_by_side(rows, {reference: "reference", "The other": "other"}, TESTS)
    return table.rename(columns={"Encoder": "Compared with"})


def differences_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per dataset and encoder, one column per metric: the difference with its interval."""
    return wide(comparison, _differences(comparison))


def seeds_table(comparison: pd.DataFrame, sides: tuple[Protocol, Protocol]) -> pd.DataFrame:
    """Returns the headline metric over several seeds: mean (lowest to highest) by protocol, and the difference."""
    rows = comparison[comparison["headline"]]
    groups = [(key, g) for key, g in rows.groupby(["dataset_label", "encoder_label"], sort=False) if len(g) > 1]
    table = []
    for (dataset, encoder), group in groups:
        row = {"Dataset": dataset, "Encoder": encoder, "Metric": METRIC_TITLES[group["metric"].iloc[0]]}
        row["Seeds"] = " ".join(map(str, group["seed"]))
        for title, name in {**_columns(sides), "Difference": "difference"}.items():
            mean, low, high = group[name].mean(), group[name].min(), group[name].max()
            sign = "+" if name == "difference" else ""
            row[title] = "" if pd.isna(mean) else f"{mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"
        table.append(row)
    columns = ["Dataset", "Encoder", "Metric", "Seeds", *_columns(sides), "Difference"]
    return pd.DataFrame(table, columns=columns)


def _columns(sides: tuple[Protocol, Protocol]) -> dict[str, str]:
    """Heading -> column of `results.compare_protocols`."""
    first, second = (side.title.capitalize() for side in sides)
    return {first: sides[0].name, second: sides[1].name, f"{second}, 5 views": "views"}


def _side_by_side(rows: pd.DataFrame, sides: dict[str, str], tests: dict[str, str]) -> pd.DataFrame:
    """One row per comparison: scores of all sides, difference, p-values, verdict; sides, tests: heading -> column."""
    table = pd.DataFrame({"Dataset": rows["dataset_label"], "Encoder": rows["encoder_label"]})
    table["Metric"] = rows["metric"].map(METRIC_TITLES)
    for title, name in sides.items():
        cells = rows[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)
        table[title] = ["" if pd.isna(v) else f"{v:.3f} [{a:.3f}, {b:.3f}]" for v, a, b in cells]
    table["Difference"] = _differences(rows)
    for title, name in tests.items():
        table[title] = ["" if pd.isna(p) else "<0.001" if p < 0.001 else f"{p:.3f}" for p in rows[name]]
    table["Verdict"], table["Test images"] = rows["verdict"], rows["images"]
    return table.reset_index(drop=True)


def _differences(rows: pd.DataFrame) -> list[str]:
    cells = rows[["difference", "low", "high"]].itertuples(index=False)
    return ["" if pd.isna(d) else f"{d:+.3f} [{low:+.3f}, {high:+.3f}]" for d, low, high in cells]
