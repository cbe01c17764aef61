"""The images of pairs, and of doubtful labels, small and with captions, for figures."""

import pandas as pd
from PIL import Image, ImageOps

from panderm_utils.audit.kinds import KINDS
from panderm_utils.audit.pairs import Audit
from panderm_utils.data import open_image
from panderm_utils.manifests import load_dataset_manifest

THUMBNAIL = 240  # pixels, the longer side


def pair_pictures(found: Audit, most: int = 4) -> tuple[list[tuple], list[tuple[str, str]], list[str]]:
    """Returns images, captions and titles of pairs, as `figures.image_pairs` draws them.

    Args:
        most: The most pairs of each kind, the most similar first.
    """
    paths = found.images.drop_duplicates(["dataset", "image"]).set_index(["dataset", "image"])["path"]
    parts = [found.pairs[found.pairs["kind"] == kind].head(most) for kind in KINDS]
    images, captions, titles = [], [], []
    for row in pd.concat(parts).to_dict(orient="records"):
        images.append(tuple(_small(paths[row[f"dataset_{side}"], row[f"image_{side}"]]) for side in "ab"))
        captions.append(tuple(_caption(row, side) for side in "ab"))
        similarity = "" if pd.isna(row["similarity"]) else f", {row['similarity']:.3f}"
        titles.append(f"{row['kind']}{similarity}{', ' * bool(row['orientation'])}{row['orientation']}")
    return images, captions, titles


def doubtful_pictures(doubts: pd.DataFrame, most: int = 12) -> tuple[list[Image.Image], list[str]]:
    """Returns the images and captions of the `most` doubtful labels (rows of `doubtful_labels`)."""
    rows = doubts.sort_values("p_label", kind="stable").head(most).to_dict(orient="records")
    text = "label {label} ({p_label:.0%})\nsuggested {suggested} ({p_suggested:.0%})"
    return [_small(row["path"]) for row in rows], [f"{_title(row['dataset'])}\n{text.format(**row)}" for row in rows]


def _small(path: str) -> Image.Image:
    return ImageOps.contain(open_image(path), (THUMBNAIL, THUMBNAIL))


def _caption(row: dict, side: str) -> str:
    dataset, image, split, label = (row[f"{name}_{side}"] for name in ("dataset", "image", "split", "label"))
    return f"{_title(dataset)}, {split}{', ' * bool(label)}{label}\n{image}"


def _title(dataset: str) -> str:
    return load_dataset_manifest(dataset).short_title
