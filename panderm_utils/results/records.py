"""Records: each run writes one, a folder with its settings and results.

    records/<run id>/record.json      identity, settings, metrics with intervals, timings, environment, warnings
    records/<run id>/predictions.csv  one row per test image, in upstream's layout; or the scores of its mask
    records/<run id>/metadata.csv     age, sex, site, ... of the test images, if the CSV has them
    records/<run id>/classifier.safetensors   to predict new images, see `classifier_file`; of some protocols

Tables and figures are drawn from records alone; every metric can be recomputed from the predictions.
"""

import gzip
import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd

from panderm_utils import data
from panderm_utils.data import Dataset
from panderm_utils.disk import room_for, temporary
from panderm_utils.manifests import Protocol
from panderm_utils.messages import UserError
from panderm_utils.results.environment import describe_environment, peak_memory_mb
from panderm_utils.results.identity import SCHEMA, read_record, run_id, settle_settings
from panderm_utils.results.image_scores import scores_masks
from panderm_utils.workspace import Workspace

UNDEFINED = "undefined"  # a metric that the test split cannot give, such as AUROC of one class


class RecordWarning(UserWarning):
    """A record that cannot be read is left out."""


class IncompleteWarning(UserWarning):
    """The data miss the numbers in their manifest."""


@dataclass
class Run:
    """A run in progress: its identity, its folders, and what its record will hold: the facts noted so far (see `note`),
    and further files by name."""

    run_id: str
    dataset: str
    protocol: Protocol
    encoder: str
    seed: int
    settings: dict
    workspace: Workspace
    started: float = field(default_factory=time.perf_counter)
    notes: dict = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.workspace.records / self.run_id

    def note(self, **facts) -> None:
        """Adds JSON-serializable facts to the record: `run.note(data={...})`; dicts under the same name are merged."""
        for key, value in facts.items():
            both_dicts = isinstance(value, dict) and isinstance(self.notes.get(key), dict)
            self.notes[key] = {**self.notes[key], **value} if both_dicts else value


def begin_run(protocol: Protocol, dataset: str, encoder: str, seed: int, workspace: Workspace, **settings) -> Run:
    """Returns a run whose clock has started; from now on warnings are shown as usual and kept for the record.

    Args:
        settings: All other settings that affect the result, such as `solver="published"`; those that differ from the
            protocol's defaults, and the profile's changes, become part of the run's id.
    """
    settings = settle_settings(protocol, workspace.profile, settings)
    name = run_id(protocol, workspace.profile, dataset, encoder, seed, **settings)
    run = Run(name, dataset, protocol, encoder, seed, settings, workspace)
    show = getattr(warnings.showwarning, "shows", warnings.showwarning)  # a cell run twice must not install two hooks

    def listen(message, category, filename, lineno, file=None, line=None):
        text = f"{category.__name__}: {message}"
        if text not in run.warnings:
            run.warnings.append(text)
        show(message, category, filename, lineno, file, line)

    listen.shows = show
    warnings.showwarning = listen
    warnings.simplefilter("default", append=True)  # so that a second run sees warnings that Python has already shown
    return run


def note_data(
    run: Run, dataset: Dataset, allow_incomplete: bool = False, targets: Mapping[str, Dataset] | None = None
) -> None:
    """Notes the facts of a run's dataset, after a check that it is as large as its manifest says.

    Args:
        allow_incomplete: Whether data that miss the manifest's numbers are a warning, and the record's `incomplete`,
            instead of an error. Synthetic stand-ins are smaller on purpose.
        targets: Further datasets that the run is tested on, by name.

    Raises:
        DataError: The data are incomplete, and that is not allowed.
    """
    if dataset.manifest.own != (run.workspace.profile == "own"):
        right = dataset.manifest.default_profile
        raise data.DataError(f'{dataset.manifest.name}: write profile = "{right}", not "{run.workspace.profile}"')
    run.note(data=data.describe(dataset))
    if targets is not None:
        run.note(targets={name: data.describe(target) for name, target in targets.items()})
    studied = [] if run.workspace.synthetic else [dataset, *(targets or {}).values()]
    missing = [f"{one.manifest.name}: {text}" for one in studied if (text := data.shortfall(one))]
    if not missing:
        return
    text = f"incomplete data: {'; '.join(missing)}"
    if not allow_incomplete:
        remedy = (
            "get the complete data, or set allow_incomplete = True (-p allow_incomplete=True) for a run that is not"
        )
        raise data.DataError(f"{text}; {remedy} comparable with the paper's")
    run.note(incomplete=text)
    warnings.warn(f"{text}; this run is not comparable with the paper's", IncompleteWarning, stacklevel=2)


