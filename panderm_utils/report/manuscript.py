"""Text for a manuscript about your own data: a methods section, and the items of two checklists that records answer.

CLAIM: Checklist for Artificial Intelligence in Medical Imaging, 2024 update (doi 10.1148/ryai.240300). TRIPOD+AI: BMJ
2024;385:e078378. Only items that the records answer are listed, by topic; authors fill in the square brackets.
"""

import pandas as pd

from panderm_utils import protocols
from panderm_utils.data import Dataset, leakage_table
from panderm_utils.figures import METRIC_TITLES
from panderm_utils.manifests import SPLITS, DatasetManifest
from panderm_utils.report.study import Study
from panderm_utils.stats import MASK_METRICS

MODELS = "The paragraph Models of the text above describes each step and setting."
CALIBRATION = " Calibration: reliability diagram, ECE, Brier score."
BALANCE = "Metrics that weigh classes equally are reported beside accuracy."
Answers = list[tuple[str, str]]  # what an item asks for, the answer


def write_methods(study: Study, records: list[dict], dataset: Dataset | None) -> list[tuple[str, str]]:
    """Returns the paragraphs of a methods section, each with its title.

    Args:
        records: Of the study's runs, the main one first.
        dataset: The data, if they are still there and as they were: with patients and lesions to count.
    """
    return [
        ("Data", _data(study.card, records[0], dataset)),
        ("Models", f"{_weights(records)} {' '.join(_each_method(records))}"),
        ("Statistics", _statistics(study, records)),
        ("Software", _software(records)),
        ("Reproducibility", _digests(records)),
    ]


def claim_answers(study: Study, records: list[dict], dataset: Dataset | None) -> Answers:
    """Returns the items of CLAIM that the records answer."""
    main, card = records[0], study.card
    sizes = main["data"]["split_sizes"]
    return [
        ("Identification as a study of AI", _category(records)),
        (
            "Data sources",
            f"{sum(sizes.values()):,} images, table {main['data']['csv_sha256'][:12]}… (SHA-256); [source]",
        ),
        ("Data preprocessing", "Resized and cropped as stated in the methods text; no image was excluded by it."),
        ("Missing data", _missing(main)),
        ("How data were assigned to partitions", _partition(card)),
        ("Level at which partitions are disjoint", _disjoint(card, dataset)),
        ("Description of the model", f"{_weights(records)} {MODELS}"),
        ("Software", _software(records)),
        ("Initialization of model parameters", _weights(records)),
        ("Training approach", MODELS),
        ("Selection of the final model", _selection(records)),
        ("Metrics of model performance", _metrics(main)),
        ("Measures of significance and uncertainty", _statistics(study, records)),
        (
            "Evaluation on internal data",
            f"On a test split of {sizes['test']:,} images, on which no model was trained or chosen.",
        ),
        ("Testing on external data", _external(records)),
        ("Numbers of cases", _counts(card, main)),
        ("Characteristics in each partition", _counts_by_split(card, main)),
        ("Performance with its uncertainty", _performance(study)),
        ("Failure analysis", _failures(card)),
        (
            "Availability of software",
            "panderm_utils (MIT); settings, predictions and digests are in the records.",
        ),
    ]


def tripod_answers(study: Study, records: list[dict], dataset: Dataset | None) -> Answers:
    """Returns the items of TRIPOD+AI that the records answer."""
    main, card = records[0], study.card
    groups = "by " + ", ".join(card.metadata) if card.metadata else "no age, sex or site in the data: not evaluated"
    return [
        ("Data preparation", "Resized, cropped and normalised alike for all patients; see the methods text."),
        ("Sample size", f"{_counts(card, main)} [justification]"),
        ("Missing data", _missing(main)),
        ("How the data were used", f"{_partition(card)} {_disjoint(card, dataset)}"),
        ("Type of model and model building", f"{_category(records)} {MODELS}"),
        ("Measures of performance", _metrics(main) + CALIBRATION * bool(card.classes)),
        *([("Class imbalance", f"{_counts(card, main)} {BALANCE}")] if card.classes else []),
        ("Fairness", f"Performance in subgroups {groups}."),
        ("Output of the model", _output(card)),
        (
            "Training against evaluation data",
            "Both are splits of one dataset: same setting, eligibility and labels.",
        ),
        ("Code sharing", "panderm_utils (MIT), version and commit in the methods text."),
        ("Characteristics in each partition", _counts_by_split(card, main)),
        ("Numbers in each analysis", _counts_by_split(card, main)),
        ("Full model specification", f"{_weights(records)} [where the trained model is available]"),
        ("Performance with intervals", _performance(study)),
    ]


def _data(card: DatasetManifest, main: dict, dataset: Dataset | None) -> str:
    kind = "" if card.modality == "unknown" else f"{card.modality} "
    return (
        f"{_counts(card, main)[:-1]}; {kind}images from [institution, period, devices], labelled by [reference "
        f"standard]. {_partition(card)} {_disjoint(card, dataset)} {_missing(main)} [Ethics approval and consent.]"
    )


def _counts(card: DatasetManifest, main: dict) -> str:
    if not card.classes:
        return f"{sum(main['data']['split_sizes'].values()):,} images, each with the mask of its lesion."
    counts = pd.DataFrame(main["data"]["class_counts"]).sum(axis=1)
    by_class = ", ".join(f"{c.long_name} {n:,}" for c, n in zip(card.classes, counts, strict=True))
    return f"{counts.sum():,} images of {card.num_classes} classes ({by_class})."


