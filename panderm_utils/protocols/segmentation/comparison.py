"""Records of segmentation side by side: scores against the label fraction over seeds, and the same images outlined."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from panderm_utils.data import ImageFolder, open_image
from panderm_utils.figures import METRIC_TITLES
from panderm_utils.manifests import DatasetManifest, load_profile
from panderm_utils.protocols.segmentation.masks import MASKS_FILE, ImageMasks, MaskArchive
from panderm_utils.protocols.segmentation.protocol import PROTOCOL
from panderm_utils.protocols.segmentation.scores import SHOWN, pick_examples
from panderm_utils.results import parse_image_scores, read_record
from panderm_utils.stats import evaluate_image_scores

RUN = ["dataset", "encoder", "encoder_label", "metric", "fraction"]
CURVE = ["images", "draws", "value", "draw_low", "draw_high", "draw_sd", "low", "high", "dataset_label"]


def read_seeds(
    scores: pd.DataFrame, metrics: Sequence[str] = ("jaccard", "dice"), replicates: int = 1000
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the scores of each label fraction over the seeds, and of each seed, as `label_efficiency` draws them.

    A seed draws the labels and trains anew, so a seed is a draw there. Each dataset and metric has its own
    `dataset_label`: "ISIC2018 Task 1, Dice".

    Args:
        scores: Rows of `paper_scores`, of any seeds and label fractions.
        replicates: Bootstrap replicates of the intervals over the test images, of the mean over the seeds.

    Returns:
        Curves as in `label_efficiency.efficiency_curves`, and draws as in `label_efficiency.data_needed_table`, both
        with dataset and encoder; draws also with run_id. A record of other test images than the first one's of its
        dataset, encoder and fraction is left out with a warning.
    """
    curves, draws = [], []
    runs = scores[scores["headline"]] if len(scores) else scores.assign(train_fraction=1.0)
    for (dataset, encoder, fraction), seeds in runs.groupby(["dataset", "encoder", "train_fraction"], sort=False):
        identity = {"dataset": dataset, "encoder": encoder, "fraction": float(fraction)}
        identity["encoder_label"] = seeds["encoder_label"].iloc[0]
        label = seeds["dataset_label"].iloc[0]
        found = _same_images(seeds)
        mean = sum(one for one, _ in found.values()) / len(found)
        clusters = next(iter(found.values()))[1]
        over_images = evaluate_image_scores(mean[list(metrics)], clusters, replicates)
        kept = seeds[seeds["run_id"].isin(found)]
        images = [_training_images(Path(folder), fraction) for folder in kept["folder"]]
        for metric in metrics:
            values = np.array([one[metric].mean() for one, _ in found.values()])
            shared = {**identity, "metric": metric, "dataset_label": f"{label}, {METRIC_TITLES[metric]}"}
            spread = {"value": values.mean(), "draw_low": values.min(), "draw_high": values.max()}
            spread["draw_sd"] = values.std(ddof=1) if len(values) > 1 else np.nan
            ends = over_images.loc[metric, ["low", "high"]].to_dict()
            curves.append({**shared, "images": np.mean(images), "draws": len(values), **spread, **ends})
            each = zip(kept["seed"], kept["run_id"], images, values, strict=True)
            draws += [{**shared, "draw": s, "run_id": run, "images": n, "value": v} for s, run, n, v in each]
    return (
        pd.DataFrame(curves, columns=[*RUN, *CURVE]),
        pd.DataFrame(draws, columns=[*RUN, "dataset_label", "draw", "run_id", "images", "value"]),
    )


def complete_draws(draws: pd.DataFrame) -> pd.DataFrame:
    """Returns the seeds of `read_seeds` with every label fraction of their encoder, from which data needed is read.

    Left out are encoders without a run on all labels, or without one on fewer.
    """
    kept = []
    for _, rows in draws.groupby(["dataset_label", "encoder_label"], sort=False):
        fractions = set(rows["fraction"])
        if len(fractions) > 1 and 1 in fractions:
            kept.append(rows.groupby("draw").filter(lambda seed, all_=fractions: set(seed["fraction"]) == all_))
    return pd.concat(kept, ignore_index=True) if kept else draws.iloc[:0]


