"""The training subsets of label efficiency: which images are the 5%, the 10%, ...

| drawing | what it is |
|---|---|
| published | upstream's single draw, not stratified, always with seed 42 (`data.label_fraction`) |
| honest | several draws of whole lesions or patients, stratified by class, nested, every class at least once |

An honest draw is an order of the groups in which every prefix is nearly stratified; a fraction is the prefix closest
in size. So the 5% is inside the 10%, and a subset depends only on the table, the seed, the number of the draw and the
fraction, not on how many draws or which other fractions there are.

Symbols: n training rows, G groups, K classes.
"""

import math
import numbers
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from panderm_utils.data import connected_groups, label_fraction
from panderm_utils.manifests import read_numbers
from panderm_utils.messages import UserError
from panderm_utils.protocols.label_efficiency.protocol import DRAWINGS

FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
LARGE = 0.01  # a group with a larger fraction of the rows waits until it is no larger than all groups before it


class SubsetError(UserError):
    """A subset that cannot be drawn; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Subset:
    """The training rows of one fraction and draw.

    Attributes:
        fraction: The requested fraction; with whole groups, `len(rows) / n` only approximates it.
        draw: Number of the draw, from 0.
        rows: Positions in the training table (in file order), in training order.
    """

    fraction: float
    draw: int
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class Order:
    """One honest draw.

    Attributes:
        rows: All n positions in the training table, in the order drawn.
        ends: Number of rows in the first 1, 2, ..., G groups.
        covering: Number of groups until every class is included.
    """

    rows: np.ndarray
    ends: np.ndarray
    covering: int

    @property
    def smallest(self) -> float:
        """The smallest fraction, to six digits, with every class."""
        enough = self.ends[self.covering - 1]
        before = self.ends[self.covering - 2] if self.covering > 1 else 0
        fraction = math.ceil(1e6 * (before + enough) / 2 / len(self.rows)) / 1e6
        return fraction if self.cut(fraction) >= enough else round(fraction + 1e-6, 6)

    def cut(self, fraction: float) -> int:
        """Returns the number of rows of a fraction, the nearest that whole groups allow; of two as near, the larger."""
        rows = fraction * len(self.rows)
        after = min(np.searchsorted(self.ends, rows), len(self.ends) - 1)
        before = self.ends[after - 1] if after else 0
        return int(self.ends[after] if self.ends[after] - rows <= rows - before else before)


def draw_subsets(
    table: pd.DataFrame,
    fractions: str | Iterable[float] | None = None,
    drawing: str = "honest",
    draws: int = 5,
    seed: int = 0,
    group_columns: Sequence[str] = (),
    default: Sequence[float] = FRACTIONS,
    class_names: Sequence[str] | None = None,
) -> list[Subset]:
    """Returns the subsets of every fraction and draw, fraction by fraction; the last has all training rows.

    Args:
        table: All rows of the dataset, `study.table`, with the columns split and label.
        fractions: In (0, 1], as numbers or as text, "0.05, 0.2". None: the default ones, without those too small for an
            honest draw to keep every class, with a warning.
        drawing: "honest", or "published", which has one draw and no groups.
        group_columns: Columns whose values stay together in an honest draw, as in a manifest's `groups`; a column that
            the table lacks is ignored.
        default: The fractions used for None, such as the profile's.
        class_names: For errors and warnings, as in `data.label_fraction`.

    Raises:
        SubsetError: The drawing is unknown, or as `honest_orders` and `honest_subsets`. ValueError: as
            `data.label_fraction`.
    """
    if drawing not in DRAWINGS:
        raise SubsetError(f"drawing {drawing!r} is unknown; write one of {', '.join(map(repr, DRAWINGS))}")
    if drawing == "published":
        chosen = settle_fractions(fractions, default=default)
        return [published_subset(table, fraction, class_names) for fraction in chosen]
    orders = honest_orders(table, draws, seed, [column for column in group_columns if column in table])
    smallest = max(order.smallest for order in orders)
    return honest_subsets(table, settle_fractions(fractions, smallest, default), orders, class_names)


def settle_fractions(
    fractions: str | Iterable[float] | None = None, smallest: float = 0.0, default: Sequence[float] = FRACTIONS
) -> tuple[float, ...]:
    """Returns the fractions of `draw_subsets` as rising numbers that end with 1.0."""
    if isinstance(fractions, str):
        try:
            fractions = read_numbers(fractions)
        except ValueError:
            raise SubsetError(f'fractions {fractions!r} are not numbers; write them as "0.05, 0.2, 1"') from None
    if fractions is not None:
        return tuple(sorted({*fractions, 1.0}))
    if dropped := [f"{100 * fraction:g}%" for fraction in default if fraction < smallest]:
        warnings.warn(
            f"{', '.join(dropped)} of the labels cannot hold every class and are left out; the smallest usable "
            f"fraction is {smallest:g}",
            stacklevel=3,
        )
    return tuple(sorted({*(fraction for fraction in default if fraction >= smallest), 1.0}))


def subset_table(table: pd.DataFrame, subsets: Sequence[Subset], names: Sequence[str], draw: int = 0) -> pd.DataFrame:
    """Returns the number of images of each class (rows, with a total) in every fraction of one draw (columns)."""
    y = _training_rows(table)["label"].to_numpy()
    shown = [subset for subset in subsets if subset.draw == draw or subset.fraction == 1]
    columns = {f"{100 * s.fraction:g}%": np.bincount(y[s.rows], minlength=len(names)) for s in shown}
    counts = pd.DataFrame(columns, index=pd.Index(names, name="class"))
    counts.loc["all"] = counts.sum()
    return counts


def published_subset(table: pd.DataFrame, fraction: float, class_names: Sequence[str] | None = None) -> Subset:
    """Returns the rows that upstream trains on, from `data.label_fraction`; warns if a class is left without rows.

    Args:
        table: All rows of the dataset, with the columns split and label.
    """
    table = table.reset_index(drop=True)
    train = np.flatnonzero(table["split"] == "train")
    rows = label_fraction(table.iloc[train], fraction, class_names).index
    return Subset(float(fraction), 0, np.searchsorted(train, rows))


def honest_subsets(
    table: pd.DataFrame, fractions: Iterable[float], orders: Sequence[Order], class_names: Sequence[str] | None = None
) -> list[Subset]:
    """Returns the subset of every fraction and order, fraction by fraction.

    Fraction 1.0 is a single subset: all rows in the order of the published linear probe, so that the fit is the same.

    Raises:
        SubsetError: A fraction is not in (0, 1], or so small that a class is lost: names the class and the smallest
            fraction that works for all draws.
    """
    subsets, smallest = [], max(order.smallest for order in orders)
    train = _training_rows(table)
    for fraction in fractions:
        if not (isinstance(fraction, numbers.Real) and 0 < fraction <= 1):
            raise SubsetError(f"fraction {fraction!r} is not in (0, 1]; write 1.0 for all {len(train):,} training rows")
        if fraction == 1:
            subsets.append(published_subset(table, 1.0))
            continue
        for draw, order in enumerate(orders):
            rows = order.rows[: order.cut(fraction)]
            if missing := sorted(set(train["label"]) - set(train["label"].iloc[rows])):
                names = ", ".join(str(k if class_names is None else class_names[k]) for k in missing)
                raise SubsetError(
                    f"fraction {fraction:g} of {len(train):,} training rows is {len(rows)} in draw {draw} and has no "
                    f"row of class {names}; the smallest usable fraction is {smallest:g}"
                )
            subsets.append(Subset(float(fraction), draw, rows))
    return subsets


def honest_orders(table: pd.DataFrame, draws: int = 5, seed: int = 0, group_columns: Sequence[str] = ()) -> list[Order]:
    """Returns the orders of the training rows from which the honest subsets of draws 0, 1, ... are cut.

    Args:
        table: All rows of the dataset, with the columns split and label.
        group_columns: Columns whose values stay together; rows that share a value in any of them are one group.

    Raises:
        SubsetError: There is no training row, or no draw.
    """
    train = _training_rows(table)
    if train.empty:
        raise SubsetError("there are no training rows to draw from: no row's split is train")
    if not isinstance(draws, int | np.integer) or draws < 1:
        raise SubsetError(f"draws must be a whole number of at least 1, got {draws!r}")
    y = pd.factorize(train["label"], sort=True)[0]
    groups = connected_groups(train, list(group_columns))
    counts = np.zeros((groups.max() + 1, y.max() + 1), dtype=np.int64)
    np.add.at(counts, (groups, y), 1)
    members = np.argsort(groups, kind="stable")  # all rows, group by group
    first = np.cumsum(counts.sum(axis=1)) - counts.sum(axis=1)
    orders = []
    for draw in range(draws):
        place, image = np.random.Generator(np.random.PCG64([seed, draw])).random((2, len(counts)))
        home = (counts.cumsum(axis=1) <= (image * counts.sum(axis=1))[:, None]).sum(axis=1)  # class of a random image
        order, covering = _order_groups(counts, np.argsort(place, kind="stable"), home)
        sizes = counts[order].sum(axis=1)
        rows = np.concatenate([members[first[g] : first[g] + size] for g, size in zip(order, sizes, strict=True)])
        orders.append(Order(rows, np.cumsum(sizes), covering))
    return orders


def _order_groups(counts: np.ndarray, shuffled: np.ndarray, home: np.ndarray) -> tuple[list[int], int]:
    """Orders groups so that every prefix is nearly stratified.

    The next group is the first one, in shuffled order, with an image of the class that is furthest behind: a class
    without images yet, else the one with the smallest (images so far + 1/2) / (all images), the Sainte-Lague method of
    allocating seats. A large group waits, so that one patient is not the whole 5%, unless only it has the class.

    Args:
        counts: Images of each group and class [G, K].
        shuffled: The groups in random order [G].
        home: One class of each group [G], under which it is queued first: groups with several classes would otherwise
            be drawn more often than others.

    Returns:
        The order [G], and the number of groups until every class is included.
    """
    total, size, has_class = counts.sum(axis=0), counts.sum(axis=1).tolist(), counts > 0
    limit, placed, done = LARGE * total.sum(), 0, np.zeros(len(total), dtype=np.int64)
    free = [True] * len(counts)
    queues = []
    for k in range(len(total)):
        of_class = shuffled[has_class[shuffled, k]]
        away = home[of_class] != k
        queues.append(iter([*of_class[~away].tolist(), *of_class[away].tolist()]))
    waiting: list[list[int]] = [[] for _ in queues]
    classes = [np.flatnonzero(row).tolist() for row in has_class]

    def next_of_class(k: int) -> int | None:
        largest = max(placed, limit)
        for g in waiting[k]:
            if free[g] and size[g] <= largest:
                return g
        for g in queues[k]:  # continues where it stopped
            if free[g] and size[g] <= largest:
                return g
            if free[g]:
                waiting[k].append(g)
        return min((g for g in waiting[k] if free[g]), key=size.__getitem__) if done[k] == 0 else None

    order, covering = [], 0
    # Of the classes without images, first those that need no large group.
    behind = [-1.0 / counts[has_class[:, k]].sum(axis=1).min() for k in range(len(total))]
    while len(order) < len(counts):
        for k in sorted(range(len(total)), key=behind.__getitem__):
            g = next_of_class(k)
            if g is not None:
                break
        else:
            g = min((g for g in shuffled.tolist() if free[g]), key=size.__getitem__)
        order.append(g)
        free[g] = False
        placed += size[g]
        done += counts[g]
        if not covering and done.all():
            covering = len(order)
        for k in classes[g]:
            behind[k] = (done[k] + 0.5) / total[k]
    return order, covering


def _training_rows(table: pd.DataFrame) -> pd.DataFrame:
    if "split" not in table:
        raise SubsetError("the table has no column `split`; pass the whole table, study.table, not one of its splits")
    return table[table["split"] == "train"].reset_index(drop=True)
