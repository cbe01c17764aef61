"""Times the audit's search for near copies and similar features on made-up vectors, and prints its peak memory.

    python -m benchmarks.audit           a tenth of all images of the paper's datasets, against a naive way (minutes)
    python -m benchmarks.audit --full    all 129,364 (goal: under ten minutes on 2 cores, and under 4 GB)

Each dataset has its part of the images, in three splits; hashes are random signs, features resemble a vision
transformer's, and each dataset has planted copies. The naive way compares a few images with all others, one at a time
as most scripts do, and is extrapolated. Images are neither drawn nor read: fingerprints cost some 5 ms an image and
core, once.
"""

import argparse

from benchmarks.measuring import conclude, describe_machine, timed

# isort: split
import numpy as np
import pandas as pd

from panderm_utils.audit.fingerprints import BITS, orientations
from panderm_utils.audit.kinds import COPY, COPY_SIMILARITY, FEATURES
from panderm_utils.audit.searching import search_pairs
from panderm_utils.results import peak_memory_mb

IMAGES, WIDTH = 129_364, 1_024
DATASETS = {"a": 0.55, "b": 0.15, "c": 0.1, "d": 0.08, "e": 0.07, "f": 0.05}  # fractions of all images
SPLITS = {"train": 0.7, "val": 0.1, "test": 0.2}
COPIES = 50  # planted in each dataset
GOAL_MINUTES, GOAL_MB = 10, 4_000


def draw_table(images: int) -> pd.DataFrame:
    """Returns datasets and splits of so many images; every image is a file of its own."""
    parts = [(name, split, round(images * n * m)) for name, n in DATASETS.items() for split, m in SPLITS.items()]
    table = pd.DataFrame({"dataset": np.repeat([p[0] for p in parts], [p[2] for p in parts])})
    table["split"] = np.repeat([p[1] for p in parts], [p[2] for p in parts])
    return table.assign(path=[f"{i}.jpg" for i in range(len(table))])


def draw_vectors(table: pd.DataFrame, kind: str, seed: int = 0) -> np.ndarray:
    """Returns hashes or features [N, D]; the first test images of each dataset repeat its first train images."""
    generator = np.random.default_rng(seed)
    if kind == COPY:
        x = generator.choice(np.array([-1, 1], np.int8), (len(table), BITS))
    else:
        x = generator.standard_normal((len(table), WIDTH), dtype=np.float32)
        x /= np.sqrt(np.einsum("nd,nd->n", x, x))[:, None]
    for name in DATASETS:
        here = (table["dataset"] == name).to_numpy()
        test, train = (np.flatnonzero(here & (table["split"] == split))[:COPIES] for split in ("test", "train"))
        x[test] = x[train]
    return x


def naive(x: np.ndarray, rows: int, turning: bool) -> int:
    """Returns how many pairs reach the threshold, comparing a few images with all others one at a time."""
    found = 0
    for row in range(rows):
        one = x[row : row + 1]
        for y in [part for _, part in orientations(one)] if turning else [one]:
            similarity = (x == y).mean(axis=1) if turning else (x * y).sum(axis=1)
            found += int((similarity >= 0.9).sum())
    return found


def main(images: int, rows: int) -> None:
    table, minutes = draw_table(images), 0.0
    for kind, threshold in ((COPY, COPY_SIMILARITY), (FEATURES, 0.9)):
        x = draw_vectors(table, kind)
        _, naive_seconds = timed(naive, x, rows, kind == COPY)
        (pairs, *_), seconds = timed(search_pairs, table, x, kind, threshold)
        within = pairs["a"].map(table["dataset"]) == pairs["b"].map(table["dataset"])
        assert within.sum() >= COPIES * len(DATASETS)
        minutes += seconds / 60
        one_by_one = naive_seconds / rows * len(table) / 2  # each pair once
        at_all, memory = seconds * (IMAGES / len(table)) ** 2 / 60, peak_memory_mb()["process"]
        print(f"{kind}, {len(table):,} x {x.shape[1]}: {seconds:.1f} s, one by one {one_by_one:,.0f} s", flush=True)
        print(f"  ratio {one_by_one / seconds:.1f}; all {IMAGES:,}: {at_all:.1f} minutes; peak memory {memory:,} MB")
    at_all = minutes * (IMAGES / len(table)) ** 2
    title = f"search for shared images among {IMAGES:,}, from {len(table):,}"
    conclude(title, at_all, GOAL_MINUTES, "minutes", at_most=True)
    conclude(f"peak memory of {title}", memory, GOAL_MB, "MB", at_most=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all images instead of a tenth")
    parser.add_argument("--rows", type=int, default=20, help="images of the naive way (default: 20)")
    arguments = parser.parse_args()
    print(describe_machine(), flush=True)
    main(IMAGES if arguments.full else IMAGES // 10, arguments.rows)