def missing_seeds(
    scores: pd.DataFrame, profile: str, fractions: Sequence[float], seeds: Sequence[int], **settings
) -> pd.DataFrame:
    """Returns one row per dataset that lacks runs: how many of how many, and the command that makes them.

    Args:
        scores: As in `read_seeds`.
        fractions, seeds: The runs that each encoder of the profile should have.
        settings: Those with which `scores` were selected.
    """
    plan, rows = load_profile(profile), []
    encoders = plan.choice(PROTOCOL.name).encoders
    keys = ["dataset", "encoder", "train_fraction", "seed"]
    there = set(scores.reindex(columns=keys).itertuples(index=False, name=None))
    for dataset in PROTOCOL.supported(plan.datasets):
        lacking = [e for e in encoders for f in fractions for s in seeds if (dataset, e, f, s) not in there]
        if lacking:
            command = f"python run_all.py --profile {profile} --protocols {PROTOCOL.name} --datasets {dataset}"
            command += f" --encoders {' '.join(dict.fromkeys(lacking))} --seeds {' '.join(map(str, seeds))}"
            command += f" -p train_fraction={','.join(f'{fraction:g}' for fraction in fractions)}"
            command += "".join(f" -p {n}={v}" for n, v in settings.items() if v != PROTOCOL.settings[n])
            total = len(encoders) * len(fractions) * len(seeds)
            rows.append({"dataset": dataset, "missing": len(lacking), "of": total, "command": command})
    return pd.DataFrame(rows, columns=["dataset", "missing", "of", "command"])


def shared_examples(scores: pd.DataFrame, count: int = 2) -> pd.DataFrame:
    """Returns the best, median and worst images of all encoders together: one row per encoder and image.

    Columns: run_id, encoder_label, folder, filename, group, and Dice at original size, by whose mean over the encoders
    the images are chosen.

    Args:
        scores: Headline rows of `paper_scores` of one dataset and seed.
    """
    columns = ["run_id", "encoder_label", "folder", "filename", "group", SHOWN]
    dice = {run.folder: _image_scores(run.folder)[SHOWN] for run in scores.itertuples()}
    if not dice:
        return pd.DataFrame(columns=columns)
    shared = pd.DataFrame(dice).dropna()
    table = shared.mean(axis=1).rename(SHOWN).rename_axis("filename").reset_index()
    chosen = pick_examples(table, min(count, len(table)))[["filename", "group"]]
    runs = scores.set_index("folder", drop=False)[["run_id", "encoder_label", "folder"]]
    parts = [
        chosen.assign(**runs.loc[folder], **{SHOWN: of[chosen["filename"]].to_numpy()}) for folder, of in dice.items()
    ]
    return pd.concat(parts, ignore_index=True)[columns]


def open_outlines(
    examples: pd.DataFrame, card: DatasetManifest, data_root: Path
) -> tuple[pd.DataFrame, list[Image.Image], list[ImageMasks]]:
    """Returns those of `shared_examples` whose image is below the data root, their images, and their masks."""
    folder, names = ImageFolder(data_root / card.image_root), examples["filename"].unique()
    files = {name: file for name in names if (file := folder.find(name, card.image_suffix)[0]) is not None}
    found = examples[examples["filename"].isin(files)].reset_index(drop=True)
    archives = {record: MaskArchive(Path(record) / MASKS_FILE) for record in found["folder"].unique()}
    images = {name: open_image(folder.root / file) for name, file in files.items()}
    masks = [archives[row.folder].read(row.filename) for row in found.itertuples()]
    return found, [images[name] for name in found["filename"]], masks


def _same_images(seeds: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, pd.Series | None]]:
    """Returns run id -> scores [N, M] and clusters [N] of the records with the test images of the first one."""
    found, first = {}, None
    for run in seeds.itertuples():
        table = pd.read_csv(Path(run.folder) / "predictions.csv", dtype=str)
        identity = table[["filename", "true_mask"]]
        first = identity if first is None else first
        if identity.equals(first):
            found[run.run_id] = parse_image_scores(table)[:2]
        else:
            warnings.warn(
                f"{run.run_id} has other test images or masks than {next(iter(found))} and is left out; "
                "repeat it with run_all.py --force",
                stacklevel=3,
            )
    return found


def _image_scores(folder: str | Path) -> pd.DataFrame:
    """Returns the scores of a record's images, indexed by their names; an image listed twice is there once."""
    table = pd.read_csv(Path(folder) / "predictions.csv", dtype=str).drop_duplicates("filename")
    return parse_image_scores(table)[0].set_axis(table["filename"])


def _training_images(folder: Path, fraction: float) -> float:
    """Returns the number of training images of a run; older records have only that of the whole split."""
    record = read_record(folder)
    return record.get("training_images", fraction * record.get("data", {}).get("split_sizes", {}).get("train", 0))
