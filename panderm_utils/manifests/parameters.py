"""The rules of the notebooks' parameters: types, ranges and choices, for a notebook's cell and `-p name=value` alike.

Rules that one protocol adds or changes are in its description (`Protocol.parameters`).
"""

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from panderm_utils.manifests.reading import list_datasets, list_encoders
from panderm_utils.manifests.typed_yaml import FRACTIONS_RULE, read_fractions
from panderm_utils.messages import UserError
from panderm_utils.workspace import PROFILES, settle_path


class ParameterError(UserError):
    """Invalid parameters of a notebook; the message has a line for each, with what to write instead."""


@dataclass(frozen=True)
class Rule:
    """The valid values of a parameter.

    Attributes:
        kind: Their type; a whole number is also a valid float.
        words: Describes them: "a number above 0, up to 1".
        accepts: Whether a value of that type is valid.
        others: Valid values of other types: None, for the default, or "auto".
        names: Returns the names that a misspelt value may have meant.
    """

    kind: type
    words: str
    accepts: Callable[[Any], bool] = lambda value: True
    others: tuple = ()
    names: Callable[[], Sequence[str]] = tuple

    def or_else(self, *others) -> "Rule":
        """Returns the rule with further valid values."""
        return replace(self, others=(*self.others, *others))

    def read(self, text: str):
        """Returns the value of a text from the command line; a text that stands for none is returned as it is."""
        for other in self.others:
            if text == str(other):
                return other
        if self.kind is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        try:
            return self.kind(text)
        except ValueError:
            return text

    def remedy(self, value) -> str:
        """Returns what to write instead of an invalid value, "" if the value is valid."""
        if any(value is other or (isinstance(value, str) and value == other) for other in self.others):
            return ""
        kinds = (float, int) if self.kind is float else self.kind
        if isinstance(value, kinds) and isinstance(value, bool) == (self.kind is bool) and self.accepts(value):
            return ""
        near = difflib.get_close_matches(value, self.names(), n=1) if isinstance(value, str) else []
        meant = f"did you mean {near[0]}? " if near else ""
        return f"{meant}write {', or '.join([self.words, *map(str, self.others)])}"


def one_of(*choices: str) -> Rule:
    return Rule(str, f"one of {', '.join(choices)}", choices.__contains__, names=lambda: choices)


def whole(least: int, most: float = math.inf, even: bool = False) -> Rule:
    words = f"{'an even' if even else 'a whole'} number, {least}" + (f" to {most}" if most < math.inf else " or more")
    return Rule(int, words, lambda value: least <= value <= most and not (even and value % 2))


def number(words: str, accepts: Callable[[float], bool]) -> Rule:
    return Rule(float, words, lambda value: math.isfinite(value) and accepts(value))


def text(words: str = "text", accepts: Callable[[str], bool] = lambda value: True, names=tuple) -> Rule:
    return Rule(str, words, accepts, names=names)


FLAG = Rule(bool, "True or False")
FRACTION = number("a number above 0, up to 1", lambda value: 0 < value <= 1)
FRACTIONS = text(f"{FRACTIONS_RULE}, as in 0.1,0.5", lambda value: bool(read_fractions(value)))
PATH = text("a path")
FILE = text("the path of a file or folder that exists", lambda path: settle_path(path).exists())
DEVICES = ("auto", "cpu", "cuda", "cuda:1", "mps")
DEVICE = text(f"one of {', '.join(DEVICES)}", re.compile(r"auto|cpu|mps|cuda(:\d+)?").fullmatch, lambda: DEVICES)
ENCODER = text(
    "an encoder (listed by `python run_all.py --list`) or timm:<model>",
    lambda name: name in list_encoders() or name.startswith("timm:"),
    lambda: list_encoders(),
)
DATASET = text(
    "a dataset (listed by `python run_all.py --list`)", lambda name: name in list_datasets(), lambda: list_datasets()
)
PRECISION = one_of("fp32", "bf16", "fp16")
SEED = whole(0, 2**32 - 1)

# The parameters that mean the same in every protocol.
PARAMETERS = {
    "dataset": DATASET,
    "profile": one_of(*PROFILES),
    "encoder": ENCODER.or_else(None),
    "weights": FILE.or_else(None),
    "data_root": PATH.or_else(None),
    "weights_root": PATH.or_else(None),
    "output_root": PATH.or_else(None),
    "seed": SEED,
    "train_fraction": FRACTION,
    "solver": one_of("published", "converged", "sklearn"),
    "precision": PRECISION,
    "device": DEVICE,
    "batch_size": whole(1),
    "replicates": whole(2),
    "allow_incomplete": FLAG,
}
