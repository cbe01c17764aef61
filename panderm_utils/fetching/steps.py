"""`--fetch`: shows what there is to get, downloads what it may, finds what the user has, and puts all in place."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from panderm_utils.fetching import ledger
from panderm_utils.fetching.catalogue import Catalogue
from panderm_utils.fetching.downloads import digest_of
from panderm_utils.fetching.errors import FetchError
from panderm_utils.fetching.items import Item, describe_items
from panderm_utils.fetching.placing import Placed, place_dataset, place_weights
from panderm_utils.fetching.transfers import transfer
from panderm_utils.messages import UserError, printable

DOWNLOADS = "downloads"  # below the data root: archives and files as they came, searched like --from


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
            due = [(item, access) for item in left if item.accepted() for access in item.automatic]
            if due:
                failed = transfer(due, downloads, say)
                left, problems = _place(left, [downloads], say)
                _add(problems, failed)
            left = [item for item in left if not _get_instead(item, downloads, say, problems)]
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
        placed = Placed(0)
        try:
            placed = _place_one(item, catalogue)
            if placed.made_of:
                note = f"; {item.manifest.release.note}" if item.manifest.release.note else ""
                say(f"{item.name}: its table was made of {placed.made_of}, in its release{note}")
            if placed.files:
                say(f"{item.name}: {placed.files:,} file{'s' * (placed.files > 1)} put in place")
        except UserError as error:
            problems[item.name] = [str(error)]
        if not placed.files or item.lacks():
            left.append(item)
            problems.setdefault(item.name, []).extend(catalogue.problems)
    return left, problems


def _place_one(item: Item, catalogue: Catalogue) -> Placed:
    """Puts into place what one item lacks, and records its table or weights."""
    file, path = item.main_file
    before, known = path.is_file(), ledger.locked(item.data_root, file)
    if item.is_data:
        placed = place_dataset(item.manifest, item.data_root, catalogue, known)
    else:
        placed = place_weights(item.manifest, item.weights_root, catalogue, known)
    if path.is_file() and not before:
        origin = f"made of {placed.made_of}" if placed.made_of else item.sources[0].url
        ledger.record(item.data_root, file, origin, path.stat().st_size, digest_of(path))
    return placed


def _get_instead(item: Item, downloads: Path, say: Callable[[str], None], problems: dict[str, list[str]]) -> bool:
    """Gets what is still missing from the original release, source by source; returns whether nothing is missing.

    The first source has the list of the images, if the release has one; without it the others are of no use.
    """
    why = "; ".join(problems.get(item.name, [])[:1])
    for position, access in enumerate(item.instead if item.accepted() else ()):
        if (position or item.lacking_release) and not item.main_file[1].is_file():
            break
        say(f"{item.name}: {why or f'still lacks {item.lacks()}'}")
        say(f"  so from the original release, {access.what}: {access.url}")
        failed = transfer([(item, access)], downloads, say)
        left, found = _place([item], [downloads], say)
        if not left:
            return True
        _add(problems, failed)
        _add(problems, found)
        why = ""
    return False


def _add(problems: dict[str, list[str]], more: dict[str, list[str]]) -> None:
    """Adds to what went wrong; each text once."""
    for name, texts in more.items():
        problems[name] = list(dict.fromkeys([*problems.get(name, []), *texts]))


def _instructions(item: Item, downloads: Path, problems: list[str], folders: str) -> str:
    """Returns what the user has to do to get something that is not there yet."""
    lines = [f"{item.name}: not there: {item.lacks()}", *(f"  {problem}" for problem in problems)]
    command = f"python run_all.py --fetch {item.name}{folders}"
    if item.automatic and not item.accepted():
        lines.append(f"  licence: {item.licence}")
        sources = [("source", access) for access in item.automatic]
        sources += [("else from the release", access) for access in item.instead if not item.lacking_release]
        lines += [f"  {k}: {printable(a.url)} ({a.what}{', ' + a.note if a.note else ''})" for k, a in sources]
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
    if item.lacking_release:
        lines.append(f"  from the original release alone it cannot be put together: {item.lacking_release}")
        if item.instead:
            lines.append(
                f"    if you have {PurePosixPath(item.manifest.csv).name}, put it in {target}: images that are missing "
                f"then come from {' or '.join(access.url for access in item.instead)}"
            )
    if by_hand or problems:
        lines.append(f"  already somewhere on this machine: {command} --from DIR")
    return "\n".join(lines)
