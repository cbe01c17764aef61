"""Test images whose label the stored probabilities doubt: confident learning (Northcutt et al., JAIR 2021) in short.

The probability of a class from which on a model is confident of it is its mean over the images with that label. An
image is doubtful if the model is confident of another class, and more so than of any class including its own. Nothing
is removed: the list is for people to review. Predictions of test images are out of sample, as the method needs.
"""

import numpy as np
import pandas as pd

from panderm_utils.manifests import load_dataset_manifest
from panderm_utils.results import order_encoders, parse_predictions, scores_masks

COLUMNS = ["dataset", "image", "label", "suggested", "p_label", "p_suggested", "encoder", "runs", "path"]


def doubtful_labels(runs: pd.DataFrame, images: pd.DataFrame, encoder: str | None = None) -> pd.DataFrame:
    """Returns the test images whose label is doubtful, the most doubtful first within each dataset.

    Args:
        runs: Rows of `results.read_records`.
        images: Those of an `Audit`: the labels, and where the files are.
        encoder: Whose runs to use; None: for each dataset the first of encoders.yaml that has any.

    Returns:
        dataset, image, label, suggested (the class that the model is confident of), p_label, p_suggested (their
        probabilities, means over the encoder's runs with all training images), encoder, runs (their number), path.
    """
    parts = []
    for name, rows in images[images["split"] == "test"].groupby("dataset", sort=False):
        card = load_dataset_manifest(name)
        mine = runs[runs["dataset"] == name].drop_duplicates("run_id")
        if "train_fraction" in mine:
            mine = mine[mine["train_fraction"].fillna(1.0).astype(float) == 1.0]
        labels = pd.Series(
            {image: card.class_names.index(label) for image, label in rows[["image", "label"]].to_numpy() if label}
        )
        for one in [encoder] if encoder else order_encoders(mine["encoder"]):
            folders = mine.loc[mine["encoder"] == one, "folder"]
            tables = [
                found for folder in folders if (found := _probabilities(folder, labels, card.num_classes)) is not None
            ]
            if tables:
                table = _doubtful(sum(tables) / len(tables), labels, card.class_names)
                paths = rows.drop_duplicates("image").set_index("image")["path"]
                parts.append(table.assign(dataset=name, encoder=one, runs=len(tables), path=table["image"].map(paths)))
                break
    return pd.concat(parts, ignore_index=True)[COLUMNS] if parts else pd.DataFrame(columns=COLUMNS)


def doubts(y: np.ndarray, proba: np.ndarray) -> np.ndarray:
    """Returns the class that is suggested instead of each label [N], -1 where the label is not doubtful.

    Args:
        y: Labels [N].
        proba: Class probabilities [N, K], of models that have not seen the images.
    """
    images = np.bincount(y, minlength=proba.shape[1])
    own = np.bincount(y, proba[np.arange(len(y)), y], minlength=proba.shape[1])
    confident = np.divide(own, images, out=np.full(len(own), np.inf), where=images > 0)
    sure = np.where(proba >= confident, proba, -1.0)
    suggested = sure.argmax(axis=1)
    certain = sure.max(axis=1) > proba[np.arange(len(y)), y]
    return np.where((suggested != y) & certain, suggested, -1)


def _probabilities(folder, labels: pd.Series, num_classes: int) -> pd.DataFrame | None:
    """Returns the probabilities of a record, indexed by image; None if it scores anything but these labels."""
    table = pd.read_csv(f"{folder}/predictions.csv", dtype=str)
    if scores_masks(table):
        return None
    y, proba, names = parse_predictions(table)
    if proba.shape[1] != num_classes or set(names) != set(labels.index) or (labels[names].to_numpy() != y).any():
        return None
    return pd.DataFrame(proba, index=names).groupby(level=0).mean()


def _doubtful(proba: pd.DataFrame, labels: pd.Series, names: tuple[str, ...]) -> pd.DataFrame:
    p, y = proba.to_numpy(), labels[proba.index].to_numpy()
    suggested = doubts(y, p)
    rows = np.flatnonzero(suggested >= 0)
    table = pd.DataFrame(
        {"image": proba.index[rows], "p_label": p[rows, y[rows]], "p_suggested": p[rows, suggested[rows]]}
    )
    table["label"], table["suggested"] = np.array(names)[y[rows]], np.array(names)[suggested[rows]]
    return table.sort_values(["p_label", "image"], kind="stable")
