"""What a dataset or an encoder lacks, and how files that were found are put in its place."""

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from panderm_utils import data, disk, manifests
from panderm_utils.fetching.catalogue import Catalogue, Found, describe, is_below, loose, read_all, read_bytes
from panderm_utils.fetching.downloads import digest_of
from panderm_utils.fetching.errors import FetchError
from panderm_utils.fetching.releases import make_table, whole_release
from panderm_utils.manifests import DatasetManifest, EncoderManifest

WEIGHTS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


class Placed(NamedTuple):
    """The number of files put in place, and what the table was made of, "" if it was found."""

    files: int
    made_of: str = ""


def lacking(card: DatasetManifest, data_root: Path) -> str:
    """Returns what a dataset lacks, such as "2 of 10,015 images", "" if everything is there."""
    if card.split_folders:
        lacks = _lacking_folders(card, data_root)
        none = not any((data_root / place).exists() for place in card.places)
        return f"the {len(lacks)} folders below {card.image_root}" if none else ", ".join(lacks.values())
    if not (data_root / card.table).is_file():
        return f"the table {card.table}"
    text = (data_root / card.table).read_text(encoding="utf-8-sig", errors="replace")
    rows, problems = data.list_rows(card, text)
    if problems["missing column"] or problems["empty file"] or not rows:
        return f"a table that can be read: {card.table} has no rows or columns of this dataset"
    images, masks = data.missing_files(card, data_root, rows)
    missing = {"images": images, "masks": masks}
    total = len({row[0] for row in rows})
    return ", ".join(f"{len(names):,} of {total:,} {kind}" for kind, names in missing.items() if names)


def place_dataset(card: DatasetManifest, data_root: Path, catalogue: Catalogue, known: dict) -> Placed:
    """Puts into place what a dataset lacks and the catalogue has, if need be a table made of its release.

    Args:
        known: What the lock file has on the table: its `sha256` and more, or {}.

    Raises:
        FetchError: A file is found twice, with other content, or the release is not the manifest's.
    """
    if card.split_folders:
        return Placed(_install(_split_folder_files(card, data_root, catalogue), data_root))
    placed, made_of, table = 0, "", data_root / card.table
    if not table.is_file():
        if found := _find_table(card, catalogue):
            content, source = read_bytes(found), describe(found)
        elif content := make_table(card, catalogue):
            source = made_of = card.release.table or f"the folders {', '.join(card.release.labels)}"
        else:
            return Placed(0)
        digest = hashlib.sha256(content).hexdigest()
        if digest != known.get("sha256", digest):
            made = f" and is made of {made_of}" if made_of else ""
            raise FetchError(
                f"{source}: its SHA-256 is {digest}{made}, but {card.table} was {known['sha256']} on "
                f"{known.get('date')}: another list of images. If that is known, remove its entry from the lock file"
            )
        if found:
            _install({table: found}, data_root)
        else:
            disk.write_file(table, content)
        placed = 1
    rows, _ = data.list_rows(card, table.read_text(encoding="utf-8-sig", errors="replace"))
    images, masks = data.missing_files(card, data_root, rows)
    near, moves = _nearness(card, catalogue), {}
    wanted = [(card.image_root, name, card.image_suffix) for name in images]
    wanted += [(card.masks.root, name, "") for name in masks]
    for root, name, suffix in wanted:
        if data.unsafe(name):
            continue  # `--check-data` names it
        place = PurePosixPath(root) / name.replace("\\", "/")
        for spelling in dict.fromkeys((place, place.with_name(place.name + suffix))):
            if found := catalogue.find(spelling, near):
                moves[data_root / spelling] = found
                break
    return Placed(placed + _install(moves, data_root), made_of)


def place_weights(model: EncoderManifest, weights_root: Path, catalogue: Catalogue, known: dict) -> Placed:
    """Puts an encoder's weights into place if the catalogue has them, by name or digest.

    Args:
        known: What the lock file has on this file: its `size` and `sha256`, or {}.

    Raises:
        FetchError: A file has the name but not the digest.
    """
    place = manifests.weights_places(model, weights_root)[0]
    sha256 = model.sha256 or known.get("sha256")
    found = next((f for name in (place.name, *source_names(model)) if (f := catalogue.find(PurePosixPath(name)))), None)
    if found is None and sha256:
        others = [f for f in catalogue if f.path.suffix.lower() in WEIGHTS and not f.member]
        others = [f for f in others if f.size == known.get("size", f.size)]
        found = next((f for f in others if digest_of(f.holder) == sha256), None)
    if found is None:
        return Placed(0)
    placed = _install({place: found}, weights_root)
    if sha256 and (digest := digest_of(place)) != sha256:
        place.unlink()
        note = model.sha256_note if model.sha256 else f"of {known.get('date')}, in the lock file"
        raise FetchError(
            f"{describe(found)}: its SHA-256 is {digest}, that of {model.name} is {sha256} ({note}); it is another "
            f"release or damaged: download it again, or put it at {place} yourself if you mean it"
        )
    return Placed(placed)


def source_names(manifest: DatasetManifest | EncoderManifest) -> list[str]:
    """Returns what the sources call the files and folders that the manifest calls otherwise."""
    return [name for access in manifest.access for name in access.files]


