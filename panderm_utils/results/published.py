"""The scoreboard: every published number beside ours, or what its run still needs; and the items of the paper."""

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
from panderm_utils.results.verdicts import NOT_COMPARABLE, NOT_RUN, OUTSIDE, REPRODUCED, published_verdicts
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
    "standard_errors",
    "differs",
]
SCOREBOARD_COLUMNS += ["missing", "run_id", "source"]
LABELS = ["run", "dataset_label", "encoder_label", "test_images"]  # for readers, and for the figure


def scoreboard(
    runs: pd.DataFrame,
    space: Workspace,
    find: Callable[[str], Protocol],
    missing: Callable[[PublishedResult, Workspace], str],
) -> pd.DataFrame:
    """Returns one row per published number: SCOREBOARD_COLUMNS, then LABELS.

    `verdict`, `difference`, `standard_errors` and `differs` are those of `published_verdicts`. `by_how_much` is the
    distance of the published number from our interval if it is outside: positive above the interval (ours is too low),
    negative below. `missing` says what a run without a record needs.

    Args:
        runs: All rows of `read_records`.
        find: Returns a protocol by its name: `protocols.load_protocol`.
        missing: Returns what a published run lacks and the command to type: `batch.what_is_missing`.
    """
    results = {(r.dataset, r.protocol, r.encoder): r for r in load_published_results()}
    parts = []
    studied = {name: find(name) for _, name, _ in results}
    for name, protocol in studied.items():
        parts.append(published_verdicts(runs, protocol, space.synthetic).assign(protocol=name))
    board = pd.concat(parts, ignore_index=True)
    numbers = ["published", "ours", "low", "high", "difference", "standard_errors"]
    board[numbers] = board[numbers].astype(float)
    above, below = board["published"] - board["high"], board["published"] - board["low"]
    board["by_how_much"] = above.where(above > 0, below.where(below < 0)).where(board["verdict"] == OUTSIDE)
    absent = set(board.loc[board["verdict"] == NOT_RUN, RUN].itertuples(index=False, name=None))
    needs = {key: missing(result, space) for key, result in results.items() if key in absent}
    keys = list(board[RUN].itertuples(index=False, name=None))
    board["missing"] = [
        needs.get(key, "") if v == NOT_RUN else "" for key, v in zip(keys, board["verdict"], strict=True)
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
    """Returns, for each published run and in total, how many numbers have which verdict."""
    verdicts = {name: name for name in (REPRODUCED, OUTSIDE, NOT_COMPARABLE, NOT_RUN)} | {OUTSIDE: "outside"}
    counts = pd.crosstab(board["run"], board["verdict"]).reindex(columns=list(verdicts), fill_value=0)
    counts = counts.reindex(board["run"].unique()).rename(columns=verdicts).rename_axis(columns=None)
    counts.insert(0, "published", counts.sum(axis=1))
    counts.loc["all"] = counts.sum()
    return counts.reset_index()


def scoreboard_sentence(board: pd.DataFrame) -> str:
    """Returns the last line of `scoreboard_summary` as text."""
    words = "{reproduced} of {published} numbers reproduced, {outside} outside our interval, "
    words += "{not comparable} not comparable, {not run} not run"
    return words.format(**scoreboard_summary(board).iloc[-1])


def scoreboard_alt_text(board: pd.DataFrame) -> str:
    """Returns the alternative text of the scoreboard's figure: one part per run."""
    parts = []
    for run, rows in board.groupby("run", sort=False):
        numbers = []
        for row in rows.itertuples():
            ours = NOT_RUN if row.verdict == NOT_RUN else f"ours {row.ours:.3f}, {row.verdict}"
            numbers.append(f"{row.metric} {row.published:.3f} ({ours})")
        parts.append(f"{run}: {', '.join(numbers)}")
    return f"{scoreboard_sentence(board)}. {'; '.join(parts)}"


def paper_items() -> pd.DataFrame:
    """Returns one row per figure or table of the paper: what it shows, its data, its notebooks or why it has none."""
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
