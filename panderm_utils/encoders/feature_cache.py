"""Caches features on disk by content, in shards: nothing is computed twice, and nothing stale is used.

    <cache>/features/<key>/about.json      what the key stands for, for human readers
    <cache>/features/<key>/<name>.shard    the features of up to 512 consecutive images of a list

The key is a hash of everything that decides a feature except the image: weights, architecture, transform, precision. A
shard's name is a hash of its files' names and sizes; it contains the features [n, D], the identity of every file and
what computed them, followed by the SHA-256 of all this. Anything else that is a row of numbers per image, such as its
fingerprint, is cached in the same way, in another folder. A file's identity is the SHA-256 of the bytes that were
decoded. As in git's index, a file with the same size, times and inode is taken to be unchanged; any other is hashed
again. So a second run reads no image, touched or moved images stay valid, and changed ones never do.
"""

import contextlib
import hashlib
import io
import json
import os
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from panderm_utils.data import ImageError, image_error_reason
from panderm_utils.disk import free, write_file

if TYPE_CHECKING:  # imports torch, which read_cached does not need
    from panderm_utils.encoders.loading import Encoder

FORMAT = 1  # raise it when a code change changes features or shards
SHARD = 512  # images; 2 MB of features at D = 1,024, the most that a killed extraction loses
IDENTITY = np.dtype([("digest", "u1", 32), ("size", "i8"), ("modified", "i8"), ("changed", "i8"), ("inode", "i8")])
STAMP = ["size", "modified", "changed", "inode"]
UNREAD = (np.zeros(32, np.uint8), 0, 0, 0, -1)  # of a file that cannot be read at all: no file has this identity
# A second change within one clock tick goes unnoticed, so times this recent prove nothing. 2 s is the tick of FAT, the
# coarsest in use.
TICK = 2_000_000_000  # ns
HASHERS = 8  # threads; network disks serve several requests at once
STALE = 3600  # seconds after which a temporary file cannot belong to a running process


class FeatureCacheWarning(UserWarning):
    """A part of the cache could not be used or written; the features are still correct."""


def read_identified(path: str) -> tuple[bytes, tuple]:
    """Returns a file's bytes and their identity, as a tuple for IDENTITY, from a single read.

    Raises:
        ImageError: The file cannot be read.
    """
    before = time.time_ns()
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  (the overhead counts: once per image)
            stamp = _stamp(os.fstat(file.fileno()))
            content = file.read()
    except OSError as error:
        raise ImageError(f"{path}: {image_error_reason(path, error)}") from error
    if max(stamp[1], stamp[2]) > before - TICK:
        stamp = (*stamp[:3], -1)  # no inode is -1: too recent to trust its times, so it is hashed next time
    return content, (np.frombuffer(hashlib.sha256(content).digest(), np.uint8), *stamp)


def read_cached(folder: str | Path, encoder_facts: dict, names: Sequence[str]) -> np.ndarray | None:
    """Returns the cached features [N, D] of a list of images, or None unless all are cached.

    It needs neither the encoder nor the images, so it cannot detect changed images: compare the result with the
    `features_sha256` of a record.

    Args:
        folder: The folder whose `features/` is the cache.
        encoder_facts: A record's `encoder_facts`.
        names: The files' names, in extraction order.
    """
    facts = {key: encoder_facts[key] for key in ("num_features", "transform", "precision")}
    facts["weights_sha256"] = encoder_facts["digest"]
    parts = [names[at : at + SHARD] for at in range(0, len(names), SHARD)]
    for about in sorted(Path(folder).glob("features/*/about.json")):
        cached = json.loads(about.read_text(encoding="utf-8"))
        if any(cached.get(key) != fact for key, fact in facts.items()):
            continue
        found = {}
        for path in about.parent.glob("*.shard"):
            with np.load(io.BytesIO(path.read_bytes()[:-32]), allow_pickle=False) as arrays:
                sizes = arrays["identity"]["size"]
                for i, part in enumerate(parts):
                    if i not in found and len(part) == len(sizes) and path.stem == _shard_name(part, sizes):
                        found[i] = arrays["x"]
        if parts and len(found) == len(parts):
            return np.concatenate([found[i] for i in range(len(parts))])
    return None


def _shard_name(names: Iterable[str], sizes: Iterable[int]) -> str:
    # The sizes tell apart folders with equal names, such as a cropped copy, which would otherwise overwrite each other.
    lines = "".join(f"{name}\0{size}\0" for name, size in zip(names, sizes, strict=True))
    return hashlib.sha256(lines.encode(errors="surrogatepass")).hexdigest()[:32]


