"""Batches of a torch dataset, in order, read ahead by processes that end with the reading."""

import contextlib
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from panderm_utils.data.image_files import ImageError

MAX_WORKERS = {"cpu": 4, "cuda": 16, "mps": 4}


class LoadingError(ValueError):
    """A process that reads images was killed; the message says what to do."""


@contextlib.contextmanager
def loaded(
    dataset: Dataset,
    batches: Sequence[Sequence],
    device: torch.device,
    num_workers: int | None = None,
    collate: Callable = default_collate,
    ahead: int = 1,
) -> Iterator[Iterator]:
    """Yields an iterator over collated batches; draws nothing from the caller's random state.

    Args:
        batches: The items of each batch.
        device: Where the batches go: decides how many processes read, and whether memory is pinned for it.
        num_workers: Processes that read; 0 reads in this one; None chooses by cores and device.
        collate: Makes a batch of the list of its items.
        ahead: Batches that are to be ready while one is worked on.

    Raises:
        ImageError: From the iterator, as the dataset raised it. LoadingError: a process was killed.
    """
    workers = min(_choose_workers(device.type, len(batches)) if num_workers is None else num_workers, len(batches))
    options = {}
    if workers:
        options["prefetch_factor"] = math.ceil(ahead / workers) + 1
        # Python 3.14 would start a server on Linux, which imports torch anew and needs a `__main__` that it can import.
        options["multiprocessing_context"] = "fork" if sys.platform == "linux" else None
    loader = DataLoader(
        _ErrorsAsValues(dataset),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=partial(_collate, collate=collate),
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else it would draw from the caller's
        **options,
    )
    iterator = iter(loader)
    try:
        yield map(_raise_error, iterator)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise LoadingError(
            f"a process that reads images was killed ({str(error).splitlines()[0]}), as happens where memory or "
            "/dev/shm is full: set num_workers=0, or a smaller batch"
        ) from error
    finally:
        # A notebook keeps the traceback of what was interrupted, and so the iterator: it would never end its processes.
        getattr(iterator, "_shutdown_workers", lambda: None)()


def _choose_workers(device: str, batches: int) -> int:
    """On a CPU, reading is a small part of the work, so every second core is enough; on a GPU it is the bottleneck."""
    if batches == 1 or multiprocessing.current_process().daemon:  # a daemon may have no children
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = cores // 2 if device == "cpu" else cores - 1
    wanted //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # as many processes share the cores
    return min(wanted, MAX_WORKERS.get(device, 4))


class _ErrorsAsValues(Dataset):
    """Hands an ImageError on as a value: a loader would wrap what a worker raises in the text of its traceback."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, item):
        try:
            return self.dataset[item]
        except ImageError as error:
            return error


def _collate(items: list, collate: Callable):
    """Returns the batch, or the first error."""
    errors = [item for item in items if isinstance(item, ImageError)]
    return errors[0] if errors else collate(items)


def _raise_error(batch):
    if isinstance(batch, ImageError):
        raise batch
    return batch
