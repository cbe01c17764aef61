"""Paired comparison of records on the same test images: two protocols or two encoders.

The predictions of two records, class probabilities or scores of masks, are joined by image name.
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from panderm_utils.manifests import Protocol, load_dataset_manifest
from panderm_utils.messages import UserError
from panderm_utils.results.image_scores import parse_image_scores, scores_masks
from panderm_utils.results.records import parse_predictions, read_predictions
from panderm_utils.stats import (
    ALPHA,
    LOWER_IS_BETTER,
    compare_image_scores,
    evaluate,
    holm,
    paired_difference,
    permutation_test,
)

RUN = ["dataset", "encoder", "seed"]
LABELS = ["dataset_label", "encoder_label"]
ENDS = ("", "_low", "_high")
VIEWS = [f"views{end}" for end in ENDS]
CHANCE = ["difference", "low", "high", "p_value"]
REMEDY = "run both on the same CSV and split, with run_all.py --force"


class ComparisonError(UserError):
    """Two records that cannot be compared; the message says why and what to do."""


class ComparisonWarning(UserWarning):
    """Two records that cannot be compared are left out."""


def read_pair(
    folder_a: str | Path, folder_b: str | Path, file_b: str = "predictions.csv"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns true labels [N] and the class probabilities [N, K] of two records, in the image order of the first.

    Raises:
        ComparisonError: Images, labels or classes differ; the message names the first differences.
    """
    tables = match_images(folder_a, folder_b, file_b)
    (y, proba_a, _), (_, proba_b, _) = map(parse_predictions, tables)
    if proba_a.shape[1] != proba_b.shape[1]:
        text = f"the first has {proba_a.shape[1]} classes, the second {proba_b.shape[1]}"
        raise ComparisonError(f"{_which(folder_a, folder_b)}{text}; {REMEDY}")
    _check_truth(*tables, "true_label", "labels", _which(folder_a, folder_b))
    return y, proba_a, proba_b


def read_scores_pair(folder_a: str | Path, folder_b: str | Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series | None]:
    """Returns the scores of masks [N, M] of two records, in the image order of the first, and its clusters [N].

    Raises:
        ComparisonError: Images or true masks differ; the message names the first differences.
    """
    tables = match_images(folder_a, folder_b)
    _check_truth(*tables, "true_mask", "true masks", _which(folder_a, folder_b))
    (scores_a, clusters, _), (scores_b, _, _) = map(parse_image_scores, tables)
    shared = [metric for metric in scores_a if metric in scores_b]
    return scores_a[shared], scores_b[shared], clusters


