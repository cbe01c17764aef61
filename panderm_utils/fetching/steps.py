"""`--fetch`: shows what there is to get, downloads what it may, finds what the user has, and puts all in place."""

import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from panderm_utils.fetching import ledger
from panderm_utils.fetching.archives import DamagedError, archive_suffix, list_members
from panderm_utils.fetching.catalogue import ARCHIVES, Catalogue
from panderm_utils.fetching.downloads import PART, Remote, digest_of, discard, download
from panderm_utils.fetching.errors import FetchError
from panderm_utils.fetching.items import Item, describe_items
from panderm_utils.fetching.placing import place_dataset, place_weights
from panderm_utils.fetching.repositories import list_remote
from panderm_utils.messages import UserError, printable

DOWNLOADS = "downloads"  # below the data root: archives and files as they came, searched like --from
PARALLEL = 3  # files at once


def fetch(
    wanted: Sequence[Item], source: Path | None, accept: Sequence[str], say: Callable[[str], None], folders: str = ""
) -> list[Item]:
    """Returns what is not there at the end; gets what is wanted, and says what the user has to do for the rest.

    Args:
        source: A folder or an archive to look in first, which is only read.
        accept: Names of items whose licences the user accepts; recorded.
        folders: The flags of the folders, for the commands that it says.

    Raises:
        FetchError: Another process is fetching to the same data root, or a name to accept is not wanted.
    """
    names = [item.name for item in wanted]
    if others := [name for name in accept if name not in names]:
        raise FetchError(f"--accept-licence {' '.join(others)}: is not among what is fetched; add it after --fetch")
    if source is not None and not source.exists():
        raise FetchError(f"--from {source}: no such folder or archive")
    data_root = wanted[0].data_root
    downloads = data_root / DOWNLOADS
    downloads.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(downloads / ".lock", timeout=0):
            ledger.accept(data_root, {w.name: w.manifest.licence for w in wanted if w.name in accept})
            for item in wanted:
                if item.name in accept:
                    say(f"{item.name}: you accept its licence, {item.licence}; recorded in {ledger.ACCEPTED}")
            for killed in downloads.glob(".nested*"):
                shutil.rmtree(killed, ignore_errors=True)
            lacks = {item.name: item.lacks() for item in wanted}
            say(describe_items(wanted, lacks, _known_sizes(data_root)))
            left = [item for item in wanted if lacks[item.name] and item.sources]
            left, problems = _place(left, [*filter(None, [source]), downloads], say)
            if due := [item for item in left if item.automatic and item.accepted()]:
                failed = _download(due, downloads, say)
                left, problems = _place(left, [downloads], say)
                problems |= failed
    except Timeout as error:
        raise FetchError(f"{downloads}: another --fetch is at work there; wait until it ends") from error
    for item in left:
        say(f"\n{_instructions(item, downloads, problems.get(item.name, []), folders)}")
    return left


def _known_sizes(data_root: Path) -> dict[str, int]:
    """Returns folder of downloads -> bytes, of what was fetched before, here or where the lock file is from."""
    sizes = {}
    for file, entry in ledger.read(data_root / ledger.LOCK).items():
        top, home, *_ = *PurePosixPath(file).parts, ""
        if top == DOWNLOADS:
            sizes[home] = sizes.get(home, 0) + entry.get("size", 0)
    return sizes


def _place(
    lacking: list[Item], folders: list[Path], say: Callable[[str], None]
) -> tuple[list[Item], dict[str, list[str]]]:
    """Puts into place what is found in the folders; returns what still lacks something, and name -> what went wrong."""
    if not lacking:
        return [], {}
    with tempfile.TemporaryDirectory(prefix=".nested", dir=folders[-1]) as scratch:
        return _place_from(Catalogue(folders, Path(scratch)), lacking, say)


def _place_from(
    catalogue: Catalogue, lacking: list[Item], say: Callable[[str], None]
) -> tuple[list[Item], dict[str, list[str]]]:
    problems, left = {}, []
    for item in lacking:
        placed = 0
        try:
            if placed := _place_one(item, catalogue):
                say(f"{item.name}: {placed:,} file{'s' * (placed > 1)} put in place")
        except UserError as error:
            problems[item.name] = [str(error)]
        if not placed or item.lacks():
            left.append(item)
            problems.setdefault(item.name, []).extend(catalogue.problems)
    return left, problems


def _place_one(item: Item, catalogue: Catalogue) -> int:
    """Puts into place what one item lacks, and records its table or weights; returns the number of files."""
    file, path = item.main_file
    before, known = path.is_file(), ledger.locked(item.data_root, file)
    if item.is_data:
        placed = place_dataset(item.manifest, item.data_root, catalogue, known)
    else:
        placed = place_weights(item.manifest, item.weights_root, catalogue, known)
    if path.is_file() and not before:
        ledger.record(item.data_root, file, item.sources[0].url, path.stat().st_size, digest_of(path))
    return placed


