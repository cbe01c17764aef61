"""The cards of a report: datasheets of its datasets, model cards of its encoders and of the models that its runs kept.

    report/cards/dataset-<name>.html, encoder-<name>.html, <run id>.html; the same as Markdown, to keep beside a model
    report/references.bib             what to cite for all of them

Of your data, the datasheet is a section of the dataset's page. The card of a run is written again only if its record, a
manifest or the code has changed.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from panderm_utils import protocols, results, stats
from panderm_utils.disk import write_file
from panderm_utils.manifests import UNKNOWN, Card, Protocol, Section, dataset_card, encoder_card
from panderm_utils.messages import UserError
from panderm_utils.report.contents import Contents, Run
from panderm_utils.report.pages import code_digest, interval, readable_name, stamp_of, write_page

Places = dict[tuple[str, str], str]  # ("dataset", name), ("encoder", name) or ("run", id) -> place below the report


def card_places(contents: Contents, studies: Mapping[str, str]) -> Places:
    """Returns where each card is.

    Args:
        studies: Of your data, name of a dataset -> its page.
    """
    places = {("dataset", card.name): f"cards/dataset-{card.name}.html" for card in contents.datasets}
    places |= {("dataset", name): f"{page}#card" for name, page in studies.items()}
    names = {model.name: re.sub(r"[^A-Za-z0-9._-]", ".", model.name) for model in contents.encoders}
    places |= {("encoder", name): f"cards/encoder-{file}.html" for name, file in names.items()}
    return places | {("run", run.name): f"cards/{run.name}.html" for run in contents.done if _has_card(run, contents)}


def card_tasks(report: Path, contents: Contents, shared: dict) -> list[partial]:
    """Returns the functions that write the missing and outdated cards of runs, to be called in any process."""
    tasks = []
    for run in contents.done:
        if place := shared["cards"].get(("run", run.name)):
            models = [card for card in contents.datasets if card.name == run.record["dataset"]]
            models += [card for card in contents.encoders if card.name == run.record["encoder"]]
            stamp = hashlib.sha256(repr((run.record, models, shared["site"], code_digest())).encode()).hexdigest()
            if stamp_of(report / place) != stamp:
                folder = contents.space.records / run.name
                # Not all that is shared, which holds every record and would be sent with every task.
                seen = {"pages": {run.name: shared["pages"][run.name]}, "cards": {("run", run.name): place}}
                seen |= {name: shared[name] for name in ("site", "space")}
                tasks.append(partial(_write_model_card, report, place, run.record, folder, seen, stamp))
    return tasks


def write_cards(report: Path, contents: Contents, shared: dict) -> set[Path]:
    """Writes all other cards and references.bib; returns the paths of all, also of the cards of runs."""
    records = [run.record for run in contents.done]
    written = {write_file(report / "references.bib", results.cite_records(records))}
    places = shared["cards"]
    for m in contents.datasets:
        if "#" not in (place := places["dataset", m.name]):
            card = dataset_card(m, _counted(m.name, contents))
            written |= _write_card(report, place, card, shared)
    for model in contents.encoders:
        evaluation = _evaluations(record for record in records if record["encoder"] == model.name)
        written |= _write_card(report, places["encoder", model.name], encoder_card(model, evaluation), shared)
    runs = [report / place for (kind, _), place in places.items() if kind == "run"]
    return written.union(*((page, page.with_suffix(".md")) for page in runs))


def _write_model_card(report: Path, place: str, record: dict, folder: Path, shared: dict, stamp: str) -> None:
    from panderm_utils.report.model_cards import model_card  # takes seconds: only in the process that draws

    try:
        card = model_card(record, folder)
    except UserError as error:  # predictions that do not fit a manifest, say; the rest of the report is written
        card = Card(record["run_id"], "Model card", f"It could not be made: {error}", ())
    _write_card(report, place, card, shared, stamp)


def _write_card(report: Path, place: str, card: Card, shared: dict, stamp: str = "") -> set[Path]:
    copy = write_file((report / place).with_suffix(".md"), card.markdown())
    facts = {"card": card, "copy": copy.relative_to(report).as_posix(), "stamp": stamp}
    return {copy, write_page(report, place, "card.html", **{**shared, **facts})}


def count_people(metadata: pd.DataFrame, of: str) -> dict[str, str]:
    """Returns how many images of a table `data.metadata_table` are of each age, sex and skin tone, in words.

    Args:
        of: What the images are: "test images".
    """
    found = {}
    for kind in ("age", "sex", "skin_tone"):
        if kind in metadata:
            counts = pd.Series(stats.group_labels(kind, metadata[kind])).value_counts().sort_index()
            shown = ", ".join(f"{group}: {n:,}" for group, n in counts.items())
            found[kind] = f"{shown} (of {len(metadata):,} {of})"
    return found


def _has_card(run: Run, contents: Contents) -> bool:
    """Whether a run kept a model, and its dataset and encoder are still those of their manifests."""
    classes = {m.name: m.num_classes for m in contents.datasets}
    data = run.record.get("data", {}).get("class_counts", {})
    known = run.protocol in protocols.list_protocols() and run.record["encoder"] in {m.name for m in contents.encoders}
    fits = len(data.get("test", ())) == classes.get(run.record["dataset"])
    return known and fits and _keeps_model(run.record, protocols.load_protocol(run.protocol))


def _keeps_model(record: Mapping, protocol: Protocol) -> bool:
    """Whether a run kept a classifier or a segmenter, with which new images can be predicted."""
    return results.CLASSIFIER_FILE in record.get("files", {}) or protocol.load_segmenter is not None


def _evaluations(records: Iterable[Mapping]) -> list[Section]:
    """Returns what records say of their encoder: one row per run."""
    rows, digests = [("dataset", "protocol", "metric", "value [95% interval]", "test images", "run")], {}
    for record in records:
        digests[(record.get("encoder_facts") or {}).get("digest") or "none: random weights"] = None
        metric, images = record.get("headline_metric", ""), record["scored"].get("images")
        if numbers := record["metrics"].get(metric):
            score = (readable_name(metric), interval(numbers), f"{images:,}" if images else UNKNOWN)
            rows.append((record["dataset"], readable_name(record["protocol"]), *score, record["run_id"]))
    facts = {
        "SHA-256 of the weights": "; ".join(digests) or UNKNOWN,
        "Details": "class by class, thresholds, calibration and groups of people are in the card of each run that kept "
        "a model",
        "Images of other clinics": "only in runs of external validation",
    }
    return [Section("Evaluation", facts, tuple(rows) if len(rows) > 1 else ())]


def _counted(dataset: str, contents: Contents) -> dict[str, str]:
    """Returns what the metadata of a record say of the people in a dataset's test images; {} if there are none."""
    for run in contents.done:
        if run.record["dataset"] == dataset and "metadata.csv" in run.record["files"]:
            table = pd.read_csv(contents.space.records / run.name / "metadata.csv", dtype=str)
            return count_people(table, f"{'drawn ' * contents.space.synthetic}test images")
    return {}
