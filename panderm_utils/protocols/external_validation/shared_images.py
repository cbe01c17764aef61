"""Images that two datasets share: files of the same bytes, and others with one id of the ISIC Archive in their names.

The Archive's images stand, re-encoded and resized, in many a collection, so bytes alone would miss them. What is found
by neither: two photographs of one lesion, and a copy that was encoded anew under a name of its own.
"""

import hashlib
import re
from pathlib import Path

import pandas as pd

from panderm_utils.data import Dataset

ISIC_ID = re.compile(r"ISIC_\d{7,}", re.IGNORECASE)


def find_shared(source: Dataset, target: Dataset) -> pd.DataFrame:
    """Returns the target's images that the source has too, in whichever split.

    Columns: image, kind ("file": of the same bytes; else "isic_id") and source_image, its twin.
    """
    ours, theirs = _sizes(source), _sizes(target)
    both = set(ours.values()) & set(theirs.values())  # equal files are equally long, so few have to be read
    digests = {_digest(source.path(image)): image for image, size in ours.items() if size in both}
    ids = {found: image for image in ours if (found := isic_id(source.files[image]))}
    rows = []
    for image, size in theirs.items():
        same = digests.get(_digest(target.path(image))) if size in both else None
        namesake = ids.get(isic_id(target.files[image]))
        if same or namesake:
            rows.append((image, "file" if same else "isic_id", same or namesake))
    return pd.DataFrame(rows, columns=["image", "kind", "source_image"])


def isic_id(name: str) -> str:
    """Returns the id of the ISIC Archive in a file's name, "" if there is none."""
    found = ISIC_ID.search(Path(name).name)
    return found[0].upper() if found else ""


def _sizes(dataset: Dataset) -> dict[str, int]:
    return {image: dataset.path(image).stat().st_size for image in dataset.files}


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
