"""The features behind records of a dataset, read from the cache and embedded in two dimensions.

No feature is recomputed: neither torch nor an encoder is loaded, and images are opened only to be shown. The cache
indexes features by encoder digest and image names; a record keeps a digest of their values. Cached features are used
only if they match this digest, so a figure shows exactly the records that it names.
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
from panderm_utils.messages import UserError
from panderm_utils.results.records import read_predictions, read_record
from panderm_utils.stats import choose_examples, embed, neighbour_agreement
from panderm_utils.workspace import Workspace

POINTS = ["run_id", "encoder_label", "image", "label", "x", "y", "example"]
THUMBNAIL = 160  # pixels


class FeaturesGone(UserError):
    """The features behind a record are no longer in the cache; the message says why."""


@dataclass(frozen=True, eq=False)
class RecordedFeatures:
    """The test images of a record: features x [N, D], labels y [N], names [N]."""

    run_id: str
    encoder_label: str
    x: np.ndarray = field(repr=False)
    y: np.ndarray = field(repr=False)
    images: np.ndarray = field(repr=False)


def read_features(
    record_folder: str | Path, cache: str | Path, image_root: Path, suffix: str, label: str = ""
) -> RecordedFeatures:
    """Returns the features of the test split that the record in `record_folder` was made from.

    Args:
        cache: The cache folder of the workspace.
        image_root, suffix: Folder of the images, which need not exist, and the suffix that their names may lack.

    Raises:
        FeaturesGone: The cache does not hold these features.
    """
    record = read_record(record_folder)
    recorded = record.get("features", {}).get("test")
    if recorded is None:
        raise FeaturesGone("the record does not say which features it was made from")
    y, _, images = read_predictions(record_folder)
    posix = [name.replace("\\", "/") for name in images]
    folder = ImageFolder(image_root)
    files = [folder.find(name, suffix)[0] for name in images]
    for names in [files] if all(files) else [posix, [f"{name}{suffix}" for name in posix]]:
        x = read_cached(cache, record["encoder_facts"], names)
        if x is not None:
            break
    else:
        raise FeaturesGone("the cache has been deleted or moved")
    if hashlib.sha256(np.ascontiguousarray(x)).hexdigest() != recorded["features_sha256"]:
        raise FeaturesGone("the cache holds features computed later, from other images or on another computer")
    return RecordedFeatures(record["run_id"], label or record["encoder"], x, y, np.array(images, dtype=np.str_))


def features_of_records(
    scores: pd.DataFrame, space: Workspace, card: DatasetManifest, most: int | None = None
) -> tuple[list[RecordedFeatures], pd.DataFrame]:
    """Returns the features behind the runs of one dataset, and the runs whose features are gone: run_id, why, command.

    Args:
        scores: Rows of `paper_scores`, of the dataset `card`.
        most: Maximum number of test images; from more, a random subset is drawn, the same for every run.
    """
    found, gone = [], []
    for run in scores.drop_duplicates("run_id").itertuples():
        try:
            image_root = space.data_root / card.image_root
            features = read_features(run.folder, space.cache, image_root, card.image_suffix, run.encoder_label)
            found.append(_draw(features, most))
        except FeaturesGone as error:
            command = f"python run_all.py --profile {space.profile} --protocols {run.protocol} --datasets {run.dataset}"
            command += f" --encoders {run.encoder} --seeds {run.seed} --force"
            gone.append({"run_id": run.run_id, "why": str(error), "command": command})
    return found, pd.DataFrame(gone, columns=["run_id", "why", "command"])


def embed_features(found: list[RecordedFeatures], method: str = "umap") -> tuple[pd.DataFrame, str]:
    """Returns one row per encoder and image, and the name of the method used ("" without features).

    Columns: run_id, encoder_label, image, label, x, y, and example: the number of an example image. Examples are chosen
    in the first encoder's plane and are the same for all encoders.
    """
    parts, numbers, used = [], {}, ""
    for run in found:
        plane, used = embed(run.x, method)
        numbers = numbers or {run.images[at]: i for i, at in enumerate(choose_examples(plane, run.y), 1)}
        part = pd.DataFrame({"run_id": run.run_id, "encoder_label": run.encoder_label, "image": run.images})
        part["label"], part["x"], part["y"] = run.y, plane[:, 0], plane[:, 1]
        first = ~part["image"].duplicated()  # an image listed in two rows is shown once
        parts.append(part.assign(example=part["image"].map(numbers).where(first).astype("Int64")))
    return (pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=POINTS)), used


def agreement_table(found: list[RecordedFeatures]) -> pd.DataFrame:
    """Returns one row per encoder: test images, and the fraction of their nearest neighbours in the same class."""
    rows = [(run.encoder_label, len(run.y), *neighbour_agreement(run.x, run.y)) for run in found]
    return pd.DataFrame(rows, columns=["encoder_label", "images", "same_class", "by_chance"])


def open_examples(points: pd.DataFrame, card: DatasetManifest, data_root: Path) -> dict[int, Image.Image]:
    """Returns example number -> small square picture, for the examples whose image is found."""
    folder, pictures = ImageFolder(data_root / card.image_root), {}
    for row in points.dropna(subset=["example"]).drop_duplicates("example").itertuples():
        file = folder.find(row.image, card.image_suffix)[0]
        if file is not None:
            pictures[int(row.example)] = ImageOps.fit(open_image(folder.root / file), (THUMBNAIL, THUMBNAIL))
    return pictures


def _draw(run: RecordedFeatures, most: int | None) -> RecordedFeatures:
    if most is None or len(run.y) <= most:
        return run
    at = np.sort(np.random.default_rng(0).choice(len(run.y), most, replace=False))
    return RecordedFeatures(run.run_id, run.encoder_label, run.x[at], run.y[at], run.images[at])
