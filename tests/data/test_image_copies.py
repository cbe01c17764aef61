"""Copies of images: what is read back is what was kept, whatever was killed, damaged, changed or full meanwhile."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from panderm_utils import workspace
from panderm_utils.data import transforms as image_copies
from panderm_utils.data.transforms import RECORD, ImageCopies, ImageCopiesWarning, stamp_of

STAMP = (1, 2, 3, 4)


def pixels(i, height=40, width=50):
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)


def disk_usage(copies):
    return sum(path.stat().st_size for path in copies.folder.iterdir())


def keep(copies, numbers):
    for i in numbers:
        copies.save(f"{i}.png", STAMP, pixels(i))


def kept(copies, numbers):
    """The numbers of those that have a copy; a copy with wrong pixels is an error."""
    found = []
    for i in numbers:
        copy = copies.load(f"{i}.png", STAMP)
        if copy is not None:
            assert np.array_equal(copy, pixels(i)), i
            found.append(i)
    return found


def test_copies_come_back_in_this_process_and_the_next(tmp_path):
    copies, other = ImageCopies(tmp_path), ImageCopies(tmp_path)
    assert copies.load("0.png", STAMP) is None
    keep(copies, range(5))
    copies.save("wide", STAMP, pixels(7, 3, 900)[:, ::2])  # of any shape, contiguous or not
    for reader in (copies, other, ImageCopies(tmp_path)):
        assert kept(reader, range(6)) == [0, 1, 2, 3, 4]
        assert np.array_equal(reader.load("wide", STAMP), pixels(7, 3, 900)[:, ::2])
        assert len(reader) == 6
        assert reader.bytes_used == disk_usage(reader)
    keep(other, range(5))  # again: nothing is kept twice
    assert disk_usage(other) == copies.bytes_used


def test_a_copy_is_of_one_state_of_one_file(tmp_path):
    copies = ImageCopies(tmp_path)
    keep(copies, [0])
    for stamp in ((2, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0), None):
        assert copies.load("0.png", stamp) is None
    assert copies.load("1.png", STAMP) is None
    copies.save("0.png", (9, 9, 9, 9), pixels(9))
    for reader in (copies, ImageCopies(tmp_path)):
        assert np.array_equal(reader.load("0.png", (9, 9, 9, 9)), pixels(9))
        assert reader.load("0.png", STAMP) is None
    copies.save("2.png", None, pixels(2))
    assert len(copies) == 1


def test_the_stamp_follows_the_file_and_mistrusts_fresh_ones(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    assert stamp_of(str(path)) is None
    path.write_bytes(b"123")
    assert stamp_of(str(path)) is None  # it could change again within this tick
    monkeypatch.setattr(image_copies, "TICK", 0)
    first = stamp_of(str(path))
    assert first[0] == 3
    assert stamp_of(str(path)) == first
    modified = path.stat().st_mtime_ns
    path.write_bytes(b"124")
    os.utime(path, ns=(modified, modified))  # same size, same time of change of content
    assert stamp_of(str(path)) != first


def test_the_budget_holds_and_is_told_of(tmp_path):
    size = pixels(0).nbytes + RECORD.size
    copies = ImageCopies(tmp_path, budget=3 * size + size // 2)
    copies.prepare(["0.png"])
    keep(copies, range(6))
    assert kept(copies, range(6)) == [0, 1, 2]
    assert disk_usage(copies) == 3 * size
    copies.save("small.png", STAMP, pixels(6, 4, 4))
    assert copies.load("small.png", STAMP) is not None
    copies.prepare(["0.png", "1.png"])  # all have one
    with pytest.warns(
        ImageCopiesWarning, match=r"budget.*4 of 5 training images are decoded every epoch.*--pixels GB.*delete"
    ):
        copies.prepare(["0.png", "3.png", "4.png", "5.png", "7.png"])
    copies.prepare(["0.png", "3.png"])  # once is enough
    more = ImageCopies(tmp_path, budget=10 * size)
    keep(more, range(6))
    assert kept(more, range(6)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("images", "left"), [(3, [0]), (2, []), (0, [])])
def test_the_budget_is_shared_with_the_pixels_that_encoders_keep(tmp_path, monkeypatch, images, left):
    size = pixels(0).nbytes + RECORD.size
    (tmp_path / "an encoder's").mkdir()
    (tmp_path / "an encoder's/1.shard").write_bytes(bytes(2 * size))
    monkeypatch.setenv(workspace.PIXELS, str(images * size / 1e9 + 1e-9))
    keep(copies := ImageCopies(tmp_path), range(3))
    assert kept(copies, range(3)) == left
    assert workspace.pixels_left(tmp_path) < size
    keep(again := ImageCopies(tmp_path), range(3))  # which does not count its own twice
    assert kept(again, range(3)) == left


@pytest.mark.parametrize("damage", ["half a record", "zeros", "lost pixels", "flipped pixel", "flipped record"])
def test_what_is_damaged_is_not_used_and_is_replaced(tmp_path, damage):
    copies = ImageCopies(tmp_path)
    keep(copies, range(4))
    index, data = copies.folder / "index.bin", copies.folder / "pixels.bin"
    whole = index.read_bytes()
    if damage == "half a record":
        index.write_bytes(whole[: -RECORD.size // 2])
        left = [0, 1, 2]
    elif damage == "zeros":  # a machine that lost power may have written the length, and not yet the content
        index.write_bytes(whole + bytes(RECORD.size))
        left = [0, 1, 2, 3]
    elif damage == "lost pixels":
        data.write_bytes(data.read_bytes()[:-100])
        left = [0, 1, 2]
    elif damage == "flipped pixel":
        content = bytearray(data.read_bytes())
        content[pixels(0).nbytes + 5] ^= 1
        data.write_bytes(content)
        left = [0, 2, 3]
    else:
        content = bytearray(whole)
        content[RECORD.size + 40] ^= 1
        index.write_bytes(content)
        left = [0]
    after = ImageCopies(tmp_path)
    assert kept(after, range(6)) == left
    keep(after, range(6))
    assert kept(after, range(6)) == [0, 1, 2, 3, 4, 5]
    assert kept(ImageCopies(tmp_path), range(6)) == [0, 1, 2, 3, 4, 5]


def work(folder, first, budget):
    copies = ImageCopies(folder, budget=budget)
    keep(copies, [*range(first, 60), *range(first)])


def test_processes_share_a_folder_and_its_budget(tmp_path):
    size = pixels(0).nbytes + RECORD.size
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(tmp_path, first, 50 * size)) for first in (0, 0, 20, 40)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    copies = ImageCopies(tmp_path)
    assert len(kept(copies, range(60))) == len(copies) == 50
    assert disk_usage(copies) == 50 * size


def test_killed_processes_leave_nothing_wrong(tmp_path):
    context = multiprocessing.get_context("fork")
    for round_ in range(8):
        workers = [context.Process(target=work, args=(tmp_path, first, 10**9)) for first in (7 * round_, 30)]
        for worker in workers:
            worker.start()
        time.sleep(0.004 * round_)
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        kept(ImageCopies(tmp_path), range(60))
    copies = ImageCopies(tmp_path)
    keep(copies, range(60))
    assert kept(copies, range(60)) == list(range(60))
    assert disk_usage(copies) == 60 * (pixels(0).nbytes + RECORD.size)


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(ImageCopiesWarning, match=r"cannot be stored there \(Not a directory\).*every epoch.*free some"):
        copies = ImageCopies(tmp_path / "file")
    keep(copies, range(2))
    copies.prepare(["0.png"])
    assert kept(copies, range(2)) == []
    copies = ImageCopies(tmp_path / "full")
    monkeypatch.setattr(image_copies, "PIXEL_RESERVE", 10**18)
    with pytest.warns(ImageCopiesWarning, match="the disk is nearly full") as caught:
        keep(copies, range(3))
    assert len(caught) == 1
    assert kept(copies, range(3)) == []


def test_a_folder_that_disappears_is_no_error(tmp_path):
    copies = ImageCopies(tmp_path)
    keep(copies, range(2))
    for path in copies.folder.iterdir():
        path.unlink()
    copies.folder.rmdir()
    assert kept(copies, range(3)) == []
    with pytest.warns(ImageCopiesWarning):
        keep(copies, [5])


def test_other_decoders_have_copies_of_their_own(tmp_path, monkeypatch):
    keep(ImageCopies(tmp_path), [0])
    monkeypatch.setattr(image_copies.PIL, "__version__", "99.0")
    assert kept(ImageCopies(tmp_path), [0]) == []
