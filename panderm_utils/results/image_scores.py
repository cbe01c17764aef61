"""Predictions of a record that are no class probabilities but scores of each test image's predicted mask.

Columns of its predictions.csv: filename; true_mask, a digest of the true mask's size and pixels; `cluster`, if some
images belong together, such as those of one lesion; then numbers, among them the record's metrics, whose means over
the images are the values in the record.
"""

from pathlib import Path

import pandas as pd

from panderm_utils.stats import MASK_METRICS


def scores_masks(table: pd.DataFrame) -> bool:
    """Whether a predictions.csv holds scores of masks, and no class probabilities."""
    return "true_mask" in table


def read_image_scores(folder: str | Path) -> tuple[pd.DataFrame, pd.Series | None, list[str]]:
    """Returns the scores [N, M], clusters [N] (None: every image is one) and image names of the record in `folder`."""
    return parse_image_scores(pd.read_csv(Path(folder) / "predictions.csv", dtype=str))


def parse_image_scores(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series | None, list[str]]:
    """Returns the same as `read_image_scores`, from a table of strings or numbers with N rows."""
    # Parsed by Python, which restores the exact number that was written.
    scores = table[[metric for metric in MASK_METRICS if metric in table]].astype(float)
    return scores, table.get("cluster"), table["filename"].tolist()
