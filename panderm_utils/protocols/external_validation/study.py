"""External validation: a probe for melanoma against the rest, trained on one dataset (the source), tested on others.

    targets, left_out = find_targets(source, choose_targets(...), data_root)   available targets, without shared images
    features = target_features(encoder, target)                                of each target
    predictions = {name: (y, proba, image names)}                              of each target
    external = score_targets(predictions)

An image shared by two datasets is no external test: a target's image is left out if the source has it in any split
(`find_shared`).

A record of this protocol holds the source's own test split in predictions.csv, with melanoma as class 1, and

    external.csv                  one row per target and metric, with the target's images, melanomas and excluded images
    predictions_external.csv.gz   the predictions of every target
    excluded.csv                  the excluded images, each with its match in the source and the kind of match

Of the metrics in record.json, `auroc_<dataset>` is AUROC of that dataset's rows in predictions_external.csv.gz; all
others are of predictions.csv. All come from `stats.evaluate` with the replicates and seed of the record.

Symbols: N test images, 2 classes: 0 the rest, 1 melanoma.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from panderm_utils import encoders  # imports torch only where features are extracted, not to read records
from panderm_utils.data import Dataset, class_counts, isic_id, load_dataset
from panderm_utils.manifests import SPLITS, DatasetManifest, Pair, load_dataset_manifest
from panderm_utils.protocols.external_validation.protocol import TARGET_IMAGES, TargetError
from panderm_utils.results import (
    compare_metrics,
    parse_predictions,
    prediction_table,
    read_predictions,
    read_record,
    resampling,
)
from panderm_utils.stats import evaluate

CLASSES = ("rest", "melanoma")
FILES = ("external.csv", "predictions_external.csv.gz", "excluded.csv")
EXCLUDED = ("excluded_file", "excluded_isic_id")  # columns: images left out, by kind of match


@dataclass(frozen=True, eq=False)
class Target:
    """A dataset that the probe is tested on.

    Attributes:
        table: The rows of the dataset's table that are scored.
        shared: The excluded images, from `find_shared`.
    """

    dataset: Dataset
    table: pd.DataFrame
    shared: pd.DataFrame


def melanoma_labels(card: DatasetManifest, labels) -> np.ndarray:
    """Returns 1 for melanoma and 0 for every other class, [N], from a dataset's labels [N]."""
    melanoma = [k for k, name in enumerate(card.class_names) if name in card.melanoma]
    return np.isin(labels, melanoma).astype(np.int64)


def melanoma_counts(dataset: Dataset) -> pd.DataFrame:
    """Returns the number of images of melanoma and of the rest (rows, naming their classes) in each split."""
    counts = class_counts(dataset)
    melanoma = counts.index.isin(dataset.manifest.melanoma)
    parts = dict(zip(CLASSES, (counts[~melanoma], counts[melanoma]), strict=True))
    rows = {f"{name} ({', '.join(part.index)})": part.sum() for name, part in parts.items()}
    return pd.DataFrame(rows).T.rename_axis("class")


def find_targets(
    source: Dataset, cards: Sequence[DatasetManifest], data_root: str | Path, images: str = "all"
) -> tuple[dict[str, Target], dict[str, str]]:
    """Returns the targets whose data are available, without images shared with the source.

    Args:
        images: "all", since the probe has seen none of them; or "test", the target's own test split.

    Returns:
        Name -> target, and name -> reason for those left out: no data, or only one of the two classes.

    Raises:
        TargetError: No target is left. DataError: a dataset is present but invalid.
    """
    if images not in TARGET_IMAGES:
        raise TargetError(f'target_images {images!r} is unknown; write "all" or "test"')
    targets, left_out = {}, {}
    for card in cards:
        if reason := card.missing_path(data_root):
            left_out[card.name] = reason
            continue
        dataset = load_dataset(card, data_root)
        table = dataset.table if images == "all" else dataset.split("test")
        shared = find_shared(source, dataset)
        shared = shared[shared["image"].isin(table["image"])].reset_index(drop=True)
        table = table[~table["image"].isin(shared["image"])].reset_index(drop=True)
        if len(set(melanoma_labels(card, table["label"]))) < 2:
            left_out[card.name] = f"its {len(table):,} images not in the source are of one class: all melanoma, or none"
        else:
            targets[card.name] = Target(dataset, table, shared)
    if not targets:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in left_out.items())
        raise TargetError(f"no target is left to test on; get the data of one, or name another in `targets`:{reasons}")
    return targets, left_out


