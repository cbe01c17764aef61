"""Loads datasets, encoders, profiles and published numbers from YAML; a file's problems are reported together.

Imports neither torch nor pandas, so the command line starts fast.
"""

import dataclasses
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import yaml

from panderm_utils.disk import replacing
from panderm_utils.manifests.entries import (
    DatasetManifest,
    EncoderManifest,
    Profile,
    ProtocolChoice,
)
from panderm_utils.manifests.problems import dataset_problems, encoder_problems, item_problems
from panderm_utils.manifests.published import PaperItem, PublishedResult
from panderm_utils.manifests.typed_yaml import ManifestError, build, build_entries, build_list, load_yaml, unknown_name
from panderm_utils.workspace import REPOSITORY, settle_folder

MANIFEST_ROOT = REPOSITORY / "data_manifests"


def list_datasets(root: Path | None = None) -> list[str]:
    """Returns the names of all dataset manifests, sorted."""
    return sorted(path.stem for path in ((root or MANIFEST_ROOT) / "datasets").glob("[!.]*.yaml"))


def load_dataset_manifest(name: str, root: Path | None = None) -> DatasetManifest:
    """Returns the manifest data_manifests/datasets/<name>.yaml.

    Raises:
        ManifestError: It is missing or invalid; all problems at once.
    """
    path = (root or MANIFEST_ROOT) / "datasets" / f"{name}.yaml"
    if name not in list_datasets(root) or not path.is_file():
        ignored = next((other for other in path.parent.glob("[!.]*.yml") if other.stem == name), None)
        remedy = f"rename {ignored} to {name}.yaml" if ignored else "python run_all.py --new-dataset makes one"
        raise ManifestError(unknown_name("dataset", name, list_datasets(root), remedy))
    return _read_dataset(path)


def list_encoders(root: Path | None = None) -> list[str]:
    """Returns the names in encoders.yaml, in file order."""
    return list(_read_encoders((root or MANIFEST_ROOT) / "encoders.yaml"))


def load_encoder_manifest(name: str, root: Path | None = None) -> EncoderManifest:
    """Returns the encoder `name` of encoders.yaml; `timm:<model>` is any model of timm with timm's weights.

    Raises:
        ManifestError: No encoder has that name, or encoders.yaml is invalid.
    """
    if re.fullmatch(r"timm:[A-Za-z0-9_.\-]+", name):
        model = name.removeprefix("timm:")
        return EncoderManifest(name, model, "timm", "timm", "see timm's model card", timm_name=model)
    encoders = _read_encoders((root or MANIFEST_ROOT) / "encoders.yaml")
    if name not in encoders:
        raise ManifestError(unknown_name("encoder", name, list(encoders), 'any model of timm is "timm:<model name>"'))
    return encoders[name]


def load_profile(name: str, weights_root: str | Path | None = None, root: Path | None = None) -> Profile:
    """Returns the profile `name` of profiles.yaml; that of the user's own data with their datasets and one encoder.

    Args:
        weights_root: Where that encoder is looked for: the first of the profile's that has its weights. A protocol that
            names encoders is `on_request` with any other.

    Raises:
        ManifestError: There is none, or profiles.yaml is invalid.
    """
    profiles = _read_profiles((root or MANIFEST_ROOT) / "profiles.yaml")
    if name not in profiles:
        raise ManifestError(unknown_name("profile", name, list(profiles), ""))
    profile = profiles[name]
    if not profile.own:
        return profile
    datasets = tuple(each for each in list_datasets(root) if load_dataset_manifest(each, root).own)
    models = [load_encoder_manifest(each, root) for each in profile.encoders]
    folder = settle_folder("weights_root", weights_root)
    there = [model.name for model in models if any(path.is_file() for path in weights_places(model, folder))]
    first = tuple(there or profile.encoders)[:1]
    limited = {name: choice for name, choice in profile.protocols.items() if choice.encoders}
    protocols = profile.protocols | {name: dataclasses.replace(limited[name], encoders=first) for name in limited}
    on_request = tuple(name for name, choice in limited.items() if not {*first} & {*choice.encoders})
    return dataclasses.replace(profile, datasets=datasets, encoders=first, protocols=protocols, on_request=on_request)


