"""What leaking test images are worth: records scored without them, from their stored predictions alone."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from panderm_utils.audit.kinds import COPIES, KINDS
from panderm_utils.audit.pairs import Audit
from panderm_utils.figures import METRIC_TITLES
from panderm_utils.manifests import Protocol
from panderm_utils.results import parse_image_scores, parse_predictions, read_record, resampling, scores_masks
from panderm_utils.stats import MetricWarning, without_image_scores, without_images

# What is left out, as in "without 37 copies" -> kinds of pairs.
LEFT_OUT = {
    "copies": COPIES,
    "images of a shared lesion": ("same lesion", "same case"),
    "images of a shared patient": ("same patient",),
    "images that share anything": KINDS,
}
RUN = ["run_id", "dataset", "protocol", "encoder", "seed"]
COLUMNS = [*RUN, "tested_on", "metric", "headline", "leak", "images", "left_out", "without"]
COLUMNS += ["score", "rest", "difference", "low", "high"]
TOLERANCE = 1e-9  # between a stored number and the same number computed again


def costs_of_leakage(
    runs: pd.DataFrame, found: Audit, find: Callable[[str], Protocol], replicates: int | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """Returns the scores of records with and without leaking test images, and a note on each record left out.

    A run leaks where its dataset's test images share something with its train or val images; on another dataset that
    it was tested on, where they share something with any of its dataset's images.

    Args:
        runs: Rows of `results.read_records`.
        found: The audit of their datasets; records of others are not scored.
        find: Returns a protocol by its name: `protocols.load_protocol`.
        replicates: Of the bootstrap; None: those of the record.

    Returns:
        One row per run, dataset tested on, metric, and what is left out; if nothing leaks, one row with left_out 0.
        Columns: run_id, dataset, protocol, encoder, seed, tested_on, metric, headline, leak (a key of LEFT_OUT), images
        and left_out (numbers of test images), without (the latter in words: "37 copies"), score and rest (with
        and without them; NaN if no image is left), difference (rest - score), low and high (its 95% interval). Metrics
        are those whose stored number is computed again.
    """
    audited, rows, notes = set(found.images["dataset"]), [], []
    mine = runs[runs["dataset"].isin(audited)].drop_duplicates("run_id")
    for run in tqdm(mine.to_dict(orient="records"), desc="costs", unit="record", delay=1):
        record, folder = read_record(run["folder"]), Path(run["folder"])
        own = pd.read_csv(folder / "predictions.csv", dtype=str)
        others = {name: part for name, part in find(run["protocol"]).other_tests(folder).items() if name in audited}
        for tested_on, predictions in {run["dataset"]: own, **others}.items():
            names = own["filename"].tolist() if tested_on == run["dataset"] else predictions[2]
            images = found.images[found.images["dataset"] == tested_on]
            if unknown := len(set(names) - set(images["image"])):
                notes.append(f"{run['run_id']}: {unknown:,} of its images are not in {tested_on} as it is here")
                continue
            options = {"replicates": replicates or resampling(record)["replicates"], "seed": record["seed"]}
            for leak, table in _costs(predictions, names, run["dataset"], tested_on, found, options):
                table = table[_confirmed(table, record, "" if tested_on == run["dataset"] else f"_{tested_on}")]
                facts = {**{key: run[key] for key in RUN}, "tested_on": tested_on, "leak": leak}
                headline = table.index == record["headline_metric"]
                rows.append(table.assign(**facts, headline=headline).reset_index())
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=COLUMNS).astype({"headline": bool})
    return table[COLUMNS], notes


def describe_cost(row) -> str:
    """Returns a row of `costs_of_leakage` as a sentence: "weighted F1 0.922, 0.918 without 37 copies (...)"."""
    title = METRIC_TITLES[row.metric]
    title = title if title[1:2].isupper() else title[0].lower() + title[1:]
    score = "undefined" if pd.isna(row.score) else f"{row.score:.3f}"
    if not row.left_out:
        return f"{title} {score}: no test image leaks"
    if pd.isna(row.rest):
        return f"{title} {score}: undefined without {row.without}"
    interval = f"difference {row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
    return f"{title} {score}, {row.rest:.3f} without {row.without} ({interval})"


def _costs(predictions, names: list[str], dataset: str, tested_on: str, found: Audit, options: dict) -> Iterator:
    """Yields what is left out, and the table of `without_images` with the numbers of images; of masks likewise."""
    parts, done = {}, set()
    for leak, kinds in LEFT_OUT.items():
        leaking = np.isin(names, list(found.leaking(tested_on, kinds, dataset)))
        if leaking.any() and leaking.tobytes() not in done:
            done.add(leaking.tobytes())
            parts[leak] = leaking
    parts = parts or {"copies": np.zeros(len(names), dtype=bool)}
    masks = isinstance(predictions, pd.DataFrame) and scores_masks(predictions)
    if masks:
        scores, clusters, _ = parse_image_scores(predictions)
    elif isinstance(predictions, pd.DataFrame):
        predictions = parse_predictions(predictions)
    for leak, leaking in parts.items():
        nothing = leaking.all() or not leaking.any()
        chosen = leaking & (not nothing)
        if masks:
            table = without_image_scores(scores, chosen, clusters, **options)
        else:
            y, proba, _ = predictions
            options = {**options, "replicates": 2} if nothing else options  # no resample differs
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MetricWarning)  # shown when the record was made
                table = without_images(y, proba, chosen, **options)
        if leaking.all():
            table[["rest", "difference", "low", "high"]] = np.nan
        count = int(leaking.sum())
        yield leak, table.assign(images=len(names), left_out=count, without=_in_words(count, leak))


def _in_words(count: int, leak: str) -> str:
    return f"{count:,} {leak}" if count != 1 else f"1 {leak.replace('copies', 'copy').replace('images', 'image')}"


def _confirmed(table: pd.DataFrame, record: dict, suffix: str) -> np.ndarray:
    """Returns which metrics the record has with the same number: protocols may define one differently."""
    stored = [record["metrics"].get(f"{metric}{suffix}", {}).get("value", np.inf) for metric in table.index]
    stored = [np.nan if value is None else value for value in stored]
    return np.isclose(table["score"], stored, rtol=0, atol=TOLERANCE, equal_nan=True)
