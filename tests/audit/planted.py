"""Datasets of a few real JPEGs in which a test plants what leaks."""

from dataclasses import replace

import numpy as np
import pandas as pd
from PIL import Image

from panderm_utils import data
from panderm_utils.manifests import load_dataset_manifest

SIZE = (160, 120)


def draw(seed, size=SIZE):
    """Returns a smooth picture with a dark spot and fine noise, as a lesion on skin: no two are alike."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(110, 230, (7, 9, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.float64)
    y, x = np.mgrid[: size[1], : size[0]]
    spot = ((x - size[0] / 2) / rng.uniform(25, 45)) ** 2 + ((y - size[1] / 2) / rng.uniform(20, 40)) ** 2 < 1
    pixels = smooth * np.where(spot, 0.6, 1.0)[..., None] + rng.normal(0, 4, (size[1], size[0], 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_dataset(root, rows, name="demo", images=None):
    """Returns a dataset of rows (image, split, label, lesion, patient); images that are not there yet are drawn.

    Lesion and patient may be missing: each image is then one of its own.
    """
    folder, images = root / name, images or f"{name}/images"
    for place in (folder, root / images):
        place.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame([(*row, *[""] * (5 - len(row))) for row in rows])
    table.columns = ["image", "split", "label", "lesion_id", "patient_id"]
    for i, image in enumerate(table["image"]):
        if not (path := root / images / image).exists():
            draw(hash_of(name) + i).save(path, quality=90)
    table.to_csv(folder / "table.csv", index=False)
    places = {"csv": f"{name}/table.csv", "image_root": images, "class_counts": None, "split_sizes": None}
    groups = {"lesion": "lesion_id", "patient": "patient_id"}
    return data.load_dataset(replace(load_dataset_manifest(name), **places, groups=groups), root)


def hash_of(name):
    return 1000 * sum(map(ord, name))
