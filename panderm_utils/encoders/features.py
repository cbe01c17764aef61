"""Extracts frozen features: one vector per image, computed once and cached.

N is the number of images, D the encoder's width. Worker processes read images in small chunks, several per batch, and
features are written straight to their rows: apart from these, memory does not grow with N. Pixels are kept on disk for
the next encoder (`pixels`). The last batch is not padded. Batches never cross shards of the cache, so a killed and
resumed extraction is bit-identical to an uninterrupted one.
"""

import hashlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import PIL
import timm
import torch
from tqdm.auto import tqdm

from panderm_utils.data import Dataset, ImageError, ImageFiles, batch_loader, open_image, pixels_of
from panderm_utils.encoders.feature_cache import IDENTITY, SHARD, UNREAD, feature_cache, read_identified
from panderm_utils.encoders.loading import Encoder
from panderm_utils.encoders.pixels import SHAPE, PixelCache
from panderm_utils.messages import UserError
from panderm_utils.workspace import pixel_budget

CHUNK = 8  # images that a worker passes on at once (1.2 MB)
# Images per batch: on a CPU, more overflow its caches, and fewer make cores wait for each other more often.
BATCH = {"cpu": 48, "cuda": 64, "mps": 64}


class FeatureError(UserError):
    """Features cannot be extracted or selected; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Features:
    """The features of a list of images.

    Attributes:
        x: `[N, D]` float32.
        y: Labels `[N]` int64, or None for files without labels.
        image_ids: The images' names `[N]`, in list order.
        seconds: Wall-clock time of the extraction, reading the cache included.
        computed: Number of images that went through the encoder.
        from_cache: Number of images read from the cache.
        computed_by: What computed them: device, threads, batch size, versions; several if that changed.
        unreadable: Name -> reason: images left out because they cannot be decoded; see `extract_files`.
    """

    x: np.ndarray = field(repr=False)
    y: np.ndarray | None = field(repr=False)
    image_ids: np.ndarray = field(repr=False)
    seconds: float
    computed: int
    from_cache: int
    computed_by: tuple[str, ...] = field(repr=False)
    unreadable: dict[str, str] = field(default_factory=dict, repr=False)

    def take(self, images: Sequence[str]) -> "Features":
        """Returns the features of the named images, in their order; names may repeat.

        Raises:
            FeatureError: A name is not in `image_ids`.
        """
        rows = {name: row for row, name in reversed(list(enumerate(self.image_ids.tolist())))}
        images = list(images)
        if unknown := [name for name in images if name not in rows]:
            more = f" and {len(unknown) - 1:,} more" if len(unknown) > 1 else ""
            raise FeatureError(
                f"no features of {unknown[0]!r}{more} among these {len(rows):,} images: use names from the column "
                "`image`, of the split that was extracted"
            )
        at = np.array([rows[name] for name in images], dtype=np.int64)
        return replace(self, x=self.x[at], y=None if self.y is None else self.y[at], image_ids=self.image_ids[at])

    def describe(self) -> dict:
        """Returns what a record keeps of its features; the same for every run that reads them from the cache."""
        digest = hashlib.sha256(np.ascontiguousarray(self.x)).hexdigest()
        shape = {"images": len(self.x), "num_features": self.x.shape[1]}
        return {**shape, "computed_by": list(self.computed_by), "features_sha256": digest}


def extract_features(
    encoder: Encoder,
    dataset: Dataset,
    split: str,
    cache: str | Path | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> Features:
    """Returns the features of one split, in the order of the table; see `extract_files`.

    Raises:
        DataError: No such split. ImageError: an image cannot be read; names row, file and reason.
    """
    table = dataset.split(split)
    # Names below the image root, so the cache is found even after the data are moved.
    names = [dataset.files[image] for image in table["image"]]
    paths = [os.path.join(dataset.image_root, name) for name in names]  # noqa: PTH118  (10 times as fast)
    features = extract_files(encoder, paths, names, table["row"], cache, batch_size, num_workers)
    ids = np.array(table["image"].tolist(), dtype=np.str_)
    return replace(features, y=table["label"].to_numpy(dtype=np.int64, copy=True), image_ids=ids)


def extract_files(
    encoder: Encoder,
    paths: Sequence[str | Path],
    names: Sequence[str] | None = None,
    rows: Sequence[int] | None = None,
    cache: str | Path | None = None,
    batch_size: int = 64,
    num_workers: int | None = None,
    skip_unreadable: bool = False,
) -> Features:
    """Returns the features of image files, in their order.

    Finished shards (512 images) are cached, so an interrupted extraction resumes where it stopped. If the cache cannot
    be written, the extraction continues with a warning.

    Args:
        paths: The N image files.
        names: Their names in the cache, and their `image_ids`; by default the paths.
        rows: The CSV line of each image, for error messages.
        cache: The folder whose `features/` is the cache; None caches nothing.
        batch_size: The most images per batch. Batches end at shard borders, and a CPU uses at most 48, as larger ones
            are slower. Features agree to 1e-5 for every batch size.
        num_workers: Worker processes that read images; 0 reads in this one; None chooses by cores and device.
        skip_unreadable: Whether an image that cannot be read is left out and listed, also from then on by the cache,
            until its file is replaced. By default it is an error.

    Raises:
        ImageError: An image cannot be read; names row, file and reason. Finished shards are kept.
        FeatureError: An invalid setting. LoadingError: a worker process was killed.
    """
    if batch_size < 1 or (num_workers or 0) < 0:
        raise FeatureError(f"batch_size {batch_size} must be at least 1, num_workers {num_workers} at least 0, or None")
    started = time.perf_counter()
    files = _IdentifiedFiles(paths, rows, skip_unreadable)
    names = files.paths if names is None else np.array(names, dtype=np.str_)
    if len(names) != len(files):
        raise FeatureError(f"{len(names)} names for {len(files)} paths; give one name per path")
    batch_size = min(batch_size, SHARD if encoder.device.type != "cpu" else BATCH["cpu"])
    store = None if cache is None else feature_cache(cache, encoder, len(files))
    x = np.empty((len(files), encoder.num_features), dtype=np.float32)
    todo, computers = [], set()
    shards = [range(at, min(at + SHARD, len(files))) for at in range(0, len(files), SHARD)]
    for shard in tqdm(shards, desc="cache", unit="shard", delay=3, leave=False):
        part = slice(shard.start, shard.stop)
        found = store.load(names[part].tolist(), files.paths[part].tolist()) if store else None
        if found is None:
            todo.append(shard)
        else:
            x[part], _, computer = found
            computers.add(computer)
    missing = sum(map(len, todo))
    if missing:
        computer = _describe_computer(encoder, batch_size)
        computers.add(computer)
        pixels = PixelCache(cache, missing) if store and pixel_budget() else None

        def compute(shard: range, chunks: Iterator) -> None:
            part = slice(shard.start, shard.stop)
            x[part], seen, identity = _compute(encoder, chunks, len(shard), batch_size, bar)
            stored = store and store.save(names[part].tolist(), x[part], identity, computer)
            if stored and pixels and seen is not None:
                pixels.save(names[part].tolist(), seen, identity)

        with tqdm(desc=encoder.name, total=len(files), initial=len(files) - missing, unit="image", delay=1) as bar:
            undecoded = []
            for shard in todo:
                part = slice(shard.start, shard.stop)
                kept = pixels.load(names[part].tolist(), files.paths[part].tolist()) if pixels else None
                if kept is None:
                    undecoded.append(shard)
                else:
                    compute(shard, _kept_chunks(*kept, batch_size))
            chunks, next_batch = _chunks(undecoded, batch_size), math.ceil(batch_size / CHUNK)
            with batch_loader(files, chunks, encoder.device, num_workers, _collate, ahead=next_batch) as loader:
                for shard in undecoded:
                    compute(shard, loader)
    unreadable = files.unreadable(np.flatnonzero(np.isnan(x[:, 0])).tolist())
    kept = _drop_rows(x, list(unreadable))
    reasons = {str(names[row]): reason for row, reason in unreadable.items()}
    names = np.delete(names, list(unreadable)) if unreadable else names
    seconds = time.perf_counter() - started
    return Features(kept, None, names, seconds, missing, len(files) - missing, tuple(sorted(computers)), reasons)


def _drop_rows(x: np.ndarray, rows: list[int]) -> np.ndarray:
    """Returns features without these rows, moved up in place: a copy could be as large as the memory."""
    keep = np.setdiff1d(np.arange(len(x)), rows)
    for at in range(0, len(keep) if rows else 0, SHARD):
        part = keep[at : at + SHARD]
        x[at : at + len(part)] = x[part]  # never behind where it is read
    return x[: len(keep)]


@torch.inference_mode()
def _compute(
    encoder: Encoder, source: Iterator, size: int, batch_size: int, bar: tqdm
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Returns features [size, D], pixels [size, 3, 224, 224] and identities [size] of the next `size` images.

    The features of an unreadable image are NaN, which marks it in the cache; then there are no pixels to keep.
    """
    outputs, chunks = [], []
    for at in range(0, size, batch_size):
        batch = [next(source) for _ in range(0, min(batch_size, size - at), CHUNK)]
        pixels = torch.cat([chunk.to(encoder.device, non_blocking=True) for chunk, _, _ in batch])
        # Results are copied once per shard, so a GPU gets its next batch while it computes this one.
        outputs.append(encoder(encoder.transform.normalise(pixels)))
        chunks += batch
        bar.update(len(pixels))
    x = torch.cat(outputs).cpu().numpy()
    pixels, identities, readable = zip(*chunks, strict=True)
    readable = np.concatenate(readable)
    x[~readable] = np.nan
    return x, torch.cat(pixels).numpy() if readable.all() else None, np.concatenate(identities)


