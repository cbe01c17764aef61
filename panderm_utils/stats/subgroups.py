"""One metric in groups of the test images (age, sex, site, skin tone, institution), and the largest gap between them.

A group is assessed ("judged") if it has at least 30 images and two classes. The others are shown with the reason.
Images without an entry form the group "unknown", which is left out of the gap.

Groups share no image, so each is resampled on its own, within its classes. The largest of many gaps is large by chance
alone, and its interval does not account for the selection. Hence `p_value`: how often a gap as large arises when group
labels are permuted among the images of each class.

Symbols: N images, K classes, R resamples or permutations.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from panderm_utils.data import is_missing
from panderm_utils.stats.metrics import METRICS, MetricWarning, Scorer, check_predictions, on_test_set
from panderm_utils.stats.resampling import BLOCK_CELLS, MetricError, bootstrap, intervals

FEWEST_IMAGES = 30  # a smaller group is not judged
UNKNOWN = "unknown"
AGES = {"0-39": 0, "40-59": 40, "60+": 60}  # group -> lowest age
TONES = {"12": "1-2", "34": "3-4", "56": "5-6"}  # pairs of Fitzpatrick types, as DDI writes them


@dataclass(frozen=True)
class Gap:
    """The largest gap between judged groups: names of the highest and lowest, difference, interval and p-value.

    With fewer than two judged groups, names are empty and numbers NaN.
    """

    highest: str = ""
    lowest: str = ""
    gap: float = np.nan
    low: float = np.nan
    high: float = np.nan
    p_value: float = np.nan


def group_labels(kind: str, values) -> np.ndarray:
    """Returns the group [N] of each metadata entry [N], as text.

    Ages, including "85+", fall into the groups of AGES; other text stays a group of its own. Whole numbers lose their
    ".0"; DDI's skin tones 12, 34 and 56 become 1-2, 3-4 and 5-6. Missing entries become "unknown".
    """
    texts = pd.Series(values, dtype=object).map(lambda value: "" if pd.isna(value) else str(value).strip())
    numbers = pd.to_numeric(texts.str.removesuffix("+") if kind == "age" else texts, errors="coerce")
    named = texts.mask(numbers.notna(), numbers.map("{:g}".format))
    if kind == "age":
        edges = [*AGES.values(), np.inf]
        named = named.mask(numbers >= 0, pd.cut(numbers, edges, right=False, labels=list(AGES)).astype(object))
    elif kind == "skin_tone":
        named = named.replace(TONES)
    unknown = is_missing(texts) | texts.str.lower().eq(UNKNOWN) | named.eq("nan")
    return named.mask(unknown, UNKNOWN).to_numpy(dtype=str)


def compare_groups(y, proba, groups, metric: str, replicates: int = 1000, seed: int = 0) -> tuple[pd.DataFrame, Gap]:
    """Returns a table of one row per group, and the largest gap between judged groups.

    Args:
        y: True labels [N], integers in 0..K-1.
        proba: Class probabilities [N, K].
        groups: The group of each image [N], text; see `group_labels`.
        metric: One of `metrics.METRICS`.

    Returns:
        Table with group (numbers in order, "unknown" last), images, classes (with an image), rarest (images of the
        rarest of them), value, low, high (percentiles), judged, note (why not). And the gap.
    """
    y, proba = check_predictions(y, proba)
    groups = np.asarray(groups).astype(str)
    if groups.shape != y.shape:
        raise MetricError(f"groups must be one per label, [{len(y)}], got {list(groups.shape)}")
    if metric not in METRICS:
        raise MetricError(f"metric {metric!r} is unknown; write one of {', '.join(METRICS)}")
    return compare_group_scorers(
        lambda rows: _quietly(y[rows], proba[rows]), y, groups, METRICS.index(metric), replicates, seed
    )


def compare_group_scorers(
    make: Callable, y, groups, column: int, replicates: int, seed: int, unit: str = "images", classes: int = 2
) -> tuple[pd.DataFrame, Gap]:
    """Returns the table and the gap of `compare_groups` for one metric of any scorer.

    Args:
        make: Returns the scorer of the given rows; `column` is that of the metric.
        y: Labels [N]: a group is resampled, and its label permuted, within them.
        unit: What a row is.
        classes: Labels that a group needs, to be judged.
    """
    rows, resamples = [], {}
    for i, name in enumerate(sorted(np.unique(groups), key=_position)):
        members = groups == name
        scorer, sizes = make(members), np.unique(y[members], return_counts=True)[1]
        # One seed per group: groups of equal size must not get equal resamples.
        values = bootstrap(scorer, scorer.y, replicates, [seed, i])[:, [column]]
        failed = {f"under {FEWEST_IMAGES} {unit}": members.sum() < FEWEST_IMAGES}
        failed["one class only"] = len(sizes) < classes
        reasons = [reason for reason, applies in failed.items() if applies]
        row = {"group": str(name), "images": int(members.sum()), "classes": len(sizes), "rarest": sizes.min()}
        row |= {"value": on_test_set(scorer)[column], **{end: intervals(values)[end][0] for end in ("low", "high")}}
        rows.append(row | {"judged": not reasons, "note": ", ".join(reasons)})
        resamples[str(name)] = values[:, 0]
    table = pd.DataFrame(rows)
    values = table[table["judged"] & table["group"].ne(UNKNOWN)].set_index("group")["value"]
    if len(values) < 2:
        return table, Gap()
    highest, lowest, gap = values.idxmax(), values.idxmin(), values.max() - values.min()
    ends = intervals((resamples[highest] - resamples[lowest])[:, None])
    judged = np.isin(groups, values.index)
    kept = np.flatnonzero(judged)
    by_chance = gaps_by_chance(lambda part: make(kept[part]), y[kept], groups[kept], column, replicates, seed)
    p_value = (1 + (by_chance >= gap - 1e-12).sum()) / (1 + replicates)
    return table, Gap(highest, lowest, gap, ends["low"][0], ends["high"][0], p_value)


def gaps_by_chance(make: Callable, y, groups, column: int, permutations: int, seed: int) -> np.ndarray:
    """Returns the largest gap [R] with group labels permuted within each class, so that each group keeps its class mix.

    Arguments as in `compare_group_scorers`.
    """
    names, code = np.unique(groups, return_inverse=True)
    parts = []  # a group's scorer covers only the classes of the group
    for g in range(len(names)):
        rows = np.isin(y, y[code == g])
        parts.append((rows, make(rows)))
    by_class = code[np.argsort(y, kind="stable")]
    generator, block, gaps = np.random.default_rng(seed), max(1, BLOCK_CELLS // len(y)), []
    for start in range(0, permutations, block):
        # Sorted by class, in random order within a class.
        order = np.argsort(y + generator.random((min(block, permutations - start), len(y))), axis=1)
        permuted = np.empty_like(order)
        np.put_along_axis(permuted, order, by_class[None, :], axis=1)
        counts = [(permuted[:, rows] == g).T.astype(np.float64) for g, (rows, _) in enumerate(parts)]
        values = [scorer(count)[:, column] for (_, scorer), count in zip(parts, counts, strict=True)]
        gaps.append(np.ptp(values, axis=0))
    return np.concatenate(gaps)


def _position(name: str) -> tuple:
    """Sort key: numbers in order, then text, then "unknown"."""
    head = name.rstrip("+").split("-")[0]
    number = float(head) if head.replace(".", "", 1).isdigit() else np.inf
    return name == UNKNOWN, number, name


def _quietly(y, proba) -> Scorer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)  # the table shows how many classes a group has
        return Scorer(y, proba)
