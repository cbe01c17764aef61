"""Features in two dimensions: where an encoder puts the images, for the eye.

NumPy in, NumPy out. Symbols: N images, D features, K classes; a plane is [N, 2]. A plane keeps neighbours together as
well as it can, and nothing else: the distance between two groups and the size of a group mean little.
"""

import warnings

import numpy as np

METHODS = ("umap", "tsne", "pca")
SEED = 42
NEIGHBOURS = 10
FEWEST = 15  # different images; of fewer, neighbourhoods say nothing (and t-SNE cannot tell equal ones apart)


class EmbeddingError(ValueError):
    """Features that cannot be laid out in two dimensions; the message says why and what to do."""


class EmbeddingWarning(UserWarning):
    """The features were laid out by another method than the one asked for."""


def embed(x, method: str = "umap") -> tuple[np.ndarray, str]:
    """Returns a plane [N, 2] of features [N, D], and the name of the method that was used.

    UMAP has n_neighbors 10, min_dist 0.2 and the seed 42. Where it is not installed, t-SNE takes its place, with a
    warning. Fewer than 15 different images are laid out by PCA. Equal features give equal planes on one computer.

    Raises:
        EmbeddingError: No such method, or features that are not finite.
    """
    x = np.asarray(x, dtype=np.float32)
    if method not in METHODS:
        raise EmbeddingError(f"method {method!r} is unknown; write one of {', '.join(METHODS)}")
    if x.ndim != 2 or not np.isfinite(x).all():
        raise EmbeddingError(f"features {list(x.shape)} must be [N, D] and finite; extract them anew")
    if method == "pca" or len(np.unique(x, axis=0)) < FEWEST:
        return principal_plane(x), "PCA"
    if method == "umap":
        try:
            return _umap(x), "UMAP"
        except ImportError as error:
            remedy = "install umap-learn for the published kind of plane"
            warnings.warn(f"UMAP cannot be imported ({error}): t-SNE instead; {remedy}", EmbeddingWarning, stacklevel=2)
    return _tsne(x), "t-SNE"


def principal_plane(x: np.ndarray) -> np.ndarray:
    """Returns the first two principal components [N, 2] of features [N, D]; zeros where there is no second."""
    centred = x - x.mean(axis=0) if len(x) else x
    _, _, components = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(x), 2), dtype=np.float64)
    plane[:, : len(components[:2])] = centred @ components[:2].T
    return plane


def neighbour_agreement(x, y, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    """Returns which share of an image's nearest neighbours is of its class, mean over the images; and that of chance.

    Taken among the features themselves [N, D], by Euclidean distance, not in a plane.
    """
    from sklearn.neighbors import NearestNeighbors

    x, y = np.asarray(x, dtype=np.float32), np.asarray(y)
    if len(x) < 2:
        return np.nan, np.nan
    near = NearestNeighbors(n_neighbors=min(neighbours, len(x) - 1)).fit(x)
    same = y[near.kneighbors(return_distance=False)] == y[:, None]  # asked without points, none is its own neighbour
    counts = np.unique(y, return_counts=True)[1]
    return float(same.mean()), float((counts * (counts - 1)).sum() / (len(y) * (len(y) - 1)))


def choose_examples(plane: np.ndarray, y, most: int = 12) -> np.ndarray:
    """Returns the indices of images to look at: of each class from the midst of its points to the furthest.

    The classes with most images, at most `most` of them; two images of each, or more where there are few classes, so
    that the first half stands in the midst and the second half far from it.
    """
    y = np.asarray(y)
    labels, counts = np.unique(y, return_counts=True)
    chosen = np.sort(labels[np.argsort(-counts, kind="stable")[:most]])
    ranks = 2 * max(1, most // 2 // max(1, len(chosen)))
    found = []
    for label in chosen:
        members = np.flatnonzero(y == label)
        far = np.linalg.norm(plane[members] - np.median(plane[members], axis=0), axis=1)
        members = members[np.argsort(far, kind="stable")]
        found.append([members[round(at)] for at in np.linspace(0, len(members) - 1, ranks)])
    in_ranks = np.array(found, dtype=np.int64).reshape(len(chosen), ranks).T.ravel()
    return np.array(list(dict.fromkeys(in_ranks.tolist())), dtype=np.int64)  # a class may have one image only


def spread(points: np.ndarray, apart: float) -> np.ndarray:
    """Returns where to write a label for each point [n, 2]: beside it, as near as no earlier label is in the way.

    Args:
        apart: The least distance between two labels, in the points' units.
    """
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    steps = np.concatenate([(1 + r / 2) * apart * ring for r in range(2 * len(points) + 1)])
    placed = np.empty((0, 2))
    for point in np.asarray(points, dtype=np.float64):
        places = point + steps
        gaps = np.linalg.norm(places[:, None] - placed[None], axis=2)
        free = (gaps >= apart * (1 - 1e-9)).all(axis=1)
        placed = np.vstack([placed, places[free.argmax()]])  # far out there is always room
    return placed


def _umap(x: np.ndarray) -> np.ndarray:
    from umap import UMAP  # compiles for seconds, so only where it is needed

    reducer = UMAP(n_neighbors=NEIGHBOURS, min_dist=0.2, random_state=SEED, n_jobs=1)
    return reducer.fit_transform(x).astype(np.float64)


def _tsne(x: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(x) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=SEED).fit_transform(x).astype(np.float64)
