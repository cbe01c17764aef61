"""The id of a run, and whether its record is complete. Loads neither torch nor pandas, so that planning is fast."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panderm_utils.manifests import Protocol, load_profile
from panderm_utils.messages import UserError
from panderm_utils.workspace import settle_path

SCHEMA = 3  # of record.json; 2: the settings of the profile are part of the id; 3: digests of the files and rows
LONGEST = 180  # characters of a run's id: its file names are a little longer, and file systems allow 255
FILES = ("weights", "checkpoint")  # settings that are paths
PROFILE_SETTINGS = "profile_settings"


def settle_settings(protocol: Protocol, profile: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every setting that affects a run's numbers: the protocol's settings and PROFILE_SETTINGS.

    PROFILE_SETTINGS is JSON of the profile's changes to the published settings that were not overridden, or None.
    """
    settled = {**protocol.settings, **settings}
    for name in FILES:
        if settled.get(name) is not None:
            settled[name] = str(settle_path(settled[name]))
    changed = load_profile(profile).choice(protocol.name).settings
    kept = {name: value for name, value in sorted(changed.items()) if settled.get(name) is None}
    return {**settled, PROFILE_SETTINGS: json.dumps(kept) if kept else None}


def run_id(protocol: Protocol, profile: str, dataset: str, encoder: str, seed: int, **settings: Any) -> str:
    """Returns the id of a run, such as `ham10000-linear_probe-panderm_large-seed0`; see `settled_id`."""
    return settled_id(protocol, dataset, encoder, seed, settle_settings(protocol, profile, settings))


def settled_id(protocol: Protocol, dataset: str, encoder: str, seed: int, settings: Mapping[str, Any]) -> str:
    """Returns the id of a run from all its settings, as `settle_settings` returns them and a record holds them.

    Settings that differ from the protocol's defaults are appended in alphabetical order, as in
    `...-seed0-train_fraction_0.1`: a file as the end of its path and a digest of the whole path, the profile's changes
    as a digest. An id too long for a file name is cut and ends in a digest of the whole.
    """
    parts = [dataset, protocol.name, encoder, f"seed{seed}"]
    for name, value in sorted(settings.items()):
        if name == PROFILE_SETTINGS:
            parts += [f"profile_{_digest(value)}"] if value else []
        elif name not in protocol.settings or value != protocol.settings[name]:
            shown = f"{'.'.join(Path(value).parts[-2:])}.{_digest(value)}" if name in FILES else value
            parts.append(f"{name}_{shown}")
    name = "-".join(re.sub(r"[^A-Za-z0-9._]", ".", str(part)) for part in parts)
    whole = _digest("-".join(map(str, parts)), 16)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 17]}-{whole}"


def is_done(folder: Path) -> bool:
    """Whether the folder holds a complete, unchanged record of the run that it is named after."""
    try:
        read_record(folder)
    except UserError:
        return False
    return True


def read_record(folder: str | Path) -> dict:
    """Returns the record in `folder`, whose files are as they were written.

    Raises:
        ValueError: The record is damaged, incomplete or changed; the message says how and what to do.
    """
    record = load_record(folder)
    if problems := changed_files(record, folder):
        raise _not_complete(folder, problems[0])
    return record


def load_record(folder: str | Path) -> dict:
    """Returns the record in `folder`, without a look at its other files; raises as `read_record`."""
    folder = Path(folder)
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _not_complete(folder, error) from error
    if problem := _layout_problem(record, folder.name):
        raise _not_complete(folder, problem)
    return record


def run_again(record: Mapping) -> str:
    """Returns how to repeat the run of a record, as the end of an error message."""
    names = "profile", "protocol", "dataset", "encoder", "seed"
    flags = " ".join(f"--{name}{'' if name == 'profile' else 's'} {record[name]}" for name in names)
    return f"run it again: python run_all.py {flags} --force, and its -p settings, if it has any"


def changed_files(record: Mapping, folder: str | Path) -> list[str]:
    """Returns a phrase for each file of a record that is missing or is not as it was written."""
    problems = []
    for name, digest in record["files"].items():
        try:
            found = hashlib.sha256((Path(folder) / name).read_bytes()).hexdigest()
        except OSError:
            problems.append(f"{name} is missing")
            continue
        if found != digest:
            problems.append(f"{name} was changed after it was written")
    return problems


def _layout_problem(record: Any, name: str) -> str:
    if not isinstance(record, dict):
        return "record.json holds no object"
    if record.get("schema", SCHEMA) != SCHEMA:  # checked first: another schema may have other keys
        return f"it has schema {record['schema']!r}, this version of panderm_utils reads {SCHEMA}"
    needed = ("schema", "run_id", "status", "dataset", "protocol", "encoder", "seed", "profile", "settings", "metrics")
    if missing := [key for key in (*needed, "files", "scored") if key not in record]:
        return f"record.json lacks {', '.join(missing)}"
    if record["status"] != "done" or record["run_id"] != name:
        return f"record.json is of run {record['run_id']!r}, status {record['status']!r}"
    parts = [record[key] for key in ("settings", "files", "scored")]
    parts += record["metrics"].values() if isinstance(record["metrics"], dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        return "its settings, metrics or digests do not have the layout of a record"
    return "" if "predictions.csv" in record["files"] else "it has no predictions.csv"


def _not_complete(folder: str | Path, problem: object) -> UserError:
    return UserError(f"{folder}: not a complete record ({problem}); delete the folder and repeat the run")


def _digest(text: str, digits: int = 8) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:digits]
