"""The exercises of the lessons on features, the probe, and leakage.

Symbols: N images, D features, K classes.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from panderm_utils import encoders  # imports torch, which no check needs, only if it is used
from panderm_utils.stats import balanced_accuracy, confusion
from panderm_utils.tutorial.answers import Hint, array_of, expect_number, name_of, number_of, share

GOAL = 0.9  # of the leak to build
TEST_SHARE = (0.15, 0.4)  # of a split to repair


def count_patches(answer, patches: np.ndarray) -> str:
    """Patches of an image, from their tokens [h, w, D]."""
    height, width, _ = patches.shape
    mistakes = [
        (width, "That is the number of patches along one side. The image has two sides."),
        (height * width + 1, "Nearly: one of these tokens, the class token, is not a patch of the image."),
        (height * width * 16, "A patch is 16 pixels wide and also 16 pixels high: divide by both."),
    ]
    hint = "How many patches of 16 pixels fit beside each other in 224 pixels, and how many above each other?"
    expect_number(answer, height * width, mistakes, hint, tolerance=0)
    return f"{height} rows of {width} patches. With the class token, the network works on {height * width + 1} tokens."


def hardest_class(answer, y: np.ndarray, neighbour: np.ndarray, names: Sequence[str]) -> str:
    """The class whose images most rarely have a nearest neighbour of the same class; both labels [N]."""
    name = name_of(answer, names)
    images, hits = (np.bincount(labels, minlength=len(names)) for labels in (y, y[neighbour == y]))
    rate = np.where(images > 0, hits / np.maximum(images, 1), np.nan)
    k = list(names).index(name)
    if rate[k] == np.nanmin(rate):
        return f"Of {images[k]} images of {name}, {hits[k]} have a neighbour of their own class: {rate[k]:.0%}."
    if rate[k] == np.nanmax(rate):
        raise Hint("That is the class for which it works best. Which is at the other end?")
    if (images - hits)[k] == (images - hits).max() or hits[k] == hits[images > 0].min():
        raise Hint("You counted images. Classes differ in size, so divide by the number of images of each class.")
    raise Hint(f"For {name} the rate is {rate[k]:.2f}, and another class has a lower one. Compute it for all of them.")


def other_neighbours(answer, x: np.ndarray, y: np.ndarray) -> str:
    """How often the nearest *other* row of x [N, D] by cosine has the same label."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    rates = []
    for left in (unit, x):
        similarity = left @ left.T
        np.fill_diagonal(similarity, -np.inf)
        rates.append(float(np.mean(y[similarity.argmax(axis=1)] == y)))
    expected, unscaled = rates
    mistakes = [
        (1.0, "Every image is its own nearest neighbour, with similarity 1. `np.fill_diagonal` can rule that out."),
        (unscaled, "You multiplied features that are not of length 1: long ones win. Divide each row by its norm."),
    ]
    hint = "Multiply `train_unit` by its own transpose: a row and a column for each training image. Then what?"
    expect_number(answer, expected, mistakes, hint)
    return "Some of these neighbours are another photograph of the same lesion. Lesson 03 asks what that is worth."


def count_weights(answer, num_features: int, num_classes: int) -> str:
    """Numbers that a linear layer learns."""
    weights = num_features * num_classes
    mistakes = [
        (weights, "These are the weights. Each class also has a bias, which is learned too."),
        (num_features + 1, "That would do for one class. Each of them has its own weights and bias."),
        (num_features + num_classes, "Each class weighs every feature, so the two numbers are multiplied."),
    ]
    hint = "Each class has a score: a weight for each feature, and one number, the bias, that is added."
    expect_number(answer, weights + num_classes, mistakes, hint, tolerance=0)
    return "The encoder below it has many more. They are frozen: none was changed for these classes."


def sensitivity_of_class(answer, counts: np.ndarray, k: int) -> str:
    """The recall of class k, from a confusion matrix [K, K] with a row for each true class."""
    found = counts[k, k]
    expected = share(found, counts[k].sum())
    mistakes = [
        (share(found, counts[:, k].sum()), "You divided by a column, all that were called so: that is the precision."),
        (share(np.trace(counts), counts.sum()), "That is the accuracy over all classes. Use one row only."),
        (1 - expected, "That is the fraction that was missed. Which was found?"),
        (found, "That many were found. Of how many?"),
    ]
    hint = "Find the row of the true class. Which of its cells is right, and what is the sum of the row?"
    expect_number(answer, expected, mistakes, hint)
    return f"{found} of {counts[k].sum()} were found. The others are where a wrong answer does harm."


