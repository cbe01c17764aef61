"""The panels of the paper that hold scores of datasets and encoders side by side.

Functions take rows of `tables.paper_scores`; none computes a metric.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from panderm_utils.plots import GREY, METRIC_TITLES, finish, style, wrap


def scores_by_dataset(
    scores: pd.DataFrame, colors: dict[str, str], title: str = "", synthetic: bool = False, axis=None
) -> Figure:
    """The panel of Fig. 2a: datasets side by side, a bar an encoder, 95% intervals, dashed lines at encoders' means.

    Args:
        scores: Columns dataset_label, encoder_label, value, low, high; one row a bar. Rows that are
            missing leave a gap; means are taken over the datasets that every encoder drawn has.
        colors: Encoder label -> colour; its order is the order of the bars.
        axis: Draw into this axis instead of a figure of its own.
    """
    datasets, encoders = (
        list(dict.fromkeys(scores["dataset_label"])),
        [e for e in colors if e in set(scores["encoder_label"])],
    )
    cells = scores.set_index(["dataset_label", "encoder_label"])
    shared = [d for d in datasets if all((d, e) in cells.index for e in encoders)]
    width = 0.8 / max(1, len(encoders))
    with style():
        if axis is None:
            _, axis = plt.subplots(figsize=(max(5.0, 2.2 + 1.05 * len(datasets)), 4.0))
        for j, encoder in enumerate(encoders):
            here = [d for d in datasets if (d, encoder) in cells.index]
            rows = cells.loc[[(d, encoder) for d in here]]
            at = np.array([datasets.index(d) for d in here]) + (j - (len(encoders) - 1) / 2) * width
            errors = np.clip([rows["value"] - rows["low"], rows["high"] - rows["value"]], 0, None)
            axis.bar(at, rows["value"], width * 0.92, color=colors[encoder], label=encoder, zorder=2)
            axis.errorbar(at, rows["value"], errors, fmt="none", ecolor="#222222", elinewidth=0.9, capsize=2, zorder=3)
            if len(shared) > 1:
                mean = cells.loc[[(d, encoder) for d in shared], "value"].mean()
                axis.axhline(mean, color=colors[encoder], ls="--", lw=1, zorder=1)
        if not datasets:
            axis.text(0.5, 0.5, "no record yet", ha="center", transform=axis.transAxes, color=GREY)
        axis.set_xticks(range(len(datasets)), [wrap(d, 13) for d in datasets])
        axis.set(ylim=(0, 1), xlim=(-0.6, max(1, len(datasets)) - 0.4), title=title)
        axis.tick_params(axis="x", length=0, labelsize=8)
        return finish(axis.figure, synthetic)


def figure_2a(scores: pd.DataFrame, colors: dict[str, str], synthetic: bool = False) -> Figure:
    """Fig. 2a: the headline metric of every dataset (column `metric`: AUROC for two classes, else weighted F1)."""
    names = scores.drop_duplicates("dataset_label")
    labels = {d: f"{d}\n({METRIC_TITLES[m]})" for d, m in zip(names["dataset_label"], names["metric"], strict=True)}
    figure = scores_by_dataset(
        scores.assign(dataset_label=scores["dataset_label"].map(labels)), colors, synthetic=synthetic
    )
    axis = figure.axes[0]
    with style():
        axis.set_ylabel("score on the test split")
        heading = "Linear probing, with 95% bootstrap intervals; dashed: mean over the datasets"
        options = {"title": wrap(heading, int(12 * figure.get_figwidth())), "alignment": "left", "title_fontsize": 10}
        if axis.get_legend_handles_labels()[0]:
            figure.legend(loc="outside upper left", ncols=max(1, int(figure.get_figwidth() / 2)), fontsize=8, **options)
    return figure


def extended_data_figure_1(scores: pd.DataFrame, colors: dict[str, str], synthetic: bool = False) -> Figure:
    """Extended Data Fig. 1: one panel each for weighted F1, AUROC, AUPR and balanced accuracy (column `metric`)."""
    panels = ("weighted_f1", "auroc", "aupr", "balanced_accuracy")
    width = max(6.0, 2.2 + 1.0 * scores["dataset_label"].nunique())
    with style():
        figure, axes = plt.subplots(len(panels), 1, figsize=(width, 2.5 * len(panels)), sharex=False)
        for axis, metric in zip(axes, panels, strict=True):
            rows = scores[scores["metric"] == metric]
            scores_by_dataset(rows, colors, axis=axis)
            axis.set_ylabel(METRIC_TITLES[metric])
        lines, labels = axes[0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside upper left", ncols=max(1, int(width / 2)), fontsize=8)
        return finish(figure, synthetic)


def figure_2c(panel: pd.DataFrame, colors: dict[str, str], synthetic: bool = False) -> Figure:
    """Fig. 2c: melanoma against the rest, by a probe trained on one dataset: on its own test split, and on others.

    Args:
        panel: Rows of `external_validation.read_panel`, of one source. Encoders that were tested on other images of a
            dataset stand apart, since n is part of its label.
    """
    if panel.empty:
        return scores_by_dataset(panel, colors, synthetic=synthetic)
    sizes = zip(panel["dataset_label"], panel["images"], panel["melanoma"], strict=True)
    labels = [f"{label}\nn = {images:,}\n{melanoma:,} melanomas" for label, images, melanoma in sizes]
    labelled = panel.assign(dataset_label=labels)
    parts = {"Source": labelled[labelled["internal"]], "External datasets": labelled[~labelled["internal"]]}
    units = [part["dataset_label"].nunique() + 0.2 for part in parts.values()]
    width = max(6.0, 1.8 + 1.05 * sum(units))
    with style():
        figure, axes = plt.subplots(1, 2, figsize=(width, 4.2), width_ratios=units, sharey=True)
        for axis, (title, part) in zip(axes, parts.items(), strict=True):
            scores_by_dataset(part, colors, title, axis=axis)
            axis.axhline(0.5, color=GREY, lw=0.9, ls=":", zorder=1)
        axes[0].set_ylabel("AUROC, melanoma against the rest")
        source = panel["dataset_label"].iloc[0]
        heading = f"Probe trained on {source}; 95% bootstrap intervals; dashed: mean over the others; dotted: chance"
        options = {"title": wrap(heading, int(11 * width)), "alignment": "left", "title_fontsize": 10}
        lines, names = axes[1].get_legend_handles_labels()
        figure.legend(lines, names, loc="outside upper left", ncols=max(1, int(width / 2)), fontsize=8, **options)
        return finish(figure, synthetic)
