"""Downloads what the sources of datasets and encoders list, several files at once; records each in the lock file."""

import hashlib
import queue
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import requests
from tqdm import tqdm

from panderm_utils import disk
from panderm_utils.fetching import ledger
from panderm_utils.fetching.archives import DamagedError, archive_suffix, list_members
from panderm_utils.fetching.catalogue import ARCHIVES
from panderm_utils.fetching.downloads import PART, Remote, digest_of, discard, download, new_session
from panderm_utils.fetching.errors import FetchError
from panderm_utils.fetching.items import Item
from panderm_utils.fetching.repositories import list_remote, renewed
from panderm_utils.manifests import Access
from panderm_utils.messages import UserError

PARALLEL = 3  # files at once
MANY = 20  # files from which on their number has a progress bar


def transfer(due: list[tuple[Item, Access]], downloads: Path, say: Callable[[str], None]) -> dict[str, list[str]]:
    """Downloads what the sources list; returns name of the item -> what went wrong.

    The files of a collection are recorded, and can be used, only once all of them are there: until then their folder is
    a hidden one.
    """
    problems: dict[str, list[str]] = defaultdict(list)
    users: dict[tuple[str, Remote], list[str]] = defaultdict(list)
    for item, access in due:
        try:
            for remote in _list(item, access, downloads / item.home):
                users[item.home, remote].append(item.name)
        except (UserError, OSError) as error:
            problems[item.name].append(str(error))
    failed: dict[tuple[str, str, str], list[str]] = defaultdict(list)  # collection -> what went wrong
    for (home, remote), outcome in _each(list(users), downloads):
        if isinstance(outcome, Path):
            if not remote.folder:
                say(f"downloaded {outcome}")
        elif remote.folder:
            failed[home, remote.folder, remote.page].append(str(outcome))
        else:
            for name in users[home, remote]:
                problems[name].append(str(outcome))
    collections: dict[tuple[str, str, str], list[str]] = defaultdict(list)  # the same -> its files
    for home, remote in users:
        if remote.folder:
            collections[home, remote.folder, remote.page].append(remote.name)
    for (home, folder, page), files in collections.items():
        hidden = downloads / home / f".{folder}"
        try:
            if errors := failed[home, folder, page]:
                raise FetchError(
                    f"{page}: {len(errors):,} of its images are missing, the first because of {errors[0]}; repeat the "
                    f"command, it continues; or do without them: --from {hidden}"
                )
            say(f"downloaded {_keep_collection(hidden, files, downloads / home / folder, page)}")
        except (UserError, OSError) as error:
            for name in {name for (_, remote), names in users.items() if remote.page == page for name in names}:
                problems[name].append(str(error))
    return dict(problems)


def _list(item: Item, access: Access, home: Path) -> list[Remote]:
    """Returns the files of a source, under safe names; without collections that are there.

    Raises:
        disk.DiskFullError: There is too little room for what is missing of them.
    """
    files = list_remote(access.url, item.home, access.files)
    files = [replace(remote, name=_file_name(remote, item.home)) for remote in files]
    files = [remote for remote in files if not (remote.folder and (home / remote.folder).is_dir())]
    home.mkdir(parents=True, exist_ok=True)
    size = sum(remote.size or 0 for remote in files if not _downloaded(_folder(home, remote), remote.name))
    if size > disk.free(home):
        raise disk.DiskFullError(disk.no_room(access.url, size, home))
    return files


def _each(jobs: list[tuple[str, Remote]], downloads: Path):
    """Yields each job with its file, or with the error that it ended in, as they end."""
    waiting, done = queue.SimpleQueue(), queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)

    def work(position: int) -> None:
        with new_session() as session:
            while True:
                try:
                    home, remote = job = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((job, _complete(remote, downloads / home, position, session)))
                except BaseException as error:  # noqa: BLE001 - raised where the outcomes are waited for
                    done.put((job, error))

    # Daemons, so that Ctrl-C ends at once: a partial file is whole up to its last byte, whenever its writer is stopped.
    for position in range(min(PARALLEL, len(jobs))):
        threading.Thread(target=work, args=(position,), daemon=True).start()
    hidden = True if len(jobs) < MANY else None
    for _ in tqdm(jobs, desc="downloading", unit=" files", position=PARALLEL, leave=False, disable=hidden):
        job, outcome = done.get()
        if isinstance(outcome, BaseException) and not isinstance(outcome, UserError | OSError):
            raise outcome
        yield job, outcome