def luck(answer, y: np.ndarray, proba: np.ndarray) -> str:
    """The balanced accuracy of a probe that learned from shuffled labels; proba [N, K] are those of the true ones."""
    images = np.bincount(y, minlength=proba.shape[1])
    images = images[images > 0]
    k = len(images)
    spread = np.sqrt((1 / images).sum() * (1 / k) * (1 - 1 / k)) / k  # of a classifier that guesses
    value, honest = number_of(answer), float(balanced_accuracy(confusion(y, proba)))
    if abs(value - 1 / k) <= 3 * spread:
        return f"About 1/{k} = {1 / k:.2f}, as by luck: labels that say nothing about images teach nothing about them."
    if abs(value - honest) <= spread:
        raise Hint("That is what the true labels teach. Fit the probe with the shuffled labels, all else the same.")
    if value > 1 / k:
        raise Hint(
            "More than luck. Is it measured on the test images with their true labels, and is it the balanced "
            "accuracy (luck does better in accuracy, by naming the largest class)?"
        )
    raise Hint("Less than luck would give. Is it the balanced accuracy, the mean of the classes' recalls?")


def shared_lesions(answer, table: pd.DataFrame, lesion: str, patient: str) -> str:
    """How many lesions are in more than one split."""
    both = _in_two_splits(table, lesion)
    images = int((table[lesion].isin(both) & table["split"].eq("test")).sum())
    mistakes = [
        (len(_in_two_splits(table, patient)), "These are patients. The question is about lesions."),
        (images, "These are test images. Two of them can show one lesion: count lesions."),
        (table[lesion].nunique(), "That is how many lesions there are in all."),
    ]
    expect_number(answer, len(both), mistakes, f"Group the table by `{lesion}`, and count splits.", tolerance=0)
    return f"They touch {images} test images."


def smallest_leak(answer, train: "encoders.Features", test: "encoders.Features") -> str:
    """Row numbers of test images that, added to the training images, lift the nearest neighbour's accuracy to GOAL."""
    rows = array_of(answer)
    if rows.dtype == bool and rows.shape == test.y.shape:
        rows = np.flatnonzero(rows)
    whole = rows.ndim == 1 and rows.size > 0 and rows.dtype.kind in "iu"
    if not whole or not 0 <= rows.min() <= rows.max() < len(test.y):
        raise Hint(f"The answer is row numbers of test images, 0 to {len(test.y) - 1}, such as `np.arange(10)`.")
    rows, before = np.unique(rows), _with_copies(train, test, np.arange(0))
    after, spare = _with_copies(train, test, rows).mean(), rows[before[rows]]
    if after < GOAL:
        raise Hint(f"With these {len(rows)} images the accuracy is {after:.3f}; the goal is {GOAL}. Which others help?")
    if len(spare) and _with_copies(train, test, np.setdiff1d(rows, spare)).mean() >= GOAL:
        raise Hint(f"It works, but {len(spare)} of these images were right already, and are not needed.")
    return f"{len(rows)} copies turn {before.mean():.2f} into {after:.2f}. About new patients it knows no more."


def _with_copies(train: "encoders.Features", test: "encoders.Features", rows: Sequence[int]) -> np.ndarray:
    """Returns which test images [N] have a nearest neighbour of their class, once some rows are copied to train."""
    x, y = np.vstack([train.x, test.x[rows]]), np.concatenate([train.y, test.y[rows]])
    unit, pool = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (test.x, x))
    return y[(unit @ pool.T).argmax(axis=1)] == test.y


def repaired_split(answer, table: pd.DataFrame, groups: Sequence[str]) -> str:
    """A split of each row, "train" or "test", that keeps the values of the columns `groups` whole."""
    split = np.asarray(answer, dtype=object).reshape(-1)
    if len(split) != len(table) or not all(isinstance(word, str) and word in ("train", "test") for word in split):
        raise Hint(f"The answer is {len(table)} words, `'train'` or `'test'`, one for each row, in the table's order.")
    table, part = table.assign(split=split), share((split == "test").sum(), len(split))
    for column in groups:
        if both := _in_two_splits(table, column):
            raise Hint(f"{len(both)} values of `{column}` are in both, such as {both[0]}. What must move together?")
    low, high = TEST_SHARE
    if not low <= part <= high:
        raise Hint(f"Nothing leaks, but test has {part:.0%} of the images; {low:.0%} to {high:.0%} would be useful.")
    for name, rows in table.groupby("split"):
        if missing := sorted(set(table["label"]) - set(rows["label"])):
            raise Hint(f"Nothing leaks, but {name} has no image of class {missing[0]}: try another draw.")
    return f"No lesion and no patient is in both, every class is, and test has {part:.0%} of the images."


def _in_two_splits(table: pd.DataFrame, column: str) -> list:
    splits = table.groupby(column)["split"].nunique()
    return splits.index[splits > 1].tolist()


EXERCISES = {
    "01-1": count_patches,
    "01-2": hardest_class,
    "01-3": other_neighbours,
    "02-1": count_weights,
    "02-2": sensitivity_of_class,
    "02-3": luck,
    "03-1": shared_lesions,
    "03-2": smallest_leak,
    "03-3": repaired_split,
}
