"""Makes the card of a classifier or segmenter that a run kept."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from panderm_utils import figures, manifests, protocols, results, stats
from panderm_utils.figures import METRIC_TITLES
from panderm_utils.manifests import FAULTS, NOT_A_DEVICE, UNKNOWN, Card, DatasetManifest, Protocol, Section
from panderm_utils.manifests import EncoderManifest as Encoder
from panderm_utils.report.pages import interval

LEVEL = 0.9  # of sensitivity and of specificity
NONE_CHOSEN = "the class with the largest probability; no threshold was chosen"


def model_card(record: dict, folder: Path) -> Card:
    """Returns the card of the model that a run kept, from its record and stored predictions alone."""
    dataset = manifests.load_dataset_manifest(record["dataset"])
    encoder = manifests.load_encoder_manifest(record["encoder"])
    protocol = protocols.load_protocol(record["protocol"])
    numbers = record["metrics"][record["headline_metric"]]
    row = {key: record[key] for key in ("run_id", "dataset", "encoder", "protocol", "profile", "seed")}
    row |= {"metric": record["headline_metric"], "folder": str(folder), "value": numbers["value"]}
    run = pd.DataFrame([{**row, "dataset_label": dataset.short_title, "encoder_label": encoder.title}])
    what = f"a classifier of {dataset.num_classes} classes"
    if protocol.load_segmenter:
        what = "a model of outlines: from an image to the mask of its lesion"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.MetricWarning)  # the run said so, and its page shows it
        measured = [] if protocol.load_segmenter else [_thresholds(record, run), _calibration(run)]
        measured.append(_subgroups(run))
    return Card(
        title=f"{protocol.title.capitalize()} of {encoder.title}, {dataset.short_title}",
        kind="Model card",
        lede=what,
        sections=(
            _details(record, protocol, encoder, dataset),
            _use(record, dataset, protocol),
            _training(record, dataset),
            _evaluation(record),
            *measured,
            Section(
                FAULTS, notes=(*dataset.caveats, *encoder.caveats, *record.get("warnings", [])) or ("none on file",)
            ),
        ),
        references=tuple(dict.fromkeys((*dataset.references, *encoder.references))),
    )


def _details(record: Mapping, protocol: Protocol, encoder: Encoder, dataset: DatasetManifest) -> Section:
    environment = record.get("environment", {})
    commit = environment.get("git_commit")
    version = (environment.get("versions") or {}).get("panderm_utils", UNKNOWN)
    made = f"{record.get('written', UNKNOWN)[:10]} with panderm_utils {version}"
    digest = (record.get("encoder_facts") or {}).get("digest")
    facts = {
        "Run": record["run_id"],
        "Made": f"{made}, commit {commit[:10]}" if commit else made,
        "How": protocol.methods(record) or f"see the settings of the run ({protocol.title})",
        "Encoder": f"{encoder.title}, weights {f'SHA-256 {digest}' if digest else 'random'}",
        "Licence": f"of the encoder: {encoder.licence}; of the training images: {_facts(dataset, 'Use')['Licence']}",
    }
    if kept := record["files"].get(results.CLASSIFIER_FILE):
        facts["File"] = f"{results.CLASSIFIER_FILE}, SHA-256 {kept}"
    return Section("Model", facts)


def _use(record: Mapping, dataset: DatasetManifest, protocol: Protocol) -> Section:
    always = (
        "it does not say what a lesion is"
        if protocol.load_segmenter
        else (f"it answers with one of its {dataset.num_classes} classes, whatever the image shows")
    )
    facts = {
        "Intended": "research: to repeat, compare and study this evaluation, and to predict images of the same kind",
        "Out of scope": f"{NOT_A_DEVICE} Images of other devices, clinics or people were not tested, and {always}.",
    }
    if record.get("synthetic"):
        facts["Drawn images"] = "it was trained on drawn images: its output on real ones means nothing"
    return Section("Use", facts)


def _training(record: Mapping, dataset: DatasetManifest) -> Section:
    data = record.get("data", {})
    sizes, counts = data.get("split_sizes", {}), data.get("class_counts", {}).get("train") or []
    fraction = record["settings"].get("train_fraction", 1)
    part = f", of which {fraction:.0%} were used" if fraction != 1 else ""
    facts = {"Dataset": f"{dataset.title}{', drawn stand-in' if record.get('synthetic') else ''}"}
    facts["Images"] = f"train {sizes['train']:,}{part}; val {sizes.get('val', 0):,}" if "train" in sizes else UNKNOWN
    if dataset.classes:
        named = zip((c.long_name for c in dataset.classes), counts, strict=bool(counts))
        facts["By class"] = ", ".join(f"{name} {n:,}" for name, n in named) or UNKNOWN
    facts["Rows (image, split, label)"] = f"SHA-256 {data['rows_sha256']}" if "rows_sha256" in data else UNKNOWN
    kind = "Labels" if dataset.classes else "Masks"
    facts[f"How the {kind.lower()} were made"] = _facts(dataset, kind)["How they were made"]
    return Section("Training data", {**facts, **_facts(dataset, "People")})


def _facts(dataset: DatasetManifest, title: str) -> Mapping[str, str]:
    """Returns the facts of a section of the dataset's card."""
    return next(section.facts for section in manifests.dataset_card(dataset).sections if section.title == title)


