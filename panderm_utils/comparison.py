"""Two sets of predictions on the same test images: by how much the second is better, and how sure that is.

Two intervals that overlap say little: most of what moves either is the choice of test images, which both share. So the
difference is taken within each resample of the images, where what is shared cancels out. The metrics are those of
`metrics` for both sides, whatever the protocols report: AUROC is one-versus-one in both.

Symbols: N images, K classes, R resamples, a and b the two sets of predictions; a difference is b - a.
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from panderm_utils.bootstrap import BLOCK_CELLS, MetricError, bootstrap, intervals
from panderm_utils.metrics import METRICS, MetricWarning, Scorer, check_predictions, evaluate
from panderm_utils.records import read_predictions

RUN = ["dataset", "encoder", "seed"]
SIDES = ("linear_probe", "fine_tune")
ENDS = ("", "_low", "_high")


class ComparisonError(ValueError):
    """Two records that cannot be compared; the message says why and what to do."""


class ComparisonWarning(UserWarning):
    """Two records that cannot be compared were left out."""


def paired_difference(y, proba_a, proba_b, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Returns a row a metric: a, a_low, a_high, b, b_low, b_high, difference (b - a), low and high of the difference.

    Intervals are percentiles of the same stratified resamples for a, b and the difference.

    Args:
        y: True labels [N], integers in 0..K-1.
        proba_a: Class probabilities or scores [N, K].
        proba_b: The same of the same images in the same order.

    Raises:
        MetricError: As `metrics.evaluate`, or the two differ in shape.
    """
    scorers = _scorers(y, proba_a, proba_b)
    in_a, in_b = (bootstrap(scorer, scorer.y, replicates, seed) for scorer in scorers)
    a, b = (scorer.value() for scorer in scorers)
    of_a, of_b, of_both = (intervals(values) for values in (in_a, in_b, in_b - in_a))
    columns = {"a": a, "a_low": of_a["low"], "a_high": of_a["high"], "b": b, "b_low": of_b["low"]}
    columns |= {"b_high": of_b["high"], "difference": b - a, "low": of_both["low"], "high": of_both["high"]}
    return pd.DataFrame(columns, index=pd.Index(METRICS, name="metric"))


