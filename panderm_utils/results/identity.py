"""What a run is called, and whether its record is there. Loads neither torch nor pandas, so that a plan can ask."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from panderm_utils.manifests import Protocol, load_profile
from panderm_utils.workspace import settle_path

SCHEMA = 2  # of record.json; 2: the settings of the profile are part of a run's identity
LONGEST = 180  # characters of a run's id: the names of its files have a few more, and disks take 255
FILES = ("weights", "checkpoint")  # settings that are paths
PROFILE_SETTINGS = "profile_settings"


def settle_settings(protocol: Protocol, profile: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every setting that decides a run's numbers, under the protocol's own names and PROFILE_SETTINGS.

    The latter is what the profile changes of the published settings and nobody overrode, as JSON; None: nothing.
    """
    settled = {**protocol.settings, **settings}
    for name in FILES:
        if settled.get(name) is not None:
            settled[name] = str(settle_path(settled[name]))
    changed = load_profile(profile).choice(protocol.name).settings
    kept = {name: value for name, value in sorted(changed.items()) if settled.get(name) is None}
    return {**settled, PROFILE_SETTINGS: json.dumps(kept) if kept else None}


def run_id(protocol: Protocol, profile: str, dataset: str, encoder: str, seed: int, **settings: Any) -> str:
    """Names a run after what it is: `ham10000-linear_probe-panderm_large-seed0`.

    Settings that differ from the protocol's defaults are appended in alphabetical order, as in
    `...-seed0-train_fraction_0.1`: a file by the end of its path and a digest of the whole path, what the profile
    changed by a digest. What no disk would take as a name is cut, and ends in a digest of the whole.
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
    """Whether the folder holds a whole record, of this schema, of the run that it is named after."""
    try:
        found = json.loads((record / "record.json").read_bytes())
    except (OSError, ValueError):
        return False
    expected = {"run_id": record.name, "status": "done", "schema": SCHEMA}
    whole = isinstance(found, dict) and all(found.get(key) == value for key, value in expected.items())
    return whole and (record / "predictions.csv").is_file()


def _digest(text: str, digits: int = 8) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:digits]
