"""The id of a run, and whether its record exists. Loads neither torch nor pandas, so that planning is fast."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panderm_utils.manifests import Protocol, load_profile
from panderm_utils.workspace import settle_path

SCHEMA = 2  # of record.json; 2: the settings of the profile are part of a run's identity
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
    """Returns the id of a run, such as `ham10000-linear_probe-panderm_large-seed0`.

    Settings that differ from the protocol's defaults are appended in alphabetical order, as in
    `...-seed0-train_fraction_0.1`: a file as the end of its path and a digest of the whole path, the profile's changes
    as a digest. An id too long for a file name is cut and ends in a digest of the whole.
    """
    settings = settle_settings(protocol, profile, settings)
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


def is_done(record: Path) -> bool:
    """Whether the folder holds a complete record, of this schema, of the run that it is named after."""
    try:
        content = json.loads((record / "record.json").read_bytes())
    except (OSError, ValueError):
        return False
    expected = {"run_id": record.name, "status": "done", "schema": SCHEMA}
    complete = isinstance(content, dict) and all(content.get(key) == value for key, value in expected.items())
    return complete and (record / "predictions.csv").is_file()


def _digest(text: str, digits: int = 8) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:digits]
