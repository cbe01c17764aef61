"""Chooses rows: the published label fraction, and a proposed train, val and test split for a table without one."""

import math
import numbers
import warnings

import numpy as np
import pandas as pd

from panderm_utils.manifests import SPLITS

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
FRACTION_SEED = 42  # upstream's, whatever the run's own seed


def label_fraction(train: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """Returns the rows that the published linear probe trains on at a label fraction, in its shuffled order.

    Upstream's rule: the train rows in file order, shuffled by `sample(frac=1, random_state=42)`, the first
    `int(n * fraction)`. It is not stratified: a class may end up without a row, which warns.

    Raises:
        ValueError: The fraction is not in (0, 1], or so small that no row is left (the smallest usable is named).
    """
    return first_part(train.sample(frac=1, random_state=FRACTION_SEED), fraction)


def first_part(train: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """Returns the first `int(n * fraction)` of n shuffled training rows."""
    n = len(train)
    if not (isinstance(fraction, numbers.Real) and 0 < fraction <= 1):
        raise ValueError(f"train_fraction {fraction!r} is not in (0, 1]; write 1.0 for all {n:,} training rows")
    if n == 0:
        raise ValueError("there are no training rows to take a fraction of: no row's split is train")
    kept = int(n * fraction)
    if kept < 1:
        smallest = math.ceil(1e6 / n) / 1e6
        raise ValueError(f"train_fraction {fraction} of {n:,} training rows is none; the smallest usable is {smallest}")
    chosen = train.head(kept)
    lost = sorted(set(train["label"]) - set(chosen["label"])) if "label" in train else []
    if lost:
        warnings.warn(f"train_fraction {fraction} leaves no training row of the classes {lost}", stacklevel=3)
    return chosen


def propose_splits(table: pd.DataFrame, label: str, group: str | list[str] | None = None, seed: int = 0) -> pd.Series:
    """Proposes a split of each row: 70% train, 10% val, 20% test within each class, whole groups kept together.

    Rows are one group if they share a value in any of the group columns (a lesion of a patient, a patient with two
    lesion ids); an empty cell groups with nothing. Groups of several rows are placed first, the largest first, each
    where its classes are most wanting; single rows then fill up each class. Same table, same seed: same split.

    Args:
        table: One row an image.
        label: The column of classes.
        group: The column, or columns, whose values must not straddle splits.

    Returns:
        The split names, with the index of `table`.
    """
    rng = np.random.default_rng(seed)
    y, classes = pd.factorize(table[label], sort=True)
    columns = [group] if isinstance(group, str) else list(group or [])
    groups = connected_groups(table, columns)
    size = np.bincount(groups, minlength=1)
    wanted = _quotas(np.bincount(y, minlength=len(classes)))  # [3, K] rows still wanted
    rarity = 1 / np.maximum(np.bincount(y, minlength=len(classes)), 1)
    split = np.full(len(table), -1)
    order = rng.permutation(len(size))
    rows_of = {g: rows for g, rows in pd.Series(np.arange(len(table))).groupby(groups).indices.items() if size[g] > 1}
    for g in order[np.argsort(-size[order], kind="stable")]:
        if size[g] < 2:
            break
        counts = np.bincount(y[rows_of[g]], minlength=len(classes))
        target = int(np.argmax(wanted @ (counts * rarity)))
        split[rows_of[g]] = target
        wanted[target] -= counts
    for k in range(len(classes)):
        single = rng.permutation(np.flatnonzero((split < 0) & (y == k)))
        for row in single:
            split[row] = target = int(np.argmax(wanted[:, k]))
            wanted[target, k] -= 1
    return pd.Series(np.array(SPLITS, dtype=object)[split], index=table.index, name="split")


def connected_groups(table: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Numbers the rows [N] so that rows sharing a value in any column, directly or by way of others, are one group."""
    parent = np.arange(len(table))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for column in columns:
        codes, _ = pd.factorize(table[column])
        first: dict[int, int] = {}
        for i, code in enumerate(codes):
            if code >= 0:
                parent[root(i)] = root(first.setdefault(code, i))
    return pd.factorize(np.array([root(i) for i in range(len(table))]))[0]


def _quotas(counts: np.ndarray) -> np.ndarray:
    """Rows [3, K] that train, val and test should get of each class: a class of two or more is in train and test."""
    test = np.where(counts >= 2, np.maximum(np.rint(SHARES["test"] * counts), 1), 0)
    val = np.minimum(np.rint(SHARES["val"] * counts), np.maximum(counts - test - 1, 0))
    return np.stack([counts - val - test, val, test])
