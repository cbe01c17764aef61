"""What datasets, encoders, profiles and published numbers there are: YAML files, read and checked as a whole.

Imports neither torch nor pandas, so the command line answers at once.
"""

import dataclasses
import os
import re
from functools import lru_cache
from pathlib import Path

import yaml

from panderm_utils.manifest_types import (
    SPLITS,
    Access,
    ClassName,
    DatasetManifest,
    EncoderManifest,
    Profile,
    PublishedResult,
)
from panderm_utils.typed_yaml import ManifestError, build, load_yaml, unknown
from panderm_utils.workspace import REPOSITORY

__all__ = [
    "MANIFEST_ROOT",
    "Access",
    "ClassName",
    "DatasetManifest",
    "EncoderManifest",
    "ManifestError",
    "Profile",
    "PublishedResult",
    "check_manifests",
    "list_datasets",
    "list_encoders",
    "load_dataset_manifest",
    "load_encoder_manifest",
    "load_profile",
    "load_published_results",
    "published_value",
    "write_dataset_manifest",
]

MANIFEST_ROOT = REPOSITORY / "data_manifests"
HEADLINE = {"binary": "auroc", "multiclass": "weighted_f1"}  # the paper's rule


def list_datasets(root: Path | None = None) -> list[str]:
    """Returns the names of all dataset manifests, sorted."""
    return sorted(path.stem for path in ((root or MANIFEST_ROOT) / "datasets").glob("*.yaml"))


def load_dataset_manifest(name: str, root: Path | None = None) -> DatasetManifest:
    """Returns the manifest data_manifests/datasets/<name>.yaml.

    Raises:
        ManifestError: There is none, or it is wrong; all problems at once.
    """
    path = (root or MANIFEST_ROOT) / "datasets" / f"{name}.yaml"
    if not path.is_file() or name not in list_datasets(root):
        raise ManifestError(unknown("dataset", name, list_datasets(root), "python run_all.py --new-dataset makes one"))
    return _cached(_read_dataset, path)


def list_encoders(root: Path | None = None) -> list[str]:
    """Returns the names in encoders.yaml, in its order."""
    return list(_cached(_read_encoders, (root or MANIFEST_ROOT) / "encoders.yaml"))


def load_encoder_manifest(name: str, root: Path | None = None) -> EncoderManifest:
    """Returns the encoder `name` of encoders.yaml; `timm:<model>` names any model of timm with its own weights.

    Raises:
        ManifestError: No encoder has that name, or encoders.yaml is wrong.
    """
    if re.fullmatch(r"timm:[A-Za-z0-9_.\-]+", name):
        model = name.removeprefix("timm:")
        return EncoderManifest(name, model, "timm", "timm", "see timm's model card", timm_name=model)
    encoders = _cached(_read_encoders, (root or MANIFEST_ROOT) / "encoders.yaml")
    if name not in encoders:
        raise ManifestError(unknown("encoder", name, list(encoders), 'any model of timm is "timm:<model name>"'))
    return encoders[name]


def load_profile(name: str, root: Path | None = None) -> Profile:
    """Returns the profile `name` of profiles.yaml.

    Raises:
        ManifestError: There is none, or profiles.yaml is wrong.
    """
    profiles = _cached(_read_profiles, (root or MANIFEST_ROOT) / "profiles.yaml")
    if name not in profiles:
        raise ManifestError(unknown("profile", name, list(profiles), ""))
    return profiles[name]


def load_published_results(root: Path | None = None) -> tuple[PublishedResult, ...]:
    """Returns the numbers that a reproduction is held against.

    Raises:
        ManifestError: published_results.yaml is wrong.
    """
    return _cached(_read_published, (root or MANIFEST_ROOT) / "published_results.yaml")


def published_value(dataset: str, protocol: str, encoder: str, metric: str) -> float | None:
    """Returns the published value, or None where none is known."""
    for result in load_published_results():
        if (result.dataset, result.protocol, result.encoder) == (dataset, protocol, encoder):
            return result.metrics.get(metric)
    return None


def check_manifests(root: Path | None = None) -> int:
    """Reads every manifest and returns how many entries there are.

    Raises:
        ManifestError: All problems of all files, and names that one file uses and no other defines.
    """
    root, problems, found = root or MANIFEST_ROOT, [], {}
    for kind, read, paths in (
        ("dataset", _read_dataset, sorted((root / "datasets").glob("*.yaml"))),
        ("encoder", _read_encoders, [root / "encoders.yaml"]),
        ("profile", _read_profiles, [root / "profiles.yaml"]),
        ("published result", _read_published, [root / "published_results.yaml"]),
    ):
        found[kind] = []
        for path in paths:
            try:
                found[kind].append((path, read(path)))
            except ManifestError as error:
                problems.append(str(error))
    datasets = {manifest.name for _, manifest in found["dataset"]}
    encoders = {name for _, entries in found["encoder"] for name in entries}
    for path, entries in found["profile"] + found["published result"]:
        for entry in entries.values() if isinstance(entries, dict) else entries:
            for kind, known in (("dataset", datasets), ("encoder", encoders)):
                named = getattr(entry, f"{kind}s", None) or (getattr(entry, kind, None),)
                problems += [f"{path}: {unknown(kind, name, sorted(known), '')}" for name in named if name not in known]
    if problems:
        raise ManifestError("\n".join(problems))
    return sum(
        len(entries) if isinstance(entries, dict | tuple) else 1 for kind in found.values() for _, entries in kind
    )


