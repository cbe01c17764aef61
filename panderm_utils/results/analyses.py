"""Calibration, operating points and subgroups of records, computed by `stats` from their stored predictions."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from panderm_utils.manifests import load_dataset_manifest
from panderm_utils.messages import UserError
from panderm_utils.results.image_scores import parse_image_scores, scores_masks
from panderm_utils.results.records import parse_predictions, read_predictions
from panderm_utils.stats import (
    BINS,
    LEVELS,
    Gap,
    compare_group_means,
    compare_groups,
    evaluate_calibration,
    group_labels,
    operating_points,
    reliability,
)


def calibration_of_records(
    scores: pd.DataFrame, bins: int = BINS, equal_mass: bool = False, replicates: int = 1000
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the reliability tables of records, concatenated, and a table of their calibration metrics.

    Args:
        scores: One row per record, from `paper_scores`.

    Returns:
        Both begin with dataset, encoder, dataset_label, encoder_label, run_id. The first is as `reliability`, the
        second, one row per record, with classes, images and ece, brier with `_low`, `_high` each, ece_by_chance.
    """
    keys, tables, rows = ["dataset", "encoder", "dataset_label", "encoder_label", "run_id"], [], []
    for run in scores.to_dict(orient="records"):
        y, proba, _ = read_predictions(run["folder"])
        named = {key: run[key] for key in keys}
        tables.append(reliability(y, proba, bins, equal_mass).assign(**named))
        row = {**named, "classes": proba.shape[1], "images": len(y)}
        for metric, numbers in evaluate_calibration(y, proba, bins, equal_mass, replicates, run["seed"]).iterrows():
            row[metric] = numbers["value"]
            row |= {f"{metric}_{end}": numbers[end] for end in ("low", "high", "by_chance")}
        rows.append(row)
    metrics = ["ece", "ece_low", "ece_high", "ece_by_chance", "brier", "brier_low", "brier_high"]
    ends = ["from", "to", "images", "predicted", "observed", "low", "high"]
    bins_table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=ends)
    return bins_table.reindex(columns=keys + ends), pd.DataFrame(rows, columns=[*keys, "classes", "images", *metrics])


def operating_points_of_records(
    scores: pd.DataFrame, levels: Sequence[float] = LEVELS, replicates: int = 1000
) -> pd.DataFrame:
    """Returns the operating points of records (rows of `paper_scores`), concatenated.

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
    points = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*columns, "binary"])
    return points.astype({"binary": bool}).reindex(columns=[*keys, "binary", *columns])


def subgroups_of_records(
    scores: pd.DataFrame, replicates: int = 1000
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Compares subgroups of records by each kind of metadata that they have.

    Args:
        scores: One row per record, from `paper_scores`; its metric is compared.

    Returns:
        The groups and the gaps, both with dataset, dataset_label, encoder_label, metric, run_id, kind and then the
        columns of `compare_groups` (of masks, without classes and rarest); and one row per record without metadata:
        dataset, encoder, why, command.
    """
    keys = ["dataset", "dataset_label", "encoder_label", "metric", "run_id"]
    groups, gaps, without = [], [], []
    for run in scores.to_dict(orient="records"):
        compare, names = _group_comparison(run, replicates)
        metadata, why = _metadata(run, names)
        if why:
            without.append({"dataset": run["dataset"], "encoder": run["encoder"], **why})
        for kind in metadata:
            named = {**{key: run[key] for key in keys}, "kind": kind}
            table, gap = compare(group_labels(kind, metadata[kind]))
            groups.append(table.assign(**named))
            gaps.append({**named, **vars(gap)})
    columns = ["group", "images", "classes", "rarest", "value", "low", "high", "judged", "note"]
    group_table = pd.concat(groups, ignore_index=True) if groups else pd.DataFrame(columns=columns)
    group_table = group_table.astype({"judged": bool}).reindex(columns=[*keys, "kind", *columns])
    gaps = pd.DataFrame(gaps, columns=[*keys, "kind", *vars(Gap())])
    return group_table, gaps, pd.DataFrame(without, columns=["dataset", "encoder", "why", "command"])


def _group_comparison(run: dict, replicates: int) -> tuple[Callable, list[str]]:
    """Returns the function that compares groups [N] in a run's metric, and its images' names."""
    table = pd.read_csv(Path(run["folder"]) / "predictions.csv", dtype=str)
    if scores_masks(table):
        scores, clusters, names = parse_image_scores(table)
        values = scores[run["metric"]]
        return lambda groups: compare_group_means(values, groups, clusters, replicates, run["seed"]), names
    y, proba, names = parse_predictions(table)
    return lambda groups: compare_groups(y, proba, groups, run["metric"], replicates, run["seed"]), names


def _metadata(run: dict, names: list[str]) -> tuple[pd.DataFrame, dict]:
    """Returns one column per kind and one row per image of `names`; or the reason for having none, and the remedy."""
    path = Path(run["folder"]) / "metadata.csv"
    if not path.is_file():
        selection = f"--protocols {run['protocol']} --datasets {run['dataset']} --encoders {run['encoder']}"
        command = f"python run_all.py --profile {run['profile']} {selection} --seeds {run['seed']} --force"
        return pd.DataFrame(), {"why": "its record was written before records kept metadata", "command": command}
    # An image listed in two rows counts once.
    table = pd.read_csv(path, dtype=str, keep_default_na=False).drop_duplicates("filename").set_index("filename")
    if set(table.index) != set(names):
        raise UserError(f"{path}: its images are not those of predictions.csv; repeat the run")
    why = {} if len(table.columns) else {"why": "its CSV has no column that the manifest maps", "command": "none"}
    return table.loc[names], why