def _kept_chunks(pixels: np.ndarray, identity: np.ndarray, batch_size: int) -> Iterator:
    """Yields kept pixels [n, 3, 224, 224] and their identities [n] in chunks, as the loader does of files."""
    for chunk in _chunks([range(len(pixels))], batch_size):
        part = slice(chunk.start, chunk.stop)
        yield torch.from_numpy(pixels[part]), identity[part], np.ones(len(chunk), dtype=bool)


class _IdentifiedFiles(ImageFiles):
    """Item i is `(pixels, identity)`, both from a single read of the file.

    With `skip`, the pixels of an unreadable image are None.
    """

    def __init__(self, paths, rows, skip: bool):
        super().__init__(paths, rows=rows)
        self.skip = skip

    def __getitem__(self, index: int) -> tuple[np.ndarray | None, tuple]:
        identity = UNREAD
        with self.naming(index) as path:
            try:
                content, identity = read_identified(path)
                return pixels_of(open_image(path, content)), identity
            except ImageError:
                if not self.skip:
                    raise
                return None, identity

    def unreadable(self, indices: list[int]) -> dict[int, str]:
        """Returns which of these images cannot be read, and why; without `skip`, the first raises its ImageError."""
        reasons = {}
        for index in indices:
            with self.naming(index) as path:
                try:
                    open_image(path)
                except ImageError as error:
                    if not self.skip:
                        raise
                    reasons[index] = str(error).removeprefix(f"{path}: ")
        return reasons


def _collate(items: list) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Returns pixels [n, 3, 224, 224] uint8, identities [n], and whether each image could be read [n]."""
    readable = np.array([pixels is not None for pixels, _ in items])
    pixels = np.stack([np.zeros(SHAPE, np.uint8) if pixels is None else pixels for pixels, _ in items])
    return torch.from_numpy(pixels), np.array([identity for _, identity in items], dtype=IDENTITY), readable


def _chunks(shards: list[range], batch_size: int) -> list[range]:
    """Returns the shards' image indices in chunks that fill each batch."""
    batches = [range(at, min(at + batch_size, s.stop)) for s in shards for at in range(s.start, s.stop, batch_size)]
    return [range(at, min(at + CHUNK, b.stop)) for b in batches for at in range(b.start, b.stop, CHUNK)]


def _describe_computer(encoder: Encoder, batch_size: int) -> str:
    """Returns what the last digits depend on: device, threads, batch size, versions."""
    device = encoder.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    versions = f"torch {torch.__version__}, timm {timm.__version__}, pillow {PIL.__version__}"
    return f"{name}{threads}, batches of {batch_size}, {versions}"