def target_table(targets: dict[str, Target], left_out: dict[str, str]) -> pd.DataFrame:
    """Returns one row per target: images scored, images excluded as shared, and why a target is left out."""
    rows = [{"dataset": name, "modality": t.dataset.manifest.modality, **_counts(t)} for name, t in targets.items()]
    rows += [{"dataset": name, "left out": reason} for name, reason in left_out.items()]
    columns = ["dataset", "modality", "images", "melanoma", *EXCLUDED, "left out"]
    table = pd.DataFrame(rows, columns=columns)
    return table.astype(dict.fromkeys(columns[2:-1], "Int64")).fillna({"modality": "", "left out": ""})


def target_features(
    encoder: "encoders.Encoder", target: Target, cache: str | Path | None = None, batch_size: int = 64
) -> "encoders.Features":
    """Returns the features of the target's images, y 1 for melanoma.

    Extracted split by split, like in the other protocols, so that their cached features are reused.
    """
    parts = [
        encoders.extract_features(encoder, target.dataset, split, cache, batch_size).take(rows["image"])
        for split in SPLITS
        if len(rows := target.table[target.table["split"] == split])
    ]
    return encoders.Features(
        x=np.concatenate([part.x for part in parts]),
        y=melanoma_labels(target.dataset.manifest, np.concatenate([part.y for part in parts])),
        image_ids=np.concatenate([part.image_ids for part in parts]),
        seconds=sum(part.seconds for part in parts),
        computed=sum(part.computed for part in parts),
        from_cache=sum(part.from_cache for part in parts),
        computed_by=tuple(sorted({maker for part in parts for maker in part.computed_by})),
    )


def example_images(datasets: Sequence[Dataset], count: int = 3) -> pd.DataFrame:
    """Returns the first images of melanoma and of the rest of each dataset: dataset, class, image, path."""
    parts = []
    for dataset in datasets:
        card = dataset.manifest
        names = np.array(CLASSES)[melanoma_labels(card, dataset.table["label"])]
        part = dataset.table.assign(**{"dataset": card.short_title, "class": names}).groupby("class").head(count)
        part = part.assign(path=[dataset.path(image) for image in part["image"]])
        parts.append(part.sort_values("class", kind="stable")[["dataset", "class", "image", "path"]])
    return pd.concat(parts, ignore_index=True)


def score_targets(predictions: dict[str, tuple], replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Returns one row per target and metric: dataset, images, melanoma, and the columns of `stats.evaluate`.

    Args:
        predictions: Target name -> true labels [N], class probabilities [N, 2], image names [N].
    """
    parts = []
    for name, (y, proba, _) in predictions.items():
        counts = {"dataset": name, "images": len(y), "melanoma": int(np.sum(y))}
        scores = evaluate(y, proba, replicates, seed, CLASSES).reset_index()
        parts.append(pd.DataFrame({**counts, **scores}))
    return pd.concat(parts, ignore_index=True)


def missed_melanomas(predictions: dict[str, tuple], count: int = 3) -> pd.DataFrame:
    """Returns each target's melanomas with the lowest probability: dataset, filename, probability, caption."""
    rows = []
    for name, (y, proba, images) in predictions.items():
        melanomas = np.flatnonzero(y)
        for i in melanomas[np.argsort(proba[melanomas, 1], kind="stable")][:count]:
            p = proba[i, 1]
            rows.append((name, images[i], p, f"{name}\nmelanoma at {p:.1%}"))
    return pd.DataFrame(rows, columns=["dataset", "filename", "probability", "caption"])


def record_scores(internal: pd.DataFrame, external: pd.DataFrame) -> pd.DataFrame:
    """Returns the metrics of a record: those of the source's test split, and `auroc_<dataset>` of each target."""
    rows = external[external["metric"] == "auroc"]
    named = rows.assign(metric="auroc_" + rows["dataset"]).set_index("metric")
    named = named.drop(columns=["dataset", "images", "melanoma"])  # leaves the columns of `stats.evaluate`
    return pd.concat([internal, named]).rename_axis("metric")


def record_tables(predictions: dict[str, tuple], external: pd.DataFrame, targets: dict[str, Target]) -> dict:
    """Returns the `extra_tables` of `results.save_record`.

    Args:
        external: The table of `score_targets`.
    """
    excluded = pd.DataFrame({name: _counts(target) for name, target in targets.items()}).T[list(EXCLUDED)]
    parts = [prediction_table(names, y, proba).assign(dataset=name) for name, (y, proba, names) in predictions.items()]
    shared = [target.shared.assign(dataset=name) for name, target in targets.items()]
    return dict(zip(FILES, (external.join(excluded, on="dataset"), pd.concat(parts), pd.concat(shared)), strict=True))


def read_external_predictions(folder: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray, list[str]]]:
    """Returns target -> true labels [N], probabilities [N, 2] and image names of the record in `folder`."""
    table = pd.read_csv(Path(folder) / "predictions_external.csv.gz", dtype=str)
    return {name: parse_predictions(rows) for name, rows in table.groupby("dataset", sort=False)}