def _evaluation(record: Mapping) -> Section:
    targets = ", ".join(record.get("targets", {}))
    facts = {
        "Images": f"{record['scored'].get('images', 0):,} test images of the same dataset; not trained on",
        "Images of other clinics": targets or "none: not tested",
    }
    rows = [("metric", "value [95% interval]")]
    rows += [
        (f"{_metric(name)}{' (headline)' if name == record['headline_metric'] else ''}", interval(numbers))
        for name, numbers in record["metrics"].items()
        if name in METRIC_TITLES
    ]
    return Section("Evaluation", facts, tuple(rows))


def _thresholds(record: Mapping, run: pd.DataFrame) -> Section:
    facts, sets = {"Decision": NONE_CHOSEN}, record.get("prediction_sets")
    facts["Prediction sets"] = "none: there is no val split, or an older version wrote the record"
    if sets:
        facts["Prediction sets"] = (
            f"classes of probability {sets['threshold']:.3f} or more, chosen on {sets['val_images']:,} val images for "
            f"{sets['asked']:.0%}; on test {sets['coverage']:.1%} have the true class, with {sets['mean_size']:.2f} "
            "classes in a set"
        )
    facts["Operating points"] = (
        "for one rate of 90%, chosen on the test images; at another clinic the other rate will be lower"
    )
    table = figures.points_table(results.operating_points_of_records(run, (LEVEL,)))
    return Section(
        "Thresholds",
        facts,
        _rows(
            table.drop(columns=["Dataset", "Encoder", "Others", "Level"]),
            {
                "Sensitivity at this specificity": "Sensitivity at 90% specificity",
                "Specificity at this sensitivity": "Specificity at 90% sensitivity",
            },
        ),
    )


def _calibration(run: pd.DataFrame) -> Section:
    (row,) = figures.calibration_table(results.calibration_of_records(run)[1]).to_dict(orient="records")
    facts = {
        "Expected calibration error": f"{row['ECE']}; of perfect probabilities, by chance: {row['ECE by chance']}",
        "Brier score": row["Brier score"],
    }
    return Section("Calibration", facts)


def _subgroups(run: pd.DataFrame) -> Section:
    groups, gaps, without = results.subgroups_of_records(run)
    judged = [*groups["kind"].unique()] if len(groups) else []
    missing = [kind.replace("_", " ") for kind in manifests.METADATA_KINDS if kind not in judged]
    facts = {
        f"Largest gap by {row['Kind'].lower()}": _gap(row) for row in figures.gaps_table(gaps).to_dict(orient="records")
    }
    if missing:
        why = "; ".join(without["why"]) or "the record has no such column"
        facts["Not evaluated"] = f"{', '.join(missing)} ({why})"
    table = figures.groups_table(groups).drop(columns=["Dataset", "Metric"]) if len(groups) else pd.DataFrame()
    return Section(
        "Groups of people",
        facts,
        _rows(table, {"Rarest": "Rarest class", "Value": f"{_metric(run['metric'].iloc[0])} [95% interval]"}),
    )


def _gap(row: Mapping) -> str:
    ends = f"{row['Highest']} above {row['Lowest']}: " if row["Highest"] != row["Lowest"] else ""
    return f"{ends}{row['Largest gap']}{', p ' + row['p'] if row['p'] else ''}"


def _rows(table: pd.DataFrame, titles: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    if table.empty:
        return ()
    cells = table.rename(columns=titles).astype(object).map(lambda cell: "" if pd.isna(cell) else str(cell))
    return (tuple(cells), *cells.itertuples(index=False, name=None))


def _metric(name: str) -> str:
    return METRIC_TITLES.get(name, name.replace("_", " "))
