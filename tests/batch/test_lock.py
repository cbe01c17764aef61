"""One batch a folder: real processes, killed for real; another host is played by a thread with a wrong clock."""

import errno
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import run_all
from panderm_utils.batch import lock

ROOT = Path(__file__).parents[2]
HOLD = """\
import sys, time
from pathlib import Path
from panderm_utils.batch import lock
lock.HEARTBEAT = 0.1
with lock.lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def start(tmp_path):
    """Starts processes that own tmp_path."""
    started = []

    def start():
        command = [sys.executable, "-c", HOLD, tmp_path, "--as-typed"]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def holding():
    """Starts a process that takes the lock on a file with `hold` alone, and says whether it got it."""
    code = """\
import sys
from panderm_utils.batch import lock
with open(sys.argv[1], "a+b") as file:
    print(lock.try_lock(file), flush=True)
    sys.stdin.read()
"""
    processes = []

    def start(path):
        command = [sys.executable, "-c", code, path]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        processes.append(subprocess.Popen(command, cwd=ROOT, text=True, **pipes))
        return processes[-1], processes[-1].stdout.readline()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def read(folder):
    return json.loads((folder / lock.NAME).read_text())


def test_the_second_batch_refuses_by_name_of_the_first_until_that_dies(tmp_path, start):
    first = start()
    with pytest.raises(lock.FolderError) as told, lock.lock_folder(tmp_path):
        pass
    for part in (f"process {first.pid} on {platform.node()} since 2", "--as-typed", str(tmp_path)):
        assert part in str(told.value)
    assert read(tmp_path)["pid"] == first.pid
    first.kill()
    first.wait()
    with lock.lock_folder(tmp_path):
        assert read(tmp_path)["pid"] == os.getpid()
    assert (tmp_path / lock.NAME).read_text() == ""
    assert start().poll() is None


def test_a_lock_is_one_holders_alone(tmp_path, holding):
    path = tmp_path / lock.NAME
    first, told = holding(path)
    assert told == "True\n"
    second, told = holding(path)
    assert told == "False\n"
    with path.open("a+b") as file:
        assert not lock.try_lock(file)
    first.communicate()
    with path.open("a+b") as file, path.open("a+b") as again:
        assert lock.try_lock(file)  # the second process, which was refused, is alive and has no part of it
        assert not lock.try_lock(again)  # nor has one who opens the file anew in this process
    assert second.poll() is None
    with path.open("a+b") as file:
        assert lock.try_lock(file)


def test_a_batch_is_refused_by_the_systems_lock_before_the_owner_has_written_its_name(tmp_path, holding):
    holding(tmp_path / lock.NAME)
    assert (tmp_path / lock.NAME).read_bytes() == b""
    with pytest.raises(lock.FolderError, match="in use by another batch"), lock.lock_folder(tmp_path):
        pass


def test_run_all_says_who_is_at_work_and_begins_nothing(tmp_path, start, capsys):
    (tmp_path / "demo").symlink_to(tmp_path)
    first = start()
    assert run_all.main(["--datasets", "demo", "--output-root", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert f"process {first.pid} on" in told.err
    assert told.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == [lock.NAME, "demo"]
    assert run_all.main(["--datasets", "demo", "--output-root", str(tmp_path), "--plan"]) == 0  # asks for no lock


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize("alive", [True, False])
def test_on_one_host_pid_and_start_time_tell_the_living_from_the_dead(tmp_path, start, monkeypatch, locks, alive):
    first = start()
    owner = read(tmp_path)
    if not alive:  # its number is another process's by now
        first.kill()
        first.wait()
        (tmp_path / lock.NAME).write_text(json.dumps({**owner, "pid": os.getpid()}))
    if not locks:
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    if alive:
        with pytest.raises(lock.FolderError, match=str(first.pid)), lock.lock_folder(tmp_path):
            pass
    else:
        with lock.lock_folder(tmp_path):
            assert read(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("alive", [True, False])
def test_another_host_is_judged_by_its_beats_and_never_by_its_clock(tmp_path, monkeypatch, alive):
    monkeypatch.setattr(lock, "STALE_AFTER", 1.0)
    monkeypatch.setattr(lock, "POLL", 0.01)
    path, over, said = tmp_path / lock.NAME, threading.Event(), []
    path.write_text(
        json.dumps({"host": "elsewhere", "boot": "x", "pid": 1, "started": "1", "since": "9", "command": "c"})
    )
    os.utime(path, (4e9, 4e9))  # the year 2096

    def beat():
        moment = 4e9
        while not over.wait(0.1):
            moment -= 3600  # its clock is being set back, too
            os.utime(path, (moment, moment))

    other = threading.Thread(target=beat)
    if alive:
        other.start()
        with (
            pytest.raises(lock.FolderError, match="process 1 on elsewhere since 9: c"),
            lock.lock_folder(tmp_path, said.append),
        ):
            pass
        over.set()
        other.join()
    else:
        with lock.lock_folder(tmp_path, said.append):
            assert read(tmp_path)["pid"] == os.getpid()
    assert "elsewhere" in said[0]


def test_an_owner_beats_and_ends_when_another_has_taken_over_while_it_slept(tmp_path, start):
    first = start()
    before = (tmp_path / lock.NAME).stat().st_mtime_ns
    until = time.monotonic() + 20
    while (tmp_path / lock.NAME).stat().st_mtime_ns == before and time.monotonic() < until:
        time.sleep(0.05)
    assert (tmp_path / lock.NAME).stat().st_mtime_ns != before
    (tmp_path / lock.NAME).write_text(json.dumps({**read(tmp_path), "host": "elsewhere"}))
    assert first.wait(20) == -signal.SIGTERM
    assert "on elsewhere" in first.stdout.read()
    assert read(tmp_path)["host"] == "elsewhere"


def test_a_lock_that_the_power_cut_short_is_nobodys(tmp_path):
    (tmp_path / lock.NAME).write_text('{"host": "me')
    with lock.lock_folder(tmp_path):
        assert read(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("linux", [True, False])
def test_a_zombie_is_dead_and_a_start_time_is_ones_own(monkeypatch, linux):
    if not linux:  # where there is no /proc
        monkeypatch.setattr(lock, "Path", lambda path: Path("/nowhere") / path.lstrip("/"))
    assert lock.start_time(os.getpid())
    process = subprocess.Popen(["sleep", "600"])
    assert lock.start_time(process.pid) == lock.start_time(process.pid) != lock.start_time(os.getpid())
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert lock.start_time(process.pid) is None
    process.wait()
    assert lock.start_time(process.pid) is None
