"""A notebook's parameters: the literals in its cell tagged `parameters`, and their overrides by `-p name=value`."""

import ast
import difflib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from panderm_utils.manifests import FRACTIONS_RULE, Protocol, read_fractions
from panderm_utils.messages import UserError
from panderm_utils.workspace import settle_path

# Parameters that the batch sets itself, and the flag for each.
FLAGS = {
    "dataset": "--datasets",
    "profile": "--profile",
    "encoder": "--encoders",
    "seed": "--seeds",
    "data_root": "--data-root",
    "weights_root": "--weights-root",
    "output_root": "--output-root",
}

# Checked here because a notebook would reject them only after minutes; a test compares them with the package.
CHOICES = {
    "solver": ("published", "converged", "sklearn"),
    "precision": ("fp32", "bf16", "fp16"),
    "drawing": ("honest", "published"),
    "target_images": ("all", "test"),
    "monitor": ("recall", "acc"),
}
KINDS = {  # types of the parameters whose default is None or "auto"; those not listed are strings
    **dict.fromkeys(("epochs", "warmup_epochs", "batch_size", "micro_batch"), int),
    **dict.fromkeys(("lr", "layer_decay", "drop_path", "weight_decay", "mixup", "cutmix", "smoothing"), float),
    "weighted_sampling": bool,
}


class PlanError(UserError):
    """The batch cannot be planned; the message has a line per problem."""


def read_parameters(path: Path) -> dict:
    """Returns the parameters of a notebook and their defaults.

    Raises:
        PlanError: The notebook or its parameters cell is missing, or the cell holds something other than literals.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except FileNotFoundError as error:
        raise PlanError(f"{path}: no such notebook; create it with `python run_all.py --sync`") from error
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
    """Returns each `name=value` as name -> text; appends errors to `problems`."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            problems.append(f"-p {text}: no value; write -p {text}=VALUE")
        elif name in FLAGS:
            problems.append(f"-p {text}: {name} is set by a flag; write {FLAGS[name]} {value}")
        else:
            values[name] = value
    for name in {"weights", "checkpoint"} & set(values):
        path = settle_path(values[name])  # the notebook runs in another working directory
        values[name] = str(path)
        if not path.is_dir() and len(encoders) > 1:
            problems.append(f"-p {name}={path}: one file for {len(encoders)} encoders; name one with --encoders")
    return values


@dataclass(frozen=True)
class Settled:
    """The overrides of a notebook's defaults, and all settings that determine the run's numbers."""

    parameters: dict
    settings: dict


def settle_parameters(path: Path, protocol: Protocol, overrides: dict[str, str], problems: list[str]) -> Settled:
    """Returns the overrides, converted to the types of the notebook's defaults, and the settings that name the run.

    Unknown names, values of the wrong type and values that the notebook would reject are appended to `problems`:
    papermill would only warn, or the run would fail late.
    """
    try:
        defaults = read_parameters(path)
    except PlanError as error:
        problems.append(str(error))
        return Settled({}, {})
    absent = [name for name in FLAGS if name not in defaults]
    if absent:
        problems.append(f"{path}: the parameters cell lacks {', '.join(absent)}; add them with defaults")
    typed = {}
    for name, text in overrides.items():
        if name not in defaults:
            valid = [parameter for parameter in defaults if parameter not in FLAGS]
            near = difflib.get_close_matches(name, valid, n=1)
            hint = f"did you mean -p {near[0]}={text}? " if near else ""
            valid = ", ".join(valid)
            problems.append(f"-p {name}={text}: {path.parent.name} has no such parameter; {hint}known: {valid}")
            continue
        kind = KINDS.get(name, str) if defaults[name] in (None, "auto") else type(defaults[name])
        try:
            typed[name] = defaults[name] if text == str(defaults[name]) else _convert(text, kind)
        except ValueError:
            expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
            problems.append(f"-p {name}={text}: not {expected}; write one, or {name}={defaults[name]} for the default")
            continue
        if valid := typed[name] != defaults[name] and _valid_values(name, typed[name]):
            problems.append(f"-p {name}={text}: invalid {name}; write {valid}")
    settings = {name: value for name, value in {**defaults, **typed}.items() if name in protocol.settings}
    return Settled(typed, settings)


def _valid_values(name: str, value) -> str:
    """Returns a description of the valid values if this one is invalid, else ""."""
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
