"""The pages of a report on own data: one a dataset, drawn from its records; several datasets have an overview.

report/index.html          the page of the only dataset, or the overview
report/<dataset>.html      the pages of several datasets
report/figures/<dataset>/  its figures as PNG and PDF; tables/<dataset>/ as CSV and LaTeX; images/<dataset>/
"""

import re
from functools import partial
from pathlib import Path

import pandas as pd

from panderm_utils import figures, protocols
from panderm_utils.manifests import DatasetManifest
from panderm_utils.report.contents import Contents, Run
from panderm_utils.report.pages import Site, write_page

SECTIONS = (
    ("data", "Images"),
    ("scores", "Scores"),
    ("card", "Datasheet"),
    ("manuscript", "For a manuscript"),
    ("runs", "Runs"),
)
PRIVATE = " It also holds images and data of patients: share it only as your approvals allow."


def make_site(contents: Contents) -> Site:
    """Returns the name and the links of the report: those of the only dataset's page, or one for each dataset."""
    cards = _studied(contents)
    if len(cards) == 1:
        nav = tuple((f"index.html#{anchor}", title) for anchor, title in SECTIONS)
        return Site(cards[0].title, cards[0].title, "", nav, PRIVATE)
    nav = tuple((f"{card.name}.html", card.short_title) for card in cards)
    return Site("your data", "Your data", f"{len(cards)} datasets", (*nav, ("index.html#runs", "Runs")), PRIVATE)


def study_places(contents: Contents) -> dict[str, str]:
    """Returns name of each dataset with a record -> its page."""
    cards = _studied(contents)
    return {card.name: f"{card.name}.html" if len(cards) > 1 else "index.html" for card in cards}


def study_tasks(report: Path, contents: Contents, shared: dict) -> list[partial]:
    """Returns for each dataset with a record the function that writes its page, to be called in any process."""
    cards, places = _studied(contents), study_places(contents).values()
    fitting = [[run.name for run in contents.done if _fits(run, card)] for card in cards]
    studies = zip(cards, places, fitting, strict=True)
    return [partial(_write_study, report, *study, contents, shared) for study in studies]


def _write_study(*arguments) -> tuple:
    from panderm_utils.report.study_page import write_study  # takes seconds: only in the process that draws

    return write_study(*arguments)


def write_overview(report: Path, rows: list[tuple], shared: dict) -> set[Path]:
    """Writes index.html, unless it is the page of the only dataset; returns its path.

    Args:
        rows: Manifest, page and headline scores of each dataset.
    """
    if len(rows) == 1:
        return set()
    facts = {"rows": rows, "means": _means_of_folds(rows), "metrics": figures.METRIC_TITLES}
    return {write_page(report, "index.html", "overview.html", **shared, **facts)}


def _means_of_folds(rows: list[tuple]) -> list[dict]:
    """Returns the headline scores of datasets `<name>_fold1`, ...: mean, lowest and highest of each study."""
    found = [
        {"name": base[1], **{key: run[key] for key in ("protocol", "encoder_label", "metric", "value")}}
        for card, _, runs in rows
        for run in runs
        if (base := re.fullmatch(r"(.+)_fold\d+", card.name))
    ]
    if not found:
        return []
    groups = pd.DataFrame(found).groupby(["name", "protocol", "encoder_label", "metric"], sort=False)["value"]
    return groups.agg(["mean", "min", "max", "size"]).reset_index().to_dict(orient="records")


def _studied(contents: Contents) -> list[DatasetManifest]:
    """The datasets with a complete record, whose manifests still exist and fit it."""
    return [card for card in contents.datasets if card.own and any(_fits(run, card) for run in contents.done)]


def _fits(run: Run, card: DatasetManifest) -> bool:
    """Whether a run is of a dataset as its manifest describes it now; classes may have been changed since."""
    if run.record["dataset"] != card.name or run.protocol not in protocols.list_protocols():
        return False
    return len(run.record["data"]["class_counts"]["test"]) == card.num_classes
