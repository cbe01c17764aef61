"""Reliability diagrams, and the tables and alternative text of calibration."""

from itertools import zip_longest

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from panderm_utils.figures.plots import GREY, finish_figure, style

COLUMNS = 3  # panels side by side
FEW = 5  # a bin with fewer images is a pale dot without a line, which would only show noise


def reliability_diagrams(
    bins: pd.DataFrame, numbers: pd.DataFrame, colors: dict[str, str], synthetic: bool = False
) -> Figure:
    """Draws one panel per dataset: a line per encoder, a dot per bin with its 95% interval; below, images per bin.

    The area of a dot grows with the images of its bin. The legend gives the expected calibration error.

    Args:
        bins: The first table of `results.calibration_of_records`; numbers: the second.
        colors: Encoder label -> colour.
    """
    datasets = list(dict.fromkeys(numbers["dataset_label"]))
    columns = max(1, min(COLUMNS, len(datasets)))
    rows = max(1, -(-len(datasets) // columns))
    with style():
        # A single panel is wider, to make room for the legend above it.
        size = (3.4 * columns + 1.4 * (columns == 1), 3.9 * rows + 0.6)
        ratios = {"height_ratios": [3.2, 1] * rows}
        figure, axes = plt.subplots(2 * rows, columns, figsize=size, squeeze=False, gridspec_kw=ratios)
        for above, below, name in zip_longest(axes[::2].flat, axes[1::2].flat, datasets):
            if name is None:
                above.axis("off")
                below.axis("off")
            else:
                _panel(above, below, *(table[table["dataset_label"] == name] for table in (bins, numbers)), colors)
        if not datasets:
            axes[0][0].text(0.5, 0.5, "no record yet", ha="center", transform=axes[0][0].transAxes, color=GREY)
            return finish_figure(figure, synthetic)
        shown = [name for name in colors if name in set(numbers["encoder_label"])]
        handles = [plt.Line2D([], [], color=colors[name], marker="o", ms=4, label=name) for name in shown]
        handles.append(plt.Line2D([], [], color=GREY, lw=0.8, ls=":", label="perfectly calibrated"))
        pale = {"color": GREY, "alpha": 0.4, "marker": "o", "ms": 3, "lw": 0}
        handles.append(plt.Line2D([], [], label=f"bin with fewer than {FEW} images", **pale))
        figure.legend(handles=handles, loc="outside upper left", ncols=max(2, columns), fontsize=8)
        return finish_figure(figure, synthetic)


def _panel(axis, below, bins: pd.DataFrame, numbers: pd.DataFrame, colors: dict[str, str]) -> None:
    first = numbers.iloc[0]
    two = first["classes"] == 2
    axis.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":", zorder=1)
    for run in numbers.to_dict(orient="records"):
        color, table = colors[run["encoder_label"]], bins[bins["run_id"] == run["run_id"]]
        enough, few = table[table["images"] >= FEW], table[table["images"].between(1, FEW - 1)]
        label = "ECE {ece:.3f} [{ece_low:.3f}, {ece_high:.3f}]".format(**run)
        axis.plot(enough["predicted"], enough["observed"], color=color, lw=1.2, label=label, zorder=3)
        axis.vlines(enough["predicted"], enough["low"], enough["high"], color=color, lw=0.8, alpha=0.45, zorder=2)
        fraction = table["images"] / table["images"].sum()
        sizes = 8 + 130 * fraction[enough.index]
        axis.scatter(enough["predicted"], enough["observed"], sizes, color=color, lw=0, zorder=4)
        axis.scatter(few["predicted"], few["observed"], 8, color=color, alpha=0.4, lw=0, zorder=2)
        edges = np.append(table["from"], table["to"].iloc[-1])
        below.stairs(fraction, edges, color=color, lw=1.2)
    axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), ylabel="fraction in class 1" if two else "accuracy")
    axis.set_title(f"{first['dataset_label']} (n = {first['images']:,})", fontsize=10)
    axis.set_xticklabels([])
    plain = {"frameon": True, "framealpha": 0.8, "edgecolor": "none", "borderpad": 0.2, "borderaxespad": 0.2}
    axis.legend(loc="best", fontsize=7, handlelength=0.9, labelspacing=0.25, **plain)
    below.set(xlim=(-0.03, 1.03), xlabel="probability of class 1" if two else "confidence", ylabel="images")
    below.set_ylim(0, None)
    below.yaxis.set_major_locator(plt.MaxNLocator(2))
    below.yaxis.set_major_formatter("{x:.0%}")


def calibration_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """Returns the second table of `calibration_of_records` for readers, with cells `value [low, high]`."""
    table = pd.DataFrame({"Dataset": numbers["dataset_label"], "Encoder": numbers["encoder_label"]})
    table["Test images"], table["Classes"] = numbers["images"], numbers["classes"]
    for title, name in {"ECE": "ece", "Brier score": "brier"}.items():
        cells = numbers[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)
        table[title] = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in cells]
    table.insert(5, "ECE by chance", [f"{value:.3f}" for value in numbers["ece_by_chance"]])
    return table


def calibration_alt_text(numbers: pd.DataFrame) -> str:
    """Returns the alternative text of the reliability diagrams: the calibration errors of each dataset."""
    parts = []
    for dataset, runs in numbers.groupby("dataset_label", sort=False):
        cells = [
            "{encoder_label} {ece:.3f} [{ece_low:.3f}, {ece_high:.3f}]".format(**run) for run in runs.to_dict("records")
        ]
        parts.append(f"{dataset}: {', '.join(cells)}")
    return "; ".join(parts) or "no record yet"


def points_table(points: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per dataset, encoder, class and level, with both measures as `value [low, high]`."""
    titles = {"dataset_label": "Dataset", "encoder_label": "Encoder", "class": "Class", "images": "Images"}
    titles |= {"others": "Others", "level": "Level"}
    cells = points[["value", "low", "high"]].itertuples(index=False)
    texts = ["" if np.isnan(value) else f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in cells]
    table = points[list(titles)].rename(columns=titles).assign(Level=[f"{level:g}" for level in points["level"]])
    table["Sensitivity at this specificity"] = texts
    reverse = (points["given"] == "sensitivity").to_numpy()
    table = table[~reverse].reset_index(drop=True)
    table["Specificity at this sensitivity"] = [text for text, other in zip(texts, reverse, strict=True) if other]
    return table