def _counts_by_split(card: DatasetManifest, main: dict) -> str:
    if not card.classes:
        return f"{'; '.join(f'{split} {size:,}' for split, size in main['data']['split_sizes'].items())}."
    parts = [
        f"{split} {main['data']['split_sizes'][split]:,} ("
        + ", ".join(
            f"{c.long_name} {n}" for c, n in zip(card.classes, main["data"]["class_counts"][split], strict=True)
        )
        + ")"
        for split in SPLITS
    ]
    return f"{'; '.join(parts)}."


def _partition(card: DatasetManifest) -> str:
    drawn = [text for text in card.caveats if text.startswith("The split")]
    return (
        drawn[0] if drawn else "The split into training, validation and test images was that of the data. [How drawn.]"
    )


def _disjoint(card: DatasetManifest, dataset: Dataset | None) -> str:
    if dataset is None:
        return f"Kept together in one split: images of one {' or '.join(card.groups) or 'file'}."
    table = leakage_table(dataset)
    told = []
    for kind, row in table.iterrows():
        if pd.isna(row["in two splits"]):
            told.append(f"{kind}s are not identified in the data, so their overlap could not be checked")
        else:
            count = row["in two splits"]
            told.append(f"of {row['ids']:,} {kind}s, {f'{count:,} are' if count else 'none is'} in two splits")
    text = "; ".join(told)
    return f"{text[0].upper()}{text[1:]}."


def _missing(main: dict) -> str:
    problems = main["data"].get("problems", {})
    if not problems:
        return "No row of the table was left out for a missing image or label. [Rows left out before.]"
    return f"Notes of the check of the data: {', '.join(f'{kind} ({n:,})' for kind, n in problems.items())}."


def _category(records: list[dict]) -> str:
    return f"Deep learning: {', '.join(dict.fromkeys(_title(r) for r in records))} of a vision transformer."


def _title(record: dict) -> str:
    return protocols.load_protocol(record["protocol"]).title


def _each_method(records: list[dict]) -> list[str]:
    texts = (protocols.load_protocol(record["protocol"]).methods(record) for record in records)
    return list(dict.fromkeys(text for text in texts if text))


def _weights(records: list[dict]) -> str:
    found = {}
    for record in records:
        facts = record.get("encoder_facts", {})
        found[facts.get("title", record["encoder"])] = facts.get("digest")
    parts = [f"{title} (weights {f'SHA-256 {digest}' if digest else 'random'})" for title, digest in found.items()]
    return f"Encoder: {'; '.join(parts)}."


def _selection(records: list[dict]) -> str:
    chosen = {_title(r): r["training"]["chosen"] for r in records if "training" in r}
    told = [f"{title}: {how}" for title, how in chosen.items()]
    return "; ".join([*told, "other models were fitted once, without a choice"]) + "."


def _metrics(main: dict) -> str:
    names = [METRIC_TITLES[name] for name in main["metrics"] if name in METRIC_TITLES]
    headline = METRIC_TITLES[main["headline_metric"]]
    text = f"{', '.join(names)}; the main one is {headline}."
    return text if _of_masks(main) else f"{text} Sensitivity at fixed specificity, and the reverse."


def _of_masks(record: dict) -> bool:
    return record["headline_metric"] in MASK_METRICS


def _output(card: DatasetManifest) -> str:
    classes = f"A probability for each of {card.num_classes} classes; the largest decides."
    return classes if card.classes else "For each pixel, whether it belongs to the lesion."


def _failures(card: DatasetManifest) -> str:
    classes = "The confusion matrix and the worst mistakes are in this report."
    return classes if card.classes else "The distribution of the scores over the images is in this report."


def _statistics(study: Study, records: list[dict]) -> str:
    main = records[0]
    strata = "" if _of_masks(main) else " stratified by class"
    text = (
        f"{_metrics(main)} All on the {main['scored']['images']:,} test images, with 95% percentile intervals "
        f"from {main['settings'].get('replicates')} bootstrap resamples{strata} (seed {main['seed']})."
    )
    if len(study.classifiers) > 1:
        text += (
            " Models were compared on the same resamples (difference with its 95% interval) and by a permutation test."
        )
    return text


def _software(records: list[dict]) -> str:
    environment = records[0].get("environment", {})
    versions = environment.get("versions", {})
    named = [f"{name} {version}" for name, version in versions.items() if name != "panderm_utils"]
    commit = environment.get("git_commit")
    ours = f"panderm_utils {versions.get('panderm_utils', '')}{f', commit {commit}' if commit else ''}"
    return f"{ours}; Python {environment.get('python')}; {', '.join(named)}; {environment.get('platform')}."


def _digests(records: list[dict]) -> str:
    runs = "; ".join(record["run_id"] for record in records)
    return (
        f"Rows used (image, split, label): SHA-256 {records[0]['data']['rows_sha256']}. Runs: {runs}. Every "
        "number can be recomputed from the stored predictions."
    )


def _external(records: list[dict]) -> str:
    targets = [name for record in records for name in record.get("targets", {})]
    return f"On {', '.join(targets)}." if targets else "None: no other dataset was used."


def _performance(study: Study) -> str:
    scored = study.headlines
    if not study.card.classes:
        scored = pd.concat([scores[scores["headline"]] for scores in study.others.values()], ignore_index=True)
    rows = scored.to_dict(orient="records")
    parts = [
        f"{protocols.load_protocol(r['protocol']).title.capitalize()} of {r['encoder_label']}: "
        f"{METRIC_TITLES[r['metric']]} {r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"
        for r in rows
    ]
    return f"{'; '.join(parts) or 'no classifier of these classes was scored'}."