def _find_table(card: DatasetManifest, catalogue: Catalogue) -> Found | None:
    """Returns a table by its name, or by the one that a source has for it, if it has the dataset's columns."""
    places = [PurePosixPath(card.table)]
    for access in card.access:
        places += [PurePosixPath(name) for name, place in access.files.items() if place == card.table]
    for place in places:
        if found := catalogue.find(place):
            rows, problems = data.list_rows(card, read_bytes(found).decode("utf-8-sig", "replace"))
            if rows and not problems["missing column"]:
                return found
            raise FetchError(f"{describe(found)}: is not the table of {card.name}: it lacks its columns or rows")
    return None


def _nearness(card: DatasetManifest, catalogue: Catalogue) -> Callable[[Found], bool]:
    """Returns a test whether a file may be the dataset's by where it lies.

    That is below a folder named after the dataset, in the archive of its table, in a folder of the right name beside
    its table, or in one of the folders of classes of its release.
    """
    place = PurePosixPath(card.table)
    names = {card.name, card.short_title, place.parts[0], *source_names(card)}
    folders = {loose(PurePosixPath(root).name) for root in (card.image_root, *card.mask_places)}
    try:
        table = catalogue.find(place)
    except FetchError:  # several differ: it has been put in place by hand
        table = None
    homes = whole_release(card, catalogue)
    beside = table and table.path.parents[min(len(place.parts), len(table.path.parts)) - 2]

    def near(found: Found) -> bool:
        if is_below(found, names) or (table and table.member and found.holder == table.holder):
            return True
        if found.path.parent.parent in homes:
            return True
        return bool(beside) and beside in found.path.parents and loose(found.path.parent.name) in folders

    return near


def _split_folder_files(card: DatasetManifest, data_root: Path, catalogue: Catalogue) -> dict[Path, Found]:
    """Returns the moves of a dataset whose splits are folders: all images, or masks, of the folder of each split."""
    moves = {}
    for place in _lacking_folders(card, data_root):
        suffix = card.masks.suffix if card.masks and place in card.mask_places else card.image_suffix
        names = [PurePosixPath(place).name]
        names += [name for access in card.access for name, goal in access.files.items() if goal == place]
        for found in catalogue.below(names):
            target = data_root / place / found.path.name
            if found.path.name.lower().endswith(suffix.lower()) and not target.exists():
                moves[target] = found
    return moves


def _lacking_folders(card: DatasetManifest, data_root: Path) -> dict[str, str]:
    """Returns the folders of images and masks that lack files -> what; of unknown sizes, those that are empty."""
    lacks, sizes = {}, card.split_sizes or {}
    folders = [
        (f"{card.image_root}/{folder}", split, card.image_suffix) for split, folder in card.split_folders.items()
    ]
    if card.masks:
        folders += [(f"{card.masks.root}/{f}", split, card.masks.suffix) for split, f in card.masks.folders.items()]
    for place, split, suffix in folders:
        names = data.ImageFolder(data_root).names(place)
        there = sum(name.lower().endswith(suffix.lower()) and not name.startswith(".") for name in names)
        if there < sizes.get(split, 1):
            lacks[place] = (
                f"{sizes[split] - there:,} of {sizes[split]:,} in {place}" if split in sizes else f"all in {place}"
            )
    return lacks


def _install(moves: dict[Path, Found], root: Path) -> int:
    """Links, copies or unpacks files to their places, each under a temporary name first; returns their number.

    Raises:
        disk.DiskFullError: There is too little room; nothing was begun.
    """
    _remove_leftovers(moves)
    packed, loose = defaultdict(dict), {}
    for target, found in moves.items():
        if found.member:
            packed[found.holder].setdefault(found, []).append(target)
        else:
            loose[target] = found.holder
    size = sum(found.size for found in moves.values() if found.member)
    if size > disk.free(root):
        raise disk.DiskFullError(disk.no_room("unpacking", size, root))
    with (
        disk.room_for("putting files in place", size, root),
        tqdm(
            total=len(moves), desc="putting in place", unit=" files", leave=False, disable=len(moves) < 100 or None
        ) as bar,
    ):
        for target, source in loose.items():
            _link(source.resolve(), target)
            bar.update()
        for holder, members in packed.items():

            def write(found: Found, stream, targets=members) -> None:
                first, *others = targets[found]
                with disk.replacing(first) as new, new.open("wb") as file:
                    shutil.copyfileobj(stream, file, 1 << 20)
                for other in others:
                    _link(first, other)
                bar.update(1 + len(others))

            read_all(holder, members, write)
    return len(moves)


def _link(source: Path, target: Path) -> None:
    """Gives a file a second name, without a second copy where the disk allows that; the first name stays."""
    with disk.replacing(target) as new:
        try:
            os.link(source, new)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, new)


def _remove_leftovers(targets: Iterable[Path]) -> None:
    """Removes the temporary files that a killed process left beside its targets."""
    names = {(target.parent, target.name) for target in targets}
    for folder in {folder for folder, _ in names if folder.is_dir()}:
        for path in folder.glob(".*.new"):
            if (folder, disk.owner_of(path)[0]) in names:
                path.unlink(missing_ok=True)
