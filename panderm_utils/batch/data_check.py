"""The table of `--check-data`: what a run would say of each dataset, before any run. Loads pandas only when called."""

from collections.abc import Sequence
from pathlib import Path

from panderm_utils import data
from panderm_utils.batch.data_root import DataRoot
from panderm_utils.manifests import SPLITS, DatasetManifest

SIZES = "/".join(SPLITS)
# Columns of the table that count problems, and their kinds; all other kinds are counted under "other".
KINDS = {
    "columns": ("missing column",),
    "labels": ("missing label", "invalid label", "empty class", "single class"),
    "missing images": ("missing file", "missing folder", "empty image name", "unsafe path"),
    "unreadable": ("unreadable image",),
    "missing masks": ("missing mask", "missing mask folder"),
    "wrong masks": ("two masks", "mask without image", "image like a mask", "mask size", "mask values", "grey edges"),
    "duplicates": ("repeated image", "contradicting labels"),
}
NOTED = ("empty mask", "full mask", "known size", "drawn split")  # notes to read before a run
ELSEWHERE = ["split size", "leakage", *(kind for kinds in KINDS.values() for kind in kinds)]
COLUMNS = ("dataset", "result", "rows", SIZES, "manifest", *KINDS, "leakage", "other")


def check_data(cards: Sequence[DatasetManifest], data_root: Path, pixels: bool = False) -> tuple[str, bool]:
    """Returns a table with a row per dataset, the problems below it, and whether all datasets can be used as published.

    A dataset cannot if a run would refuse it or its splits have other sizes than the manifest's; warnings, such as a
    lesion in two splits, are listed only.

    Args:
        pixels: Whether to decode every image, with a progress bar.
    """
    root, rows, details, usable = DataRoot(data_root), [], [], True
    for card in cards:
        row, lines, fine = _check(card, root, pixels)
        rows.append({"dataset": card.name, **row})
        details += ["", *lines] if lines else []
        usable &= fine
    cells = [COLUMNS, *([row.get(name, "") for name in COLUMNS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    return "\n".join([*table, *details]), usable


def _check(card: DatasetManifest, root: DataRoot, pixels: bool) -> tuple[dict[str, str], list[str], bool]:
    """Returns a dataset's row, its problems, and whether it can be used as published."""
    if card.missing_path(root.path):
        problem, remedy = root.find(card)
        return {"result": "missing"}, [f"{card.name}: {problem}", *([f"  {remedy}"] if remedy else [])], False
    error, dataset, problems = "", None, None
    for check in ("table", "pixels" if pixels else "files"):  # the table alone has sizes even if images are missing
        try:
            dataset = data.load_dataset(card, root.path, check)
            problems = dataset.problems
        except data.DataError as failure:
            error, problems = str(failure), failure.problems
            if problems is None:  # the CSV could not be opened
                return {"result": "errors"}, [error], False
    counts = problems[problems["severity"] != "note"]["kind"].value_counts()
    sizes = problems[problems["kind"] == "split size"]
    warned = problems[problems["severity"] == "warning"].groupby("kind", sort=False)
    row = {"result": "errors" if error else "other sizes" if len(sizes) else "warnings" if len(warned) else "ok"}
    if dataset is not None:
        found = dataset.table["split"].value_counts()
        row |= {"rows": f"{len(dataset.table):,}", SIZES: "/".join(f"{found.get(s, 0):,}" for s in SPLITS)}
        expected = card.split_sizes or {}
        known = "/".join(f"{expected[s]:,}" if s in expected else "-" for s in SPLITS)
        row["manifest"] = known if expected else f"{card.draw.images:,} in all" if card.draw else "unknown"
        leaks = data.leakage_table(dataset)["in two splits"].dropna()
        row["leakage"] = ", ".join(f"{count:,} {kind}" for kind, count in leaks.items() if count) or "0"
    row |= {name: f"{sum(counts.get(kind, 0) for kind in kinds):,}" for name, kinds in KINDS.items()}
    row |= {} if card.classes else {"labels": ""}
    row |= {} if card.masks else {"missing masks": "", "wrong masks": ""}
    row["unreadable"] = row["unreadable"] if pixels else "not checked"
    row["other"] = f"{sum(counts.drop(ELSEWHERE, errors='ignore')):,}"
    lines = [error] if error else []
    lines += [f"{card.name}: {text}" for text in sizes.loc[sizes["severity"] == "note", "message"]]
    for kind, members in warned:
        first = members.iloc[0]
        place = "" if first.isna()["row"] or card.split_folders else f"{root.path / card.csv}:{first['row']}: "
        lines.append(f"{card.name}: warning: {len(members):,} x {kind}: {place}{first['message']}")
    for kind, members in problems[problems["kind"].isin(NOTED)].groupby("kind", sort=False):
        lines.append(f"{card.name}: note: {len(members):,} x {kind}: {members.iloc[0]['message']}")
    return row, lines, not (error or len(sizes))
