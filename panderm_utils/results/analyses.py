"""Calibration, operating points and subgroups of records: what `stats` computes of arrays, from stored predictions."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from panderm_utils.manifests import load_dataset_manifest
from panderm_utils.results.records import read_predictions
from panderm_utils.stats import (
    BINS,
    LEVELS,
    Gap,
    compare_groups,
    evaluate_calibration,
    group_labels,
    operating_points,
    reliability,
)


def calibrate_records(
    scores: pd.DataFrame, bins: int = BINS, equal_mass: bool = False, replicates: int = 1000
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the reliability tables of some records one below the other, and a row a record of what they add up to.

    Args:
        scores: A row a record, of `tables.paper_scores`.

    Returns:
        Both begin with dataset, encoder, dataset_label, encoder_label, run_id. The first goes on as `reliability`, the
        second with classes, images and ece, ece_low, ece_high, ece_by_chance, brier, brier_low, brier_high.
    """
    keys, tables, rows = ["dataset", "encoder", "dataset_label", "encoder_label", "run_id"], [], []
    for run in scores.to_dict(orient="records"):
        y, proba, _ = read_predictions(run["folder"])
        named = {key: run[key] for key in keys}
        tables.append(reliability(y, proba, bins, equal_mass).assign(**named))
        row = {**named, "classes": proba.shape[1], "images": len(y)}
        for metric, found in evaluate_calibration(y, proba, bins, equal_mass, replicates, run["seed"]).iterrows():
            row |= {metric: found["value"], **{f"{metric}_{end}": found[end] for end in ("low", "high", "by_chance")}}
        rows.append(row)
    numbers = ["ece", "ece_low", "ece_high", "ece_by_chance", "brier", "brier_low", "brier_high"]
    ends = ["from", "to", "images", "predicted", "observed", "low", "high"]
    every = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=ends)
    return every.reindex(columns=keys + ends), pd.DataFrame(rows, columns=[*keys, "classes", "images", *numbers])


def points_of_records(scores: pd.DataFrame, levels: Sequence[float] = LEVELS, replicates: int = 1000) -> pd.DataFrame:
    """Returns the operating points of some records (a row each of `tables.paper_scores`), one below the other.

    Columns: dataset, encoder, dataset_label, encoder_label, run_id, binary (two classes), and those of
    `operating_points`.
    """
    keys, tables = ["dataset", "encoder", "dataset_label", "encoder_label", "run_id"], []
    for run in scores.to_dict(orient="records"):
        y, proba, _ = read_predictions(run["folder"])
        names = [c.long_name for c in load_dataset_manifest(run["dataset"]).classes]
        table = operating_points(y, proba, names, levels, replicates, run["seed"])
        tables.append(table.assign(**{key: run[key] for key in keys}, binary=proba.shape[1] == 2))
    columns = ["class", "images", "others", "given", "level", "measured", "value", "low", "high"]
    every = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*columns, "binary"])
    return every.astype({"binary": bool}).reindex(columns=[*keys, "binary", *columns])


def read_subgroups(scores: pd.DataFrame, replicates: int = 1000) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Compares the groups of some records in each kind of metadata that they hold.

    Args:
        scores: A row a record, of `tables.paper_scores`; its metric is the one that is compared.

    Returns:
        The groups and the gaps, both beginning with dataset, dataset_label, encoder_label, metric, run_id, kind and
        going on as `compare_groups` has them; and a row a record that has no metadata: dataset, encoder, why, command.
    """
    keys = ["dataset", "dataset_label", "encoder_label", "metric", "run_id"]
    groups, gaps, without = [], [], []
    for run in scores.to_dict(orient="records"):
        y, proba, names = read_predictions(run["folder"])
        metadata, why = _metadata(run, names)
        if why:
            without.append({"dataset": run["dataset"], "encoder": run["encoder"], **why})
        for kind in metadata:
            named = {**{key: run[key] for key in keys}, "kind": kind}
            labels = group_labels(kind, metadata[kind])
            table, gap = compare_groups(y, proba, labels, run["metric"], replicates, run["seed"])
            groups.append(table.assign(**named))
            gaps.append({**named, **vars(gap)})
    columns = ["group", "images", "classes", "rarest", "value", "low", "high", "judged", "note"]
    every = pd.concat(groups, ignore_index=True) if groups else pd.DataFrame(columns=columns)
    every = every.astype({"judged": bool}).reindex(columns=[*keys, "kind", *columns])
    gaps = pd.DataFrame(gaps, columns=[*keys, "kind", *vars(Gap())])
    return every, gaps, pd.DataFrame(without, columns=["dataset", "encoder", "why", "command"])


def _metadata(run: dict, names: list[str]) -> tuple[pd.DataFrame, dict]:
    """Returns a column a kind, a row an image of `names`; and why there is none, with the command that helps."""
    path = Path(run["folder"]) / "metadata.csv"
    if not path.is_file():
        chosen = f"--protocols {run['protocol']} --datasets {run['dataset']} --encoders {run['encoder']}"
        command = f"python run_all.py --profile {run['profile']} {chosen} --seeds {run['seed']} --force"
        return pd.DataFrame(), {"why": "its record was written before records kept metadata", "command": command}
    # An image that stands in two rows is one image.
    table = pd.read_csv(path, dtype=str, keep_default_na=False).drop_duplicates("filename").set_index("filename")
    why = {} if len(table.columns) else {"why": "no column that the manifest maps is in its CSV", "command": "none"}
    return table.loc[names], why
