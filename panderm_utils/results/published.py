"""Every published number on file beside ours, what is missing where there is none, and the paper item by item."""

from collections.abc import Callable

import pandas as pd

from panderm_utils.manifests import (
    Protocol,
    PublishedResult,
    load_dataset_manifest,
    load_encoder_manifest,
    load_paper_items,
    load_published_results,
)
from panderm_utils.results.selection import published_verdicts
from panderm_utils.workspace import Workspace

RUN = ["dataset", "protocol", "encoder"]
SCOREBOARD_COLUMNS = [
    *RUN,
    "metric",
    "published",
    "ours",
    "low",
    "high",
    "verdict",
    "by_how_much",
    "difference",
    "differs",
]
SCOREBOARD_COLUMNS += ["missing", "run_id", "source"]
LABELS = ["run", "dataset_label", "encoder_label", "test_images"]  # for people, and for the figure


def scoreboard(
    runs: pd.DataFrame,
    space: Workspace,
    find: Callable[[str], Protocol],
    missing: Callable[[PublishedResult, Workspace], str],
) -> pd.DataFrame:
    """Returns a row a published number: SCOREBOARD_COLUMNS, then LABELS.

    `verdict` is that of `tables.published_verdicts`. `by_how_much`, where the published number is outside our interval,
    is how far: above 0 it lies above the interval (ours is too low), below 0 under it. `difference` is ours minus
    published, `differs` what our run did otherwise. `missing` says what a run that is not there needs.

    Args:
        runs: All rows of `read_records`.
        find: Returns a protocol by its name: `protocols.load_protocol`.
        missing: Says what a published run lacks and what to type: `batch.what_is_missing`.
    """
    results = {(r.dataset, r.protocol, r.encoder): r for r in load_published_results()}
    parts = []
    studied = {name: find(name) for _, name, _ in results}
    for name, protocol in studied.items():
        ours = runs[runs["protocol"] == name]
        parts.append(published_verdicts(ours, protocol, space.synthetic).assign(protocol=name))
    board = pd.concat(parts, ignore_index=True)
    numbers = ["published", "ours", "low", "high"]
    board[numbers] = board[numbers].astype(float)
    above, below = board["published"] - board["high"], board["published"] - board["low"]
    board["by_how_much"] = above.where(above > 0, below.where(below < 0))
    board["difference"] = board["ours"] - board["published"]
    absent = set(board.loc[board["verdict"] == "not run", RUN].itertuples(index=False, name=None))
    told = {key: missing(result, space) for key, result in results.items() if key in absent}
    keys = list(board[RUN].itertuples(index=False, name=None))
    board["missing"] = [
        told.get(key, "") if v == "not run" else "" for key, v in zip(keys, board["verdict"], strict=True)
    ]
    board["dataset_label"] = [load_dataset_manifest(name).short_title for name in board["dataset"]]
    board["encoder_label"] = [load_encoder_manifest(name).title for name in board["encoder"]]
    board["run"] = (
        board["dataset_label"]
        + ", "
        + board["encoder_label"]
        + ", "
        + board["protocol"].map({name: p.title for name, p in studied.items()})
    )
    images = runs.drop_duplicates("run_id").set_index("run_id").get("test_images", pd.Series(dtype=float))
    board["test_images"] = board["run_id"].map(images)
    return board[[*SCOREBOARD_COLUMNS, *LABELS]]


def scoreboard_summary(board: pd.DataFrame) -> pd.DataFrame:
    """Returns how many numbers of each published run, and of all, were reproduced, are outside, and were not run."""
    verdicts = {"reproduced": "reproduced", "outside the interval": "outside", "not run": "not run"}
    counts = pd.crosstab(board["run"], board["verdict"]).reindex(columns=list(verdicts), fill_value=0)
    counts = counts.reindex(board["run"].unique()).rename(columns=verdicts).rename_axis(columns=None)
    counts.insert(0, "published", counts.sum(axis=1))
    counts.loc["all"] = counts.sum()
    return counts.reset_index()


def scoreboard_in_a_sentence(board: pd.DataFrame) -> str:
    """Returns the last line of `scoreboard_summary` in words."""
    words = "{reproduced} of {published} numbers reproduced, {outside} outside our interval, {not run} not run"
    return words.format(**scoreboard_summary(board).iloc[-1])


def scoreboard_in_words(board: pd.DataFrame) -> str:
    """Returns what the scoreboard's figure shows as text, for readers who cannot see it: a part a run."""
    parts = []
    for run, rows in board.groupby("run", sort=False):
        told = []
        for row in rows.itertuples():
            ours = "not run" if pd.isna(row.ours) else f"ours {row.ours:.3f}, {row.verdict}"
            told.append(f"{row.metric} {row.published:.3f} ({ours})")
        parts.append(f"{run}: {', '.join(told)}")
    return f"{scoreboard_in_a_sentence(board)}. {'; '.join(parts)}"


def paper_items() -> pd.DataFrame:
    """Returns a row a figure or table of the paper: what it shows, of which data, and where it is here or why not."""
    rows = [
        {
            "item": item.item,
            "shows": item.shows,
            "data": item.data,
            "access": item.access,
            "notebooks": ", ".join(item.notebooks) or "none",
            "note": item.note,
        }
        for item in load_paper_items()
    ]
    return pd.DataFrame(rows)