def write_dataset_manifest(manifest: DatasetManifest, root: Path | None = None) -> Path:
    """Writes a manifest as YAML and returns its path; an existing file is never overwritten.

    Raises:
        ManifestError: The file exists, or the manifest would not be read back.
    """
    path = (root or MANIFEST_ROOT) / "datasets" / f"{manifest.name}.yaml"
    if path.exists():
        raise ManifestError(f"{path}: exists already; choose another name, or delete it first")
    plain = {
        key: _plain(value) for key, value in dataclasses.asdict(manifest).items() if value not in (None, "", (), {})
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)
    temporary.write_text(
        f"# Made by run_all.py --new-dataset; correct what was guessed wrong.\n{text}", encoding="utf-8"
    )
    temporary.replace(path)
    return path


def _read_dataset(path: Path) -> DatasetManifest:
    problems: list[str] = []
    entry = load_yaml(path)
    manifest = build(DatasetManifest, entry, str(path), problems)
    if manifest is not None:
        problems += [f"{path}: {text}" for text in _dataset_problems(manifest, path)]
    if problems:
        raise ManifestError("\n".join(problems))
    return manifest if manifest.short_title else dataclasses.replace(manifest, short_title=manifest.title)


def _dataset_problems(m: DatasetManifest, path: Path) -> list[str]:
    k, problems = m.num_classes, []
    if m.name != path.stem or not re.fullmatch(r"[a-z0-9_]+", m.name):
        problems.append(f"name: {m.name!r} is not the file's name; write name: {path.stem} (small letters, digits, _)")
    if m.task not in HEADLINE:
        problems.append(f"task: {m.task!r} is unknown; write binary or multiclass")
    elif m.headline_metric != HEADLINE[m.task]:
        problems.append(f"headline_metric: {m.headline_metric!r} does not go with {m.task}; write {HEADLINE[m.task]}")
    if k < 2 or (m.task == "binary" and k != 2) or (m.task == "multiclass" and k == 2):
        problems.append(f"classes: {k} do not go with task: {m.task}; list every class in label order")
    if len(set(m.class_names)) < k:
        problems.append("classes: two have one name; names must differ")
    if m.label_column not in ("label", "binary_label"):
        problems.append(f"label_column: {m.label_column!r} is unknown; write label or binary_label")
    for key in ("split_sizes", "class_counts"):
        for split in getattr(m, key) or {}:
            if split not in SPLITS:
                problems.append(f"{key}.{split}: no such split; write {', '.join(SPLITS)}")
    for split, size in (m.split_sizes or {}).items():
        if size < 0:
            problems.append(f"split_sizes.{split}: {size} is negative; write a number of images")
    for split, counts in (m.class_counts or {}).items():
        if len(counts) != k:
            problems.append(f"class_counts.{split}: {len(counts)} numbers for {k} classes; write one a class")
        size = (m.split_sizes or {}).get(split)
        if size is not None and sum(counts) != size:
            problems.append(f"class_counts.{split}: sums to {sum(counts)}, split_sizes.{split} is {size}; correct one")
    for name in m.unverified:
        if name not in {f.name for f in dataclasses.fields(m)}:
            problems.append(f"unverified: {name!r} is no key of a manifest; name keys")
    return problems


def _read_encoders(path: Path) -> dict[str, EncoderManifest]:
    encoders = _read_entries(EncoderManifest, path)
    problems = []
    for name, e in encoders.items():
        if e.architecture not in ("beit", "timm"):
            problems.append(f"{path}: {name}.architecture: {e.architecture!r} is unknown; write beit or timm")
        if e.architecture == "beit" and not (e.width and e.depth and e.heads):
            problems.append(f"{path}: {name}: a beit needs width, depth and heads")
        if e.architecture == "timm" and not e.timm_name:
            problems.append(f"{path}: {name}.timm_name: missing; write timm's model name")
        if e.layout not in ("encoder_prefix", "plain", "module_prefix", "timm", "none"):
            problems.append(f"{path}: {name}.layout: {e.layout!r} is unknown")
        if not re.fullmatch(r"#[0-9A-Fa-f]{6}", e.color):
            problems.append(f"{path}: {name}.color: {e.color!r} is no colour; write one like '#D55E00', in quotes")
    if problems:
        raise ManifestError("\n".join(problems))
    return encoders


def _read_profiles(path: Path) -> dict[str, Profile]:
    return _read_entries(Profile, path)


def _read_published(path: Path) -> tuple[PublishedResult, ...]:
    entries, problems = load_yaml(path, list), []
    results = [build(PublishedResult, e, f"{path}: entry {i}", problems) for i, e in enumerate(entries, 1)]
    if problems:
        raise ManifestError("\n".join(problems))
    return tuple(results)


def _read_entries(cls, path: Path) -> dict:
    problems: list[str] = []
    entries = {}
    for name, entry in load_yaml(path).items():
        named = {"name": name, **entry} if isinstance(entry, dict) else entry
        entries[name] = build(cls, named, f"{path}: {name}", problems)
    if problems:
        raise ManifestError("\n".join(problems))
    return entries


def _cached(read, path: Path):
    """Reads a file once, and again when it changes."""
    if not path.is_file():
        return read(path)  # says what is missing
    status = path.stat()
    return _read_once(read, path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _read_once(read, path: Path, modified: int, size: int):
    return read(path)


def _plain(value):
    """Tuples as lists and empty parts left out, as YAML has them."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items() if v not in ("", None)}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
