"""A notebook's parameters: the literals in its cell tagged `parameters`, and their overrides by `-p name=value`."""

import ast
import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from panderm_utils.manifests import Protocol, Rule
from panderm_utils.messages import UserError, printable
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


def each_run(protocol: Protocol, overrides: dict[str, str]) -> Iterator[dict[str, str]]:
    """Yields the overrides of each run: of several numbers, separated by commas, each is a run of its own."""
    rules = {name: protocol.rule(name) for name in overrides}
    several = {name for name, rule in rules.items() if rule and rule.kind in (int, float)}
    values = [list(map(str.strip, text.split(","))) if name in several else [text] for name, text in overrides.items()]
    for combination in product(*values):
        yield dict(zip(overrides, combination, strict=True))


@dataclass(frozen=True)
class Settled:
    """The overrides of a notebook's defaults, and all settings that determine the run's numbers."""

    parameters: dict
    settings: dict


def settle_parameters(path: Path, protocol: Protocol, overrides: dict[str, str], problems: list[str]) -> Settled:
    """Returns the overrides as typed values, and the settings that name the run.

    Unknown names, of which papermill would only warn, and values that break the parameter's rule, which the notebook
    checks too, are appended to `problems`.
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
        rule = protocol.rule(name) or _like(defaults[name])
        typed[name] = rule.read(text)
        if protocol.rule(name) is None and (remedy := rule.remedy(typed[name])):
            problems.append(f"-p {printable(f'{name}={text}')}: {remedy}")
    for name, remedy in protocol.remedies({**defaults, **typed}).items():
        problems.append(f"-p {printable(f'{name}={overrides.get(name, defaults[name])}')}: {remedy}")
    settings = {name: value for name, value in {**defaults, **typed}.items() if name in protocol.settings}
    return Settled(typed, settings)


def _like(default) -> Rule:
    """Returns the rule of a parameter that has none: a value of its default's type."""
    words = {bool: "True or False", int: "a whole number", float: "a number"}
    kind = str if default is None else type(default)
    return Rule(kind, words.get(kind, "text")).or_else(default)
