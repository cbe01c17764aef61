"""Recomputes every metric of every record from its stored predictions and tells which differ.

A number of a record is right if the same predictions, seed and number of replicates give it again, interval included.
Each protocol says in RECOMPUTE how: a function that takes a record and its folder and yields `Pair`s. A record of any
other protocol is not passed over: it counts as unverified.
"""

import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from panderm_utils.fine_tune_metrics import evaluate_fine_tuning
from panderm_utils.metrics import MetricWarning, evaluate
from panderm_utils.pool import in_processes
from panderm_utils.records import parse_predictions, read_predictions, read_record

TOLERANCE = 1e-9
DIFFERS = "differs"
SHOWN = 10  # numbers of a record that a message names
COLUMNS = ["run_id", "metric", "column", "stored", "recomputed", "difference", "problem"]
# What reading a damaged file raises: lost, cut off, not gzip, not a table, not numbers, columns missing.
DAMAGE = (OSError, EOFError, zlib.error, ValueError, KeyError)

# A metric, one of its columns, what the record holds and what its predictions give.
Pair = tuple[str, str, float | None, float]


def verify_records(root: Path, jobs: int = 2) -> pd.DataFrame:
    """Recomputes the metrics of all records below `root`, in several processes.

    Returns:
        A row a number: run_id, metric, column ("value", "low", ...), stored, recomputed, difference, problem. The
        problem is "" where the two agree to TOLERANCE, DIFFERS where they do not; where there was nothing to compare,
        one row names the record and says why.
    """
    folders = sorted(path for path in Path(root).glob("[!.]*") if path.is_dir())
    tables = in_processes(_verify_record, folders, jobs, "verify")
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def describe_verification(table: pd.DataFrame) -> str:
    """Says in a line that all is equal, or in a table what is not."""
    wrong = table[table["problem"] != ""]
    records, compared = table["run_id"].nunique(), int((table["column"] == "value").sum())
    counted = f"{records:,} records, {compared:,} metrics recomputed with their intervals"
    if wrong.empty:
        return f"{counted}: all equal (to {TOLERANCE:g})"
    lines = [f"{counted}: {wrong['run_id'].nunique():,} of the records cannot be confirmed", ""]
    for run, rows in wrong.groupby("run_id", sort=False):
        lines.append(run)
        for row in rows.head(SHOWN).itertuples(index=False):
            numbers = f"stored {row.stored:.10g}, recomputed {row.recomputed:.10g}"
            what = f"{row.metric} {row.column}: {numbers}" if row.problem == DIFFERS else row.problem
            lines.append(f"  {what}")
        if len(rows) > SHOWN:
            lines.append(f"  ... and {len(rows) - SHOWN:,} more")
    return "\n".join(lines)


def _verify_record(folder: Path) -> pd.DataFrame:
    rows, problem = [], ""
    try:
        record = read_record(folder)
        recompute = RECOMPUTE.get(record["protocol"])
        if recompute is None:
            problem = f"cannot be verified: unknown protocol {record['protocol']!r}"
        else:
            rows = [(folder.name, *pair) for pair in _compared(recompute(record, folder))]
            problem = "" if rows else "holds no metric"
    except DAMAGE as error:
        problem = f"damaged: no {error.args[0]!r} in it" if isinstance(error, KeyError) else f"damaged: {error}"
    if problem:
        rows.append((folder.name, "", "", np.nan, np.nan, np.nan, problem))
    return pd.DataFrame(rows, columns=COLUMNS)


def _compared(pairs: Iterator[Pair]) -> Iterator[tuple]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)  # the run that left the record was told
        for metric, column, stored, again in pairs:
            stored = np.nan if stored is None else float(stored)
            same = np.isclose(stored, again, rtol=0, atol=TOLERANCE, equal_nan=True)
            yield metric, column, stored, again, again - stored, "" if same else DIFFERS


def _drawing(record: dict) -> dict:
    """The resamples behind a record's intervals."""
    return {"replicates": record["settings"]["replicates"], "seed": record["seed"]}


def _compare(stored: dict, again: pd.DataFrame, suffix: str = "") -> Iterator[Pair]:
    """Pairs the metrics of a record with a table of recomputed ones (index: metric)."""
    for metric, numbers in stored.items():
        name = metric.removesuffix(suffix)
        for column, value in numbers.items():
            known = name in again.index and column in again.columns
            yield metric, column, value, float(again.loc[name, column]) if known else np.nan


def _from_predictions(score: Callable, record: dict, folder: Path) -> Iterator[Pair]:
    """The metrics of predictions.csv and, with the suffix _tta, of predictions_tta.csv where there are any."""
    parts = {"": "predictions.csv", "_tta": "predictions_tta.csv"}
    for suffix, file in parts.items():
        stored = {m: n for m, n in record["metrics"].items() if m.endswith("_tta") == bool(suffix)}
        if stored:
            y, proba, _ = read_predictions(folder, file)
            yield from _compare(stored, score(y, proba, **_drawing(record)), suffix)


def _label_efficiency(record: dict, folder: Path) -> Iterator[Pair]:
    """The metrics of all labels, then those of every fraction and draw (draws.csv) and their curve (curve.csv)."""
    from panderm_utils import label_efficiency as study  # loads torch, which the other protocols do not need

    sweep, y = study.read_sweep(folder)
    curve = study.score_sweep(sweep, y, **_drawing(record))
    yield from _compare(record["metrics"], study.full_scores(curve))
    for file, again in (("draws.csv", study.draw_scores(sweep, y)), ("curve.csv", curve)):
        keys = [name for name in ("fraction", "draw", "metric") if name in again]
        stored = study.read_numbers(folder / file)
        numbers = [name for name in stored.columns if name not in (*keys, "images", "draws")]
        both = stored.merge(again, on=keys, how="outer", suffixes=("", "_again"))
        for row in both.to_dict(orient="records"):
            draw = f", draw {row['draw']}" if "draw" in row else ""
            what = f"{row['metric']} of {row['fraction']:.0%}{draw} ({file})"
            for column in numbers:
                yield what, column, row[column], row[f"{column}_again"]


def _external_validation(record: dict, folder: Path) -> Iterator[Pair]:
    """The metrics of the source's own test split, and those of every target (external.csv), of which AUROC twice."""
    table, scores = pd.read_csv(folder / "predictions_external.csv.gz", dtype=str), {}
    for target, rows in table.groupby("dataset", sort=False):
        y, proba, _ = parse_predictions(rows)
        scores[target] = evaluate(y, proba, **_drawing(record))
    y, proba, _ = read_predictions(folder)
    areas = {f"auroc_{target}": numbers.loc["auroc"] for target, numbers in scores.items()}
    yield from _compare(record["metrics"], pd.concat([evaluate(y, proba, **_drawing(record)), pd.DataFrame(areas).T]))
    for row in pd.read_csv(folder / "external.csv", dtype=str).to_dict(orient="records"):
        for column, again in scores[row["dataset"]].loc[row["metric"]].items():
            yield f"{row['metric']} on {row['dataset']} (external.csv)", column, row[column], again


# Protocol -> what recomputes a record of it.
RECOMPUTE: dict[str, Callable[[dict, Path], Iterator[Pair]]] = {
    "linear_probe": partial(_from_predictions, evaluate),
    "fine_tune": partial(_from_predictions, evaluate_fine_tuning),
    "label_efficiency": _label_efficiency,
    "external_validation": _external_validation,
}
