"""Figures and tables of an audit: how similar the nearest images are, pairs side by side, what leakage costs."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from panderm_utils.figures.plots import GREY, METRIC_TITLES, finish_figure, shorten, style
from panderm_utils.manifests import load_dataset_manifest, load_encoder_manifest

AXES = {"near copy": "equal bits of the perceptual hash", "similar features": "cosine of features"}
BINS = 40


def similarity_histograms(nearest: pd.DataFrame, thresholds: dict[str, float], synthetic: bool = False) -> Figure:
    """Draws how similar the nearest train or val image of each test image is: one panel per kind of similarity.

    The axis of counts is logarithmic, so that a single image shows. Dashed: the threshold of a pair.

    Args:
        nearest: That of an `Audit`: kind, similarity, dataset_a.
        thresholds: Kind -> similarity from which on a pair is listed; kinds without one list none.
    """
    kinds = [kind for kind in AXES if kind in set(nearest["kind"])]
    with style():
        figure, axes = plt.subplots(1, max(1, len(kinds)), figsize=(4.9 * max(1, len(kinds)), 3.4), squeeze=False)
        names = list(dict.fromkeys(nearest["dataset_a"]))
        labels = [load_dataset_manifest(name).short_title for name in names]
        palette = sns.color_palette("husl" if len(names) > 10 else "colorblind", len(names))
        for axis, kind in zip(axes[0], kinds, strict=False):
            rows = nearest[nearest["kind"] == kind]
            parts = [rows.loc[rows["dataset_a"] == name, "similarity"] for name in names]
            ends = np.linspace(min(rows["similarity"].min(), thresholds.get(kind, 1) - 0.01), 1, BINS + 1)
            axis.hist(parts, ends, stacked=True, color=palette, label=labels)
            axis.set(yscale="log", xlabel=AXES[kind], ylabel="test images", title=kind[0].upper() + kind[1:])
            axis.set_ylim(bottom=0.7)
            axis.yaxis.set_major_formatter("{x:,.0f}")
            if kind in thresholds:
                axis.axvline(thresholds[kind], color=GREY, lw=1, ls="--")
        if kinds:
            figure.legend(axes[0][0].get_legend_handles_labels()[0], labels, loc="outside right center", fontsize=8)
        else:
            axes[0][0].axis("off")
            axes[0][0].text(0.5, 0.5, "no test image to compare", ha="center", color=GREY)
        return finish_figure(figure, synthetic)


def image_pairs(
    images: list[tuple], captions: list[tuple[str, str]], titles: list[str], synthetic: bool = False
) -> Figure:
    """Draws pairs of images side by side, two pairs in a row.

    Args:
        images: Two PIL images of each pair.
        captions: The text under each of the two.
        titles: The text above each pair, such as its kind and similarity.
    """
    rows, columns = max(1, -(-len(images) // 2)), min(2, max(1, len(images)))
    with style():
        figure = plt.figure(figsize=(4.6 * columns, 2.75 * rows))
        cells = np.atleast_1d(figure.subfigures(rows, columns, squeeze=False)).ravel()
        for cell, pair, texts, title in zip(cells, images, captions, titles, strict=False):
            axes = cell.subplots(1, 2)
            cell.suptitle(title, fontsize=8.5, fontweight="bold")
            for axis, image, text in zip(axes, pair, texts, strict=True):
                axis.imshow(image)
                axis.set_anchor("N")
                axis.set(xticks=[], yticks=[])
                sns.despine(ax=axis, left=True, bottom=True)
                lines = "\n".join(shorten(line, 30) for line in text.split("\n"))
                axis.set_xlabel(lines, fontsize=6.5, color="black", labelpad=3)
        if not images:
            figure.text(0.5, 0.5, "no pair", ha="center", va="center", color=GREY)
        return finish_figure(figure, synthetic)


def costs_table(costs: pd.DataFrame) -> pd.DataFrame:
    """Returns what leakage costs for readers: one row per run, dataset tested on, and what is left out.

    Args:
        costs: Rows of `audit.costs_of_leakage`.
    """
    rows = costs.to_dict(orient="records")
    labels = {name: load_dataset_manifest(name).short_title for name in {*costs["dataset"], *costs["tested_on"]}}
    table = pd.DataFrame({"Dataset": [labels[row["dataset"]] for row in rows]})
    table["Tested on"] = [labels[row["tested_on"]] for row in rows]
    table["Protocol"] = [row["protocol"].replace("_", " ") for row in rows]
    table["Encoder"] = [load_encoder_manifest(row["encoder"]).title for row in rows]
    table["Seed"] = costs["seed"].to_numpy()
    table["Metric"] = [METRIC_TITLES[row["metric"]] for row in rows]
    table["Left out"] = [row["without"] if row["left_out"] else "nothing leaks" for row in rows]
    table["Images"] = costs["images"].to_numpy()
    table["Score"], table["Without"] = (_numbers(costs[name]) for name in ("score", "rest"))
    table["Difference"] = [
        ""
        if not row["left_out"] or pd.isna(row["difference"])
        else "{difference:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row)
        for row in rows
    ]
    return table


def _numbers(values: pd.Series) -> list[str]:
    return ["undefined" if pd.isna(value) else f"{value:.3f}" for value in values]
