"""YAML files become frozen dataclasses, checked against their annotations; all problems of a file at once."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Hashable
from pathlib import Path

import yaml

FRACTIONS_RULE = "numbers above 0, up to 1"
LARGEST = 1 << 18  # bytes of a file, read in seconds; the largest shipped has 6,300


class ManifestError(ValueError):
    """One or more manifests are wrong; the message has a line for each problem: file, key, problem and remedy."""


class _Loader(yaml.SafeLoader):
    """Safe YAML without what can mislead: aliases, which expand to any size; tags; a key twice, where the last wins."""

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not allowed; write it out", problem_mark=event.start_mark
            )
        if event.tag is not None:
            raise yaml.MarkedYAMLError(
                problem="tags (!name) are not allowed; leave it out", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # 2024-13-45 looks like a date and is none
            raise yaml.MarkedYAMLError(
                problem=f"{error}; write a text in quotes", problem_mark=node.start_mark
            ) from error

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            value = self.construct_object(key, deep=True)
            if isinstance(value, str) and not value.isprintable():
                problem = f"the key {value!r} has characters that cannot be seen; write it anew"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            if isinstance(value, Hashable):  # another is refused as a key below
                if value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{value!r} is given twice; keep one", problem_mark=key.start_mark
                    )
                seen.add(value)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path, kind: type = dict):
    """Returns the file's content, a `kind` (dict or list).

    Raises:
        ManifestError: The file is missing, too large, not UTF-8, not YAML, or of another kind.
    """
    text = _read(path)
    try:
        content = yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise ManifestError(f"{path}: not valid YAML: brackets within brackets, too deep to be meant") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        what = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ManifestError(f"{path}:{line} not valid YAML: {what}") from error
    if not isinstance(content, kind):
        wanted = {dict: "`key: value` lines", list: "a list, each entry after a dash"}[kind]
        raise ManifestError(f"{path}: is {_name(content)}; write {wanted}")
    return content


def _read(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise ManifestError(f"{path}: {size:,} bytes; a manifest has at most {LARGEST:,}: remove what is no fact")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ManifestError(f"{path}: missing; restore it with `git checkout -- {path}`") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); put the file there") from error


def build(cls, entry, place: str, problems: list[str]):
    """Makes a dataclass of a mapping and notes what is wrong in `problems`.

    Returns:
        The dataclass, None in the place of each value that is missing or of another type, so that the rest can be
        checked too; None where `entry` is no mapping. Only whole if nothing was noted.
    """
    if not isinstance(entry, dict):
        problems.append(f"{place}: is {_name(entry)}; write `key: value` lines")
        return None
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints, values = typing.get_type_hints(cls), {}
    for key, value in entry.items():
        if key not in fields:
            problems.append(f"{place}: {unknown('key', key, list(fields), 'remove it')}")
        else:
            values[key] = _convert(value, hints[key], f"{place}: {key}", problems)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in entry:
            problems.append(f"{place}: {name}: missing; write {name}: {_describe(hints[name])}")
            values[name] = None
    return cls(**values)


def read_numbers(text: str) -> list[float]:
    """Returns the numbers of a notebook's parameter such as "0.05, 0.2" or "[0.05, 0.2]"; else a ValueError."""
    return [float(part) for part in text.strip("[]() ").split(",")]


def read_fractions(text: str) -> list[float]:
    """Returns the label fractions of a text such as "0.1, 0.5"; none where one is no fraction (FRACTIONS_RULE)."""
    try:
        fractions = read_numbers(text)
    except ValueError:
        return []
    return fractions if all(0 < fraction <= 1 for fraction in fractions) else []


def build_list(cls, path: Path, problems: list[str]) -> list[tuple[str, typing.Any]]:
    """Returns place and entry, of a file that is a list, as far as each could be built."""
    entries = [(f"{path}: entry {i}", entry) for i, entry in enumerate(load_yaml(path, list), 1)]
    built = [(place, build(cls, entry, place, problems)) for place, entry in entries]
    return [(place, entry) for place, entry in built if entry is not None]


def build_entries(cls, path: Path, problems: list[str]) -> dict[str, typing.Any]:
    """Returns name -> entry, of a file whose keys are names, as far as each could be built."""
    entries = {}
    for name, entry in load_yaml(path).items():
        if isinstance(entry, dict) and "name" in entry:
            problems.append(f"{path}: {name}.name: an entry is called what its key says; remove this line")
        named = {**entry, "name": name} if isinstance(entry, dict) else entry
        entries[name] = build(cls, named, f"{path}: {name}", problems)
    return {name: entry for name, entry in entries.items() if entry is not None}


def unknown(kind: str, name, valid: list[str], remedy: str) -> str:
    """Says that a name is unknown, which one was meant perhaps, and which there are."""
    near = difflib.get_close_matches(str(name), valid, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{kind} {name!r} is unknown; {meant}known: {', '.join(valid)}" + (f"; {remedy}" if remedy else "")


def _convert(value, hint, place: str, problems: list[str]):
    """Returns `value` as the annotation wants it, or notes that it cannot be."""
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
    known = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return known.get(hint, "a value")


def _name(value) -> str:
    if value is None:
        return "empty"
    kind = {str: "the text", int: "the number", float: "the number", bool: "the truth value"}.get(type(value))
    return f"{kind} {value!r}" if kind else f"a {type(value).__name__}"
