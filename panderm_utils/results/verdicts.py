"""Verdicts on the published numbers, given here and nowhere else.

A published number has a verdict only if our run has the published data, weights and settings:

| verdict | meaning |
|---|---|
| reproduced | the published value lies inside our 95% interval, which is as narrow as so many images allow |
| outside the interval | it does not |
| not comparable | the run has other data, weights or settings, or its interval says nothing; the reasons are listed |
| not run | there is no record |

Deviations of a published file from its paper, such as a row that upstream drops, are in the manifest's numbers.
"""

import json
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from panderm_utils.manifests import (
    Protocol,
    PublishedResult,
    load_dataset_manifest,
    load_encoder_manifest,
    load_published_results,
)
from panderm_utils.results.identity import PROFILE_SETTINGS, read_record
from panderm_utils.results.records import Run
from panderm_utils.stats import in_standard_errors, widest_interval

REPRODUCED, OUTSIDE, NOT_COMPARABLE, NOT_RUN = "reproduced", "outside the interval", "not comparable", "not run"
NO_DIFFERENCE = "nothing"
MIN_REPLICATES = 200  # of an interval; the ends of one from fewer are mostly chance
SHOWN = 3  # classes whose counts differ, in a reason
COLUMNS = ["published", "ours", "low", "high", "difference", "standard_errors", "verdict", "differs"]


def published_verdicts(scores: pd.DataFrame, protocol: Protocol, synthetic: bool) -> pd.DataFrame:
    """Returns every published number of a protocol beside ours, with the verdict of this module.

    Args:
        scores: Rows of `read_records`, of any protocols. Of several runs of a dataset and encoder, the one with the
            fewest differences from the published run is used.
        synthetic: Whether the records are of synthetic images, which are never compared.

    Returns:
        One row per published number: dataset, encoder, metric, COLUMNS (`difference`: ours minus published;
        `standard_errors`: the same in standard errors of ours; `differs`: why the two are not comparable), settings (of
        the published run), run_id, source.
    """
    ours = scores.iloc[0:0] if synthetic else scores
    rows = []
    for result in load_published_results():
        if result.protocol != protocol.name:
            continue
        runs = ours[(ours["dataset"] == result.dataset) & (ours["encoder"] == result.encoder)]
        runs = runs[runs["protocol"] == protocol.name]
        reasons = {
            run["run_id"]: why_not_comparable(read_record(run["folder"]), protocol, result)
            for run in runs.drop_duplicates("run_id").to_dict("records")
        }
        run = min(reasons, key=lambda name: len(reasons[name]), default=None)
        cells = runs[runs["run_id"] == run].set_index("metric")
        settings = ", ".join(f"{name} {value}" for name, value in result.settings.items())
        for metric, published in result.metrics.items():
            row = {"dataset": result.dataset, "encoder": result.encoder, "metric": metric, "published": published}
            if metric in cells.index:
                row |= {**_compare(published, cells.loc[metric], metric, reasons[run], result), "run_id": run}
            rows.append({"verdict": NOT_RUN, **row, "settings": settings, "source": result.source})
    return pd.DataFrame(rows).reindex(
        columns=["dataset", "encoder", "metric", *COLUMNS, "settings", "run_id", "source"]
    )


