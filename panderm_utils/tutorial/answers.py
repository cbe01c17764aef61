"""Reads a student's answer, compares it with the right one, and names the mistake behind a wrong one."""

from collections.abc import Iterable, Sequence

import numpy as np

ROUNDED = 0.0051  # two decimals are enough


class Hint(Exception):
    """An answer is not right; the message says what to look at, but never the answer."""


def expect_number(
    answer, expected: float, mistakes: Iterable[tuple[float, str]], hint: str, tolerance: float = ROUNDED
) -> None:
    """Raises a Hint unless the answer is the expected number.

    Args:
        mistakes: Numbers that a typical mistake gives, each with its hint; one that equals the answer is no mistake.
        hint: For any other number.
        tolerance: The largest difference, 0 for a count.
    """
    value = number_of(answer)
    if abs(value - expected) <= tolerance:
        return
    for other, reason in mistakes:
        if abs(value - other) <= tolerance:
            raise Hint(reason)
    if tolerance > 0 and abs(value - 100 * expected) <= 100 * tolerance:
        raise Hint("The right number, but in percent: write a fraction, such as `0.25` for 25%.")
    raise Hint(hint)


def number_of(answer) -> float:
    """Returns the number that an answer is, whether Python's, NumPy's or torch's; anything else raises a Hint."""
    if isinstance(answer, str):
        raise Hint(f"Write the number without quotes: `answer = 0.5`, not `answer = {answer!r}`.")
    values = array_of(answer)
    if values.size != 1 or values.dtype.kind not in "iuf":
        kind = f"{values.size} values" if values.size != 1 else f"a {type(answer).__name__}"
        raise Hint(f"The answer is one number, such as `answer = 0.5`; yours is {kind}.")
    return float(values.reshape(-1)[0])


def name_of(answer, names: Sequence[str]) -> str:
    """Returns the one of some names that an answer is, in any case of letters; anything else raises a Hint."""
    same = {name.lower(): name for name in names}
    found = same.get(answer.strip().lower()) if isinstance(answer, str) else None
    if found is None:
        raise Hint(f"The answer is one of these, in quotes: {', '.join(f'`{name!r}`' for name in names)}.")
    return found


def array_of(answer) -> np.ndarray:
    """Returns an answer as an array; what cannot be one, such as lists of different lengths, raises a Hint."""
    try:
        return np.asarray(answer)
    except (ValueError, TypeError, RuntimeError) as error:  # the last from a tensor that has a gradient
        raise Hint(f"That cannot be read as numbers ({error}). Look at it: `print(answer)`.") from error


def share(part, whole) -> float:
    """Returns a fraction, NaN of nothing."""
    return float(part) / float(whole) if whole else np.nan
