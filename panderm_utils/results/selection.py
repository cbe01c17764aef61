"""Selects the records that a table or figure of the paper shows, and lists missing ones."""

import pandas as pd

from panderm_utils.manifests import (
    Protocol,
    list_encoders,
    load_dataset_manifest,
    load_encoder_manifest,
    load_profile,
)
from panderm_utils.results.identity import settle_settings

ANY = object()  # matches any value of a setting


def paper_scores(
    runs: pd.DataFrame, profile: str, protocol: Protocol, seed: int | None = 0, **settings
) -> pd.DataFrame:
    """Returns the rows of `read_records` that a table or figure of the paper shows, in the profile's order.

    Args:
        runs: One row per run and metric.
        seed: None selects runs of every seed.
        settings: Settings of the runs to select; by default the profile's; ANY matches every value.

    Returns:
        The rows of the profile's datasets, with readable `dataset_label` and `encoder_label`.
    """
    expected = {**settle_settings(protocol, profile, settings), "seed": ANY if seed is None else seed}
    runs = runs[runs["protocol"] == protocol.name]
    datasets = list(load_profile(profile).datasets)
    keep = runs["dataset"].isin(datasets)
    for name, value in expected.items():
        if value is ANY:
            continue
        if name in runs:
            keep &= runs[name].isna() if value is None else runs[name].eq(value)
        else:
            keep &= value is None
    return _labelled(runs[keep].reset_index(drop=True), datasets)


def study_runs(runs: pd.DataFrame, profile: str, protocol: Protocol) -> pd.DataFrame:
    """Returns the rows of one run for each of the profile's datasets and each encoder, labelled as by `paper_scores`.

    If an encoder has several runs on a dataset, it is the one with the profile's settings and the lowest seed, or else
    the first by id.

    Args:
        runs: One row per run and metric, from `read_records`.
    """
    usual = set(paper_scores(runs, profile, protocol, seed=None)["run_id"])
    datasets = load_profile(profile).datasets
    rows = runs[(runs["protocol"] == protocol.name) & runs["dataset"].isin(datasets)]
    ranked = rows.assign(unusual=~rows["run_id"].isin(usual)).sort_values(["unusual", "seed", "run_id"], kind="stable")
    chosen = ranked.drop_duplicates(["dataset", "encoder"])["run_id"]
    return _labelled(rows[rows["run_id"].isin(chosen)].reset_index(drop=True), list(datasets))


def _labelled(rows: pd.DataFrame, datasets: list[str]) -> pd.DataFrame:
    """Adds the readable names of dataset and encoder, and sorts by dataset, encoder and seed."""
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