def match_images(
    folder_a: str | Path, folder_b: str | Path, file_b: str = "predictions.csv"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the predictions of two records as text, with their rows in the image order of the first.

    Raises:
        ComparisonError: Their images differ, or one scores masks and the other one classes.
    """
    a, b = (pd.read_csv(path, dtype=str) for path in (Path(folder_a) / "predictions.csv", Path(folder_b) / file_b))
    if scores_masks(a) != scores_masks(b):
        raise ComparisonError(f"{_which(folder_a, folder_b)}one predicts masks, the other one classes")
    # Sorted by name, so that an image listed twice (a warning, not an error) is matched twice.
    names_a, names_b = a["filename"].tolist(), b["filename"].tolist()
    order_a, order_b = (np.argsort(names, kind="stable") for names in (names_a, names_b))
    if [names_a[i] for i in order_a] != [names_b[i] for i in order_b]:
        raise ComparisonError(f"{_which(folder_a, folder_b)}{_what_differs(names_a, names_b)}; {REMEDY}")
    rows = np.empty(len(order_a), dtype=np.int64)
    rows[order_a] = order_b
    return a, b.iloc[rows].reset_index(drop=True)


def _which(folder_a: str | Path, folder_b: str | Path) -> str:
    return f"{Path(folder_a).name} and {Path(folder_b).name} cannot be compared: "


def _check_truth(a: pd.DataFrame, b: pd.DataFrame, column: str, what: str, which: str) -> None:
    if len(differing := np.flatnonzero(a[column] != b[column])):
        truths = zip(*(part.iloc[differing[:3]] for part in (a["filename"], a[column], b[column])), strict=True)
        first = ", ".join(f"{name} ({one}, then {other})" for name, one, other in truths)
        raise ComparisonError(f"{which}{len(differing)} images have two {what}, first {first}; {REMEDY}")


def compare_protocols(
    first: pd.DataFrame, second: pd.DataFrame, sides: tuple[Protocol, Protocol], replicates: int = 1000
) -> pd.DataFrame:
    """Compares two protocols wherever a dataset, encoder and seed have records of both.

    Args:
        first: Rows of `paper_scores` of the first protocol: one row per run and metric.
        second: The same for the second.
        replicates: Bootstrap replicates, and permutations.

    Returns:
        One row per pair and metric: dataset, encoder, seed, their labels, metric, headline, images; the scores in
        columns named after the two protocols, and views (the second with test-time views, if any), each with `_low`
        and `_high`; difference (second minus first, one view) with low and high, p_value, verdict (by that interval);
        the ids of the two records. All are recomputed from the predictions. Records that do not match are left out
        with a ComparisonWarning.
    """
    names = tuple(side.name for side in sides)
    columns = [*_columns((*names, "views")), *CHANCE, "verdict", *(f"{name}_run" for name in names)]
    table = _compared(first, second, [*RUN, *LABELS], names, replicates)
    if table.empty:
        return table.reindex(columns=columns).astype({"headline": bool})
    table[VIEWS] = np.nan
    for folder, rows in table.groupby(f"{names[1]}_folder"):
        if (Path(folder) / "predictions_tta.csv").is_file():
            y, proba, _ = read_predictions(folder, "predictions_tta.csv")
            views = evaluate(y, proba, replicates, rows["seed"].iloc[0])
            table.loc[rows.index, VIEWS] = views.loc[rows["metric"], ["value", "low", "high"]].to_numpy()
    clear = (table["low"] > 0) | (table["high"] < 0)
    table["verdict"] = _verdict(table, clear, *(side.title for side in sides))
    return table[columns]


def compare_encoders(scores: pd.DataFrame, reference: str, replicates: int = 1000) -> pd.DataFrame:
    """Compares one encoder with every other wherever a dataset and seed have records of both.

    Holm's correction runs over the datasets, for each other encoder and metric. The headline metrics, which differ
    between datasets but are read together, are a family of their own: p_holm of a headline row is corrected within it.

    Args:
        scores: Rows of `paper_scores` of one protocol: one row per run and metric.
        reference: The encoder that the others are compared with.
        replicates: Bootstrap replicates, and permutations.

    Returns:
        One row per dataset, other encoder and metric: dataset, encoder (the other), seed, their labels,
        reference_label, metric, headline, images; the scores reference and other, each with `_low` and `_high`;
        difference (reference minus other) with low and high; p_value (permutations), p_holm (corrected), p_t (the
        paper's t-test), verdict (by p_holm); the ids of the two records. All are recomputed from the predictions.
        Records that do not match are left out with a ComparisonWarning.
    """
    sides = ("other", "reference")
    columns = [*_columns(sides[::-1]), *CHANCE, "p_holm", "p_t", "verdict", "reference_run", "other_run"]
    columns.insert(columns.index("metric"), "reference_label")
    of_reference = scores["encoder"] == reference
    table = _compared(
        scores[~of_reference], scores[of_reference], ["dataset", "dataset_label", "seed"], sides, replicates
    )
    if table.empty:
        return table.reindex(columns=columns).astype({"headline": bool})
    table = table.rename(columns={"reference_encoder_label": "reference_label"})
    table["p_holm"] = table.groupby(["encoder", "seed", "metric"])["p_value"].transform(holm)
    headline = table[table["headline"]]
    table.loc[headline.index, "p_holm"] = headline.groupby(["encoder", "seed"])["p_value"].transform(holm)
    table["verdict"] = _verdict(table, table["p_holm"] < ALPHA, table["encoder_label"], table["reference_label"])
    return table[columns]


def _compared(first: pd.DataFrame, second: pd.DataFrame, on: list[str], sides: tuple, replicates: int) -> pd.DataFrame:
    """Compares each run of `first` with the run of `second` that agrees in `on`: one row per pair and metric.

    Columns: those of `paired_difference` with a and b renamed to `sides`, p_value, images, headline, and the facts of
    the runs: of the first under their own names, such as encoder; of the second prefixed with the name of its side.
    """
    if first.empty or second.empty:
        return pd.DataFrame()
    kept = [*RUN, *LABELS, "run_id", "folder"]
    runs = [rows.loc[rows["headline"], [*kept, "metric"]].drop_duplicates("run_id") for rows in (first, second)]
    pairs = runs[0].merge(runs[1][kept], on=on, suffixes=("", "_b"))
    tables = []
    for pair in pairs.to_dict(orient="records"):
        try:
            table = _compare_pair(pair, replicates)
        except ComparisonError as error:
            warnings.warn(str(error), ComparisonWarning, stacklevel=3)
            continue
        table["headline"] = table.index == pair.pop("metric")
        tables.append(table.assign(**pair).reset_index())
    names = {f"{letter}{end}": f"{side}{end}" for letter, side in zip("ab", sides, strict=True) for end in ENDS}
    names |= {f"{name}_b": f"{sides[1]}_{name}" for name in kept} | {"run_id": f"{sides[0]}_run"}
    names |= {"run_id_b": f"{sides[1]}_run"}
    return pd.concat(tables, ignore_index=True).rename(columns=names) if tables else pd.DataFrame()


def _compare_pair(pair: dict, replicates: int) -> pd.DataFrame:
    """Returns the columns of `paired_difference`, p_value and images, one row per metric."""
    folders = pair["folder"], pair["folder_b"]
    if scores_masks(pd.read_csv(Path(folders[0]) / "predictions.csv", nrows=0)):
        *scores, clusters = read_scores_pair(*folders)
        table = compare_image_scores(*scores, clusters, replicates, pair["seed"])
        return table.assign(images=len(scores[0]))
    y, proba_a, proba_b = read_pair(*folders)
    classes = load_dataset_manifest(pair["dataset"]).class_names
    options = replicates, pair["seed"], [f"{name} ({pair['dataset_label']})" for name in classes]
    table = paired_difference(y, proba_a, proba_b, *options)
    return table.assign(p_value=permutation_test(y, proba_a, proba_b, *options), images=len(y))


def _columns(sides: tuple) -> list[str]:
    return [*RUN, *LABELS, "metric", "headline", "images", *(f"{side}{end}" for side in sides for end in ENDS)]


def _verdict(table: pd.DataFrame, clear, a, b) -> np.ndarray:
    """Says which of the two is better where the difference is clear of chance; a and b are their names."""
    difference = table["difference"].mask(table["metric"].isin(LOWER_IS_BETTER), -table["difference"])
    which = [difference.isna(), clear & (difference > 0), clear & (difference < 0)]
    return np.select(which, ["not defined", b + " is better", a + " is better"], "no difference to be seen")


def _what_differs(names_a: list[str], names_b: list[str]) -> str:
    """Names the images that only one record has, or that it has more often."""
    only_a, only_b = sorted(set(names_a) - set(names_b)), sorted(set(names_b) - set(names_a))
    sides = (("first", only_a), ("second", only_b))
    parts = [f"only the {side} has {', '.join(names[:3])} ({len(names)} in all)" for side, names in sides if names]
    return "; ".join(parts) or f"the first has {len(names_a)} rows, the second {len(names_b)}: an image counts twice"