def _stamp(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino & (2**63 - 1)


def feature_cache(folder: str | Path, encoder: "Encoder", images: int) -> "ShardCache":
    """Returns the cache of an encoder's features below `folder`, for a list of `images` images."""
    facts = asdict(encoder.manifest)
    # Not in the weights but decisive: a model with other heads, or another timm model, can load the same file.
    architecture = {k: facts[k] for k in ("architecture", "timm_name", "width", "depth", "heads")}
    about = {
        "format": FORMAT,
        "weights_sha256": encoder.digest,
        "architecture": architecture,
        "num_features": encoder.num_features,
        "transform": repr(encoder.transform),
        "precision": encoder.precision,
    }
    return ShardCache(Path(folder) / "features", about, encoder.num_features, np.float32, images, encoder.name)


def current_features(folder: str | Path, encoder: str, lists: Sequence[tuple]) -> list[np.ndarray | None]:
    """Returns the cached features [n, D] of each list of image files as they are now, None where one is missing.

    No encoder is loaded. If the cache has features of several weights or precisions of the encoder, those of most
    images are used.

    Args:
        folder: The folder whose `features/` is the cache.
        encoder: Its name.
        lists: Names and paths of the files of a list, in extraction order: those of one split of a dataset.
    """
    best, most = [None] * len(lists), 0
    for path in sorted(Path(folder).glob("features/*/about.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        if about.pop("encoder", None) == encoder:
            store = ShardCache(path.parent.parent, about, about["num_features"], np.float32, 0, encoder)
            found = [store.load_list(names, paths) for names, paths in lists]
            if (images := sum(len(x) for x in found if x is not None)) > most:
                best, most = found, images
    return best


class ShardCache:
    """The shards of one key below `folder`; failed reads and writes warn and never raise."""

    def __init__(
        self, folder: Path, about: dict, width: int, dtype, images: int, encoder: str = "", what: str = "features"
    ):
        """Opens the cache for a list of `images` images.

        Args:
            about: Everything that decides a row except the image.
            width, dtype: Of a row.
            encoder: The name of what computes the rows, for human readers.
            what: What the rows are, for warnings.
        """
        self.key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        self.folder = folder / self.key[:20]
        self.width, self.dtype = width, np.dtype(dtype)
        self._needed = self.dtype.itemsize * images * width  # bytes
        self._about = {"encoder": encoder, **about} if encoder else about
        self._what, self._warned = what, False
        self._sweep()

    def load_list(self, names: Sequence[str], paths: Sequence[str]) -> np.ndarray | None:
        """Returns the rows [N, D] of a list of files, or None unless every file is cached and unchanged."""
        x = np.empty((len(names), self.width), self.dtype)
        for at in range(0, len(names), SHARD):
            part = slice(at, at + SHARD)
            if (found := self.load(names[part], paths[part])) is None:
                return None
            x[part] = found[0]
        return x

    def load(self, names: Sequence[str], paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray, str] | None:
        """Returns rows [n, D], identities [n] and what computed the rows, or None unless all are cached and unchanged.

        Args:
            names: The files' names, independent of where their folder is.
            paths: Where they are now.
        """
        try:
            stamps = np.array([_stamp(os.stat(path)) for path in paths], dtype=np.int64)  # noqa: PTH116  (speed)
        except OSError:
            return None  # reading the image will raise the error, with its row
        path = self._path(names, stamps[:, 0])
        shard = self._read(path)
        if shard is None:
            return None
        x, identity, computed_by = shard
        if x.shape != (len(names), self.width) or x.dtype != self.dtype or identity.dtype != IDENTITY:
            return self._damaged(path, "its arrays do not match its name")
        seen = np.stack([identity[field] for field in STAMP], axis=1)
        touched = np.flatnonzero((seen != stamps).any(axis=1))
        if len(touched):
            now = self._identify([paths[i] for i in touched])
            if now is None or not np.array_equal(now["digest"], identity["digest"][touched]):
                return None
            if now.tobytes() != identity[touched].tobytes():
                identity[touched] = now
                self._write(path, x, identity, computed_by)  # with the new times, so the next run need not read them
        return x, identity, computed_by

    def save(self, names: Sequence[str], x: np.ndarray, identity: np.ndarray, computed_by: str) -> bool:
        """Stores rows [n, D] atomically: killed and concurrent processes do no harm; returns whether it could."""
        return self._write(self._path(names, identity["size"]), x, identity, computed_by)

    def _path(self, names: Iterable[str], sizes: Iterable[int]) -> Path:
        return self.folder / f"{_shard_name(names, sizes)}.shard"

    def _identify(self, paths: list[str]) -> np.ndarray | None:
        with ThreadPoolExecutor(HASHERS) as pool, contextlib.suppress(ImageError):
            return np.array(list(pool.map(lambda path: read_identified(path)[1], paths)), dtype=IDENTITY)
        return None

    def _read(self, path: Path) -> tuple[np.ndarray, np.ndarray, str] | None:
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            return self._damaged(path, f"it cannot be read: {error.strerror}")
        content, digest = memoryview(content)[:-32], content[-32:]
        if hashlib.sha256(content).digest() != digest:
            return self._damaged(path, "it is damaged")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            if str(arrays["key"]) != self.key:
                return self._damaged(path, "it belongs to another encoder")
            return arrays["x"], arrays["identity"], str(arrays["computed_by"])

    def _damaged(self, path: Path, reason: str) -> None:
        warnings.warn(f"{path}: {reason}; its {self._what} are computed again", FeatureCacheWarning, stacklevel=4)

    def _write(self, path: Path, x: np.ndarray, identity: np.ndarray, computed_by: str) -> bool:
        buffer = io.BytesIO()
        np.savez(buffer, x=x, identity=identity, computed_by=np.array(computed_by), key=np.array(self.key))
        digest = hashlib.sha256(buffer.getbuffer()).digest()
        buffer.seek(0, io.SEEK_END)
        buffer.write(digest)
        try:
            if not self.folder.is_dir():
                write_file(self.folder / "about.json", json.dumps(self._about, indent=2) + "\n")
            write_file(path, buffer.getbuffer())
            return True
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{self.folder}: {self._what} cannot be stored there ({error.strerror}; they need {self._needed:,} "
                    f"bytes, {free(self.folder):,} are free); this run continues, but the next one must compute them "
                    "again: free some space, or give a writable folder",
                    FeatureCacheWarning,
                    stacklevel=4,
                )
            return False

    def _sweep(self) -> None:
        """Removes partial files of killed processes."""
        for path in self.folder.glob(".*.new"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()
