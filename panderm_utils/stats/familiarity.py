"""How unlike the training images an image is: its Mahalanobis distance from them in feature space.

The covariance is shrunk towards a multiple of the identity (Ledoit and Wolf), so it has an inverse also with fewer
images than features. The limit is the 99th percentile of the training images' own distances, each from all the others:
measured from a mean and covariance that contain it, an image is nearer, much nearer where images are few, and every new
image would seem unlike them.

Symbols: N images, D features.
"""

import math
from dataclasses import dataclass

import numpy as np

FRACTION = 0.99  # of the training images are within the limit
LEAST_SHRINKAGE = 1e-3  # so that a feature that never varies does not decide alone


@dataclass(frozen=True, eq=False)
class Familiarity:
    """Measures distances from a set of training images.

    Attributes:
        mean: `[D]`; factor: `[D, D]`, whose product with its transpose is the inverse covariance; both float32.
        limit: The distance that 99% of the training images keep from all the others.
    """

    mean: np.ndarray
    factor: np.ndarray
    limit: float

    def distance(self, x) -> np.ndarray:
        """Returns the distances [N] of features [N, D], as multiples of the limit: above 1 is unlike the training."""
        return np.linalg.norm((np.asarray(x, np.float64) - self.mean) @ self.factor, axis=1) / self.limit


def measure_familiarity(x) -> Familiarity:
    """Returns what measures the distance from training images with features [N, D], N at least 2."""
    from sklearn.covariance import ledoit_wolf_shrinkage  # over a second of import that no training needs

    x = np.asarray(x, dtype=np.float64)
    rows, mean = len(x), x.mean(axis=0)
    centred = x - mean
    scatter = centred.T @ centred / rows
    shrinkage = max(LEAST_SHRINKAGE, ledoit_wolf_shrinkage(centred, assume_centered=True))
    covariance = (1 - shrinkage) * rows / (rows - 1) * scatter
    covariance[np.diag_indices_from(covariance)] += shrinkage * np.trace(scatter) / len(mean)
    sizes, directions = np.linalg.eigh(covariance)
    factor = directions / np.sqrt(np.maximum(sizes, np.finfo(np.float32).tiny))
    # Leaving an image out changes the covariance by a product of its row with itself: Sherman and Morrison's formula
    # gives each distance without another inverse. The shrinkage stays that of all images.
    within = np.square(centred @ factor).sum(axis=1)
    change = (1 - shrinkage) * rows / (rows - 1) ** 2
    left_out = np.sqrt(within / (1 - change * within)) * rows / (rows - 1)
    rank = min(rows, math.ceil(round((rows + 1) * FRACTION, 9)))
    limit = max(float(np.sort(left_out)[rank - 1]), np.finfo(np.float32).tiny)
    return Familiarity(mean.astype(np.float32), factor.astype(np.float32), limit)