def compare_with_published(scores: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Returns the scores of a run in progress; beside them, where there are published numbers, COLUMNS.

    Args:
        scores: Index: metric; columns: at least value, low, high.
        run: With the facts of its data and encoder already noted.
    """
    table = scores[["value", "low", "high"]].copy()
    key = (run.dataset, run.protocol.name, run.encoder)
    results = [r for r in load_published_results() if (r.dataset, r.protocol, r.encoder) == key]
    if run.workspace.synthetic or not results:
        return table
    (result,) = results
    record = {"seed": run.seed, "settings": run.settings, **run.notes}
    reasons = why_not_comparable(record, run.protocol, result)
    rows = {m: _compare(v, table.loc[m], m, reasons, result) for m, v in result.metrics.items() if m in table.index}
    compared = pd.DataFrame.from_dict(rows, orient="index").drop(columns=["ours", "low", "high"])
    return table.join(compared).fillna({"verdict": "not published"})


def why_not_comparable(record: Mapping, protocol: Protocol, result: PublishedResult) -> list[str]:
    """Returns a phrase for each setting, split and weights in which a run differs from a published one.

    Args:
        record: As `read_record` returns it; of a run in progress, its seed, settings and notes so far.
    """
    settings = differing_settings({"seed": record["seed"], **record["settings"]}, protocol, result)
    reasons = [f"{name} {ours}, not {published}" for name, (ours, published) in settings.items()]
    if record["settings"].get("replicates", MIN_REPLICATES) < MIN_REPLICATES:
        reasons.append(f"intervals of {record['settings']['replicates']} replicates, fewer than {MIN_REPLICATES}")
    data = record.get("data", {})
    if scored := record.get("scored"):  # the test images whose predictions are in the record
        data = {**data, "split_sizes": {**data.get("split_sizes", {}), "test": scored["images"]}}
    return [*reasons, *_differing_data(data, result), *_differing_weights(record.get("encoder_facts", {}), result)]


def differing_settings(run: Mapping, protocol: Protocol, result: PublishedResult) -> dict[str, tuple]:
    """Returns the settings in which a run differs from the published one: name -> (the run's, the published).

    Settings that a published result does not name, or that neither the run nor its profile set, are the protocol's.
    """
    defaults = {**protocol.settings, **protocol.published()}
    expected = {**defaults, **result.settings}
    # Views have metrics of their own, only we compute intervals, and a path does not identify a file.
    for name in ("tta", "replicates", "weights"):
        expected.pop(name, None)
    profile = run.get(PROFILE_SETTINGS)
    defaults |= json.loads(profile) if isinstance(profile, str) and profile else {}
    ours = {name: defaults.get(name) if pd.isna(run.get(name)) else run[name] for name in expected}
    return {name: (ours[name], expected[name]) for name in expected if ours[name] != expected[name]}


def _differing_data(data: Mapping, result: PublishedResult) -> Iterator[str]:
    card = load_dataset_manifest(result.dataset)
    for split, expected in (result.split_sizes or card.split_sizes or {}).items():
        found = data.get("split_sizes", {}).get(split)
        if found != expected:
            yield f"{expected:,} {split} images expected, {'unknown' if found is None else f'{found:,}'} found"
        elif split in (card.class_counts or {}):
            counts = data.get("class_counts", {}).get(split) or [0] * card.num_classes
            classes = zip(card.class_names, counts, card.class_counts[split], strict=True)
            differing = [f"{name} {ours:,}, not {theirs:,}" for name, ours, theirs in classes if ours != theirs]
            if differing:
                yield f"{split} images of {', '.join(differing[:SHOWN])}"


def _differing_weights(facts: Mapping, result: PublishedResult) -> Iterator[str]:
    """By digest where one is known, else by the encoder's name and the width of its features."""
    model = load_encoder_manifest(result.encoder)
    digest = facts.get("digest") or "unknown"
    if model.sha256 and digest != model.sha256:
        yield f"weights with the SHA-256 {digest[:12]}, not {model.sha256[:12]}"
    elif facts.get("title") != model.title:
        yield f"weights of {facts.get('title') or 'an unknown encoder'}, not of {model.title}"
    elif facts.get("num_features") != model.num_features:
        yield f"an encoder of {facts.get('num_features')} features, not {model.num_features}"


def _compare(published: float, ours: Mapping, metric: str, reasons: list[str], result: PublishedResult) -> dict:
    """Returns COLUMNS for one number."""
    value, low, high = (float(ours[name]) for name in ("value", "low", "high"))
    row = {"published": published, "ours": value, "low": low, "high": high, "difference": value - published}
    width, widest = high - low, _widest_interval(metric, result)
    row["standard_errors"] = float(in_standard_errors(value - published, low, high))
    if not np.isfinite([value, low, high]).all():
        reasons = [*reasons, "our value is undefined"]
    elif widest is not None and width > widest:
        reasons = [*reasons, f"our interval is {width:.3f} wide, at most {widest:.3f} expected for so many images"]
    verdict = REPRODUCED if low <= published <= high else OUTSIDE
    return row | {"verdict": NOT_COMPARABLE if reasons else verdict, "differs": "; ".join(reasons) or NO_DIFFERENCE}


def _widest_interval(metric: str, result: PublishedResult) -> float | None:
    """Returns the widest interval of a metric on the published test split; None if its size is unknown."""
    card = load_dataset_manifest(result.dataset)
    counts = (card.class_counts or {}).get("test")
    images = (result.split_sizes or card.split_sizes or {}).get("test")
    if counts is None and images is None:
        return None
    classes = max(1, card.num_classes)  # a dataset of masks has none
    return widest_interval(metric, counts or [images / classes] * classes)
