"""The baseline beside the probe: each image takes the class of its nearest training images. Nothing is fitted."""

import numpy as np

NEIGHBOURS = 20
TEMPERATURE = 0.07


def neighbour_proba(train_x: np.ndarray, train_y: np.ndarray, x: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns class probabilities [N, K] of features [N, D]: the votes of the 20 nearest training rows by cosine.

    A vote weighs exp(similarity / 0.07), as in DINO's evaluation (Caron et al. 2021, arXiv 2104.14294).

    Args:
        train_x, train_y: Features [M, D] and labels [M], integers in 0..K-1.
    """
    from sklearn.neighbors import KNeighborsClassifier  # takes a second to import

    classifier = KNeighborsClassifier(min(NEIGHBOURS, len(train_y)), weights=_votes, metric="cosine", algorithm="brute")
    classifier.fit(train_x, train_y)
    proba = np.zeros((len(x), num_classes))  # a class without a training row gets no vote
    proba[:, classifier.classes_] = classifier.predict_proba(x)
    return proba


def _votes(distance: np.ndarray) -> np.ndarray:
    """Returns the weights of neighbours from cosine distances [N, k], up to a factor per row that makes the first 1."""
    return np.exp((distance.min(axis=1, keepdims=True) - distance) / TEMPERATURE)
