"""The style of all figures, and the figures of a dataset's notebook, each a function that returns a matplotlib Figure.

Functions take arrays, records (`results.read_records`) and images; none computes a metric. Figures are closed before
they are returned, so a notebook shows one exactly once, as the last expression of a cell.
"""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from panderm_utils.disk import replacing
from panderm_utils.stats import embed

METRIC_TITLES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "quadratic_kappa": "Quadratic-weighted kappa",
    "weighted_f1": "Weighted F1",
    "auroc": "AUROC",
    "aupr": "AUPR",
    "top3": "Top-3 accuracy",  # this and the next ones: fine-tuning only
    "top5": "Top-5 accuracy",
    "specificity": "Specificity",
    "jaccard": "Jaccard",  # this and the next ones: of masks, see `stats.masks`
    "dice": "Dice",
    "jaccard_original": "Jaccard at original size",
    "dice_original": "Dice at original size",
    "hd95_original": "95% Hausdorff distance (% of diagonal)",
    "surface_dice_original": "Surface Dice",
    "sensitivity_original": "Sensitivity of pixels",
    "specificity_original": "Specificity of pixels",
}
SYNTHETIC_MARK = "synthetic demo data"
GREY = "#767676"
MAX_ROWS = 40  # classes; with more, figures of classes get smaller print, and images show the first ones
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 300,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text in the PDF, as journals ask
}


def style():
    """Returns the context in which every figure is drawn: uniform panels, text that stays text in a PDF."""
    return plt.rc_context(STYLE)


def labelled_images(images: list, labels: list[str], titles: list[str], synthetic: bool = False) -> Figure:
    """Draws a grid of images, one row per class, its name at the left; at most MAX_ROWS classes, the first ones.

    Args:
        images: PIL images.
        labels: The class of each image; rows are in order of first appearance.
        titles: The text under each image, such as its file name.
    """
    classes = list(dict.fromkeys(labels))
    rows = classes[:MAX_ROWS]
    columns = max(labels.count(row) for row in rows)
    with style():
        figure, axes = plt.subplots(
            len(rows), columns, figsize=(1.5 * columns + 1.4, 1.35 * len(rows) + 0.3), squeeze=False
        )
        for row, name in enumerate(rows):
            members = [i for i, label in enumerate(labels) if label == name]
            for column, axis in enumerate(axes[row]):
                axis.set_xticks([])
                axis.set_yticks([])
                sns.despine(ax=axis, left=True, bottom=True)
                if column < len(members):
                    axis.imshow(images[members[column]])
                    axis.set_xlabel(shorten(titles[members[column]], 22), fontsize=6, color=GREY, labelpad=2)
            axes[row][0].set_ylabel(wrap(name, 16), rotation=0, ha="right", va="center", fontsize=9)
        if len(classes) > MAX_ROWS:
            figure.suptitle(f"the first {MAX_ROWS} of {len(classes)} classes", fontsize=9)
        return finish_figure(figure, synthetic)


def class_counts(table: pd.DataFrame, synthetic: bool = False) -> Figure:
    """Draws the number of images of each class (index) in each split (columns) as bars on a logarithmic axis."""
    with style():
        many = len(table) > MAX_ROWS
        figure, axis = plt.subplots(figsize=(6.5, 0.9 + (0.15 if many else 0.36) * len(table)))
        long = table.rename_axis("class").reset_index().melt("class", var_name="split", value_name="images")
        sns.barplot(long, y="class", x="images", hue="split", palette="crest", ax=axis)
        axis.set(xscale="log", ylabel="", xlabel="images (logarithmic)", title="Images per class and split")
        axis.set_xlim(left=0.8)  # so that one image shows
        if many:
            axis.tick_params(axis="y", labelsize=7)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        sns.move_legend(axis, "center left", bbox_to_anchor=(1, 0.5), title="")
        return finish_figure(figure, synthetic)