def prediction_table(image_ids, y, proba) -> pd.DataFrame:
    """Returns predictions in upstream's layout: two classes have one `probability` (of class 1), more one per class.

    Args:
        image_ids: N names, as in the dataset's `image` column.
        y: True labels [N].
        proba: Class probabilities [N, K].
    """
    proba = np.asarray(proba, dtype=np.float64)
    table = pd.DataFrame({"filename": list(image_ids), "true_label": np.asarray(y)})
    table["predicted_label"] = proba.argmax(axis=1)
    if proba.shape[1] == 2:
        table["probability"] = proba[:, 1]
    else:
        table[[f"probability_class_{k}" for k in range(proba.shape[1])]] = proba
    return table


def read_predictions(folder: str | Path, file: str = "predictions.csv") -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns true labels [N], class probabilities [N, K] and image names of the record in `folder`."""
    return parse_predictions(pd.read_csv(Path(folder) / file, dtype=str))  # an image called 001 stays 001


def parse_predictions(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns the same as `read_predictions`, from a table of strings with N rows."""
    if scores_masks(table):
        raise UserError("these predictions are masks, not class probabilities: choose records of a protocol on classes")
    columns = table.filter(regex=r"^probability_class_\d+$")
    # Parsed by Python, which restores the exact number that was written.
    if columns.empty:
        positive = table["probability"].astype(float)
        proba = np.stack([1 - positive, positive], axis=1)
    else:
        proba = columns.astype(float).to_numpy()
    y = table["true_label"].astype(int).to_numpy()
    return y, proba, table["filename"].tolist()


def describe_scored(predictions: pd.DataFrame) -> dict:
    """Returns the number of rows of a predictions.csv, and a digest of their images and true labels or masks, in order.

    Two records with the same digest scored the same images against the same truth.
    """
    truth = "true_mask" if scores_masks(predictions) else "true_label"
    rows = predictions[["filename", truth]].to_csv(index=False, lineterminator="\n")
    return {"images": len(predictions), "rows_sha256": hashlib.sha256(rows.encode()).hexdigest()}


def worst_mistakes(predictions: pd.DataFrame, names, count: int = 12) -> pd.DataFrame:
    """Returns the `count` most confident wrong predictions: `filename`, `caption`, `probability`."""
    table = predictions[predictions["true_label"] != predictions["predicted_label"]].copy()
    columns = predictions.filter(regex=r"^probability_class_\d+$")
    if columns.empty:
        columns = pd.concat([1 - predictions["probability"], predictions["probability"]], axis=1)
    table["probability"] = columns.to_numpy().max(axis=1)[table.index]
    rows = zip(table["true_label"], table["predicted_label"], table["probability"], strict=True)
    table["caption"] = [f"true {names[true]}\npredicted {names[guess]} ({p:.0%})" for true, guess, p in rows]
    return table.nlargest(count, "probability")[["filename", "caption", "probability"]].reset_index(drop=True)


