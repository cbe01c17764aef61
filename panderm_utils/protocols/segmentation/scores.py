"""The scores of a run's masks: one row per test image, their means with intervals, and both again for `--verify`.

The notebook and the verification call the same functions on the same bytes, those of masks.zip.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from panderm_utils.manifests import Pair
from panderm_utils.protocols.segmentation.masks import MASKS_FILE, ImageMasks, MaskArchive, MaskError
from panderm_utils.results import compare_metrics, parse_image_scores, resampling
from panderm_utils.stats import evaluate_image_scores, mask_scores, published_mask_scores, rank_correlation

AREAS = ["true_area", "predicted_area"]  # of the lesion, in percent of the image
SHOWN = "dice_original"  # of the masks as they are, which the figures show


def score_images(names: Sequence[str], source: str | Path | bytes, clusters: Sequence | None = None) -> pd.DataFrame:
    """Returns the predictions.csv of a run: one row per test image.

    Columns: filename, true_mask (a digest of the true mask's size and pixels), cluster (if given), AREAS, and
    `stats.MASK_METRICS`.

    Args:
        names: Of the test images, in the dataset's order.
        source: masks.zip, the file or its content.
        clusters: What each image belongs to, such as its lesion's id: resamples draw these, see `evaluate_masks`.
    """
    archive = MaskArchive(source)
    archive.check(names)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy, SciPy and PIL release the GIL
        rows = list(pool.map(lambda name: _score(archive.read(name)), names))
    table = pd.DataFrame({"filename": list(names), "true_mask": [digest for digest, _ in rows]})
    if clusters is not None:
        table["cluster"] = list(clusters)
    return table.join(pd.DataFrame([scores for _, scores in rows]))


def evaluate_masks(predictions: pd.DataFrame, replicates: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Returns the means over the images of `score_images`, with the columns of `stats.evaluate`.

    Resamples draw images, or clusters where there are any.
    """
    scores, clusters, _ = parse_image_scores(predictions)
    return evaluate_image_scores(scores, clusters, replicates, seed)


def correlate_with_size(predictions: pd.DataFrame, replicates: int = 1000, seed: int = 0) -> dict[str, float | None]:
    """Returns Spearman's correlation of Dice at original size with the size of the lesion: value, low, high, ...

    All are None where it is undefined, as with two images. A record keeps it under `size_correlation`, where
    `recompute_masks` finds it.
    """
    sizes, dice = (predictions[name].astype(float) for name in (AREAS[0], SHOWN))
    found = rank_correlation(sizes, dice, predictions.get("cluster"), replicates, seed)
    return found.astype(object).where(found.notna(), None).to_dict()


def word_correlation(correlation: Mapping[str, float | None]) -> str:
    """Returns `correlate_with_size(...)` as a phrase for titles and texts."""
    if None in (correlation["value"], correlation["low"], correlation["high"]):
        return "correlation undefined, too few images"
    return "Spearman {value:+.2f} [{low:+.2f}, {high:+.2f}]".format(**correlation)


def pick_examples(predictions: pd.DataFrame, count: int = 4, metric: str = SHOWN) -> pd.DataFrame:
    """Returns the `count` best, median and worst images by a score: filename, group, and the score."""
    ranked = predictions.sort_values(metric, ascending=False, kind="stable")
    middle = max(0, (len(ranked) - count) // 2)
    groups = {"best": ranked.head(count), "median": ranked.iloc[middle : middle + count], "worst": ranked.tail(count)}
    rows = [part.assign(group=group)[["filename", "group", metric]] for group, part in groups.items()]
    return pd.concat(rows, ignore_index=True)


def recompute_masks(record: dict, folder: Path) -> Iterator[Pair]:
    """Yields every metric of a record, and each score of an image in predictions.csv that its masks do not confirm.

    Raises:
        MaskError: masks.zip is missing or damaged, or its true masks are not those that were scored.
    """
    stored = pd.read_csv(folder / "predictions.csv", dtype=str)
    names = stored["filename"].tolist()
    again = score_images(names, folder / MASKS_FILE, stored.get("cluster"))
    if other := stored["filename"][stored["true_mask"] != again["true_mask"]].tolist():
        raise MaskError(f"{MASKS_FILE}: the true mask of {', '.join(other[:3])} ({len(other)} in all) is another one")
    for column in again.columns.drop(["filename", "true_mask", "cluster"], errors="ignore"):
        numbers = stored[column].astype(float) if column in stored else pd.Series(np.nan, stored.index)
        differs = ~((numbers == again[column]) | (numbers.isna() & again[column].isna()))
        for name, one, other in zip(
            *(part[differs] for part in (stored["filename"], numbers, again[column])), strict=True
        ):
            yield name, column, one, other
    yield from compare_metrics(record["metrics"], evaluate_masks(again, **resampling(record)))
    if kept := record.get("size_correlation"):
        found = correlate_with_size(again, **resampling(record))
        yield from (("size_correlation", name, kept.get(name), value) for name, value in found.items())


def _score(masks: ImageMasks) -> tuple[str, dict[str, float]]:
    areas = [100 * np.count_nonzero(mask) / mask.size for mask in (masks.true, masks.predicted)]
    published = published_mask_scores(masks.small_true, masks.predicted_224)
    digest = hashlib.sha256(f"{masks.true.shape}".encode() + np.packbits(masks.true).tobytes()).hexdigest()[:16]
    return digest, {**dict(zip(AREAS, areas, strict=True)), **published, **mask_scores(masks.true, masks.predicted)}
