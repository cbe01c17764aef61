"""Loads the classifier of a record and predicts images with it.

    classifier = load_classifier("outputs/demo/records/demo-linear_probe-panderm_tiny-seed0")
    classifier.predict(["a.jpg", "b.jpg"]).table()

Predictions for research: no classifier here is a medical device.

Symbols: N images, K classes, V views, D features.
"""

import difflib
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from panderm_utils import protocols, results, stats
from panderm_utils.classifiers.views import ClassifierError, Viewer, stream_views
from panderm_utils.encoders import available_precision, choose_device
from panderm_utils.workspace import Workspace, settle_path


class Predictor(Viewer, typing.Protocol):
    """What a protocol knows of its classifier: from a picture to probabilities and features."""

    def __call__(self, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Returns probabilities [n, K] float64 and features [n, D] float32 of a batch of views."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """Predictions of N images, in their order; images that cannot be read are left out.

    Attributes:
        images: Their names [N].
        proba: Class probabilities [N, K].
        distance: From the training images [N], see `stats.Familiarity`: above 1, an image is unlike them.
        sets: Which classes are in each image's prediction set, bool [N, K]; None without a val split.
        features: What the classifier saw of each image [N, D].
        unreadable: One message per image that cannot be read.
        class_names: K names.
    """

    images: list[str] = field(repr=False)
    proba: np.ndarray = field(repr=False)
    distance: np.ndarray = field(repr=False)
    sets: np.ndarray | None = field(repr=False)
    features: np.ndarray = field(repr=False)
    unreadable: list[str]
    class_names: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """Returns one row per image: image, predicted, prediction_set, unlike_training, distance, probability_<class>.

        A set lists its classes, the most probable first, separated by "; ".
        """
        names = np.array(self.class_names, dtype=object)
        table = pd.DataFrame({"image": self.images, "predicted": names[self.proba.argmax(axis=1)]})
        if self.sets is not None:
            orders = (row[members[row]] for row, members in zip(np.argsort(-self.proba), self.sets, strict=True))
            table["prediction_set"] = ["; ".join(names[row]) for row in orders]
        # More digits of a distance would depend on the images in the same batch.
        table["unlike_training"], table["distance"] = self.distance > 1, self.distance.round(6)
        return table.assign(**{f"probability_{name}": self.proba[:, k] for k, name in enumerate(self.class_names)})

    def save(self, names: Sequence[str], folder: Path) -> tuple[pd.DataFrame, int]:
        """Returns `table` with other names, and how many images are unlike the training images; writes no file."""
        return self.table().assign(image=list(names)), int((self.distance > 1).sum())


@dataclass(frozen=True, eq=False)
class Classifier:
    """The classifier of a record; made by `load_classifier`.

    Attributes:
        run_id, dataset, encoder, protocol: The run that trained it, the names of its data and encoder, how it was made.
        class_names: K names, in label order.
        digest: SHA-256 of its file in the record, which holds those of its weights.
        facts: What it was made from and with.
        tta: Random views per image; 0: none.
        flag: What the flagged images of a folder are.
    """

    run_id: str
    dataset: str
    encoder: str
    protocol: str
    class_names: tuple[str, ...]
    digest: str
    facts: dict = field(repr=False)
    tta: int
    familiarity: stats.Familiarity = field(repr=False)
    predictor: Predictor = field(repr=False)
    flag: typing.ClassVar[str] = "unlike the training images"

    @property
    def synthetic(self) -> bool:
        return self.facts["synthetic"]

    def predict(
        self, images: Sequence[str | Path | Image.Image], num_workers: int | None = None, bar: tqdm | None = None
    ) -> Predicted:
        """Returns the predictions of image files or of opened images, those of unreadable files left out."""
        with tqdm(
            desc="predict", total=len(images), unit="image", delay=1, leave=False, disable=bar is not None
        ) as own:
            parts = list(self.stream(images, range(len(images)), num_workers, bar or own))
        if not parts:
            raise ClassifierError("there is no image to predict: pass at least one path")
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in ("proba", "distance", "features")
        }
        sets = None if parts[0].sets is None else np.concatenate([part.sets for part in parts])
        names = [name for part in parts for name in part.images]
        unreadable = [reason for part in parts for reason in part.unreadable]
        return Predicted(names, **joined, sets=sets, unreadable=unreadable, class_names=self.class_names)

    def stream(
        self,
        images: Sequence[str | Path | Image.Image],
        rows: Sequence[int],
        num_workers: int | None = None,
        bar: tqdm | None = None,
    ) -> Iterator[Predicted]:
        """Yields the predictions of the images at `rows`, a batch at a time, so that memory does not grow with them."""
        for readable, views, unreadable in stream_views(images, rows, self.predictor, num_workers, bar):
            nothing = np.zeros((0, len(self.class_names))), np.zeros((0, len(self.familiarity.mean)), np.float32)
            proba, x = self.predictor(views) if readable else nothing
            sets = stats.prediction_sets(proba, self.facts["sets"]["threshold"]) if self.facts["sets"] else None
            names = [str(images[i]) for i in readable]
            yield Predicted(names, proba, self.familiarity.distance(x), sets, x, unreadable, self.class_names)


def load_classifier(
    record: str | Path, weights_root: str | Path | None = None, device: str = "auto", tta: int = 0
) -> Classifier:
    """Returns the classifier that a run kept.

    Args:
        record: The record's folder.
        weights_root: The folder of the encoder's weights, as in `load_encoder`.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "mps".
        tta: Random views of an image, whose logits are averaged; for fine-tuned classifiers. 0: none.

    Raises:
        ClassifierError: The protocol keeps no classifiers. ValueError: the record is damaged or keeps none, or the
            encoder's weights are missing, or not those that it was made with.
    """
    folder = Path(record)
    protocol = protocols.load_protocol(results.read_record(folder)["protocol"])
    if protocol.load_classifier is None:
        every = map(protocols.load_protocol, protocols.list_protocols())
        keeping = " or ".join(one.title for one in every if one.load_classifier)
        raise ClassifierError(f"{folder}: is of {protocol.title}, which keeps no classifier; use a record of {keeping}")
    content, facts, tensors = results.read_classifier_file(folder)
    facts = {**facts, "precision": available_precision(facts["precision"], choose_device(device), folder.name)}
    predictor = protocol.load_classifier(facts, tensors, content, folder, weights_root, device, tta)
    return Classifier(
        run_id=content["run_id"],
        dataset=content["dataset"],
        encoder=content["encoder"],
        protocol=protocol.title,
        class_names=tuple(facts["class_names"]),
        digest=content["files"][results.CLASSIFIER_FILE],
        facts=facts,
        tta=tta,
        familiarity=stats.Familiarity(tensors["mean"], tensors["factor"], facts["limit"]),
        predictor=predictor,
    )


def find_record(run: str | Path, space: Workspace) -> Path:
    """Returns the folder of a record, named by its path or its run id.

    Raises:
        ClassifierError: There is none; the message lists those that are there.
    """
    for folder in (settle_path(run), space.records / run):
        if (folder / "record.json").is_file():
            return folder
    runs = sorted(path.parent.name for path in space.records.glob("[!.]*/record.json"))
    near = difflib.get_close_matches(str(run), runs, 5, 0.3) or runs[:5]
    there = f"near are {', '.join(near)}" if near else "which has no record yet"
    raise ClassifierError(
        f"{run}: neither a record's folder nor a run of {space.records} ({there}). python run_all.py --profile "
        f"{space.profile} makes those of this profile; to use one of another, name the profile, or its folder"
    )
