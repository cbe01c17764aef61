"""A notebook's parameters: the literals of its cell tagged `parameters`, and what `-p name=value` makes of them."""

import ast
import difflib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from panderm_utils.manifests import FRACTIONS_RULE, Protocol, read_fractions
from panderm_utils.workspace import settle_path

# Parameters that the batch settles itself, and the flag that does it.
FLAGS = {
    "dataset": "--datasets",
    "profile": "--profile",
    "encoder": "--encoders",
    "seed": "--seeds",
    "data_root": "--data-root",
    "weights_root": "--weights-root",
    "output_root": "--output-root",
}

# What a notebook would refuse after minutes of work; held in step with the package by a test.
CHOICES = {
    "solver": ("published", "converged", "sklearn"),
    "precision": ("fp32", "bf16", "fp16"),
    "drawing": ("honest", "published"),
    "target_images": ("all", "test"),
    "monitor": ("recall", "acc"),
}
KINDS = {  # of what a notebook leaves open, as None or "auto"; what is not here is a text
    **dict.fromkeys(("epochs", "warmup_epochs", "batch_size", "micro_batch"), int),
    **dict.fromkeys(("lr", "layer_decay", "drop_path", "weight_decay", "mixup", "cutmix", "smoothing"), float),
    "weighted_sampling": bool,
}


class PlanError(ValueError):
    """The batch cannot start as asked; the message has a line for each problem."""


def read_parameters(path: Path) -> dict:
    """Returns name -> default of a notebook's parameters cell.

    Raises:
        PlanError: There is no such notebook, or no such cell, or the cell holds something other than literals.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except FileNotFoundError as error:
        raise PlanError(f"{path}: no such notebook; `python run_all.py --sync` stamps one a dataset") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise PlanError(f"{path}: not a notebook ({error}); restore it with `python run_all.py --sync`") from error
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise PlanError(
            f"{path}: {len(tagged)} cells are tagged `parameters`; tag exactly one, in JupyterLab's sidebar"
        )
    try:
        statements = ast.parse("".join(tagged[0]["source"])).body
        return {statement.targets[0].id: ast.literal_eval(statement.value) for statement in statements}
    except (SyntaxError, ValueError, AttributeError) as error:
        raise PlanError(f"{path}: the parameters cell may hold only lines `name = literal` ({error})") from error


def split_overrides(texts: Iterable[str], encoders: Sequence[str], problems: list[str]) -> dict[str, str]:
    """Returns name -> text of each `name=value`; notes what is wrong in `problems`."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            problems.append(f"-p {text}: no value; write -p {text}=VALUE")
        elif name in FLAGS:
            problems.append(f"-p {text}: {name} is settled by a flag; write {FLAGS[name]} {value}")
        else:
            values[name] = value
    for name in {"weights", "checkpoint"} & set(values):
        path = settle_path(values[name])  # the notebook runs in another folder
        values[name] = str(path)
        if not path.is_dir() and len(encoders) > 1:
            problems.append(f"-p {name}={path}: one file for {len(encoders)} encoders; name one with --encoders")
    return values


@dataclass(frozen=True)
class Settled:
    """The parameters that override a notebook's defaults, and all settings that decide the run's numbers."""

    parameters: dict
    settings: dict


def settle_parameters(path: Path, protocol: Protocol, overrides: dict[str, str], problems: list[str]) -> Settled:
    """Returns the overrides, typed as the notebook's defaults are, and the settings that name the run.

    An unknown name, a value of another type and one that a notebook would refuse are noted in `problems`: papermill
    would only warn, or fail a run late.
    """
    try:
        defaults = read_parameters(path)
    except PlanError as error:
        problems.append(str(error))
        return Settled({}, {})
    absent = [name for name in FLAGS if name not in defaults]
    if absent:
        problems.append(f"{path}: the parameters cell lacks {', '.join(absent)}; add them with their defaults")
    own = {}
    for name, text in overrides.items():
        if name not in defaults:
            free = [known for known in defaults if known not in FLAGS]
            near = difflib.get_close_matches(name, free, n=1)
            meant = f"did you mean -p {near[0]}={text}? " if near else ""
            known = ", ".join(free)
            problems.append(f"-p {name}={text}: {path.parent.name} has no such parameter; {meant}known: {known}")
            continue
        kind = KINDS.get(name, str) if defaults[name] in (None, "auto") else type(defaults[name])
        try:
            own[name] = defaults[name] if text == str(defaults[name]) else _convert(text, kind)
        except ValueError:
            wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
            problems.append(f"-p {name}={text}: not {wanted}; write one, or {name}={defaults[name]} for the default")
            continue
        if wanted := own[name] != defaults[name] and _refusal(name, own[name]):
            problems.append(f"-p {name}={text}: no such {name}; write {wanted}")
    settings = {name: value for name, value in {**defaults, **own}.items() if name in protocol.settings}
    return Settled(own, settings)


def _refusal(name: str, value) -> str:
    """Says what to write instead of a value that cannot be, "" if it can."""
    if name in CHOICES and value not in CHOICES[name]:
        return f"one of {', '.join(CHOICES[name])}"
    if name == "fractions" and not read_fractions(value):
        return f"{FRACTIONS_RULE}, as in 0.1,0.5"
    if name == "train_fraction" and not 0 < value <= 1:
        return "a number above 0, up to 1"
    return "1 or more" if name in ("batch_size", "replicates", "draws") and value < 1 else ""


def _convert(text: str, kind: type):
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    value = kind(text)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(text)
    return value
