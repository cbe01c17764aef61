"""Times several encoders on the same images with and without kept pixels, in interleaved pairs, and prints the goals.

    python -m benchmarks.pixels                all goals (about half an hour on 2 cores)
    python -m benchmarks.pixels --images 200   indicative only

Five extractions decode every image five times; with kept pixels, once. The second part shows what a GPU sees: a model
that takes no time, where the second extraction only reads pixels. Features must be bit-equal.
"""

import argparse
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.measuring import Pairs, describe_machine, draw_images, timed

# isort: split
import torch

from panderm_utils.encoders import Encoder, extract_files, load_encoder
from panderm_utils.manifests import load_encoder_manifest

SIDE = 1500  # pixels of the JPEGs
ENCODERS = 5


def extract_all(encoders: list[Encoder], paths: list[Path], cache: Path | None) -> list[np.ndarray]:
    return [extract_files(encoder, paths, cache=cache).x for encoder in encoders]


def compare(title: str, encoders: list[Encoder], paths: list[Path], goal: float, pairs: int, second: bool) -> None:
    """Prints the median ratio of extractions without kept pixels to those with; `second`: of those after the first."""
    measured = Pairs()
    for _ in range(pairs):
        with tempfile.TemporaryDirectory(dir=paths[0].parent.parent) as folder:
            cache = Path(folder)
            expected, apart = timed(extract_all, encoders[second:], paths, None)
            if second:
                extract_all(encoders[:1], paths, cache)
            found, together = timed(extract_all, encoders[second:], paths, cache)
            for x, y in zip(found, expected, strict=True):
                np.testing.assert_array_equal(x, y)
            print(measured.add(apart, together), flush=True)
    measured.conclude(f"{len(paths):,} JPEGs of {SIDE} x {SIDE}, {title}", goal)


def make_encoders(count: int, instant: bool = False) -> list[Encoder]:
    """Returns tiny encoders of other random weights; `instant`: models that only average their pixels."""
    found = []
    for i in range(count):
        encoder = load_encoder(replace(load_encoder_manifest("random_tiny"), name=f"tiny_{i}"), device="cpu")
        with torch.no_grad():
            for value in encoder.model.parameters():
                value.mul_(1 + i / 100)
        encoder.digest = f"{i}{encoder.digest[1:]}"
        if instant:
            width = encoder.num_features
            encoder.forward = lambda images, width=width: images[:, :, ::28, ::28].flatten(1)[:, :width].float()
        found.append(encoder)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="JPEGs to draw (default: 2,000)")
    parser.add_argument("--pairs", type=int, default=3, help="interleaved pairs per goal (default: 3)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{describe_machine()}; {options.pairs} pairs", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        (images := Path(folder) / "images").mkdir()
        drawn = draw_images(images, options.images, SIDE, SIDE)
        compare(f"{ENCODERS} tiny encoders", make_encoders(ENCODERS), drawn, 3, options.pairs, second=False)
        compare(
            "a second model that takes no time", make_encoders(2, instant=True), drawn, 8, options.pairs, second=True
        )
