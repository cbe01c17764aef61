"""Says whether the answer to an exercise is right, and helps if it is not.

No answer is stored: a check computes it from the lesson's own data, which the cell hands over, so it is right for
whatever images, encoder and seed the lesson was run with.
"""

import inspect
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from panderm_utils.manifests import unknown_name
from panderm_utils.messages import UserError
from panderm_utils.tutorial import lessons_1_to_3, lessons_4_to_6
from panderm_utils.tutorial.answers import Hint, number_of
from panderm_utils.workspace import REPOSITORY

# Each takes an answer and the lesson's data, raises a Hint if it is wrong, and returns a sentence to learn if right.
EXERCISES: dict[str, Callable[..., str]] = {**lessons_1_to_3.EXERCISES, **lessons_4_to_6.EXERCISES}
TRIES = 3  # wrong answers before the solution is named
COLOURS = {True: "#009E73", False: "#D55E00", None: "#767676"}

_wrong: Counter[str] = Counter()


@dataclass(frozen=True)
class Verdict:
    """What a cell shows about an answer.

    Attributes:
        right: None if there is nothing to judge.
        text: In backticks: code. `link`: a notebook beside the lesson, or "".
    """

    right: bool | None
    text: str
    link: str = ""

    def __repr__(self) -> str:
        return self.text + (f" ({self.link})" if self.link else "")

    def _repr_html_(self) -> str:
        text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(self.text, quote=False))
        link = f' <a href="{escape(self.link)}">{escape(self.link)}</a>' if self.link else ""
        style = f"border-left: 4px solid {COLOURS[self.right]}; padding: 4px 10px; max-width: 60em"
        return f'<div style="{style}">{text}{link}</div>'


def check(exercise: str, answer, **facts) -> Verdict:
    """Returns whether an answer is right and, if it is not, a hint; after three wrong ones also where the solution is.

    Args:
        exercise: Such as "03-2", the second exercise of the third lesson.
        answer: An Ellipsis, as in the lesson's unchanged cell, is no answer yet.
        facts: What the right answer is computed from; the lesson's cell names it.

    Raises:
        UserError: There is no such exercise, or the facts are not those that it needs.
    """
    if exercise not in EXERCISES:
        raise UserError(unknown_name("exercise", exercise, list(EXERCISES), ""))
    judge = EXERCISES[exercise]
    try:
        inspect.signature(judge).bind(answer, **facts)
    except TypeError as error:
        _, *names = inspect.signature(judge).parameters
        call = ", ".join([f'tutorial.check("{exercise}", answer', *(f"{name}=..." for name in names)])
        raise UserError(f"exercise {exercise}: {error}; end the cell as the lesson does, with {call})") from error
    if answer is ...:
        return Verdict(None, "No answer yet: write yours in place of the three dots, and run the cell again.")
    try:
        lesson = judge(answer, **facts)
    except Hint as hint:
        _wrong[exercise] += 1
        if _wrong[exercise] < TRIES:
            return Verdict(False, f"Not yet. {hint}")
        return Verdict(False, f"Not yet. {hint} If you are stuck:", _solution(exercise))
    return Verdict(True, f"Right. {lesson}")


def reveal(guess, value: float, what: str) -> Verdict:
    """Returns a prediction beside what came out.

    Args:
        guess: The number predicted before the cells were run; an Ellipsis is none.
        value: What the lesson measured.
        what: What the number is, as "fraction of the test images".
    """
    if guess is ...:
        return Verdict(None, f"It is {value:.2f} ({what}). You made no prediction: next time write one first.")
    try:
        guessed = number_of(guess)
    except Hint as hint:
        return Verdict(None, f"It is {value:.2f} ({what}). Your prediction cannot be compared. {hint}")
    difference = guessed - value
    side = "too high" if difference > 0 else "too low"
    distance = "just right" if abs(difference) < 0.005 else f"{abs(difference):.2f} {side}"
    return Verdict(None, f"You predicted {guessed:.2f}. It is {value:.2f} ({what}): {distance}.")


def _solution(exercise: str) -> str:
    """Returns the notebook with the solution, relative to the lessons."""
    folder = REPOSITORY / "notebooks/tutorial"
    (path,) = folder.glob(f"solutions/{exercise[:2]}_*.ipynb")
    return path.relative_to(folder).as_posix()
