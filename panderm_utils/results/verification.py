"""Verifies every record: its files and rows by their digests, its id by its settings, its metrics by recomputing them.

A number of a record is confirmed if the same predictions, seed and number of replicates give it again, interval
included. Each protocol recomputes its own, in `Protocol.recompute`. A record of an unknown protocol counts as
unverified. What this cannot detect: a record whose predictions, metrics and digests were all forged to agree.
"""

import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from panderm_utils.manifests import ManifestError, Pair, Protocol, load_encoder_manifest
from panderm_utils.pool import in_processes
from panderm_utils.results.classifier_file import evaluate_sets
from panderm_utils.results.identity import changed_files, load_record, settled_id
from panderm_utils.results.records import describe_scored, read_predictions
from panderm_utils.stats import MetricWarning

TOLERANCE = 1e-9
DIFFERS = "differs"
SHOWN = 10  # maximum numbers per record in a message
UNKNOWABLE = "A record forged in all its parts would pass; only running again can tell."
COLUMNS = ["run_id", "metric", "column", "stored", "recomputed", "difference", "problem"]
# Raised on reading a damaged file: missing, truncated, not gzip, not a table, not numbers, columns missing.
DAMAGE = (OSError, EOFError, zlib.error, ValueError, KeyError)


def verify_records(root: Path, find: Callable[[str], Protocol], jobs: int = 2) -> pd.DataFrame:
    """Returns the stored and recomputed metrics of all records below `root`; runs several processes.

    Args:
        find: Returns a protocol by its name, or raises a ManifestError: `protocols.load_protocol`.

    Returns:
        One row per number: run_id, metric, column ("value", "low", ...), stored, recomputed, difference, problem. The
        problem is "" if the two agree to TOLERANCE, else DIFFERS; a record that cannot be compared has one row with
        the reason.
    """
    folders = sorted(path for path in Path(root).glob("[!.]*") if path.is_dir())
    tables = in_processes(partial(_verify_record, find), folders, jobs, "verify")
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def describe_verification(table: pd.DataFrame) -> str:
    """Returns one line if all records are confirmed, else also the numbers that are not."""
    wrong = table[table["problem"] != ""]
    records, compared = table["run_id"].nunique(), int((table["column"] == "value").sum())
    counted = f"{records:,} records, {compared:,} metrics recomputed with their intervals"
    if wrong.empty:
        return f"{counted}: all equal (to {TOLERANCE:g}), all files as written. {UNKNOWABLE}"
    lines = [f"{counted}: {wrong['run_id'].nunique():,} of the records cannot be confirmed", ""]
    for run, rows in wrong.groupby("run_id", sort=False):
        lines.append(run)
        for row in rows.head(SHOWN).itertuples(index=False):
            numbers = f"stored {row.stored:.10g}, recomputed {row.recomputed:.10g}"
            lines.append(f"  {row.metric} {row.column}: {numbers}" if row.problem == DIFFERS else f"  {row.problem}")
        if len(rows) > SHOWN:
            lines.append(f"  ... and {len(rows) - SHOWN:,} more")
    return "\n".join(lines)


def _verify_record(find: Callable[[str], Protocol], folder: Path) -> pd.DataFrame:
    rows, problems = [], []
    try:
        record = load_record(folder)
        problems += changed_files(record, folder)
        protocol = find(record["protocol"])
        rows = [(folder.name, *pair) for pair in _compared(protocol.recompute(record, folder))]
        problems += [] if rows else ["holds no metric"]
        problems += _inconsistencies(record, protocol, folder)
    except ManifestError as error:
        problems.append(f"cannot be verified: {error}")
    except DAMAGE as error:
        problems.append(f"damaged: no {error.args[0]!r} in it" if isinstance(error, KeyError) else f"damaged: {error}")
    rows += [(folder.name, "", "", np.nan, np.nan, np.nan, problem) for problem in problems]
    return pd.DataFrame(rows, columns=COLUMNS)


def _inconsistencies(record: dict, protocol: Protocol, folder: Path) -> Iterator[str]:
    """Yields what in a record contradicts its id, as if another record had been put in its place."""
    identity = (record["dataset"], record["encoder"], record["seed"], record["settings"])
    if (expected := settled_id(protocol, *identity)) != folder.name:
        yield f"its dataset, encoder, seed and settings are those of {expected}"
    title = load_encoder_manifest(record["encoder"]).title
    if (found := record.get("encoder_facts", {}).get("title", title)) != title:
        yield f"its encoder was {found}, not {title}"
    table = pd.read_csv(folder / "predictions.csv", dtype=str)
    if describe_scored(table) != record["scored"]:
        yield "the images and their labels or masks in predictions.csv are not those that were scored"


def _compared(pairs: Iterator[Pair]) -> Iterator[tuple]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)  # shown when the record was made
        for metric, column, stored, again in pairs:
            stored = np.nan if stored is None else float(stored)
            same = np.isclose(stored, again, rtol=0, atol=TOLERANCE, equal_nan=True)
            yield metric, column, stored, again, again - stored, "" if same else DIFFERS


def resampling(record: dict) -> dict:
    """Returns the number of replicates and the seed of a record's bootstrap."""
    return {"replicates": record["settings"]["replicates"], "seed": record["seed"]}


def compare_metrics(stored: dict, again: pd.DataFrame, suffix: str = "") -> Iterator[Pair]:
    """Yields the stored metrics of a record, each with its value in a recomputed table (index: metric)."""
    for metric, numbers in stored.items():
        name = metric.removesuffix(suffix)
        for column, value in numbers.items():
            computed = name in again.index and column in again.columns
            yield metric, column, value, float(again.loc[name, column]) if computed else np.nan


def recompute_predictions(score: Callable, record: dict, folder: Path) -> Iterator[Pair]:
    """Yields the metrics of predictions.csv and, with the suffix _tta, of predictions_tta.csv if the record has any.

    If it has prediction sets, their threshold (from predictions_val.csv), coverage and size are among them.

    Args:
        score: As `stats.evaluate`.
    """
    parts = {"": "predictions.csv", "_tta": "predictions_tta.csv"}
    for suffix, file in parts.items():
        stored = {m: n for m, n in record["metrics"].items() if m.endswith("_tta") == bool(suffix)}
        if stored:
            y, proba, _ = read_predictions(folder, file)
            yield from compare_metrics(stored, score(y, proba, **resampling(record)), suffix)
    if stored := record.get("prediction_sets"):
        on_val, on_test = (pd.read_csv(folder / f"predictions{part}.csv", dtype=str) for part in ("_val", ""))
        again = evaluate_sets(on_val, on_test)
        yield from (("prediction_sets", name, stored.get(name), value) for name, value in again.items())
