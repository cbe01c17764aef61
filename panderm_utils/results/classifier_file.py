"""`classifier.safetensors` of a record: what its classifier needs besides the weights of its encoder.

    facts     JSON: protocol, encoder and the digest of its weights, transform, class names, digest of the data, ...
    tensors   mean and factor (`stats.Familiarity`), and those that the protocol adds, such as a probe's weight and bias

It holds numbers and JSON; nothing in it can be executed. Its digest is among those that a record keeps of its files.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import save

from panderm_utils import stats
from panderm_utils.messages import UserError
from panderm_utils.results.identity import read_record, run_again
from panderm_utils.results.records import Run, csv_bytes, parse_predictions

CLASSIFIER_FILE = "classifier.safetensors"
FACTS = "panderm_utils"  # our entry in a safetensors header
FORMAT = 1  # increase it when the meaning of a file changes


def keep_classifier(
    run: Run,
    class_names: Sequence[str],
    x: np.ndarray,
    predictions: pd.DataFrame,
    on_val: pd.DataFrame | None,
    tensors: Mapping[str, np.ndarray],
    **facts: object,
) -> pd.DataFrame:
    """Adds the classifier and the predictions on val to a run's record; returns a row: its prediction sets on test.

    Args:
        run: Its `encoder_facts` and `data` are noted.
        class_names: K names, in label order.
        x: Features [N, D] of the training images, for the distance of new images from them.
        predictions, on_val: `prediction_table(...)` of test and val; without val images (None) there are no sets.
        tensors: Of the classifier, by name.
        facts: About it, JSON-serializable.
    """
    encoder, data = run.notes["encoder_facts"], run.notes["data"]
    sets = None if on_val is None else evaluate_sets(on_val, predictions)
    familiarity = stats.measure_familiarity(x)
    about = {
        "format": FORMAT,
        "protocol": run.protocol.name,
        "dataset": run.dataset,
        "encoder": run.encoder,
        "encoder_digest": encoder["digest"],
        "transform": encoder["transform"],
        "class_names": list(class_names),
        "data_sha256": data["rows_sha256"],
        "synthetic": run.workspace.synthetic,
        "limit": familiarity.limit,
        "sets": sets,
        **facts,
    }
    arrays = {"mean": familiarity.mean, "factor": familiarity.factor, **tensors}
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    run.files[CLASSIFIER_FILE] = save(plain, {FACTS: json.dumps(about)})
    if sets is None:
        return pd.DataFrame({"val images": [0], "prediction sets": "none: there is no val split"})
    run.note(prediction_sets=sets)
    run.files["predictions_val.csv"] = csv_bytes(on_val)
    shown = {"val images": sets["val_images"], "threshold": sets["threshold"], "asked": sets["asked"]}
    shown |= {"coverage on test": sets["coverage"], "classes in a set": sets["mean_size"]}
    return pd.DataFrame([shown])


def evaluate_sets(on_val: pd.DataFrame, predictions: pd.DataFrame) -> dict[str, float]:
    """Returns `stats.evaluate_prediction_sets` of two tables of predictions, rows of strings or numbers."""
    (val_y, val_proba, _), (y, proba, _) = (parse_predictions(table) for table in (on_val, predictions))
    return stats.evaluate_prediction_sets(val_y, val_proba, y, proba)


def read_classifier_file(folder: str | Path) -> tuple[dict, dict, dict[str, np.ndarray]]:
    """Returns the record in `folder`, and facts and tensors of its classifier; all files are as they were written.

    Raises:
        ValueError: The record is damaged, or keeps no classifier that this version reads; the message says what to do.
    """
    record = read_record(folder)
    again = run_again(record)
    if CLASSIFIER_FILE not in record["files"]:
        raise UserError(f"{folder}: keeps no classifier, as an older version wrote it; {again}")
    with safe_open(Path(folder) / CLASSIFIER_FILE, "np") as file:
        facts = json.loads((file.metadata() or {}).get(FACTS, "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
    if facts.get("format") != FORMAT:
        raise UserError(f"{folder}: its classifier has format {facts.get('format')}, not {FORMAT}; {again}")
    return record, facts, tensors
