"""The figures of training: the learning rate, and live training curves."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure

from panderm_utils.figures import GREY, finish_figure, style

COLORS = {  # of the scores on val
    "val_acc": "#0072B2",
    "val_recall": "#009E73",
    "val_auroc": "#D55E00",
    "val_dice": "#0072B2",
    "val_jaccard": "#009E73",
}


def learning_rate_curve(rates: np.ndarray, synthetic: bool = False) -> Figure:
    """Draws the learning rate of every optimizer step, before each layer's scale."""
    with style():
        figure, axis = plt.subplots(figsize=(6, 2.2))
        axis.plot(np.arange(1, len(rates) + 1), rates, color="#0072B2")
        title = "Warm-up, then half a cosine" if rates.argmax() else "Half a cosine"
        axis.set(xlabel="optimizer step", ylabel="learning rate", title=title)
        return finish_figure(figure, synthetic)


def training_curves(history: pd.DataFrame, synthetic: bool = False) -> Figure:
    """Draws loss, learning rate and val scores by epoch (the history of a training); marks the best epoch."""
    with style():
        figure, axes = plt.subplots(1, 3, figsize=(10.5, 2.8))
        for axis, title in zip(axes, ("Loss", "Learning rate (last step)", "Val split"), strict=True):
            axis.set(title=title, xlabel="epoch")
            axis.xaxis.get_major_locator().set_params(integer=True)
        epochs = history["epoch"]
        axes[0].plot(epochs, history["loss"], color="#0072B2", marker=".", label="train (augmented)")
        axes[1].plot(epochs, history["lr"], color=GREY, marker=".")
        if "val_loss" in history:
            axes[0].plot(epochs, history["val_loss"], color="#D55E00", marker=".", label="val")
            axes[0].legend(fontsize=8)
        for name in [name for name in COLORS if name in history]:
            axes[2].plot(epochs, history[name], color=COLORS[name], marker=".", label=name.removeprefix("val_"))
        if history["best"].any():
            axes[2].axvline(epochs[history["best"]].max(), color=GREY, lw=0.9, ls=":", label="best epoch")
            axes[2].legend(fontsize=8)
        return finish_figure(figure, synthetic)


class LiveCurves:
    """Redraws the training curves in place in a notebook; called with the history after each epoch."""

    def __init__(self, synthetic: bool = False):
        self.synthetic, self._handle = synthetic, None

    def __call__(self, history: pd.DataFrame) -> None:
        figure = training_curves(history, self.synthetic)
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)
