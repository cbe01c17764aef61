"""Searches the images of several datasets for similar pairs, on all cores."""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from panderm_utils.audit.fingerprints import HashSimilarities
from panderm_utils.audit.kinds import COPY
from panderm_utils.audit.similarity import MOST, Cosines, Similar, similar_pairs

CHUNK = 8192  # images that a thread compares with a dataset


def search_pairs(images: pd.DataFrame, x: np.ndarray, kind: str, threshold: float) -> tuple:
    """Returns similar pairs of images, the nearest of each test image, and whether the pairs are all, not the MOST.

    The first two are tables of kind, similarity, orientation (""), a and b (rows of `images`).

    Args:
        images: Columns dataset, split and path; the images of a split follow one another.
        x: One row per image: hashes for near copies, or features of length 1.
    """
    names, test = images["dataset"].to_numpy(), (images["split"] == "test").to_numpy()
    whole = {name: _span(names == name) for name in dict.fromkeys(names)}
    tasks = [(_span((names == name) & test), _span((names == name) & ~test), True) for name in whole]
    tasks += [(whole[one], whole[other], False) for one, other in combinations(whole, 2)]
    jobs = [(a[at : at + CHUNK], b, within) for a, b, within in tasks for at in range(0, len(a), CHUNK) if len(b)]
    compare = HashSimilarities if kind == COPY else Cosines

    def search(job: tuple) -> Similar:
        a, b = (x[part.start : part.stop] for part in job[:2])
        return similar_pairs(compare(a, b), threshold)

    found, nearest = [pair_table(kind, [], [], [])], [pair_table(kind, [], [], [])]
    total = sum(len(a) * len(b) for a, b, _ in jobs)
    # A thread per core, each with one of BLAS: several of BLAS would wait for each other at every small product.
    with (
        threadpool_limits(1, "blas"),
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=total, desc=kind, unit="pair", unit_scale=True, delay=1) as bar,
    ):
        for (a, b, within), part in zip(jobs, pool.map(search, jobs), strict=True):
            found.append(pair_table(kind, part.similarity, a.start + part.a, b.start + part.b))
            if sum(map(len, found)) > 2 * MOST:
                found = [pd.concat(found, ignore_index=True).nlargest(MOST, "similarity")]
            if within:
                nearest.append(pair_table(kind, part.best, np.asarray(a), b.start + part.nearest))
            bar.update(len(a) * len(b))
    pairs = pd.concat(found, ignore_index=True).nlargest(MOST, "similarity")
    return compared(images, pairs), pd.concat(nearest, ignore_index=True), len(pairs) < MOST


def _span(rows: np.ndarray) -> range:
    """Returns the rows [N] that are True, which follow one another, as a range."""
    at = np.flatnonzero(rows)
    return range(at[0], at[-1] + 1) if len(at) else range(0)


def pair_table(kind: str, similarity, a, b) -> pd.DataFrame:
    columns = {"kind": kind, "similarity": np.asarray(similarity, np.float64), "orientation": ""}
    return pd.DataFrame({**columns, "a": np.asarray(a, np.int64), "b": np.asarray(b, np.int64)})


def compared(images: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Returns the pairs of two datasets, or of a test image (as a) and another split of one dataset."""
    a, b = pairs["a"].to_numpy(dtype=np.int64), pairs["b"].to_numpy(dtype=np.int64)
    dataset, test = images["dataset"].to_numpy(), (images["split"] == "test").to_numpy()
    path = images["path"].to_numpy()
    within = dataset[a] == dataset[b]
    keep = np.where(within, test[a] != test[b], path[a] != path[b])
    swap = within & test[b]
    pairs = pairs.assign(a=np.where(swap, b, a), b=np.where(swap, a, b))
    return pairs[keep]
