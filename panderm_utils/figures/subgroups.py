"""The figure, tables and alternative text of subgroups: the score of each group, its interval and images."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from panderm_utils.figures.plots import GREY, METRIC_TITLES, finish_figure, shorten, style
from panderm_utils.stats import FEWEST_IMAGES

KIND_TITLES = {"age": "Age", "sex": "Sex", "site": "Site", "skin_tone": "Skin tone", "institution": "Institution"}
AROUND = 4  # lines taken by a panel's title and axis


def subgroup_panels(
    groups: pd.DataFrame, gaps: pd.DataFrame, scores: pd.DataFrame, color: str, synthetic: bool = False
) -> Figure:
    """Draws one panel per dataset, one block per kind of metadata, one line per group: score, 95% interval, images.

    Grey: not judged. Dashed: the score of all test images. The title of each block gives its largest gap.

    Args:
        groups: The first table of `results.subgroups_of_records`, of one encoder; gaps: the second.
        scores: One row per dataset, from `paper_scores`: dataset_label, value.
        color: The colour of the encoder.
    """
    datasets = list(dict.fromkeys(groups["dataset_label"]))
    heights = {name: _lines(groups[groups["dataset_label"] == name]) + AROUND for name in datasets}
    stacks: list[list[str]] = [[] for _ in range(max(1, min(2, len(datasets))))]
    for name in datasets:  # onto the shorter stack
        min(stacks, key=lambda stack: sum(heights[d] for d in stack)).append(name)
    tallest = max(sum(heights[name] for name in stack) for stack in stacks)
    with style():
        figure = plt.figure(figsize=(5.2 * len(stacks) + 0.4 * (len(stacks) == 1), 0.9 + 0.2 * max(tallest, 6)))
        if not datasets:
            axis = figure.subplots()
            axis.axis("off")
            axis.text(0.5, 0.5, "no record with metadata yet", ha="center", transform=axis.transAxes, color=GREY)
            return finish_figure(figure, synthetic)
        overall = scores.set_index("dataset_label")["value"]
        for part, stack in zip(np.atleast_1d(figure.subfigures(1, len(stacks))), stacks, strict=True):
            ratios = [heights[name] - AROUND for name in stack]
            # A shorter stack ends in an empty row.
            ratios += [left] if (left := tallest - sum(heights[name] for name in stack)) else []
            axes = part.subplots(len(ratios), 1, squeeze=False, height_ratios=ratios)[:, 0]
            for axis, name in zip(axes, stack, strict=False):
                rows = [table[table["dataset_label"] == name] for table in (groups, gaps)]
                _panel(axis, *rows, overall[name], color)
            for axis in axes[len(stack) :]:
                axis.axis("off")
        line = {"lw": 1, "marker": "o", "ms": 5}
        grey = f"not judged: fewer than {FEWEST_IMAGES} images or one class"
        handles = [plt.Line2D([], [], color=color, label="with 95% interval", **line)]
        handles.append(plt.Line2D([], [], color=GREY, mfc="white", label=grey, **line))
        handles.append(plt.Line2D([], [], color=GREY, lw=0.9, ls="--", label="all test images"))
        figure.legend(handles=handles, loc="outside upper left", ncols=3 if len(stacks) > 1 else 1, fontsize=8)
        return finish_figure(figure, synthetic)


def groups_table(groups: pd.DataFrame) -> pd.DataFrame:
    """Returns the groups for readers: one row per dataset, kind and group."""
    table = _labelled(groups).assign(Group=groups["group"], Images=groups["images"], Rarest=groups["rarest"])
    if len(groups) and groups["rarest"].isna().all():  # masks: there are no classes
        table = table.drop(columns="Rarest")
    return table.assign(Value=_with_intervals(groups, "value", ""), Note=groups["note"])


def gaps_table(gaps: pd.DataFrame) -> pd.DataFrame:
    """Returns the gaps for readers: one row per dataset and kind."""
    table = _labelled(gaps).assign(Highest=gaps["highest"], Lowest=gaps["lowest"])
    table["Largest gap"] = _with_intervals(gaps, "gap", "fewer than two groups to judge")
    return table.assign(p=["" if np.isnan(p) else f"{p:.3f}" for p in gaps["p_value"]])


def subgroups_alt_text(groups: pd.DataFrame, gaps: pd.DataFrame) -> str:
    """Returns the figure's alternative text: for each dataset and kind, the groups' values and the largest gap."""
    parts = []
    for gap in gaps.to_dict(orient="records"):
        rows = groups[(groups["run_id"] == gap["run_id"]) & (groups["kind"] == gap["kind"])]
        cells = [f"{group} {value:.3f} of {n}" for group, value, n in rows[["group", "value", "images"]].to_numpy()]
        largest = "largest gap {gap:.3f} [{low:.3f}, {high:.3f}]".format(**gap) if gap["highest"] else "no gap to judge"
        name = f"{gap['dataset_label']}, {KIND_TITLES[gap['kind']].lower()}"
        parts.append(f"{name}: {', '.join(cells)} images; {largest}")
    return ". ".join(parts) or "no record yet"


def _lines(groups: pd.DataFrame) -> int:
    return len(groups) + groups["kind"].nunique()


def _panel(axis, groups: pd.DataFrame, gaps: pd.DataFrame, overall: float, color: str) -> None:
    aside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center", "fontsize": 7.5}
    axis.axvline(overall, color=GREY, lw=0.9, ls="--", zorder=0)
    place, names = 0, []
    for gap in gaps.to_dict(orient="records"):
        names.append((place, KIND_TITLES[gap["kind"]], "black", "bold"))
        if gap["highest"]:
            text = "largest gap {gap:.3f} [{low:.3f}, {high:.3f}], p = {p_value:.3f}".format(**gap)
            plain = {"boxstyle": "square,pad=0.15", "fc": "white", "lw": 0}
            axis.annotate(text, (0, place), xytext=(4, 0), color=GREY, bbox=plain, **aside)
        for row in groups[groups["kind"] == gap["kind"]].to_dict(orient="records"):
            place += 1
            ink = color if row["judged"] else GREY
            names.append((place, shorten(row["group"], 24), "black" if row["judged"] else GREY, "normal"))
            axis.hlines(place, row["low"], row["high"], color=ink, lw=1.2)
            axis.plot(row["value"], place, "o", ms=5, mec=ink, mfc=ink if row["judged"] else "white", clip_on=False)
            if np.isnan(row["value"]):
                axis.annotate("one class only", (0.5, place), xytext=(0, 0), ha="center", color=GREY, **aside)
            axis.annotate(f"{row['images']:,}", (1, place), xytext=(30, 0), ha="right", color=ink, **aside)
        place += 1
    axis.annotate("images", (1, 0), xytext=(30, 0), ha="right", color=GREY, **aside)
    axis.set_yticks([at for at, *_ in names], [name for _, name, *_ in names])
    for tick, (_, _, ink, weight) in zip(axis.get_yticklabels(), names, strict=True):
        tick.set(color=ink, fontweight=weight, fontsize=8)
    axis.set(ylim=(place - 0.4, -0.7), xlabel=METRIC_TITLES[groups["metric"].iloc[0]])
    axis.set_title(groups["dataset_label"].iloc[0])
    left, right = axis.get_xlim()
    axis.set_xlim(max(-0.03, left), min(1.03, right))
    axis.xaxis.get_major_locator().set_params(nbins=5)
    axis.set_xticks([tick for tick in axis.get_xticks() if max(0, left) <= tick <= min(1 + 1e-9, right)])
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines["left"].set_visible(False)


def _labelled(rows: pd.DataFrame) -> pd.DataFrame:
    table = pd.DataFrame({"Dataset": rows["dataset_label"], "Metric": rows["metric"].map(METRIC_TITLES)})
    return table.assign(Kind=rows["kind"].map(KIND_TITLES))


def _with_intervals(rows: pd.DataFrame, name: str, undefined: str) -> list[str]:
    cells = rows[[name, "low", "high"]].itertuples(index=False)
    return [undefined if np.isnan(value) else f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in cells]
