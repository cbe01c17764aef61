"""The features behind records of a dataset, read back from the cache and laid out in two dimensions.

Nothing is computed anew: neither torch nor an encoder is loaded, and an image is opened only to be shown. The cache
knows its features by the encoder's digest and the images' names, a record by the digest of their numbers; what the
cache holds is taken only if the two agree, so a figure is of the record that it names, and of nothing else.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps

from panderm_utils.data import ImageFolder, open_image
from panderm_utils.encoders import read_cached
from panderm_utils.manifests import DatasetManifest
from panderm_utils.results.records import read_predictions, read_record
from panderm_utils.stats import choose_examples, embed, neighbour_agreement
from panderm_utils.workspace import Workspace

POINTS = ["run_id", "encoder_label", "image", "label", "x", "y", "example"]
THUMBNAIL = 160  # pixels


class FeaturesGone(ValueError):
    """The features behind a record are not in the cache any more; the message says why."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """The test images of a record: features x [N, D], labels y [N], names [N]."""

    run_id: str
    encoder_label: str
    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    images: np.ndarray = field(repr=False)


def read_recorded(folder: str | Path, cache: str | Path, image_root: Path, suffix: str, label: str = "") -> Recorded:
    """Returns the features of the test split that the record in `folder` was made from.

    Args:
        cache: The workspace's.
        image_root, suffix: Where the images are and what a name may lack. They need not be there.

    Raises:
        FeaturesGone: The cache does not hold them, or holds others.
    """
    record = read_record(folder)
    kept = record.get("features", {}).get("test")
    if kept is None:
        raise FeaturesGone("the record does not say which features it was made from")
    y, _, images = read_predictions(folder)
    spelled = [name.replace("\\", "/") for name in images]
    there = ImageFolder(image_root)
    files = [there.find(name, suffix)[0] for name in images]
    for names in [files] if all(files) else [spelled, [f"{name}{suffix}" for name in spelled]]:
        x = read_cached(cache, record["encoder_facts"], names)
        if x is not None:
            break
    else:
        raise FeaturesGone("the cache has been deleted or moved")
    if hashlib.sha256(np.ascontiguousarray(x)).hexdigest() != kept["features_sha256"]:
        raise FeaturesGone("the cache holds features that were computed later, of other images or on another computer")
    return Recorded(record["run_id"], label or record["encoder"], x, y, np.array(images, dtype=np.str_))


def read_all(
    scores: pd.DataFrame, space: Workspace, card: DatasetManifest, most: int | None = None
) -> tuple[list[Recorded], pd.DataFrame]:
    """Returns the features behind the runs of one dataset, and which are gone: run_id, why, command.

    Args:
        scores: Rows of `tables.paper_scores`, of the dataset `card`.
        most: Of more test images than that, so many are drawn, the same in every run.
    """
    found, gone = [], []
    for run in scores.drop_duplicates("run_id").itertuples():
        try:
            image_root = space.data_root / card.image_root
            of_run = read_recorded(run.folder, space.cache, image_root, card.image_suffix, run.encoder_label)
            found.append(_draw(of_run, most))
        except FeaturesGone as error:
            command = f"python run_all.py --profile {space.profile} --protocols {run.protocol} --datasets {run.dataset}"
            command += f" --encoders {run.encoder} --seeds {run.seed} --force"
            gone.append({"run_id": run.run_id, "why": str(error), "command": command})
    return found, pd.DataFrame(gone, columns=["run_id", "why", "command"])


def lay_out(found: list[Recorded], method: str = "umap") -> tuple[pd.DataFrame, str]:
    """Returns a row an encoder and image, and the name of the method used ("" of nothing).

    Columns: run_id, encoder_label, image, label, x, y, and example: the number of an image to look at. These are chosen
    in the first encoder's plane and are the same in all.
    """
    parts, numbers, used = [], {}, ""
    for run in found:
        plane, used = embed(run.x, method)
        numbers = numbers or {run.images[at]: i for i, at in enumerate(choose_examples(plane, run.y), 1)}
        part = pd.DataFrame({"run_id": run.run_id, "encoder_label": run.encoder_label, "image": run.images})
        part["label"], part["x"], part["y"] = run.y, plane[:, 0], plane[:, 1]
        first = ~part["image"].duplicated()  # an image that stands in two rows is shown once
        parts.append(part.assign(example=part["image"].map(numbers).where(first).astype("Int64")))
    return (pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=POINTS)), used


def agreement_table(found: list[Recorded]) -> pd.DataFrame:
    """Returns a row an encoder: test images, and which share of their nearest neighbours is of the same class."""
    rows = [(run.encoder_label, len(run.y), *neighbour_agreement(run.x, run.y)) for run in found]
    return pd.DataFrame(rows, columns=["encoder_label", "images", "same_class", "by_chance"])


def open_examples(points: pd.DataFrame, card: DatasetManifest, data_root: Path) -> dict[int, Image.Image]:
    """Returns small square pictures of the examples, by their number; of those whose image is not there, none."""
    folder, pictures = ImageFolder(data_root / card.image_root), {}
    for row in points.dropna(subset=["example"]).drop_duplicates("example").itertuples():
        file = folder.find(row.image, card.image_suffix)[0]
        if file is not None:
            pictures[int(row.example)] = ImageOps.fit(open_image(folder.root / file), (THUMBNAIL, THUMBNAIL))
    return pictures


def _draw(run: Recorded, most: int | None) -> Recorded:
    if most is None or len(run.y) <= most:
        return run
    at = np.sort(np.random.default_rng(0).choice(len(run.y), most, replace=False))
    return Recorded(run.run_id, run.encoder_label, run.x[at], run.y[at], run.images[at])
