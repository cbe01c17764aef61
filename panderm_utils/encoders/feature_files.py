"""Writes features to a file that needs nothing of this package to be read.

x.npz   `features` [N, D] float32, `image` [N] and other columns [N], then facts about the encoder, single values
x.csv   a row per image: image, other columns, facts about the encoder, feature_0 ... feature_D-1; small sets only
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from panderm_utils.disk import replacing, room_for
from panderm_utils.encoders.features import FeatureError, Features
from panderm_utils.encoders.loading import Encoder

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


def write_features(
    path: Path, encoder: Encoder, parts: Sequence[Features], columns: Mapping[str, Sequence] | None = None
) -> Path:
    """Writes the features of all parts, in order, to a .npz or .csv file, and returns its path.

    It is written under a temporary name and renamed, and no second copy of the features is made in memory.

    Args:
        columns: Further columns by name, with a value for each image of all parts.

    Raises:
        FeatureError: The file's name has another ending, or there are too many features for a CSV.
    """
    images = sum(len(part.x) for part in parts)
    check_feature_file(path, images, encoder.num_features)
    names = np.concatenate([part.image_ids for part in parts])
    columns = {"image": names, **{name: np.asarray(values) for name, values in (columns or {}).items()}}
    facts = {
        "encoder": encoder.name,
        "weights_sha256": encoder.digest,
        "transform": repr(encoder.transform),
        "precision": encoder.precision,
        "computed_by": "; ".join(sorted({computer for part in parts for computer in part.computed_by})),
    }
    with room_for("the file of features", 4 * images * encoder.num_features, path.parent), replacing(path) as new:
        write = _write_csv if path.suffix == ".csv" else _write_npz
        write(new, [part.x for part in parts], columns, facts)
    return path


def _write_npz(path: Path, parts: list[np.ndarray], columns: dict[str, np.ndarray], facts: dict[str, str]) -> None:
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


def _write_csv(path: Path, parts: list[np.ndarray], columns: dict[str, np.ndarray], facts: dict[str, str]) -> None:
    x = np.concatenate(parts)
    numbers = pd.DataFrame(x, columns=[f"feature_{d}" for d in range(x.shape[1])])
    pd.concat([pd.DataFrame({**columns, **facts}), numbers], axis=1).to_csv(path, index=False, lineterminator="\n")


def _npz(path: Path) -> str:
    return path.with_suffix(".npz").name
