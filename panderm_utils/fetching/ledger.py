"""What was fetched and which licences were accepted: two small files below the data root, to compare between labs."""

import datetime
import json
import threading
from pathlib import Path

from panderm_utils import disk
from panderm_utils.fetching.errors import FetchError

LOCK = "fetched.lock.json"  # file, below the data root or the weights root -> address, size, SHA-256, date
ACCEPTED = "licences.accepted.json"  # dataset or encoder -> licence, date
_one_at_a_time = threading.Lock()  # downloads run in threads


def read(path: Path) -> dict[str, dict]:
    """Returns the entries of one of the two files, {} if there is none."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(entries, dict) and all(isinstance(entry, dict) for entry in entries.values()):
            return entries
    except FileNotFoundError:
        return {}
    except ValueError:
        pass
    raise FetchError(f"{path}: is not what this program wrote; restore it, or remove it to begin anew")


def accept(data_root: Path, licences: dict[str, str]) -> None:
    """Records, with today's date, that the user accepts the licences: name -> text."""
    entries = read(data_root / ACCEPTED)
    new = {name: text for name, text in licences.items() if entries.get(name, {}).get("licence") != text}
    if new:
        entries |= {name: {"licence": licence, "date": _today()} for name, licence in new.items()}
        _write(data_root / ACCEPTED, entries)


def accepted(data_root: Path, name: str, licence: str) -> bool:
    """Returns whether the user has accepted this text of a licence."""
    return read(data_root / ACCEPTED).get(name, {}).get("licence") == licence


def locked(data_root: Path, file: str) -> dict:
    """Returns what is on record of a file, {} if nothing is."""
    return read(data_root / LOCK).get(file, {})


def check(data_root: Path, file: str, sha256: str) -> None:
    """Compares a file's digest with the one on record; FetchError if it differs."""
    entry = locked(data_root, file)
    if entry and entry.get("sha256") != sha256:
        raise FetchError(
            f"{file}: its SHA-256 is {sha256}, but that of {entry.get('date')} was {entry.get('sha256')} "
            f"({entry.get('url')}): the publisher has changed the file, or one of the two is damaged. If the change is "
            f"known, remove the entry {file} from {data_root / LOCK} and repeat the command"
        )


def record(data_root: Path, file: str, page: str, size: int, sha256: str) -> None:
    """Records a file that was got, and from where; an entry that agrees keeps its date."""
    path, facts = data_root / LOCK, {"url": page, "size": size, "sha256": sha256}
    with _one_at_a_time:
        entries = read(path)
        if {**entries.get(file, {}), **facts} != entries.get(file):
            entries[file] = {**facts, "date": _today()}
            _write(path, entries)


def _write(path: Path, entries: dict[str, dict]) -> None:
    disk.write_file(path, json.dumps(dict(sorted(entries.items())), indent=2, ensure_ascii=False) + "\n")


def _today() -> str:
    return datetime.date.today().isoformat()
