"""What the user is asked about the columns of a CSV, where they can be read in several ways."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from panderm_utils.data.csv_tables import DataError


@dataclass(frozen=True)
class Question:
    """A role for the user to decide: why, and the choices, likeliest first, as (flags, what they would mean)."""

    why: str
    choices: list[tuple[list[str], str]]


class OpenQuestions(DataError):
    """The columns can be read in several ways; `example` holds flags that answer every question."""

    def __init__(self, place: Path, questions: list[Question]):
        lines = [f"{place}: choose what its columns are"]
        for question in questions:
            width = max(len(shlex.join(flags)) for flags, _ in question.choices)
            lines += [question.why, *(f"  {shlex.join(flags):{width}}  {text}" for flags, text in question.choices)]
        super().__init__("\n".join(lines))
        self.example: list[str] = []
        for question in questions:  # a column may be a choice of two questions, but has one role
            choices = [flags for flags, _ in question.choices if not set(flags) & set(self.example)]
            self.example += choices[0] if choices else []
