"""What the report of own data shows of masks: scores with their meaning, their distribution, and the lesion's size."""

from pathlib import Path

import pandas as pd

from panderm_utils.figures import METRIC_TITLES, Exhibit
from panderm_utils.protocols.segmentation.plots import dice_against_size, dice_distribution
from panderm_utils.protocols.segmentation.scores import AREAS, SHOWN, correlate_with_size, word_correlation
from panderm_utils.results import read_image_scores
from panderm_utils.stats import MASK_METRICS, TOLERANCE

# What a metric says, to a reader who does not use it every day.
MEANINGS = {
    "jaccard": "Pixels that are lesion in both masks, divided by those in either; as published: at 224 pixels, of the "
    "largest region without its holes.",
    "dice": "The same overlap on a scale that is kinder to partial agreement; as published.",
    "jaccard_original": "Jaccard of the prediction as it is, at the size of the image.",
    "dice_original": "Dice of the prediction as it is, at the size of the image.",
    "hd95_original": "How far the outlines are apart where they agree least, leaving out the worst 5% of their points.",
    "surface_dice_original": f"The fraction of the outlines within {TOLERANCE:g}% of the diagonal from the other one.",
    "sensitivity_original": "The fraction of the lesion that is found.",
    "specificity_original": "The fraction of the skin that is left alone.",
}


def study_exhibits(scores: pd.DataFrame) -> list[Exhibit]:
    """Returns the tables and figures of a dataset's runs (rows of `results.study_runs`)."""
    numbers = scores[["value", "low", "high"]].itertuples(index=False)
    cells = scores.assign(text=[f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in numbers])
    table = cells.pivot(index="metric", columns="encoder_label", values="text").reindex(MASK_METRICS).fillna("–")
    table["what it means"] = pd.Series(MEANINGS)
    table = table.rename(METRIC_TITLES).rename_axis(columns=None).reset_index()
    words = "Means over the test images with 95% intervals. Distances and tolerance are in percent of the diagonal."
    ids = tuple(dict.fromkeys(scores["run_id"]))
    exhibits = [Exhibit("mask_scores", "All metrics", words, table=table, records=ids)]
    for run in scores.drop_duplicates("run_id").to_dict(orient="records"):
        exhibits += _run_exhibits(run)
    return exhibits


def _run_exhibits(run: dict) -> list[Exhibit]:
    dice = read_image_scores(run["folder"])[0]
    sizes = pd.read_csv(Path(run["folder"]) / "predictions.csv")
    correlation = correlate_with_size(sizes, run["replicates"], run["seed"])
    curves = {"as published": dice["dice"], "original size": dice[SHOWN]}
    of, ids = f" of {run['encoder_label']}", (run["run_id"],)
    middle = "; ".join(f"{name}: median {values.median():.3f}" for name, values in curves.items())
    words = "A steep left end: most images are outlined well, a few not at all."
    figure = dice_distribution(curves)
    first = Exhibit(f"dice-{run['run_id']}", f"Dice{of}", words, figure, alt=f"Sorted Dice. {middle}", records=ids)
    text = word_correlation(correlation)
    words = f"Small lesions are harder if the points rise to the right. {text}."
    figure = dice_against_size(sizes[AREAS[0]], dice[SHOWN], correlation)
    title = f"Dice{of} and the size of the lesion"
    return [first, Exhibit(f"size-{run['run_id']}", title, words, figure, alt=text, records=ids)]
