"""Selects the records that a table or figure of the paper shows, lists missing ones, compares with published numbers.

Verdicts on published numbers are given here and nowhere else.
"""

import json

import pandas as pd

from panderm_utils.manifests import (
    Protocol,
    PublishedResult,
    list_datasets,
    list_encoders,
    load_dataset_manifest,
    load_encoder_manifest,
    load_profile,
    load_published_results,
)
from panderm_utils.results.identity import PROFILE_SETTINGS, settle_settings

ANY = object()  # matches any value of a setting


def paper_scores(
    runs: pd.DataFrame, profile: str, protocol: Protocol, seed: int | None = 0, own: bool = False, **settings
) -> pd.DataFrame:
    """Returns the rows of `read_records` that a table or figure of the paper shows, in the profile's order.

    Args:
        runs: One row per run and metric.
        seed: None selects runs of every seed.
        own: Whether to add the user's own datasets, after the paper's.
        settings: Settings of the runs to select; by default the profile's; ANY matches every value.

    Returns:
        The rows of the profile's datasets, with readable `dataset_label` and `encoder_label`.
    """
    expected = {**settle_settings(protocol, profile, settings), "seed": ANY if seed is None else seed}
    runs = runs[runs["protocol"] == protocol.name]
    datasets = list(load_profile(profile).datasets)
    if own:
        others = sorted(set(runs["dataset"]) - set(datasets))
        datasets += [name for name in others if name in list_datasets() and load_dataset_manifest(name).own]
    keep = runs["dataset"].isin(datasets)
    for name, value in expected.items():
        if value is ANY:
            continue
        if name in runs:
            keep &= runs[name].isna() if value is None else runs[name].eq(value)
        else:
            keep &= value is None
    rows = runs[keep].reset_index(drop=True)
    rows["dataset_label"] = [load_dataset_manifest(name).short_title for name in rows["dataset"]]
    rows["encoder_label"] = [load_encoder_manifest(name).title for name in rows["encoder"]]
    order = {name: i for i, name in enumerate(order_encoders(rows["encoder"]))}
    position = {"d": rows["dataset"].map(datasets.index), "e": rows["encoder"].map(order), "s": rows.get("seed")}
    position = pd.DataFrame(position)
    return rows.loc[position.sort_values(["d", "e", "s"], kind="stable").index].reset_index(drop=True)


def order_encoders(names) -> list[str]:
    """Returns the names in the order of encoders.yaml, then any others by name."""
    present, listed = set(names), list_encoders()
    return [name for name in listed if name in present] + sorted(present - set(listed))


def missing_runs(
    scores: pd.DataFrame, profile: str, protocol: Protocol, seed: int | None = None, **settings
) -> pd.DataFrame:
    """Returns the protocol's runs in the profile that have no record, each with the command that makes it.

    Args:
        scores: The rows of `paper_scores` with the same seed and settings.
    """
    plan, recorded = load_profile(profile), set(zip(scores["dataset"], scores["encoder"], strict=True))
    command = f"python run_all.py --profile {profile} --protocols {protocol.name}"
    options = "" if seed in (None, plan.seeds[0]) else f" --seeds {seed}"
    options += "".join(f" -p {n}={v}" for n, v in settings.items() if v != protocol.settings.get(n))
    rows = [
        {"dataset": d, "encoder": e, "command": f"{command} --datasets {d} --encoders {e}{options}"}
        for d in protocol.supported(plan.datasets)
        for e in plan.choice(protocol.name).encoders
        if (d, e) not in recorded
    ]
    return pd.DataFrame(rows, columns=["dataset", "encoder", "command"])


def published_verdicts(scores: pd.DataFrame, protocol: Protocol, synthetic: bool) -> pd.DataFrame:
    """Compares every published number of a protocol with ours.

    Args:
        scores: One row per run and metric. Of several runs of a dataset and encoder, the one with the fewest
            differences from the published settings is used.
        synthetic: Whether the records are of synthetic images, which are never compared.

    Returns:
        One row per published number: dataset, encoder, metric, published, ours, low, high, verdict, settings (of the
        published run), differs (the settings that differ in ours), run_id, source. The verdict is "reproduced" (the
        published value lies inside our interval), "outside the interval" or "not run".
    """
    ours = scores.iloc[0:0] if synthetic else scores
    rows = []
    for result in load_published_results():
        if result.protocol != protocol.name:
            continue
        settings = ", ".join(f"{name} {value}" for name, value in result.settings.items())
        runs = ours[(ours["dataset"] == result.dataset) & (ours["encoder"] == result.encoder)]
        candidates = [
            (run["run_id"], differing_settings(run, protocol, result))
            for run in runs.drop_duplicates("run_id").to_dict("records")
        ]
        run, differs = min(candidates, key=lambda candidate: len(candidate[1]), default=(None, {}))
        cells = runs[runs["run_id"] == run].set_index("metric")
        for metric, published in result.metrics.items():
            row = {"dataset": result.dataset, "encoder": result.encoder, "metric": metric, "published": published}
            if metric in cells.index:
                cell = cells.loc[metric]
                inside = cell["low"] <= published <= cell["high"]
                row |= {"ours": cell["value"], "low": cell["low"], "high": cell["high"], "run_id": run}
                row |= {
                    "verdict": "reproduced" if inside else "outside the interval",
                    "differs": "; ".join(f"{n} {a}, not {b}" for n, (a, b) in differs.items()) or "nothing",
                }
            rows.append({"verdict": "not run", **row, "settings": settings, "source": result.source})
    columns = ["dataset", "encoder", "metric", "published", "ours", "low", "high", "verdict"]
    return pd.DataFrame(rows).reindex(columns=[*columns, "settings", "differs", "run_id", "source"])


def differing_settings(run: dict, protocol: Protocol, result: PublishedResult) -> dict[str, tuple]:
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