def permutation_test(y, proba_a, proba_b, permutations: int = 1000, seed: int = 0) -> pd.Series:
    """Returns the two-sided p-value of each metric: how often chance alone makes so large a difference (the paper's).

    A permutation swaps the two predictions of each image or not, by the toss of a coin. The observed difference counts
    as one of the permutations, so that no p-value is 0.
    """
    a, b = (scorer.value() for scorer in _scorers(y, proba_a, proba_b))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)  # said already
        both = Scorer(np.tile(y, 2), np.concatenate([proba_a, proba_b]))
    generator, as_large, block = np.random.default_rng(seed), np.zeros(len(METRICS)), max(1, BLOCK_CELLS // len(y))
    for start in range(0, permutations, block):
        swapped = generator.random((min(block, permutations - start), len(y))).T < 0.5
        # Each image once: from a (the first N rows) unless swapped, and for the other side the other way round.
        counts = np.concatenate([~swapped, swapped]).astype(np.float64)
        differences = both(1 - counts) - both(counts)
        as_large += (np.abs(differences) >= np.abs(b - a) - 1e-12).sum(axis=0)
    p_values = np.where(np.isnan(b - a), np.nan, (1 + as_large) / (1 + permutations))
    return pd.Series(p_values, pd.Index(METRICS, name="metric"), name="p_value")


def read_pair(
    folder_a: str | Path, folder_b: str | Path, file_b: str = "predictions.csv"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns true labels [N] and the class probabilities [N, K] of two records, image by image in the first's order.

    Raises:
        ComparisonError: They are not of the same images, labels and classes; the message names the first that differ.
    """
    y_a, proba_a, names_a = read_predictions(folder_a)
    y_b, proba_b, names_b = read_predictions(folder_b, file_b)
    which = f"{Path(folder_a).name} and {Path(folder_b).name} cannot be compared: "
    remedy = "run both on the same CSV and split, with run_all.py --force"
    # Sorted by name, an image that stands in two rows (a warning, not an error) meets itself twice.
    order_a, order_b = (np.argsort(names, kind="stable") for names in (names_a, names_b))
    if [names_a[i] for i in order_a] != [names_b[i] for i in order_b]:
        raise ComparisonError(f"{which}{_what_differs(names_a, names_b)}; {remedy}")
    rows = np.empty(len(order_a), dtype=np.int64)
    rows[order_a] = order_b
    y_b, proba_b = y_b[rows], proba_b[rows]
    if proba_a.shape[1] != proba_b.shape[1]:
        text = f"the first has {proba_a.shape[1]} classes, the second {proba_b.shape[1]}"
        raise ComparisonError(f"{which}{text}; {remedy}")
    if len(other := np.flatnonzero(y_a != y_b)):
        told = ", ".join(f"{names_a[i]} ({y_a[i]}, then {y_b[i]})" for i in other[:3])
        raise ComparisonError(f"{which}{len(other)} images have two labels, first {told}; {remedy}")
    return y_a, proba_a, proba_b


def compare_protocols(probes: pd.DataFrame, tuned: pd.DataFrame, replicates: int = 1000) -> pd.DataFrame:
    """Holds fine-tuning against linear probing wherever a dataset, encoder and seed have both.

    Args:
        probes: Rows of `tables.paper_scores` of linear probing: a row a run and metric.
        tuned: The same of fine-tuning.
        replicates: Bootstrap replicates, and permutations.

    Returns:
        A row a pair and metric: dataset, encoder, seed, their labels, metric, headline, images; linear_probe,
        fine_tune and views (fine-tuning with test-time views, where there are any) with `_low` and `_high` each;
        difference (fine-tuning minus linear probing, one view) with low and high, p_value, verdict; the ids of the
        two records. All computed anew from the predictions. Records that do not go together are left out with a
        ComparisonWarning.
    """
    columns = [*RUN, "dataset_label", "encoder_label", "metric", "headline", "images"]
    columns += [f"{side}{end}" for side in (*SIDES, "views") for end in ENDS]
    columns += ["difference", "low", "high", "p_value", "verdict", "linear_probe_run", "fine_tune_run"]
    nothing = pd.DataFrame(columns=columns).astype({"headline": bool})
    if probes.empty or tuned.empty:
        return nothing
    kept = [*RUN, "dataset_label", "encoder_label", "run_id", "folder"]
    runs = [rows.loc[rows["headline"], [*kept, "metric"]].drop_duplicates("run_id") for rows in (probes, tuned)]
    pairs = runs[0].merge(runs[1][[*RUN, "run_id", "folder"]], on=RUN, suffixes=("", "_tuned"))
    found = []
    for pair in pairs.itertuples(index=False):
        try:
            table = _compare(pair.folder, pair.folder_tuned, replicates, pair.seed)
        except ComparisonError as error:
            warnings.warn(str(error), ComparisonWarning, stacklevel=2)
            continue
        table = table.assign(**{name: getattr(pair, name) for name in kept[:-2]}, headline=table.index == pair.metric)
        found.append(table.assign(linear_probe_run=pair.run_id, fine_tune_run=pair.run_id_tuned).reset_index())
    return pd.concat(found, ignore_index=True)[columns] if found else nothing


def _compare(probe: str, tuned: str, replicates: int, seed: int) -> pd.DataFrame:
    y, proba_a, proba_b = read_pair(probe, tuned)
    table = paired_difference(y, proba_a, proba_b, replicates, seed)
    named = {f"{letter}{end}": f"{side}{end}" for letter, side in zip("ab", SIDES, strict=True) for end in ENDS}
    table = table.rename(columns=named)
    table["p_value"], table["images"] = permutation_test(y, proba_a, proba_b, replicates, seed), len(y)
    table[["views", "views_low", "views_high"]] = np.nan
    if (Path(tuned) / "predictions_tta.csv").is_file():
        views = evaluate(y, read_pair(probe, tuned, "predictions_tta.csv")[2], replicates, seed)
        table[["views", "views_low", "views_high"]] = views[["value", "low", "high"]]
    sure = [table["low"].isna(), table["low"] > 0, table["high"] < 0]
    words = ["not defined", "fine-tuning is better", "linear probing is better"]
    table["verdict"] = np.select(sure, words, "no difference to be seen")
    return table


def _scorers(y, proba_a, proba_b) -> tuple[Scorer, Scorer]:
    shapes = [list(check_predictions(y, proba)[1].shape) for proba in (proba_a, proba_b)]
    if shapes[0] != shapes[1]:
        raise MetricError(f"the two sets of predictions are {shapes[0]} and {shapes[1]}: give both of the same images")
    scorer_a = Scorer(y, proba_a)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)  # the first has said it
        return scorer_a, Scorer(y, proba_b)


def _what_differs(names_a: list[str], names_b: list[str]) -> str:
    """Names the images that one record has and the other has not, or has more often."""
    only_a, only_b = sorted(set(names_a) - set(names_b)), sorted(set(names_b) - set(names_a))
    sides = (("first", only_a), ("second", only_b))
    told = [f"only the {side} has {', '.join(names[:3])} ({len(names)} in all)" for side, names in sides if names]
    return "; ".join(told) or f"the first has {len(names_a)} rows, the second {len(names_b)}: an image counts twice"
