"""Finds similar vectors or hashes among many, exactly, in the memory of one block: arrays in, arrays out.

The similarities of a block are products of matrices. Symbols: N and M vectors, D numbers each.
"""

from dataclasses import dataclass

import numpy as np

MOST = 1_000_000  # pairs kept of one search


@dataclass(frozen=True, eq=False)
class Similar:
    """What a search found.

    Attributes:
        a, b, similarity: The pairs at or above `threshold`, `[P]` each: indices into both lists, and their similarity.
        nearest, best: Of each vector of the first list, its nearest in the second `[N]`, and their similarity.
        threshold: The similarity from which on pairs are complete: above the one asked for if there were too many.
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


class Cosines:
    """The cosines of x [N, D] and y [M, D], both float32 and of length 1.

    Attributes:
        size: Rows and columns of a block.
    """

    size = (1024, 4096)

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self._x, self._y = x, y
        self.shape = (len(x), len(y))
        self._buffer = np.empty(self.size, np.float32)

    def block(self, rows: slice, columns: slice) -> np.ndarray:
        """Returns a block [n, m], valid until the next call."""
        x, y = self._x[rows], self._y[columns]
        return np.matmul(x, y.T, out=self._buffer[: len(x), : len(y)])


def similar_pairs(similarities, threshold: float, most: int = MOST) -> Similar:
    """Returns the pairs whose similarity reaches a threshold, and the nearest of each vector of the first list.

    Args:
        similarities: What computes them: `Cosines`, or `fingerprints.HashSimilarities`.
        most: The most pairs to keep, the most similar: a threshold that is far too low must not fill the memory.
    """
    found, kept = [], 0
    (n, m), (height, width) = similarities.shape, similarities.size
    nearest, best = np.zeros(n, np.int64), np.full(n, -np.inf, np.float32)
    for row in range(0, n, height):
        rows = slice(row, row + height)
        for column in range(0, m, width):
            block = similarities.block(rows, slice(column, column + width))
            at = block.argmax(axis=1)
            largest = block[np.arange(len(block)), at]
            better = row + np.flatnonzero(largest > best[rows])
            nearest[better], best[better] = column + at[better - row], largest[better - row]
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
    """Returns the `most` pairs that are most similar, and the smallest similarity among them."""
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    order = np.argsort(-columns[2], kind="stable")[:most]
    return [tuple(column[order] for column in columns)], float(columns[2][order[-1]])
