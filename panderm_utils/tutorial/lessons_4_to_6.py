"""The exercises of the lessons on labels, fine-tuning, and who a model is good for.

Symbols: N images, K classes.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from panderm_utils.tutorial.answers import Hint, array_of, expect_number, name_of, number_of, share

SENSITIVITY = 0.9  # of the threshold to choose
PREVALENCE = 0.01  # where it is then used
SOURCES = ("labels", "test images")


def rarest_in_draw(answer, y: np.ndarray, names: Sequence[str]) -> str:
    """How many images of the class with the fewest are in a draw with labels y."""
    counts = np.bincount(y, minlength=len(names))
    mistakes = [
        (counts.max(), "That is the class with the most images. Which has the fewest?"),
        (len(y), "That is the whole draw, all classes together."),
    ]
    hint = "Read it in the column of the smallest fraction: the smallest number of any class."
    expect_number(answer, counts.min(), mistakes, hint, tolerance=0)
    rarest = ", ".join(name for name, n in zip(names, counts, strict=True) if n == counts.min())
    return f"From {counts.min()} of the {len(y)} labelled images a probe has to learn {rarest}."


def wider_source(answer, row: pd.Series) -> str:
    """Which varies more, over the draws or over the test images; a row of a label-efficiency curve."""
    widths = row["draw_high"] - row["draw_low"], row["high"] - row["low"]
    name = name_of(answer, SOURCES)
    if name == SOURCES[int(np.argmax(widths))]:
        text = f"{widths[0]:.3f} from draw to draw, {widths[1]:.3f} over test images."
        return f"{text} A paper that shows one draw and one interval shows you the second alone."
    raise Hint("Subtract `draw_low` from `draw_high`, then `low` from `high`, in the row of the smallest fraction.")


def lost_class(answer, y: np.ndarray, fraction: float) -> str:
    """The probability that a random draw of a fraction of the images has none of the rarest class; all labels y [N]."""
    counts = np.bincount(y)
    counts = counts[counts > 0]
    size = round(fraction * len(y))
    expected, common = (float(hypergeom.pmf(0, len(y), n, size)) for n in (counts.min(), counts.max()))
    mistakes = [
        (1 - expected, "That is the probability that the draw has at least one. The question is about none."),
        (common, "That is for the largest class. Which class is lost most easily?"),
        (counts.min() / len(y), "That is the fraction of that class among the images. What happens in a draw?"),
        ((1 - fraction) ** size, f"One image is missed with probability {1 - fraction:g}. How many must be missed?"),
    ]
    hint = "Draw a thousand times with `rng.choice(train.y, size, replace=False)`, and count the draws without it."
    expect_number(answer, expected, mistakes, hint, tolerance=0.03)
    return f"Exactly: {expected:.3f}. A stratified draw, as above, cannot lose a class that has enough images."


def lowest_rate(answer, lr: float, layer_decay: float, depth: int) -> str:
    """The learning rate of the patch embedding, below `depth` blocks and a head."""
    expected = lr * layer_decay ** (depth + 1)
    mistakes = [
        (lr * layer_decay**depth, "That is the rate of the first block. The embedding is one layer below it."),
        (lr, "That is the rate of the head, at the top. It shrinks with each layer below."),
        (layer_decay ** (depth + 1), "That is the factor. Multiply the head's rate by it."),
        (lr * layer_decay * (depth + 1), "The factor applies again in each layer: it is a power, not a product."),
    ]
    hint = f"From the head down there are {depth} blocks, then the embedding. The factor applies at each step."
    expect_number(answer, expected, mistakes, hint, tolerance=0.02 * expected)
    return f"{expected:.2g}, against {lr:.2g} at the head: what sees edges and colours is hardly changed."


def mixed_target(answer, classes: Sequence[int], shares: Sequence[float], smoothing: float, num_classes: int) -> str:
    """The target [K] of an image that is a mixture of two, of these classes in these shares, with label smoothing."""
    plain, swapped = np.zeros(num_classes), np.zeros(num_classes)
    np.add.at(plain, list(classes), list(shares))
    np.add.at(swapped, list(classes), list(shares)[::-1])
    expected = (1 - smoothing) * plain + smoothing / num_classes
    values = array_of(answer)
    if values.shape != (num_classes,) or values.dtype.kind not in "iuf":
        raise Hint(f"The answer is {num_classes} numbers, one for each class, in the order of the classes.")
    if np.allclose(values, expected, atol=0.006):
        return "It sums to 1, like every target, and asks the network for no more certainty than the picture allows."
    if np.allclose(values, plain, atol=0.006):
        raise Hint("Right but for the smoothing: it takes a little from every class, and gives all classes the same.")
    if np.allclose(values, (1 - smoothing) * swapped + smoothing / num_classes, atol=0.006):
        raise Hint("The two shares are swapped: whose pixels fill the larger part of the picture?")
    if abs(values.sum() - 1) > 0.01:
        raise Hint(f"The numbers sum to {values.sum():.2f}. What must the probabilities of all classes sum to?")
    raise Hint("Start with zeros, write each share at its class, multiply by 1 - smoothing, add smoothing / K to all.")


def stopping_step(answer, step: Sequence[int], val: Sequence[float], patience: int) -> str:
    """The step at which training stops: `patience` checks of the loss on val in a row were no new lowest value."""
    step, val = np.asarray(step), np.asarray(val)
    best, since, stop = np.inf, 0, len(val) - 1
    for i, loss in enumerate(val):
        best, since = (loss, 0) if loss < best else (best, since + 1)
        if since == patience:
            stop = i
            break
    mistakes = [
        (step[val.argmin()], "There the loss is lowest. But at that moment nobody knows: it takes some checks to see."),
        (stop, "That is the number of the check, counted from 0. The question is about the step."),
        (step[-1], "That is where this training ended. The rule stops earlier."),
    ]
    hint = f"Go through `val` in order. Remember the lowest so far, and count to {patience} checks without a lower one."
    expect_number(answer, step[stop], mistakes, hint, tolerance=0)
    return f"The weights to keep are those of step {step[val[: stop + 1].argmin()]}, the best until then."


def sensitivity_at_half(answer, y: np.ndarray, p: np.ndarray) -> str:
    """The sensitivity at a threshold of 0.5, from labels [N], 0 or 1, and probabilities of 1 [N]."""
    sensitivity, specificity = _rates(y, p, 0.5)
    called = p >= 0.5
    mistakes = [
        (
            specificity,
            "That is the specificity, about those without melanoma. Which fraction of the melanomas is found?",
        ),
        (share((called & (y == 1)).sum(), called.sum()), "You divided by all alarms. Divide by all melanomas."),
        (1 - sensitivity, "That is the fraction that is missed."),
        (float(np.mean(called == y)), "That is the accuracy, of all images together."),
    ]
    expect_number(answer, sensitivity, mistakes, "Take the melanomas alone: `p[y == 1]`. How many reach 0.5?")
    return f"It finds {sensitivity:.0%} of the melanomas and misses the rest. Nobody chose 0.5 for that."


def best_threshold(answer, y: np.ndarray, p: np.ndarray) -> str:
    """The highest threshold at which at least SENSITIVITY of the melanomas are found."""
    positive = np.sort(p[y == 1])[::-1]
    highest = positive[int(np.ceil(SENSITIVITY * len(positive) - 1e-9)) - 1]
    value = number_of(answer)
    sensitivity, specificity = _rates(y, p, value)
    if sensitivity < SENSITIVITY:
        raise Hint(f"At {value:g}, {sensitivity:.1%} of the melanomas are found. For more of them it must be lower.")
    if value < highest - 0.01:
        raise Hint(f"It finds {sensitivity:.1%}, but a higher threshold would do too, with fewer false alarms.")
    return f"{sensitivity:.1%} of the melanomas are found, and {1 - specificity:.0%} of the others alarm as well."


def alarms_that_are_true(answer, y: np.ndarray, p: np.ndarray, threshold: float) -> str:
    """The fraction of alarms that are melanomas where PREVALENCE of the lesions are."""
    sensitivity, specificity = _rates(y, p, number_of(threshold))
    true, false = sensitivity * PREVALENCE, (1 - specificity) * (1 - PREVALENCE)
    expected, called = share(true, true + false), p >= threshold
    mistakes = [
        (share((called & (y == 1)).sum(), called.sum()), "That is for the test images, with many more melanomas."),
        (sensitivity, "That is the sensitivity: of the melanomas, those that alarm. Turn it round: of the alarms, ..."),
        (1 - expected, "That is the fraction of false alarms."),
    ]
    hint = "Think of 10,000 lesions, 100 of them melanomas. How many true alarms, and how many false ones?"
    expect_number(answer, expected, mistakes, hint)
    return f"Of 100 alarms about {100 * expected:.0f} would be melanomas, with the very same model."


def _rates(y: np.ndarray, p: np.ndarray, threshold: float) -> tuple[float, float]:
    """Returns sensitivity and specificity at a threshold."""
    called = p >= threshold
    return share((called & (y == 1)).sum(), (y == 1).sum()), share((~called & (y == 0)).sum(), (y == 0).sum())


EXERCISES = {
    "04-1": rarest_in_draw,
    "04-2": wider_source,
    "04-3": lost_class,
    "05-1": lowest_rate,
    "05-2": mixed_target,
    "05-3": stopping_step,
    "06-1": sensitivity_at_half,
    "06-2": best_threshold,
    "06-3": alarms_that_are_true,
}
