"""Times the bootstrap of the six metrics against a plain scikit-learn loop, in interleaved pairs.

    python -m benchmarks.bootstrap           both sizes (about 2 minutes on 2 cores)
    python -m benchmarks.bootstrap --quick   the smaller one

Ours is a full `stats.evaluate` with 1,000 replicates. The loop scores a few of the same replicates and is extrapolated
to 1,000; it gets the resampled rows for free. The host may stall for seconds, so single pairs vary: read the medians.
The scores are float32 converted to float64, like a probe's.
"""

import argparse
from itertools import islice

import numpy as np
from sklearn import metrics as sk
from sklearn.preprocessing import label_binarize

from benchmarks.measuring import Pairs, conclude, describe_machine, timed
from panderm_utils import stats
from panderm_utils.results import peak_memory_mb

REPLICATES = 1_000
# images, classes, replicates of the loop per pair, goal: a common test split, and the largest tried
SIZES = ((1_232, 7, 20, 800), (38_000, 16, 3, 200))


def draw_predictions(images: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns unbalanced labels [images] of all classes and probabilities [images, classes] better than chance."""
    generator = np.random.default_rng(seed)
    frequencies = generator.dirichlet(np.full(classes, 2.0))
    y = np.concatenate([np.arange(classes), generator.choice(classes, images - classes, p=frequencies)])
    logits = (generator.normal(size=(images, classes)) + 2.0 * np.eye(classes)[y]).astype(np.float32)
    proba = np.exp(logits - logits.max(axis=1, keepdims=True))
    return y, (proba / proba.sum(axis=1, keepdims=True)).astype(np.float64)


def by_scikit_learn(y: np.ndarray, proba: np.ndarray) -> list[float]:
    """Returns the six metrics as published: one call each."""
    predicted, one_hot = proba.argmax(axis=1), label_binarize(y, classes=range(proba.shape[1]))
    return [
        sk.accuracy_score(y, predicted),
        sk.balanced_accuracy_score(y, predicted),
        sk.cohen_kappa_score(y, predicted, weights="quadratic"),
        sk.f1_score(y, predicted, average="weighted"),
        sk.roc_auc_score(y, proba, multi_class="ovo", average="macro"),
        sk.average_precision_score(one_hot, proba, average="macro"),
    ]


def compare(images: int, classes: int, loop: int, goal: float, pairs: int) -> None:
    """Prints each pair, then the median ratio, the largest difference from scikit-learn and the peak memory."""
    y, proba = draw_predictions(images, classes)
    repeats = max(1, 50_000 // images)  # of ours per pair, so that short runs are timed well
    measured, difference = Pairs(), 0.0
    stats.evaluate(y, proba, replicates=10)
    for pair in range(pairs):
        rows = np.concatenate(list(islice(stats.resampled_rows(y, REPLICATES, pair, block=1), loop)))
        naive, naive_seconds = timed(lambda rows: [by_scikit_learn(y[r], proba[r]) for r in rows], rows)
        _, seconds = timed(lambda seed: [stats.evaluate(y, proba, REPLICATES, seed) for _ in range(repeats)], pair)
        ours = stats.bootstrap(stats.Scorer(y, proba), y, loop, seed=pair)
        difference = max(difference, np.abs(ours - naive).max())
        print(measured.add(naive_seconds * REPLICATES / loop, seconds / repeats), flush=True)
    title = f"bootstrap, {images:,} x {classes}, {REPLICATES:,} replicates"
    memory = f"peak memory of the process {peak_memory_mb()['process']} MB"
    measured.conclude(title, goal, f"the loop extrapolated from {loop} replicates per pair; {memory}")
    conclude(f"{title}: largest difference from scikit-learn, of {pairs * loop}", difference, 1e-12, "", True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the smaller size")
    parser.add_argument("--pairs", type=int, default=7, help="interleaved pairs per size (default: 7)")
    arguments = parser.parse_args()
    print(describe_machine(), flush=True)
    for size in SIZES[:1] if arguments.quick else SIZES:
        compare(*size, arguments.pairs)
