"""Scores of one predicted mask of a lesion against the true one: bool arrays [H, W] in, numbers out.

Published, at the size that the model predicts at, after `keep_largest`; Dice and Jaccard in 0..1, with two quirks:

- Nothing predicted becomes the whole image.
- An empty true mask gets one pixel in its centre.

Ours, at the size of the image, of the prediction as it is; 1 is perfect, but for hd95:

| metric | what it is |
|---|---|
| jaccard_original, dice_original | overlap: |A and B| / |A or B|, 2 |A and B| / (|A| + |B|) |
| hd95_original | 95% Hausdorff distance in percent of the image's diagonal: 0 is perfect |
| surface_dice_original | fraction of both boundaries within TOLERANCE of the other one |
| sensitivity_original, specificity_original | fraction of lesion, of skin pixels that are predicted as such |

If one mask is empty, overlap and surface Dice are 0 and hd95 is 100, the worst. If both are, the prediction is right:
1, 1 and 0. Sensitivity without lesion pixels and specificity without skin pixels are NaN, to be left out of means.

A boundary pixel is a lesion pixel with one of its four neighbours outside the lesion or the image; distances are
between pixel centres. hd95 is the larger of the two 95th percentiles, from either boundary to the other. Both metrics
equal MONAI's, whose functions take far longer. Images differ in size and have no physical scale, hence
percent of the diagonal.
"""

import numpy as np
from scipy.ndimage import label
from scipy.spatial import cKDTree

from panderm_utils.stats.resampling import MetricError

TOLERANCE = 1.0  # of surface Dice, in percent of the diagonal: 13 pixels of 1,024 x 768, 3 of 224 x 224
MASK_METRICS = (
    "jaccard",
    "dice",
    "jaccard_original",
    "dice_original",
    "hd95_original",
    "surface_dice_original",
    "sensitivity_original",
    "specificity_original",
)
LOWER_IS_BETTER = ("hd95_original",)
EIGHT = np.ones((3, 3), dtype=int)  # neighbours that connect a component


def keep_largest(predicted: np.ndarray) -> np.ndarray:
    """Returns the published post-processing of a prediction: its largest 8-connected component, without holes.

    Of equally large ones, it is the first from the top. Quirk: nothing predicted becomes the whole image.
    """
    components = label(predicted, EIGHT)[0]
    sizes = np.bincount(components.ravel())
    if len(sizes) == 1:
        return np.ones_like(predicted)
    largest = components == 1 + sizes[1:].argmax()
    # A hole is not 4-connected with a frame around the image.
    background = label(np.pad(~largest, 1, constant_values=True))[0]
    return background[1:-1, 1:-1] != background[0, 0]


def published_mask_scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Returns jaccard and dice as published; `predicted` is the raw prediction."""
    true, predicted = _check(true, predicted)
    if not true.any():
        true = np.zeros_like(true)
        true[true.shape[0] // 2, true.shape[1] // 2] = True
    jaccard, dice = _overlap(*_counts(true, keep_largest(predicted)))
    return {"jaccard": jaccard, "dice": dice}


def mask_scores(true: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Returns the scores at the size of the image, under the names of the table above."""
    true, predicted = _check(true, predicted)
    size, diagonal = true.size, np.hypot(*true.shape)
    true, predicted = _crop(true, predicted)
    both, lesion, called = _counts(true, predicted)
    jaccard, dice = _overlap(both, lesion, called)
    hd95, surface_dice = _compare_boundaries(true, predicted, diagonal)
    skin = size - lesion
    return {
        "jaccard_original": jaccard,
        "dice_original": dice,
        "hd95_original": hd95,
        "surface_dice_original": surface_dice,
        "sensitivity_original": both / lesion if lesion else np.nan,
        "specificity_original": 1 - (called - both) / skin if skin else np.nan,
    }


def _check(*masks) -> list[np.ndarray]:
    masks = [np.asarray(mask) for mask in masks]
    if any(mask.dtype != bool or mask.ndim != 2 or not mask.size for mask in masks):
        found = " and ".join(f"{mask.dtype} {list(mask.shape)}" for mask in masks)
        raise MetricError(f"masks must be bool [H, W], got {found}: convert grey values with mask > 127")
    if masks[0].shape != masks[1].shape:
        sizes = " and ".join(str(list(mask.shape)) for mask in masks)
        raise MetricError(f"the true and the predicted mask are {sizes}: resize the prediction to the true mask's size")
    return masks


def _counts(a: np.ndarray, b: np.ndarray) -> tuple[int, int, int]:
    """Returns the pixels of both masks, of a, of b."""
    return np.count_nonzero(a & b), np.count_nonzero(a), np.count_nonzero(b)


def _overlap(both: int, a: int, b: int) -> tuple[float, float]:
    """Returns Jaccard and Dice; 1 if both masks are empty."""
    return (both / (a + b - both), 2 * both / (a + b)) if a + b else (1.0, 1.0)


def _crop(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the part of both masks that holds all lesion pixels, whose counts and boundaries are the same."""
    either = a | b
    rows, columns = (np.flatnonzero(either.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return a, b
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return a[part], b[part]


def _compare_boundaries(a: np.ndarray, b: np.ndarray, diagonal: float) -> tuple[float, float]:
    """Returns the 95% Hausdorff distance (percent of the diagonal) and surface Dice."""
    edges = boundary(a), boundary(b)
    if not all(map(len, edges)):
        return (100.0, 0.0) if any(map(len, edges)) else (0.0, 1.0)
    trees = [cKDTree(edge) for edge in edges]
    percent = 100 / diagonal
    distances = [percent * trees[1].query(edges[0])[0], percent * trees[0].query(edges[1])[0]]
    near = sum(np.count_nonzero(distance <= TOLERANCE) for distance in distances)
    return float(max(np.percentile(distance, 95) for distance in distances)), near / sum(map(len, edges))


def boundary(mask: np.ndarray) -> np.ndarray:
    """Returns the row and column of each boundary pixel of a mask, [P, 2]."""
    width, flat = mask.shape[1], np.ravel(mask)
    inner = flat.copy()
    for step in (1, width):  # neighbours in the flat array: the image's border, where they are wrong, is not inner
        inner[step:] &= flat[:-step]
        inner[:-step] &= flat[step:]
    framed = inner.reshape(mask.shape)
    framed[[0, -1]] = framed[:, [0, -1]] = False
    return np.stack(np.divmod(np.flatnonzero(flat > inner), width), axis=1)
