"""The tables that `run_all.py --audit` leaves, and its summary."""

from pathlib import Path

import pandas as pd

from panderm_utils.audit.costs import describe_cost
from panderm_utils.audit.kinds import COPIES, KINDS
from panderm_utils.audit.pairs import Audit
from panderm_utils.disk import write_file

SHOWN = 10  # lines of one part of the summary


def write_audit(folder: Path, found: Audit, costs: pd.DataFrame, doubts: pd.DataFrame) -> list[Path]:
    """Writes pairs.csv, nearest.csv, costs.csv and doubtful_labels.csv, and returns their paths."""
    tables = {"pairs": found.pairs, "nearest": found.nearest, "costs": costs, "doubtful_labels": doubts}
    return [
        write_file(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
        for name, table in tables.items()
    ]


def shared_table(found: Audit) -> pd.DataFrame:
    """Returns one row per dataset or pair of datasets that shares something: dataset, with, a column of pairs per kind.

    Column `test images`: those of `dataset` that leak, within a dataset only; `two labels`: copies whose labels differ.
    """
    rows = []
    for (a, b), pairs in found.pairs.groupby(["dataset_a", "dataset_b"], sort=False):
        counts = pairs["kind"].value_counts()
        row = {"dataset": a, "with": "its train and val" if a == b else b}
        row |= {kind: int(counts.get(kind, 0)) for kind in KINDS}
        row["test images"] = len(found.leaking(a)) if a == b else pd.NA
        copies = pairs[pairs["kind"].isin(COPIES)] if a == b else pairs[:0]  # datasets name their classes differently
        row["two labels"] = int((copies["label_a"] != copies["label_b"]).sum()) if a == b else pd.NA
        rows.append(row)
    columns = ["dataset", "with", *KINDS, "test images", "two labels"]
    return pd.DataFrame(rows, columns=columns).astype({"test images": "Int64", "two labels": "Int64"})


def describe_audit(found: Audit, costs: pd.DataFrame, doubts: pd.DataFrame, synthetic: bool = False) -> str:
    """Returns the summary of an audit, in lines."""
    names = list(dict.fromkeys(found.images["dataset"]))
    lines = [f"{len(found.images):,} images of {', '.join(names)}"]
    table = shared_table(found)
    for row in table.to_dict(orient="records"):
        counts = ", ".join(f"{kind} {row[kind]:,}" for kind in KINDS if row[kind])
        within = not pd.isna(row["test images"])
        images = f"; {row['test images']:,} of its test images" if within else ""
        images += f", copies with two labels {row['two labels']:,}" if within and row["two labels"] else ""
        lines.append(f"- {row['dataset']} and {row['with']}, pairs: {counts}{images}")
    if not found.pairs["kind"].isin(COPIES).any():
        drawn = ": drawn images are all different, as they should be" if synthetic else ""
        lines.append(f"- no copy of an image is in two splits or two datasets{drawn}")
    leaking = costs[costs["headline"] & (costs["left_out"] > 0)].sort_values("difference", key=abs, ascending=False)
    for row in leaking.head(SHOWN).itertuples():
        place = "" if row.tested_on == row.dataset else f" on {row.tested_on}"
        lines.append(f"- {row.run_id}{place}: {describe_cost(row)}")
    if len(leaking) > SHOWN:
        lines.append(f"- ... and {len(leaking) - SHOWN:,} more in costs.csv")
    for name, rows in doubts.groupby("dataset", sort=False):
        lines.append(f"- {name}: test labels to review, as {rows['encoder'].iloc[0]} doubts them: {len(rows):,}")
    return "\n".join([*lines, *(f"- note: {note}" for note in found.notes)])
