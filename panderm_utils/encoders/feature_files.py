"""Writes features to a file that needs nothing of this package to be read.

x.npz   `features` [N, D] float32, `image` [N] and other columns [N], then facts about the encoder, single values
x.csv   a row per image: image, other columns, facts about the encoder, feature_0 ... feature_D-1; small sets only
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from panderm_utils.data import Dataset, ListedImages
from panderm_utils.disk import replacing, room_for
from panderm_utils.encoders.features import FeatureError, Features, extract_features, extract_files
from panderm_utils.encoders.loading import Encoder
from panderm_utils.manifests import SPLITS
from panderm_utils.workspace import settle_path

# Features in a CSV: about 60 MB of text. More is slow to write and to read, and no spreadsheet opens it.
MOST_IN_CSV = 5_000_000


def check_feature_file(path: Path, images: int = 0, num_features: int = 0) -> None:
    """Raises FeatureError if features of this many images cannot be written to a file of this name."""
    if path.suffix not in (".npz", ".csv"):
        more = " (pandas turns it into Parquet where pyarrow is installed)" if path.suffix == ".parquet" else ""
        raise FeatureError(f"{path}: the name must end in .npz, or, for small sets, in .csv: write {_npz(path)}{more}")
    if path.is_dir():
        raise FeatureError(f"{path}: this is a folder; name a file in it")
    if path.suffix == ".csv" and images * num_features > MOST_IN_CSV:
        raise FeatureError(
            f"{path}: {images:,} images with {num_features:,} features are {images * num_features:,} numbers, a CSV"
            f" takes {MOST_IN_CSV:,}, as more is slow to read and opens in no spreadsheet: write {_npz(path)}"
        )


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """The features of a folder's images, or of datasets; not one array, as a second copy may not fit the memory.

    Attributes:
        parts: Features of consecutive images.
        columns: Name -> a value for each image of all parts; the first is `image`.
        unreadable: Image -> why it was left out.
    """

    parts: list[Features] = field(repr=False)
    columns: dict[str, list] = field(repr=False)
    unreadable: dict[str, str] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return sum(len(part.x) for part in self.parts)


def features_of_folder(encoder: Encoder, listed: ListedImages, cache: str | Path | None = None) -> FeatureSet:
    """Returns the features of the images below a folder; images that cannot be read are left out and listed."""
    found = extract_files(encoder, listed.paths, listed.names, cache=cache, skip_unreadable=True)
    return FeatureSet([found], {"image": found.image_ids.tolist()}, {**listed.unreadable, **found.unreadable})


def features_of_datasets(encoder: Encoder, studies: Sequence[Dataset], cache: str | Path | None = None) -> FeatureSet:
    """Returns the features of all splits of datasets, with dataset, split, label and class of each image.

    Raises:
        ImageError: An image cannot be read. A dataset is complete, as in a study, whose cached features are used.
    """
    parts, columns = [], {name: [] for name in ("image", "dataset", "split", "label", "class")}
    for study in studies:
        for split in SPLITS:
            part = extract_features(encoder, study, split, cache=cache)
            columns["image"] += part.image_ids.tolist()
            columns["dataset"] += [study.manifest.name] * len(part.y)
            columns["split"] += [split] * len(part.y)
            columns["label"] += part.y.tolist()
            columns["class"] += [study.manifest.class_names[label] for label in part.y]
            parts.append(part)
    return FeatureSet(parts, columns)


def write_features(path: Path, encoder: Encoder, found: FeatureSet, synthetic: bool = False) -> Path:
    """Writes features to a .npz or .csv file, under a temporary name that is renamed, and returns its path.

    Args:
        encoder: What computed them.
        synthetic: Whether the images are synthetic, which the file then says.

    Raises:
        FeatureError: The file's name has another ending, or there are too many features for a CSV.
    """
    path = settle_path(path)
    check_feature_file(path, len(found), encoder.num_features)
    facts = {
        "encoder": encoder.name,
        "weights_sha256": encoder.digest,
        "transform": repr(encoder.transform),
        "precision": encoder.precision,
        "computed_by": "; ".join(sorted({computer for part in found.parts for computer in part.computed_by})),
        "synthetic": synthetic,
    }
    columns = {name: np.array(values) for name, values in found.columns.items()}
    with room_for("the file of features", 4 * len(found) * encoder.num_features, path.parent), replacing(path) as new:
        write = _write_csv if path.suffix == ".csv" else _write_npz
        write(new, [part.x for part in found.parts], columns, facts)
    return path


def _write_npz(path: Path, parts: list[np.ndarray], columns: dict[str, np.ndarray], facts: dict) -> None:
    """Writes what `np.savez` would, which needs the parts as one array."""
    shape = (sum(len(part) for part in parts), parts[0].shape[1])
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                file.write(np.ascontiguousarray(part, dtype="<f4"))
        for name, values in {**columns, **facts}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(values), allow_pickle=False)


def _write_csv(path: Path, parts: list[np.ndarray], columns: dict[str, np.ndarray], facts: dict) -> None:
    x = np.concatenate(parts)
    numbers = pd.DataFrame(x, columns=[f"feature_{d}" for d in range(x.shape[1])])
    pd.concat([pd.DataFrame({**columns, **facts}), numbers], axis=1).to_csv(path, index=False, lineterminator="\n")


def _npz(path: Path) -> str:
    return path.with_suffix(".npz").name
