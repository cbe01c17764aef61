"""Two-dimensional embeddings of features, for plots.

NumPy in, NumPy out. Symbols: N images, D features, K classes; a plane is [N, 2]. It preserves neighbourhoods as far as
possible and nothing else: distances between groups and sizes of groups mean little.
"""

import contextlib
import warnings

import numpy as np

from panderm_utils.messages import UserError

METHODS = ("umap", "tsne", "pca")
SEED = 42
NEIGHBOURS = 10
FEWEST = 15  # distinct images; with fewer, neighbourhoods mean nothing (and t-SNE fails on duplicates)


class EmbeddingError(UserError):
    """Features that cannot be embedded; the message says why and what to do."""


class EmbeddingWarning(UserWarning):
    """The requested method was unavailable, so another one was used."""


def embed(x, method: str = "umap") -> tuple[np.ndarray, str]:
    """Returns a plane [N, 2] of features [N, D] and the name of the method used.

    UMAP uses n_neighbors 10, min_dist 0.2 and seed 42. If it is not installed, t-SNE is used, with a warning. Fewer
    than 15 distinct images are embedded by PCA. On one computer, equal features give equal planes.

    Raises:
        EmbeddingError: Unknown method, or features that are not finite.
    """
    x = np.asarray(x, dtype=np.float32)
    if method not in METHODS:
        raise EmbeddingError(f"method {method!r} is unknown; write one of {', '.join(METHODS)}")
    if x.ndim != 2 or not np.isfinite(x).all():
        raise EmbeddingError(f"features {list(x.shape)} must be [N, D] and finite; extract them again")
    if method == "pca" or len(np.unique(x, axis=0)) < FEWEST:
        return principal_plane(x), "PCA"
    if method == "umap":
        try:
            return _umap(x), "UMAP"
        except ImportError as error:
            remedy = "install umap-learn for UMAP, as published"
            warnings.warn(f"UMAP cannot be imported ({error}), using t-SNE; {remedy}", EmbeddingWarning, stacklevel=2)
    return _tsne(x), "t-SNE"


def principal_plane(x: np.ndarray) -> np.ndarray:
    """Returns the first two principal components [N, 2] of features [N, D]; zeros if there is no second."""
    centred = x - x.mean(axis=0) if len(x) else x
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(x), 2), dtype=np.float64)
    plane[:, : len(components[:2])] = centred @ components[:2].T
    return plane


def neighbour_agreement(x, y, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Returns the mean fraction of an image's nearest neighbours in its own class, and the fraction expected by chance.

    Neighbours are found among the features [N, D] by Euclidean distance, not in a plane.
    """
    from sklearn.neighbors import NearestNeighbors

    x, y = np.asarray(x, dtype=np.float32), np.asarray(y)
    if len(x) < 2:
        return np.nan, np.nan
    near = NearestNeighbors(n_neighbors=min(neighbours, len(x) - 1)).fit(x)
    same = y[near.kneighbors(return_distance=False)] == y[:, None]  # without a query, a point is not its own neighbour
    counts = np.unique(y, return_counts=True)[1]
    return float(same.mean()), float((counts * (counts - 1)).sum() / (len(y) * (len(y) - 1)))


def choose_examples(plane: np.ndarray, y, most: int = 12) -> np.ndarray:
    """Returns the indices of example images: from each class, from the centre of its points to the outermost.

    At most `most` classes, those with most images; two images of each, more if there are few classes. The first half
    of the indices lies near the class centres, the second half far from them.
    """
    y = np.asarray(y)
    labels, counts = np.unique(y, return_counts=True)
    largest = np.sort(labels[np.argsort(-counts, kind="stable")[:most]])
    ranks = 2 * max(1, most // 2 // max(1, len(largest)))
    indices = []
    for label in largest:
        members = np.flatnonzero(y == label)
        far = np.linalg.norm(plane[members] - np.median(plane[members], axis=0), axis=1)
        members = members[np.argsort(far, kind="stable")]
        indices.append([members[round(at)] for at in np.linspace(0, len(members) - 1, ranks)])
    by_rank = np.array(indices, dtype=np.int64).reshape(len(largest), ranks).T.ravel()
    return np.array(list(dict.fromkeys(by_rank.tolist())), dtype=np.int64)  # a class may have only one image


def place_labels(points: np.ndarray, apart: float) -> np.ndarray:
    """Returns a label position for each point [n, 2]: as close to it as earlier labels allow.

    Args:
        apart: Minimum distance between two labels, in the points' units.
    """
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    steps = np.concatenate([(1 + r / 2) * apart * ring for r in range(2 * len(points) + 1)])
    placed = np.empty((0, 2))
    for point in np.asarray(points, dtype=np.float64):
        places = point + steps
        gaps = np.linalg.norm(places[:, None] - placed[None], axis=2)
        free = (gaps >= apart * (1 - 1e-9)).all(axis=1)
        placed = np.vstack([placed, places[free.argmax()]])  # the outermost ring always has room
    return placed


def _umap(x: np.ndarray) -> np.ndarray:
    from umap import UMAP, umap_  # takes seconds, so only where it is needed

    for function in vars(umap_).values():
        if hasattr(function, "enable_caching"):  # keeps what numba compiles in ten seconds for other processes
            with contextlib.suppress(RuntimeError):  # no folder to keep it in
                function.enable_caching()
    reducer = UMAP(n_neighbors=NEIGHBOURS, min_dist=0.2, random_state=SEED, n_jobs=1)
    return reducer.fit_transform(x).astype(np.float64)


def _tsne(x: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(x) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=SEED).fit_transform(x).astype(np.float64)
