"""Writes the pages of a report on own data: one a dataset, drawn from its records; several datasets have an overview.

    report/index.html          the page of the only dataset, or the overview
    report/<dataset>.html      the pages of several datasets
    report/figures/<dataset>/  its figures as PNG and PDF; tables/<dataset>/ as CSV and LaTeX; images/<dataset>/

The images shown are small copies without metadata, made if the data are still as in the record. A page and its files
are made again only if a record, the manifest, the data or the code has changed.
"""

import hashlib
import re
import warnings
from pathlib import Path

import pandas as pd

from panderm_utils import data, protocols, results
from panderm_utils.data import DataError, Dataset
from panderm_utils.figures import METRIC_TITLES, Exhibit, save_figure, write_tables
from panderm_utils.manifests import DatasetManifest
from panderm_utils.report.contents import Contents, Run, Sheet, read_picture
from panderm_utils.report.gallery import Gallery, write_gallery
from panderm_utils.report.manuscript import claim_answers, tripod_answers, write_methods
from panderm_utils.report.pages import TEMPLATES, Site, stamp_of, write_page
from panderm_utils.report.study import Study, make_sections, read_study
from panderm_utils.stats import MetricWarning
from panderm_utils.workspace import REPOSITORY

SECTIONS = (("data", "Images"), ("scores", "Scores"), ("manuscript", "For a manuscript"), ("runs", "Runs"))
PRIVATE = " It also holds images and data of patients: share it only as your approvals allow."


def make_site(contents: Contents) -> Site:
    """Returns the name and the links of the report: those of the only dataset's page, or one for each dataset."""
    cards = _studied(contents)
    if len(cards) == 1:
        nav = tuple((f"index.html#{anchor}", title) for anchor, title in SECTIONS)
        return Site(cards[0].title, cards[0].title, "", nav, PRIVATE)
    nav = tuple((f"{card.name}.html", card.short_title) for card in cards)
    return Site("your data", "Your data", f"{len(cards)} datasets", (*nav, ("index.html#runs", "Runs")), PRIVATE)


def write_pages(report: Path, contents: Contents, shared: dict) -> set[Path]:
    """Writes a page for each dataset with a record, and index.html; returns the paths of all their files."""
    cards, runs = _studied(contents), results.read_records(contents.space.records)
    places = {card.name: f"{card.name}.html" if len(cards) > 1 else "index.html" for card in cards}
    written, rows = set(), []
    for card in cards:
        fitting = [run.name for run in contents.done if _fits(run, card)]
        study = read_study(card, runs[runs["run_id"].isin(fitting)], contents.space.profile)
        own_runs = [run for run in contents.runs if run.record.get("dataset") == card.name]
        written |= _write_study(report, places[card.name], study, own_runs, contents, shared)
        rows.append((card, places[card.name], study.headlines.to_dict(orient="records")))
    if len(cards) != 1:
        facts = {"rows": rows, "means": _means_of_folds(rows), "metrics": METRIC_TITLES}
        written.add(write_page(report, "index.html", "overview.html", **shared, **facts))
    return written


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


def _write_study(
    report: Path, place: str, study: Study, runs: list[Run], contents: Contents, shared: dict
) -> set[Path]:
    """Writes the page of a dataset with its files, unless it is up to date; returns their paths."""
    name = study.card.name
    folders = [report / kind / name for kind in ("figures", "tables", "images")]
    stamp = _stamp(study, runs, contents, shared)
    if stamp_of(report / place) == stamp:
        return {report / place, *(path for folder in folders for path in folder.glob("[!.]*"))}
    records = [results.read_record(contents.space.records / run_id) for run_id in study.ids]
    dataset, problem = _open_data(study.card, contents, records[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetricWarning)  # the runs said so, and their pages show it
        sections = list(make_sections(study, records[0], dataset))
    shown = {section.anchor: [_write_exhibit(folders, each) for each in section.exhibits] for section in sections}
    toys = [model for model in contents.encoders if model.toy and model.name in {r["encoder"] for r in records}]
    facts = {
        "card": study.card,
        "main": records[0],
        "headlines": study.headlines.to_dict(orient="records"),
        "sections": [(section, shown[section.anchor]) for section in sections],
        "methods": write_methods(study, records, dataset),
        "claim": claim_answers(study, records, dataset),
        "tripod": tripod_answers(study, records, dataset),
        "toys": toys,
        "problem": problem,
        "metrics": METRIC_TITLES,
        "stamp": stamp,
    }
    page = write_page(report, place, "study.html", **{**shared, "listed": runs}, **facts)
    return {page, *(path for files in shown.values() for _, _, paths in files for path in paths)}


def _open_data(card: DatasetManifest, contents: Contents, record: dict) -> tuple[Dataset | None, str]:
    """Returns the dataset, if it is still as in the record; or None and why not."""
    try:
        dataset = data.load_dataset(card, contents.space.data_root)
    except DataError as error:
        return None, f"The data cannot be read any more, so no images are shown: {error}"
    if data.describe(dataset)["rows_sha256"] != record["data"]["rows_sha256"]:
        return None, f"{dataset.csv} has changed since the run, so no images are shown; repeat the runs with --force."
    return dataset, ""


def _write_exhibit(folders: list[Path], exhibit: Exhibit | Gallery) -> tuple:
    """Writes an exhibit's files; returns it, what its template needs (a Sheet, a size, images), and the paths."""
    figure_folder, table_folder, image_folder = folders
    if isinstance(exhibit, Gallery):
        pictures, paths = write_gallery(exhibit, image_folder)
        return exhibit, pictures, paths
    if exhibit.figure is not None:
        paths = save_figure(exhibit.figure, figure_folder, exhibit.name, list(exhibit.records), exhibit.alt)
        return exhibit, read_picture(paths[-1])[1], paths
    paths = write_tables(exhibit.table, table_folder, exhibit.name, ("csv", "tex"))
    rows = exhibit.table.astype(object).where(exhibit.table.notna(), "").map(str).to_numpy().tolist()
    return exhibit, Sheet(list(map(str, exhibit.table)), rows, len(rows)), paths


def _stamp(study: Study, runs: list[Run], contents: Contents, shared: dict) -> str:
    """SHA-256 of all that a page is made from: records, what else it lists, manifest, data and code."""
    listed = shared["site"], contents.commands, contents.needs, runs, study.ids, study.card
    digest = hashlib.sha256(repr(listed).encode())
    code = sorted((REPOSITORY / "panderm_utils").rglob("*.py"))
    for path in [*code, *sorted(TEMPLATES.iterdir())]:
        digest.update(path.read_bytes())
    for path in (contents.space.data_root / study.card.csv, contents.space.data_root / study.card.image_root):
        digest.update(repr(path.stat().st_mtime_ns if path.exists() else None).encode())
    return digest.hexdigest()
