"""Turns YAML files into frozen dataclasses, checked against their annotations; reports a file's problems together."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Hashable
from pathlib import Path

import yaml

from panderm_utils.messages import UserError

FRACTIONS_RULE = "numbers above 0, up to 1"
MAX_SIZE = 1 << 18  # bytes of a file, read in seconds; the largest shipped file has 6,300


class ManifestError(UserError):
    """One or more manifests are invalid; the message has a line per problem: file, key, problem and remedy."""


def _refusal(problem: str, where: yaml.Node | yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def _refuse_aliases(text: str) -> None:
    """Raises YAMLError for aliases, which can expand to any size, and tags."""
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise _refusal("aliases (*name) are not allowed; write the value out", event)
        if getattr(event, "tag", None) is not None:
            raise _refusal("tags (!name) are not allowed; remove the tag", event)


class _Loader(yaml.CSafeLoader):
    """Safe YAML without repeated keys, of which the last would win."""

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # 2024-13-45 looks like a date but is not
            raise _refusal(f"{error}; write text in quotes", node) from error

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            value = self.construct_object(key, deep=True)
            if isinstance(value, str) and not value.isprintable():
                raise _refusal(f"the key {value!r} has invisible characters; retype it", key)
            if isinstance(value, Hashable):  # other keys are refused below
                if value in seen:
                    raise _refusal(f"{value!r} is given twice; keep one", key)
                seen.add(value)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path, kind: type = dict):
    """Returns the file's content, of type `kind` (dict or list).

    Raises:
        ManifestError: The file is missing, too large, not UTF-8, not YAML, or of another type.
    """
    text = _read(path)
    try:
        _refuse_aliases(text)
        content = yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise ManifestError(f"{path}: not valid YAML: brackets nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ManifestError(f"{path}:{line} not valid YAML: {problem}") from error
    if not isinstance(content, kind):
        expected = {dict: "`key: value` lines", list: "a list, each entry after a dash"}[kind]
        raise ManifestError(f"{path}: is {_name(content)}; write {expected}")
    return content


def _read(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > MAX_SIZE:
            raise ManifestError(f"{path}: {size:,} bytes; a manifest has at most {MAX_SIZE:,}: shorten it")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ManifestError(f"{path}: missing; restore it with `git checkout -- {path}`") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); put the file there") from error


def build(cls, entry, place: str, problems: list[str]):
    """Returns a dataclass made from a mapping; adds what is wrong to `problems`.

    Values that are missing or of another type become None, so that the rest can be checked too; the result is complete
    only if nothing was added. Returns None if `entry` is not a mapping.
    """
    if not isinstance(entry, dict):
        problems.append(f"{place}: is {_name(entry)}; write `key: value` lines")
        return None
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints, values = typing.get_type_hints(cls), {}
    for key, value in entry.items():
        if key not in fields:
            problems.append(f"{place}: {unknown_name('key', key, list(fields), 'remove it')}")
        else:
            values[key] = _convert(value, hints[key], f"{place}: {key}", problems)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in entry:
            problems.append(f"{place}: {name}: missing; write {name}: {_describe(hints[name])}")
            values[name] = None
    return cls(**values)


def read_numbers(text: str) -> list[float]:
    """Returns the numbers of a notebook parameter such as "0.05, 0.2" or "[0.05, 0.2]"; ValueError if invalid."""
    return [float(part) for part in text.strip("[]() ").split(",")]


def read_fractions(text: str) -> list[float]:
    """Returns the label fractions of a text such as "0.1, 0.5"; [] if any is invalid (FRACTIONS_RULE)."""
    try:
        fractions = read_numbers(text)
    except ValueError:
        return []
    return fractions if all(0 < fraction <= 1 for fraction in fractions) else []


def build_list(cls, path: Path, problems: list[str]) -> list[tuple[str, typing.Any]]:
    """Returns (place, entry) pairs from a file that is a list, without entries that could not be built."""
    entries = [(f"{path}: entry {i}", entry) for i, entry in enumerate(load_yaml(path, list), 1)]
    built = [(place, build(cls, entry, place, problems)) for place, entry in entries]
    return [(place, entry) for place, entry in built if entry is not None]


def build_entries(cls, path: Path, problems: list[str]) -> dict[str, typing.Any]:
    """Returns name -> entry from a file whose keys are names, without entries that could not be built."""
    entries = {}
    for name, entry in load_yaml(path).items():
        if isinstance(entry, dict) and "name" in entry:
            problems.append(f"{path}: {name}.name: the entry's key is its name; remove this line")
        named = {**entry, "name": name} if isinstance(entry, dict) else entry
        entries[name] = build(cls, named, f"{path}: {name}", problems)
    return {name: entry for name, entry in entries.items() if entry is not None}


def unknown_name(kind: str, name, valid: list[str], remedy: str) -> str:
    """Returns a message that a name is unknown, with the nearest valid name and all valid names."""
    near = difflib.get_close_matches(str(name), valid, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{kind} {name!r} is unknown; {meant}known: {', '.join(valid)}" + (f"; {remedy}" if remedy else "")


def _convert(value, hint, place: str, problems: list[str]):
    """Returns `value` converted to the annotation's type, or None after adding a problem."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), place, problems)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(v, arguments[0], f"{place}[{i}]", problems) for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {str(k): _convert(v, arguments[1], f"{place}.{k}", problems) for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(hint, value, place, problems)
    if hint is typing.Any:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if origin is None and type(value) is hint:
        return value
    problems.append(f"{place}: is {_name(value)}; write {_describe(hint)}")
    return None


def _describe(hint) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _describe(arguments[0])
    if origin is tuple:
        return f"a list of {_describe(arguments[0])}"
    if origin is dict:
        return f"a mapping of names to {_describe(arguments[1])}"
    if dataclasses.is_dataclass(hint):
        return "{" + ", ".join(field.name for field in dataclasses.fields(hint)) + "}"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(hint, "a value")


def _name(value) -> str:
    if value is None:
        return "empty"
    kind = {str: "the text", int: "the number", float: "the number", bool: "the boolean"}.get(type(value))
    return f"{kind} {value!r}" if kind else f"a {type(value).__name__}"