def weights_places(encoder: EncoderManifest, weights_root: Path) -> list[Path]:
    """Returns where an encoder's weights file may be: in the weights root, or shipped with this package."""
    file = encoder.weights_file or f"{encoder.timm_name}.safetensors"
    return [weights_root / file, MANIFEST_ROOT / "weights" / file]


def load_published_results(root: Path | None = None) -> tuple[PublishedResult, ...]:
    """Returns the published numbers to compare with; ManifestError if published_results.yaml is invalid."""
    return _read_published((root or MANIFEST_ROOT) / "published_results.yaml")


def load_paper_items(root: Path | None = None) -> tuple[PaperItem, ...]:
    """Returns the paper's figures and tables, in the paper's order; ManifestError if paper_items.yaml is invalid."""
    return _read_items((root or MANIFEST_ROOT) / "paper_items.yaml")


def published_value(dataset: str, protocol: str, encoder: str, metric: str) -> float | None:
    """Returns the published value, or None if there is none on file."""
    for result in load_published_results():
        if (result.dataset, result.protocol, result.encoder) == (dataset, protocol, encoder):
            return result.metrics.get(metric)
    return None


def check_manifests(root: Path | None = None) -> int:
    """Checks every manifest; returns the number of entries.

    Raises:
        ManifestError: Lists all problems of all files, and those between files: undefined names, two datasets with one
            title, manifests ignored because of their suffix.
    """
    root, problems, found = root or MANIFEST_ROOT, [], {}
    folder = root / "datasets"
    for kind, read, paths in (
        ("dataset", _read_dataset, sorted(folder.glob("[!.]*.yaml"))),
        ("encoder", _read_encoders, [root / "encoders.yaml"]),
        ("profile", _read_profiles, [root / "profiles.yaml"]),
        ("published result", _read_published, [root / "published_results.yaml"]),
        ("paper item", _read_items, [root / "paper_items.yaml"]),
    ):
        found[kind] = []
        for path in paths:
            try:
                found[kind].append((path, read(path)))
            except ManifestError as error:
                problems.append(str(error))
    for path in sorted(folder.glob("[!.]*")):
        if path.suffix != ".yaml" and path.suffix.lower() in (".yaml", ".yml"):
            problems.append(f"{path}: is not read; rename it to {path.stem}.yaml")
    problems += _twins([(path, "short_title", m.short_title) for path, m in found["dataset"]])
    defined = {"dataset": set(list_datasets(root)), "encoder": {name for _, es in found["encoder"] for name in es}}
    choices = [(path, choice) for path, ps in found["profile"] for p in ps.values() for _, choice in _choices(p)]
    for path, entries in [(path, (choice,)) for path, choice in choices] + found["published result"]:
        for entry in entries:
            for kind, names in defined.items():
                used = getattr(entry, f"{kind}s", None) or (getattr(entry, kind, None),)
                invalid = [n for n in used if n is not None and n not in names and not str(n).startswith("timm:")]
                problems += [f"{path}: {unknown_name(kind, n, sorted(names), 'correct it')}" for n in invalid if names]
    if problems:
        raise ManifestError("\n".join(problems))
    return sum(
        len(entries) if isinstance(entries, dict | tuple) else 1 for kind in found.values() for _, entries in kind
    )


def write_dataset_manifest(manifest: DatasetManifest, root: Path | None = None) -> Path:
    """Writes a manifest as YAML and returns its path; never overwrites a file.

    Raises:
        ManifestError: The file exists, or the manifest is invalid.
    """
    path = (root or MANIFEST_ROOT) / "datasets" / f"{manifest.name}.yaml"
    if path.exists():
        raise ManifestError(f"{path}: already exists; choose another name, or delete it first")
    text = yaml.safe_dump(_plain(manifest), sort_keys=False, allow_unicode=True, width=110)
    with replacing(path) as new:
        new.write_text(f"# Made by run_all.py --new-dataset; correct any wrong guess.\n{text}", encoding="utf-8")
        _read_dataset(new, path)
    return path


