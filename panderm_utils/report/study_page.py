"""Writes the page of one dataset of your own: its figures, tables, images and text.

The images shown are small copies without metadata, made if the data are still as in the record. A page and its files
are made again only if a record, the manifest, the data or the code has changed.
"""

import hashlib
import warnings
from pathlib import Path

import pandas as pd

from panderm_utils import data, results
from panderm_utils.data import DataError, Dataset
from panderm_utils.figures import METRIC_TITLES, Exhibit, save_figure, write_tables
from panderm_utils.manifests import SPLITS, DatasetManifest, dataset_card
from panderm_utils.report.cards import count_people
from panderm_utils.report.contents import Contents, Run
from panderm_utils.report.exhibits import Sheet, read_picture
from panderm_utils.report.gallery import Gallery, write_gallery
from panderm_utils.report.manuscript import claim_answers, tripod_answers, write_methods
from panderm_utils.report.pages import code_digest, stamp_of, write_page
from panderm_utils.report.study import Study, make_sections, read_study
from panderm_utils.stats import MetricWarning


def write_study(
    report: Path, card: DatasetManifest, place: str, fitting: list[str], contents: Contents, shared: dict
) -> tuple[tuple[DatasetManifest, str, list[dict]], set[Path]]:
    """Writes the page of a dataset with its files, unless it is up to date.

    Args:
        place: Of the page, below `report`.
        fitting: Ids of the runs that it shows.
        shared: What all templates see.

    Returns:
        The manifest, the place and the headline scores, for the overview; and the paths of all files.
    """
    runs = results.read_records(contents.space.records)
    study = read_study(card, runs[runs["run_id"].isin(fitting)], contents.space.profile)
    own_runs = [run for run in contents.runs if run.record.get("dataset") == card.name]
    written = _write_page(report, place, study, own_runs, contents, shared)
    return (card, place, study.headlines.to_dict(orient="records")), written


def _write_page(report: Path, place: str, study: Study, runs: list[Run], contents: Contents, shared: dict) -> set[Path]:
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
    encoders = [model for model in contents.encoders if model.name in {r["encoder"] for r in records}]
    facts = {
        "card": study.card,
        "main": records[0],
        "headlines": study.headlines.to_dict(orient="records"),
        "sections": [(section, shown[section.anchor]) for section in sections],
        "methods": write_methods(study, records, dataset),
        "claim": claim_answers(study, records, dataset),
        "tripod": tripod_answers(study, records, dataset),
        "encoders": encoders,
        "toys": [model for model in encoders if model.toy],
        "datasheet": dataset_card(study.card, _counted(dataset)),
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


def _counted(dataset: Dataset | None) -> dict[str, str]:
    if dataset is None:
        return {}
    return count_people(pd.concat([data.metadata_table(dataset, split) for split in SPLITS]), "images")


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
    listed = shared["site"], contents.commands, contents.needs, runs, study.ids, study.card, code_digest()
    digest = hashlib.sha256(repr(listed).encode())
    for path in (contents.space.data_root / study.card.csv, contents.space.data_root / study.card.image_root):
        digest.update(repr(path.stat().st_mtime_ns if path.exists() else None).encode())
    return digest.hexdigest()
