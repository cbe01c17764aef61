"""Selects rows: the published subset for a label fraction, and a proposed split for a table without one."""

import math
import numbers
import warnings

import numpy as np
import pandas as pd

from panderm_utils.manifests import SPLITS
from panderm_utils.messages import UserError

SPLIT_FRACTIONS = {"train": 0.7, "val": 0.1, "test": 0.2}
FRACTION_SEED = 42  # upstream's, regardless of the run's seed


def label_fraction(train: pd.DataFrame, fraction: float, class_names=None) -> pd.DataFrame:
    """Returns the published subset for a label fraction: the rows the linear probe trains on, in its shuffled order.

    Upstream's rule: shuffle the train rows, in file order, by `sample(frac=1, random_state=42)`, then take the first
    `int(n * fraction)`. It is not stratified; a warning names the classes left without a row (without `class_names`,
    by number).

    Raises:
        ValueError: The fraction is not in (0, 1], or leaves no row; the message gives the smallest usable one.
    """
    return first_fraction(train.sample(frac=1, random_state=FRACTION_SEED), fraction, class_names)


def first_fraction(train: pd.DataFrame, fraction: float, class_names=None) -> pd.DataFrame:
    """Returns the first `int(n * fraction)` of n shuffled training rows."""
    n = len(train)
    if not (isinstance(fraction, numbers.Real) and 0 < fraction <= 1):
        raise UserError(f"train_fraction {fraction!r} is not in (0, 1]; write 1.0 for all {n:,} training rows")
    if n == 0:
        raise UserError("there are no training rows to take a fraction of: no row's split is train")
    kept = int(n * fraction)
    if kept < 1:
        smallest = math.ceil(1e6 / n) / 1e6
        raise UserError(f"train_fraction {fraction} of {n:,} training rows is 0; the smallest usable is {smallest}")
    subset = train.head(kept)
    lost = sorted(set(train["label"]) - set(subset["label"])) if "label" in train else []
    if lost:
        names = ", ".join(str(k if class_names is None else class_names[k]) for k in lost)
        warnings.warn(f"train_fraction {fraction} leaves no training row of class {names}", stacklevel=3)
    return subset


def propose_splits(table: pd.DataFrame, label: str, group: str | list[str] | None = None, seed: int = 0) -> pd.Series:
    """Returns a proposed split of each row: 70% train, 10% val, 20% test within each class, groups kept whole.

    Rows that share a value in any group column, directly or through other rows, form one group; empty cells are
    ignored. Groups of several rows are placed first, largest first, each in the split that most lacks their classes;
    single rows then fill up each class. A class of one group is in train, of two in train and test, of more in all
    three, except where that would take another class from a split. The same table and seed give the same split.

    Args:
        table: One row per image.
        label: The column of classes.
        group: The column, or columns, whose values must not be in two splits.

    Returns:
        The split names, with the index of `table`.
    """
    rng = np.random.default_rng(seed)
    y, classes = pd.factorize(table[label], sort=True)
    columns = [group] if isinstance(group, str) else list(group or [])
    groups = connected_groups(table, columns)
    size = np.bincount(groups, minlength=1)
    needed = _quotas(np.bincount(y, minlength=len(classes)))  # [3, K] rows still to place
    rarity = 1 / np.maximum(np.bincount(y, minlength=len(classes)), 1)
    split = np.full(len(table), -1)
    order = rng.permutation(len(size))
    rows_of = {g: rows for g, rows in pd.Series(np.arange(len(table))).groupby(groups).indices.items() if size[g] > 1}
    for g in order[np.argsort(-size[order], kind="stable")]:
        if size[g] < 2:
            break
        counts = np.bincount(y[rows_of[g]], minlength=len(classes))
        target = int(np.argmax(needed @ (counts * rarity)))
        split[rows_of[g]] = target
        needed[target] -= counts
    for k in range(len(classes)):
        single = rng.permutation(np.flatnonzero((split < 0) & (y == k)))
        for row in single:
            split[row] = target = int(np.argmax(needed[:, k]))
            needed[target, k] -= 1
    _spread_rare_classes(split, y, groups, rng)
    return pd.Series(np.array(SPLITS, dtype=object)[split], index=table.index, name="split")


def _spread_rare_classes(split: np.ndarray, y: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> None:
    """Moves small groups, in place, into the splits that lack a class although enough groups have it."""
    train, val, test = range(3)
    order = [train, test, val]  # a class of n groups is needed in the first n of these
    group, member = np.unique(np.stack([groups, y]), axis=1)  # each class of each group
    place, size = np.empty(groups.max(initial=-1) + 1, dtype=int), np.bincount(groups)
    place[groups] = split
    held = np.zeros((3, y.max(initial=-1) + 1), dtype=int)  # groups that have the class, per split and class
    np.add.at(held, (place[group], member), 1)
    total = held.sum(axis=0)
    for k in np.argsort(total, kind="stable"):
        for target in order[: total[k]]:
            candidates = rng.permutation(group[member == k]) if not held[target, k] else []
            for g in sorted(candidates, key=size.__getitem__):
                source, classes = place[g], member[group == g]
                # the group's classes must stay in the split that it leaves, where they are needed there
                if ((held[source, classes] > 1) | (order.index(source) >= total[classes])).all():
                    held[source, classes] -= 1
                    held[target, classes] += 1
                    place[g] = target
                    break
    split[:] = place[groups]


def propose_folds(table: pd.DataFrame, label: str, group: list[str], folds: int, seed: int = 0) -> np.ndarray:
    """Returns a fold per row [N], 0..folds-1, by scikit-learn's StratifiedGroupKFold; groups as in `propose_splits`."""
    y, _ = pd.factorize(table[label], sort=True)
    fold = np.zeros(len(table), dtype=int)
    from sklearn.model_selection import StratifiedGroupKFold  # over a second of import that only new splits need

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # the caller counts the groups of each class
        for k, (_, rows) in enumerate(splitter.split(y, y, connected_groups(table, group))):
            fold[rows] = k
    return fold


def connected_groups(table: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Returns a group number per row [N]; rows that share a value, directly or through other rows, form one group."""
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
    """Returns target rows [3, K] of train, val and test; a class of two or more rows is in both train and test."""
    test = np.where(counts >= 2, np.maximum(np.rint(SPLIT_FRACTIONS["test"] * counts), 1), 0)
    val = np.minimum(np.rint(SPLIT_FRACTIONS["val"] * counts), np.maximum(counts - test - 1, 0))
    return np.stack([counts - val - test, val, test])