def save_record(
    run: Run,
    metrics: pd.DataFrame,
    predictions: pd.DataFrame,
    headline_metric: str,
    extra_tables: dict[str, pd.DataFrame] | None = None,
) -> Path:
    """Writes the record of a finished run and returns its folder; an older record of the same id is replaced.

    The folder is written under a temporary name and renamed, so a kill never leaves a partial record. The record holds
    the digest of each of its files and of the rows it scored; see `describe_scored`.

    Args:
        metrics: Index: metric; columns: at least value, low, high (`stats.evaluate`).
        predictions: `prediction_table(...)` of the test split; or scores of its masks, see `image_scores`.
        headline_metric: The metric that the paper reports for this kind of task.
        extra_tables: Further tables of the record by file name, such as "history.csv".
    """
    tables = {**(extra_tables or {}), "predictions.csv": predictions}
    files = {**{name: csv_bytes(table, name) for name, table in tables.items()}, **run.files}
    record = {
        "schema": SCHEMA,
        "run_id": run.run_id,
        "status": "done",
        "dataset": run.dataset,
        "protocol": run.protocol.name,
        "encoder": run.encoder,
        "seed": run.seed,
        "profile": run.workspace.profile,
        "synthetic": run.workspace.synthetic,
        "settings": run.settings,
        "headline_metric": headline_metric,
        "metrics": metrics.astype(object).where(metrics.notna(), None).to_dict(orient="index"),
        **run.notes,
        "scored": describe_scored(predictions),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "timings": {**run.notes.get("timings", {}), "total_seconds": round(time.perf_counter() - run.started, 3)},
        "peak_memory_mb": peak_memory_mb(),
        "environment": describe_environment(),
        "warnings": run.warnings,
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    text = json.dumps(record, indent=2, default=_plain, allow_nan=False, ensure_ascii=False) + "\n"
    files["record.json"] = text.encode()
    new, old = temporary(run.folder), temporary(run.folder, ".old")
    with room_for("the record", sum(map(len, files.values())), run.workspace.records):
        try:
            new.mkdir(parents=True)
            for name, content in files.items():
                (new / name).write_bytes(content)
            if run.folder.exists():
                run.folder.rename(old)  # `leftovers` restores it if this process dies before the next line
            new.rename(run.folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return run.folder


def summarise(run: Run, metrics: pd.DataFrame, headline_metric: str) -> pd.DataFrame:
    """Returns the main facts of a run that is about to be saved: one column, one row per fact."""
    value, *ends = (_number(metrics.loc[headline_metric, column]) for column in ("value", "low", "high"))
    encoder = {**run.notes.get("training", {}), **run.notes.get("encoder_facts", {})}
    facts = {
        "run": run.run_id,
        headline_metric: value if value == UNDEFINED else f"{value} [{', '.join(ends)}]",
        "weights (SHA-256)": encoder.get("digest"),
        "fingerprint": encoder.get("fingerprint"),
        "data (SHA-256 of the rows)": run.notes.get("data", {}).get("rows_sha256"),
        "device": encoder.get("device_name") or encoder.get("device"),
        "seconds": f"{time.perf_counter() - run.started:.1f}",
        "peak memory": ", ".join(f"{place} {mb:,} MB" for place, mb in peak_memory_mb().items() if mb is not None),
        "warnings": "\n".join(run.warnings) or "none",
        "folder": str(run.folder),
    }
    return pd.DataFrame({"record": {name: fact for name, fact in facts.items() if fact is not None}})


def read_records(root: str | Path, protocol: str | None = None) -> pd.DataFrame:
    """Reads all records below `root` (a workspace's `records` folder) into one tidy table: one row per run and metric.

    Columns: run_id, dataset, protocol, encoder, seed, profile, synthetic, the settings, headline (whether the metric
    is the run's headline metric), metric, value, low, high and any other columns of the metrics, test_images (number),
    folder. A damaged record is left out with a RecordWarning.
    """
    rows = []
    for path in sorted(Path(root).glob("[!.]*/record.json")):
        try:
            record = read_record(path.parent)
        except ValueError as error:
            warnings.warn(str(error), RecordWarning, stacklevel=2)
            continue
        keys = ("run_id", "dataset", "protocol", "encoder", "seed", "profile", "synthetic")
        shared = {**{k: record[k] for k in keys}, **record["settings"], "folder": str(path.parent)}
        shared["test_images"] = record["scored"]["images"]
        for metric, numbers in record["metrics"].items():
            rows.append({**shared, "metric": metric, "headline": metric == record["headline_metric"], **numbers})
    columns = ["run_id", "dataset", "protocol", "encoder", "seed", "metric", "headline", "value", "low", "high"]
    table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns).astype({"headline": bool})
    return table if protocol is None else table[table["protocol"] == protocol].reset_index(drop=True)


def _number(value: float | None) -> str:
    return UNDEFINED if pd.isna(value) else f"{value:.4f}"


def csv_bytes(table: pd.DataFrame, name: str = "") -> bytes:
    """Returns a table as the content of a file, compressed if its name ends in .gz."""
    content = table.to_csv(index=False, lineterminator="\n").encode()
    return gzip.compress(content, mtime=0) if name.endswith(".gz") else content


def _plain(value):
    """Converts NumPy scalars, arrays and paths for JSON."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a record cannot hold {type(value).__name__}")
