"""Loads batches of a torch dataset, in order, ahead of use, in processes that end with the loading."""

import contextlib
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from panderm_utils import system
from panderm_utils.data.image_files import ImageError
from panderm_utils.messages import UserError

MAX_WORKERS = {"cpu": 4, "cuda": 16, "mps": 4}


class LoadingError(UserError):
    """A worker process that reads images was killed; the message says what to do."""


@contextlib.contextmanager
def batch_loader(
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
        device: Where the batches go; decides the default number of workers and whether memory is pinned.
        num_workers: Worker processes; 0 reads in this one; None chooses by cores and device.
        collate: Makes a batch from the list of its items.
        ahead: Batches to have ready while one is in use.

    Raises:
        ImageError: From the iterator, as the dataset raised it. LoadingError: a worker was killed.
    """
    workers = min(_choose_workers(device.type, len(batches)) if num_workers is None else num_workers, len(batches))
    options = {}
    if workers:
        options["prefetch_factor"] = math.ceil(ahead / workers) + 1
        # Python 3.14's default on Linux, a fork server, imports torch again and needs an importable `__main__`.
        options["multiprocessing_context"] = "fork" if system.FORKS else None
    loader = DataLoader(
        _ErrorsAsValues(dataset),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=partial(_collate, collate=collate),
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # otherwise it draws from the caller's
        **options,
    )
    iterator = iter(loader)
    try:
        try:
            yield map(_raise_error, iterator)
        finally:
            # After an interrupt, a notebook keeps the traceback and so the iterator, which would never end its workers.
            getattr(iterator, "_shutdown_workers", lambda: None)()
    except (RuntimeError, ConnectionError, EOFError) as error:
        # A worker's pipe may break before its death is known, which then interrupts whatever runs, even the shutdown.
        if not workers or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
            raise
        raise LoadingError(
            f"a process that reads images was killed ({str(error).splitlines()[0]}), probably because memory or "
            "/dev/shm is full: set num_workers=0, or a smaller batch"
        ) from error


def _choose_workers(device: str, batches: int) -> int:
    """Returns half of the cores for a CPU, where reading is a small part of the work; nearly all for a GPU.

    None for a CPU where a worker cannot be forked: it would first import torch, for seconds.
    """
    if batches == 1 or multiprocessing.current_process().daemon:  # a daemon cannot have children
        return 0
    if device == "cpu" and not system.FORKS:
        return 0
    cores = system.count_cores()
    workers = cores // 2 if device == "cpu" else cores - 1
    workers //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # this many training processes share the cores
    return min(workers, MAX_WORKERS.get(device, 4))


class _ErrorsAsValues(Dataset):
    """Returns an ImageError as a value: DataLoader would replace its message with the worker's traceback."""

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