def _reading(build_from: Callable) -> Callable:
    """Makes `build_from(path, problems)` a function of the path: all problems at once are an error.

    What it returns is cached until the file changes.
    """

    @lru_cache(maxsize=256)
    def read(path: Path, version: tuple | None, *place: Path):
        problems: list[str] = []
        found = build_from(path, problems, *place)
        if problems:
            raise ManifestError("\n".join(problems))
        return found

    def cached(path: Path, *place: Path):
        status = path.stat() if path.is_file() else None  # for a missing file, reading raises the error
        return read(path, status and (status.st_mtime_ns, status.st_size), *place)

    return cached


@_reading
def _read_dataset(path: Path, problems: list[str], place: Path | None = None) -> DatasetManifest:
    """Returns the manifest in a file, which is, or is to become, `place`."""
    entry, path = load_yaml(path), place or path
    manifest = build(DatasetManifest, entry, str(path), problems)
    problems += [f"{path}: {text}" for text in dataset_problems(manifest, path)]
    return manifest if manifest.short_title else dataclasses.replace(manifest, short_title=manifest.title)


@_reading
def _read_encoders(path: Path, problems: list[str]) -> dict[str, EncoderManifest]:
    encoders = build_entries(EncoderManifest, path, problems)
    problems += [f"{path}: {name}.{text}" for name, e in encoders.items() for text in encoder_problems(e)]
    problems += _twins([(path, f"{name}.title", e.title) for name, e in encoders.items()])
    return encoders


@_reading
def _read_profiles(path: Path, problems: list[str]) -> dict[str, Profile]:
    profiles = build_entries(Profile, path, problems)
    for name, profile in profiles.items():
        for key in ("datasets", "encoders", "protocols", "seeds"):
            if getattr(profile, key) in ((), {}) and not (key == "datasets" and profile.own):
                problems.append(f"{path}: {name}.{key}: is empty; name one or more")
        for place, choice in _choices(profile):
            invalid = sorted({*(choice.quick or ())} - {*(profile.datasets or ())}, key=str)
            problems += [f"{path}: {place}quick: {d!r} is not a dataset of the profile; remove it" for d in invalid]
    return profiles


def _choices(profile: Profile) -> list[tuple[str, Profile | ProtocolChoice]]:
    """Returns the profile and its protocols' choices, each with its key prefix for messages."""
    protocols = {key: choice for key, choice in (profile.protocols or {}).items() if choice is not None}
    return [(f"{profile.name}.", profile)] + [(f"{profile.name}.{k}.", choice) for k, choice in protocols.items()]


@_reading
def _read_published(path: Path, problems: list[str]) -> tuple[PublishedResult, ...]:
    results = build_list(PublishedResult, path, problems)
    for place, result in results:
        for metric, value in (result.metrics or {}).items():
            if value is not None and not -1 <= value <= 1:
                problems.append(f"{place}: metrics.{metric}: {value} is not a fraction; write 0.92 for 92%")
    return tuple(result for _, result in results)


@_reading
def _read_items(path: Path, problems: list[str]) -> tuple[PaperItem, ...]:
    items = build_list(PaperItem, path, problems)
    problems += [f"{place}: {text}" for place, item in items for text in item_problems(item)]
    problems += _twins([(path, "item", item.item) for _, item in items])
    return tuple(item for _, item in items)


def _twins(named: list[tuple[Path, str, str]]) -> list[str]:
    """Returns a problem for each (file, key, value) that repeats a value, as tables and figures would merge the two."""
    first, problems = {}, []
    for path, key, value in named:
        if value is not None and value in first:
            problems.append(f"{path}: {key}: {value!r} is {' of '.join(first[value])} too; write another")
        first.setdefault(value, (key, path.name))
    return problems


def _plain(value):
    """Returns a value as YAML needs it: a list for a tuple, and of a dataclass what differs from its defaults."""
    if dataclasses.is_dataclass(value):
        made = {f.name: f.default_factory() for f in dataclasses.fields(value) if callable(f.default_factory)}
        defaults = {f.name: f.default for f in dataclasses.fields(value)} | made
        value = {name: getattr(value, name) for name in defaults if getattr(value, name) != defaults[name]}
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