def feature_map(x: np.ndarray, y: np.ndarray, names: list[str], synthetic: bool = False, method: str = "pca") -> Figure:
    """Draws features [N, D] in two dimensions, coloured by class; `method` as in `stats.embed`."""
    plane, used = embed(x, method)
    with style():
        figure, axis = plt.subplots(figsize=(6.2, 4.2))
        palette = sns.color_palette("husl" if len(names) > 10 else "colorblind", len(names))
        for k, name in enumerate(names):
            axis.scatter(*plane[y == k].T, s=12, color=palette[k], label=shorten(name, 22), alpha=0.75, linewidths=0)
        axis.set(xticks=[], yticks=[])
        if used == "PCA":  # the axes of the other methods mean nothing
            axis.set(xlabel="first component", ylabel="second component")
        axis.set_title(f"Features of {len(x):,} images in two dimensions ({used})")
        figure.set_size_inches(6.2 + 1.2 * (len(names) > 13), 4.2)
        figure.legend(loc="outside right center", ncols=1 + len(names) // 14, markerscale=1.6, fontsize=8)
        return finish_figure(figure, synthetic)


def loss_curve(history: pd.DataFrame, synthetic: bool = False) -> Figure:
    """Draws the objective of a fit over its iterations (columns iteration, loss)."""
    with style():
        figure, axis = plt.subplots(figsize=(6, 2.8))
        axis.plot(history["iteration"], history["loss"], color="#0072B2")
        axis.set(xlabel="L-BFGS iteration", ylabel="objective", title="The fit", yscale="log")
        for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            formatter("{x:.3g}")
        last = history.iloc[-1]
        axis.annotate(
            f"{last['loss']:.4g} after {last['iteration']:.0f}",
            (last["iteration"], last["loss"]),
            xytext=(-4, 12),
            textcoords="offset points",
            ha="right",
            color=GREY,
        )
        return finish_figure(figure, synthetic)


def confusion_matrix(counts: np.ndarray, names: list[str], synthetic: bool = False) -> Figure:
    """Draws a confusion matrix [K, K]: counts as text, fractions of the true class (rows) as colour."""
    fraction = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    longest = min(20, max(map(len, names)))
    slanted = longest > 5
    many = len(names) > MAX_ROWS
    side = max(2.2, (0.15 if many else 0.42) * len(names)) + 0.075 * longest
    size = (side + 1.6, side + (1.2 if slanted else 0.9))
    with style():
        figure, axis = plt.subplots(figsize=size)
        sns.heatmap(
            fraction,
            annot=counts if len(names) <= 16 else None,
            fmt="d",
            cmap="Blues",
            vmin=0,
            vmax=1,
            square=True,
            linewidths=0.1 if many else 0.5,
            cbar_ax=axis.inset_axes([1.03, 0, 0.04, 1]),
            cbar_kws={"label": "fraction of the true class"},
            xticklabels=[shorten(name, 20) for name in names],
            yticklabels=[shorten(name, 20) for name in names],
            annot_kws={"size": 8},
            ax=axis,
        )
        axis.set(xlabel="predicted", ylabel="true", title="Confusion matrix")
        plt.setp(axis.get_xticklabels(), rotation=45 if slanted else 0, ha="right" if slanted else "center")
        axis.tick_params(axis="x", length=0)
        axis.tick_params(axis="y", rotation=0, length=0)
        if many:
            axis.tick_params(labelsize=6)
        return finish_figure(figure, synthetic)


def roc_pr_curves(roc: dict[str, tuple], pr: dict[str, tuple], synthetic: bool = False, of: str = "class") -> Figure:
    """Draws ROC and precision-recall curves side by side.

    Args:
        of: What the curves are for, the title of the legend.
        roc: Class name -> (false positive rates, true positive rates, area).
        pr: Class name -> (recalls, precisions, average precision).
    """
    palette = dict(zip(roc, sns.color_palette("husl" if len(roc) > 10 else "colorblind", len(roc)), strict=True))
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.9))
        for name in roc:
            both = f"{shorten(name, 22)} {roc[name][2]:.2f}, {pr[name][2]:.2f}"
            left.plot(*roc[name][:2], color=palette[name], lw=1.4, label=both)
            right.plot(*pr[name][:2], color=palette[name], lw=1.4)
        for axis in (left, right):
            axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        left.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls=":")
        left.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC")
        right.set(xlabel="recall", ylabel="precision", title="Precision and recall")
        heading = {"title": f"{of}: AUROC, average precision", "title_fontsize": 7, "alignment": "left"}
        figure.legend(loc="outside right center", ncols=1 + len(roc) // 20, fontsize=7, handlelength=1, **heading)
        return finish_figure(figure, synthetic)


def mistakes(images: list, captions: list[str], synthetic: bool = False, nothing: str = "no mistakes") -> Figure:
    """Draws misclassified images, at most six in a row, each with its caption; without any, the text `nothing`."""
    columns = min(6, max(1, len(images)))
    rows = max(1, -(-len(images) // columns))
    tallest = min(1.4, max((image.height / image.width for image in images), default=1))
    with style():
        size = (1.9 * columns, (1.9 * tallest + 0.45) * rows + 0.2)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for axis, image, caption in zip(axes.flat, images, captions, strict=False):
            axis.imshow(image)
            axis.set_title(caption, fontsize=7, fontweight="normal", loc="center")
        if not images:
            axes[0, 0].text(0.5, 0.5, nothing, ha="center", va="center", color=GREY)
        return finish_figure(figure, synthetic)


def save_figure(figure: Figure, folder: str | Path, name: str, record_ids: list[str], alt: str) -> list[Path]:
    """Writes name.pdf and name.png with the ids of the figure's records in their metadata, and returns the paths.

    The ids are under `Keywords` in the PDF and `Records` in the PNG; `alt`, the alternative text for readers who cannot
    see the figure, under `Subject` and `Description`.
    """
    ids = " ".join(sorted(set(record_ids)))
    paths = {kind: Path(folder) / f"{name}.{kind}" for kind in ("pdf", "png")}
    keys = {"png": ("Records", "Description"), "pdf": ("Keywords", "Subject")}
    layout = figure.get_layout_engine()
    with style():  # resolution and fonts are applied when a figure is written
        for kind, (records, description) in keys.items():
            metadata = {"Title": name, records: ids, description: alt}
            with replacing(paths[kind]) as new:
                figure.savefig(new, format=kind, metadata=metadata, bbox_inches="tight")
            figure.set_layout_engine("none")  # both files have the layout of the first
    figure.set_layout_engine(layout)
    return list(paths.values())


def finish_figure(figure: Figure, synthetic: bool) -> Figure:
    """Returns a figure that is laid out, marked if its data are synthetic, and closed."""
    figure.set_layout_engine("constrained")
    if synthetic and not any(text.get_text() == SYNTHETIC_MARK for text in figure.texts):
        figure.supxlabel(SYNTHETIC_MARK, x=0.99, ha="right", fontsize=8, fontstyle="italic", color="#B3261E")
    plt.close(figure)
    return figure


def wrap(text: str, width: int) -> str:
    """Returns a long label broken into lines, keeping its own line breaks."""
    return "\n".join(line for part in text.split("\n") for line in textwrap.wrap(part, width) or [""])


def shorten(text: str, width: int) -> str:
    """Returns a label cut in the middle, where file names differ least, to at most `width` characters."""
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[:half]}…{text[-half:]}"