def read_external(folder: str | Path) -> pd.DataFrame:
    """Returns external.csv of the record in `folder`, with the exact numbers that were written."""
    table = pd.read_csv(Path(folder) / "external.csv", dtype=str)  # parsed by Python, to restore exact numbers
    kinds = {"dataset": str, "metric": str, **dict.fromkeys(("images", "melanoma", *EXCLUDED), int)}
    return table.astype({column: kinds.get(column, float) for column in table})


def read_panel(scores: pd.DataFrame) -> pd.DataFrame:
    """Returns AUROC of each run of `paper_scores` on the source's own test split and on each target.

    Columns: run_id, encoder, encoder_label, dataset, dataset_label, internal, images, melanoma, excluded_file,
    excluded_isic_id, metric, value, low, high.
    """
    runs = scores[scores["headline"]] if len(scores) else scores
    parts = []
    for _, run in runs.iterrows():
        y, _, _ = read_predictions(run["folder"])
        own = {**run[["dataset", "value", "low", "high"]], "images": len(y), "melanoma": int(y.sum()), "internal": True}
        external = read_external(run["folder"]).query("metric == 'auroc'").assign(internal=False)
        identity = dict(run[["run_id", "encoder", "encoder_label"]])
        parts.append(pd.concat([pd.DataFrame([own]), external]).assign(**identity, metric="auroc"))
    columns = ["run_id", "encoder", "encoder_label", "dataset", "dataset_label", "internal", "images", "melanoma"]
    columns += [*EXCLUDED, "metric", "value", "low", "high"]
    panel = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    panel["dataset_label"] = [load_dataset_manifest(name).short_title for name in panel["dataset"]]
    return panel[columns].astype({"internal": bool, **dict.fromkeys(EXCLUDED, "Int64")})


def read_left_out(scores: pd.DataFrame) -> pd.DataFrame:
    """Returns the targets that each run of `paper_scores` left out: encoder, target, reason."""
    runs = scores[scores["headline"]] if len(scores) else scores
    rows = [
        {"encoder": run["encoder"], "target": name, "reason": reason}
        for _, run in runs.iterrows()
        for name, reason in read_record(run["folder"])["left_out"].items()
    ]
    return pd.DataFrame(rows, columns=["encoder", "target", "reason"])


def _counts(target: Target) -> dict[str, int]:
    melanoma = melanoma_labels(target.dataset.manifest, target.table["label"])
    excluded = {name: int((target.shared["kind"] == name.removeprefix("excluded_")).sum()) for name in EXCLUDED}
    return {"images": len(melanoma), "melanoma": int(melanoma.sum()), **excluded}


def recompute_targets(record: dict, folder: Path) -> Iterator[Pair]:
    """Yields the metrics in record.json, then those of every target in external.csv (AUROC is in both)."""
    predictions = read_external_predictions(folder).items()
    scores = {target: evaluate(y, proba, **resampling(record)) for target, (y, proba, _) in predictions}
    y, proba, _ = read_predictions(folder)
    areas = {f"auroc_{target}": numbers.loc["auroc"] for target, numbers in scores.items()}
    yield from compare_metrics(
        record["metrics"], pd.concat([evaluate(y, proba, **resampling(record)), pd.DataFrame(areas).T])
    )
    for row in read_external(folder).to_dict(orient="records"):
        for column, again in scores[row["dataset"]].loc[row["metric"]].items():
            yield f"{row['metric']} on {row['dataset']} (external.csv)", column, row[column], again


def find_shared(source: Dataset, target: Dataset) -> pd.DataFrame:
    """Returns the target's images that the source also has, in any split.

    Columns: image, kind ("file": identical bytes; else "isic_id") and source_image, the matching image.
    """
    ours, theirs = ({image: data.path(image).stat().st_size for image in data.files} for data in (source, target))
    both = set(ours.values()) & set(theirs.values())  # equal files have equal sizes, so few have to be read
    digests = {_digest(source.path(image)): image for image, size in ours.items() if size in both}
    ids = {name: image for image in ours if (name := isic_id(source.files[image]))}
    rows = []
    for image, size in theirs.items():
        same = digests.get(_digest(target.path(image))) if size in both else None
        namesake = ids.get(isic_id(target.files[image]))
        if same or namesake:
            rows.append((image, "file" if same else "isic_id", same or namesake))
    return pd.DataFrame(rows, columns=["image", "kind", "source_image"])


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
