"""Batches read by real processes: their order, their errors, and what they leave behind."""

import panderm_utils  # noqa: F401  first of all: makes torchvision, and so timm, importable

# isort: split
import multiprocessing
import os
import signal
import threading

import pytest
import torch
from torch.utils.data import Dataset

from panderm_utils.data.image_files import ImageError
from panderm_utils.data.loading import LoadingError, batch_loader

CPU = torch.device("cpu")
BATCHES = [[7, 3], [5], [1, 1, 0], [2], [9, 8]]


class Squares(Dataset):
    def __getitem__(self, item: int) -> int:
        if item < 0:
            raise ImageError(f"CSV row {-item}: no image")
        return item**2


class Readers(Dataset):
    """Item i is the process that reads it."""

    def __getitem__(self, item: int) -> int:
        return os.getpid()


def readers(batches: int, device: str, num_workers: int | None = None) -> set[int]:
    with batch_loader(Readers(), [[i] for i in range(batches)], torch.device(device), num_workers) as loader:
        return {pid for batch in loader for pid in batch.tolist()}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than cores
@pytest.mark.parametrize("ahead", [1, 7])
@pytest.mark.parametrize("workers", [0, 1, 3, 9, None])
def test_batches_come_in_order_and_the_callers_random_state_is_untouched(workers, ahead) -> None:
    state = torch.random.get_rng_state()
    with batch_loader(Squares(), BATCHES, CPU, workers, collate=tuple, ahead=ahead) as loader:
        assert list(loader) == [tuple(i**2 for i in batch) for batch in BATCHES]
    assert torch.equal(torch.random.get_rng_state(), state) and not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_as_it_was_raised_after_the_batches_before_it(workers) -> None:
    seen = []
    with (
        pytest.raises(ImageError, match=r"^CSV row 4: no image$") as kept,
        batch_loader(Squares(), [[1], [2], [3, -4, -5], [6]], CPU, workers) as loader,
    ):
        seen.extend(batch.tolist() for batch in loader)
    assert seen == [[1], [4]]
    assert kept.tb is not None and not multiprocessing.active_children()  # a notebook keeps the traceback


def test_a_killed_process_is_told_and_other_errors_are_not_renamed() -> None:
    killed = pytest.raises(LoadingError, match=r"killed.*num_workers=0")
    with killed, batch_loader(Squares(), BATCHES, CPU, 1) as loader:
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        list(loader)
    with pytest.raises(RuntimeError, match=r"^of the caller$"), batch_loader(Squares(), BATCHES, CPU, 1):
        raise RuntimeError("of the caller")
    with pytest.raises(EOFError, match=r"^of the caller$"), batch_loader(Squares(), BATCHES, CPU, 0):
        raise EOFError("of the caller")
    assert not multiprocessing.active_children()


def test_a_process_killed_as_it_hands_over_a_batch_is_told_whenever_its_death_is_known() -> None:
    """Its pipe breaks first: here the death becomes known in the shutdown of the loader, and then not at all."""
    broken = ConnectionResetError(104, "Connection reset by peer")
    killed = pytest.raises(LoadingError, match=r"killed \(.*\).*num_workers=0")
    with killed, batch_loader(Squares(), BATCHES, CPU, 1):
        worker = multiprocessing.active_children()[0].pid
        os.kill(worker, signal.SIGSTOP)
        threading.Timer(0.2, os.kill, (worker, signal.SIGKILL)).start()
        raise broken
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        with killed, batch_loader(Squares(), BATCHES, CPU, 1):
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            raise broken
    finally:
        signal.signal(signal.SIGCHLD, handler)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("device", "cores", "world", "batches", "expected"),
    [
        ("cpu", 8, None, 20, 4),
        ("cpu", 4, None, 20, 2),
        ("cpu", 8, "2", 20, 2),
        ("cpu", 1, None, 20, 0),
        ("mps", 4, None, 20, 3),
        ("mps", 8, None, 2, 2),
        ("mps", 8, None, 1, 0),
    ],
)
def test_cores_are_shared_by_device_and_processes(monkeypatch, device, cores, world, batches, expected) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if world:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", world)
    found = readers(batches, device)
    assert (os.getpid() in found) == (expected == 0) and len(found) == max(expected, 1)


def test_a_daemon_reads_by_itself(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    assert readers(6, "cpu") == {os.getpid()}
