"""Finds similar vectors among many, exactly, in the memory of one block: arrays in, arrays out.

Vectors have length 1, so that a product of matrices gives the cosines of a block. Symbols: N and M vectors, D numbers
each.
"""

from dataclasses import dataclass

import numpy as np

ROWS, COLUMNS = 1024, 4096  # of a block: 16 MB of cosines
MOST = 1_000_000  # pairs kept of one search


@dataclass(frozen=True, eq=False)
class Similar:
    """What a search found.

    Attributes:
        a, b, similarity: The pairs at or above `threshold`, `[P]` each: indices into both lists, and their cosine.
        nearest, best: Of each vector of the first list, its nearest in the second `[N]`, and their cosine.
        threshold: The cosine from which on pairs are complete: above the one asked for if there were too many.
    """

    a: np.ndarray
    b: np.ndarray
    similarity: np.ndarray
    nearest: np.ndarray
    best: np.ndarray
    threshold: float


def unit(x: np.ndarray) -> np.ndarray:
    """Returns vectors [N, D] scaled to length 1, float32; zeros stay zeros."""
    x = np.asarray(x, dtype=np.float32)
    length = np.sqrt(np.einsum("nd,nd->n", x, x))[:, None]
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)


def similar_pairs(x: np.ndarray, y: np.ndarray, threshold: float, most: int = MOST) -> Similar:
    """Returns the pairs of x [N, D] and y [M, D], both of length 1, whose cosine reaches a threshold.

    Args:
        most: The most pairs to keep, those of largest cosine: a threshold that is far too low must not fill the memory.
    """
    found, kept = [], 0
    nearest, best = np.zeros(len(x), np.int64), np.full(len(x), -np.inf, np.float32)
    cosines = np.empty((ROWS, COLUMNS), np.float32)
    for row in range(0, len(x), ROWS):
        part = x[row : row + ROWS]
        for column in range(0, len(y), COLUMNS):
            other = y[column : column + COLUMNS]
            block = np.matmul(part, other.T, out=cosines[: len(part), : len(other)])
            at = block.argmax(axis=1)
            largest = block[np.arange(len(block)), at]
            better = np.flatnonzero(largest > best[row : row + ROWS])
            nearest[row + better], best[row + better] = column + at[better], largest[better]
            if len(hits := np.flatnonzero(largest >= threshold)):
                i, j = np.nonzero(block[hits] >= threshold)
                found.append((row + hits[i], column + j, block[hits[i], j]))
                kept += len(i)
            if kept > most:
                found, threshold = _largest(found, most)
                kept = most
    a, b, similarity = map(np.concatenate, zip(*found, strict=True)) if found else np.zeros((3, 0))
    return Similar(a.astype(np.int64), b.astype(np.int64), similarity, nearest, best, threshold)


def _largest(found: list[tuple], most: int) -> tuple[list[tuple], float]:
    """Returns the `most` pairs of largest cosine, and the smallest cosine among them."""
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    order = np.argsort(-columns[2], kind="stable")[:most]
    return [tuple(column[order] for column in columns)], float(columns[2][order[-1]])