def _complete(remote: Remote, home: Path, position: int, session: requests.Session) -> Path:
    """Returns the downloaded file, checked against the publisher's digest and the one of the first time."""
    root, folder = home.parent.parent, _folder(home, remote)
    folder.mkdir(parents=True, exist_ok=True)
    there, part = _downloaded(folder, remote.name), folder / f"{remote.name}{PART}"
    held = there or part
    if not there:
        there = folder / f"{remote.name}{_get(remote, part, position, session)}"
    if not remote.folder:  # a collection is compared as one
        file, sha256 = there.relative_to(root).as_posix(), digest_of(held)
        ledger.check(root, file, sha256)
    if held == part:
        part.rename(there)
        discard(part)
    if not remote.folder:
        ledger.record(root, file, remote.page, there.stat().st_size, sha256)
    return there


def _get(remote: Remote, part: Path, position: int, session: requests.Session) -> str:
    """Completes a partial file, checks it, and returns the suffix that its name lacks."""
    for attempt in (1, 2):
        try:
            download(remote, part, position, session)
        except FetchError:
            if attempt == 2 or not remote.record:
                raise
            remote = renewed(remote)  # its address may have expired
            continue
        if not (wrong := _wrong(remote, part)):
            break
        discard(part)
        if attempt == 2:
            raise FetchError(f"{remote.page}: {wrong}, twice: the file is damaged on the way or at its source")
    suffix = "" if PurePosixPath(remote.name).suffix else archive_suffix(part)
    if suffix or PurePosixPath(remote.name).suffix.lower() in ARCHIVES:
        try:
            list_members(part)
        except DamagedError:
            discard(part)
            raise
        except FetchError:  # whole, but to be unpacked by hand, or refused: said when it is to be used
            pass
    return suffix


def _wrong(remote: Remote, part: Path) -> str:
    """Returns how a complete file differs from what its publisher says of it, "" if it does not."""
    if remote.size is not None and part.stat().st_size != remote.size:
        return f"{part.stat().st_size:,} bytes came, the publisher says {remote.size:,}"
    if remote.digest:
        algorithm, _, expected = remote.digest.partition(":")
        if (found := digest_of(part, algorithm)) != expected:
            return f"its {algorithm} is {found}, the publisher says {expected}"
    return ""


def _keep_collection(hidden: Path, names: list[str], folder: Path, page: str) -> Path:
    """Returns the folder of a whole collection, under its final name; in the lock file it has one digest.

    That is the SHA-256 of a line `<SHA-256>  <name>` for each file, in the order of the names.
    """
    lines = "".join(f"{digest_of(hidden / name)}  {name}\n" for name in sorted(names))
    root, sha256 = folder.parents[2], hashlib.sha256(lines.encode()).hexdigest()
    file = folder.relative_to(root).as_posix()
    ledger.check(root, file, sha256)
    hidden.rename(folder)
    ledger.record(root, file, page, sum((folder / name).stat().st_size for name in names), sha256)
    return folder


def _folder(home: Path, remote: Remote) -> Path:
    return home / f".{remote.folder}" if remote.folder else home


def _downloaded(folder: Path, name: str) -> Path | None:
    paths = [
        folder / f"{name}{suffix}" for suffix in ("", ".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
    ]
    return next((path for path in paths if path.is_file()), None)


def _file_name(remote: Remote, fallback: str) -> str:
    """Returns a safe name: a site may not choose a folder or a hidden file."""
    name = PurePosixPath(remote.name.replace("\\", "/")).name.lstrip(".")
    return "".join(c for c in name if c.isprintable() and c not in '<>:"|?*')[:200] or fallback