def _download(due: list[Item], downloads: Path, say: Callable[[str], None]) -> dict[str, list[str]]:
    """Downloads what the items lack, several files at once; returns name -> what went wrong."""
    problems, users = {}, {}
    for item in due:
        for access in item.automatic:
            try:
                for remote in list_remote(access.url, item.home, access.files):
                    users.setdefault((item.home, _file_name(remote, item.home), remote), []).append(item.name)
            except UserError as error:
                problems.setdefault(item.name, []).append(str(error))
    jobs = queue.SimpleQueue()
    done = queue.SimpleQueue()
    for job in users:
        jobs.put(job)

    def work(position: int) -> None:
        while True:
            try:
                home, name, remote = job = jobs.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((job, _complete(replace(remote, name=name), downloads / home, position)))
            except BaseException as error:  # noqa: BLE001 - raised where the outcomes are waited for
                done.put((job, error))

    # Daemons, so that Ctrl-C ends at once: a partial file is whole up to its last byte, whenever its writer is stopped.
    for position in range(min(PARALLEL, len(users))):
        threading.Thread(target=work, args=(position,), daemon=True).start()
    for _ in users:
        job, outcome = done.get()
        if isinstance(outcome, BaseException):
            if not isinstance(outcome, UserError | OSError):
                raise outcome
            for name in users[job]:
                problems.setdefault(name, []).append(str(outcome))
        else:
            say(f"downloaded {outcome}")
    return problems


def _complete(remote: Remote, folder: Path, position: int) -> Path:
    """Returns the downloaded file, checked against the publisher's digest and the one of the first time."""
    folder.mkdir(parents=True, exist_ok=True)
    root, part = folder.parent.parent, folder / f"{remote.name}{PART}"
    if there := _downloaded(folder, remote.name):
        sha256 = digest_of(there)
        ledger.check(root, there.relative_to(root).as_posix(), sha256)
    else:
        for attempt in (1, 2):
            download(remote, part, position)
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
        sha256 = digest_of(part)
        there = folder / f"{remote.name}{suffix}"
        ledger.check(root, there.relative_to(root).as_posix(), sha256)
        part.rename(there)
        discard(part)
    ledger.record(root, there.relative_to(root).as_posix(), remote.page, there.stat().st_size, sha256)
    return there


def _wrong(remote: Remote, part: Path) -> str:
    """Returns how a complete file differs from what its publisher says of it, "" if it does not."""
    if remote.size is not None and part.stat().st_size != remote.size:
        return f"{part.stat().st_size:,} bytes came, the publisher says {remote.size:,}"
    if remote.digest:
        algorithm, _, expected = remote.digest.partition(":")
        if (found := digest_of(part, algorithm)) != expected:
            return f"its {algorithm} is {found}, the publisher says {expected}"
    return ""


def _downloaded(folder: Path, name: str) -> Path | None:
    paths = [
        folder / f"{name}{suffix}" for suffix in ("", ".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
    ]
    return next((path for path in paths if path.is_file()), None)


def _file_name(remote: Remote, fallback: str) -> str:
    """Returns a safe name: a site may not choose a folder or a hidden file."""
    name = PurePosixPath(remote.name.replace("\\", "/")).name.lstrip(".")
    return "".join(c for c in name if c.isprintable() and c not in '<>:"|?*')[:200] or fallback


def _instructions(item: Item, downloads: Path, problems: list[str], folders: str) -> str:
    """Returns what the user has to do to get something that is not there yet."""
    lines = [f"{item.name}: not there: {item.lacks()}", *(f"  {problem}" for problem in problems)]
    command = f"python run_all.py --fetch {item.name}{folders}"
    if item.automatic and not item.accepted():
        lines.append(f"  licence: {item.licence}")
        lines += [f"  source: {printable(a.url)} ({a.what}{', ' + a.note if a.note else ''})" for a in item.automatic]
        lines.append(f"  if you accept its terms: {command} --accept-licence {item.name}")
    by_hand = [access for access in item.sources if access.fetch == "by hand"]
    if by_hand and not item.automatic:
        lines.append(f"  licence: {item.licence}")
    target = downloads / item.home if item.is_data else item.weights_root
    for access in by_hand:
        what = ", ".join(access.files) or (access.what if item.is_data else item.manifest.weights_file)
        if access.url:
            note = f" ({access.note})" if access.note else ""
            lines.append(f"  by hand: open {access.url}{note}")
            packed = ", packed or unpacked," if item.is_data else ""
            lines.append(f"    save {what} in {target}{packed} and repeat {command}")
        else:
            lines.append(f"  by hand: {access.what}: {access.note}")
    if by_hand or problems:
        lines.append(f"  already somewhere on this machine: {command} --from DIR")
    return "\n".join(lines)
