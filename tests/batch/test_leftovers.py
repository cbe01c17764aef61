"""What a killed batch leaves: found by pid and start time, ended and removed; all else stays. Real processes."""

import contextlib
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

import psutil
import pytest

from panderm_utils.batch import leftovers
from panderm_utils.batch.lock import started
from panderm_utils.disk import temporary

ROOT = Path(__file__).parents[2]
# Starts a run's process in a session of its own, and that one two more that ignore SIGINT.
STARTER = """\
import os, subprocess, sys, time
from pathlib import Path
from panderm_utils.batch import leftovers
below = "import subprocess, sys, time; code = 'import signal, time; signal.signal(2, 1); print(flush=True); "
below += "time.sleep(600)'\\n"
below += "both = [subprocess.Popen([sys.executable, '-c', code], start_new_session=True, stdout=-1) for _ in '12']\\n"
below += "[one.stdout.readline() for one in both]; print('there', flush=True); time.sleep(600)"
environment = os.environ | leftovers.mark(Path(sys.argv[1]))
subprocess.Popen([sys.executable, "-c", below], env=environment, start_new_session=True)
time.sleep(600)
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "out" / "logs").mkdir(parents=True)
    return tmp_path / "out"


@pytest.fixture
def start(monkeypatch):
    """Starts processes; whatever is left of them at the end is killed."""
    monkeypatch.setattr(leftovers, "GRACE", 1.0)
    mine, found = [], []

    def start(command, **options):
        mine.append(subprocess.Popen(command, cwd=ROOT, **options))
        return mine[-1]

    start.found = found
    yield start
    for process in [*mine, *found]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for process in mine:
        process.wait()


def start_run(start, log):
    """Returns the starter of a run and the three processes of the run."""
    starter = start([sys.executable, "-c", STARTER, log], stdout=subprocess.PIPE, text=True)
    assert starter.stdout.readline() == "there\n"
    family = leftovers.family(log)
    start.found += family
    assert len(family) == 3
    return starter, family


def test_what_outlives_its_starter_is_ended_even_without_parents(root, start):
    log = root / "logs/run.log"
    starter, family = start_run(start, log)
    assert leftovers.left_over(root) == []
    assert leftovers.end(lambda: leftovers.left_over(root)) == 0
    starter.kill()
    starter.wait()
    next(process for process in family if process.parent().pid == starter.pid or process.ppid() == 1).kill()
    while len(leftovers.family(log)) > 2:
        time.sleep(0.01)
    assert len(leftovers.left_over(root)) == 2  # in sessions of their own, with nobody above them
    said = []
    leftovers.clear(root, said.append)
    assert [process for process in family if process.is_running() and started(process.pid)] == []
    assert "ended 2 processes" in said[0]
    leftovers.clear(root, said.append)
    assert len(said) == 1


def test_who_interrupts_the_ending_cuts_it_short_and_leaves_nothing_either(root, start, monkeypatch):
    log = root / "logs/run.log"
    starter, family = start_run(start, log)
    starter.kill()
    starter.wait()
    monkeypatch.setattr(leftovers, "GRACE", 60.0)  # those that ignore SIGINT would have all of it
    top = [process for process in family if process.ppid() == 1]
    assert len(top) == 1
    top[0].kill()
    timer = threading.Timer(1, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        leftovers.clear(root)
    timer.join()
    assert leftovers.family(log) == []


def test_what_was_ended_has_let_go_of_its_log(root, start):
    """However long the system takes to free its memory, during which it cannot be found any more."""
    log = root / "logs/run.log"
    code = (
        "import signal, time; signal.signal(2, 1); x = b'x' * 700_000_000; print('there', flush=True); time.sleep(600)"
    )
    with log.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        environment, below = {leftovers.RUN: f"{os.getpid()} 1 {log}"}, (file.fileno(),)
        process = start(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, pass_fds=below, text=True
        )
        assert process.stdout.readline() == "there\n"
    with log.open("r+b") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert leftovers.end(lambda: leftovers.left_over(root)) == 1
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_nothing_else_is_touched(root, start):
    mine = started(os.getpid())
    logs = {
        "of a living starter, as a Slurm task": f"{os.getpid()} {mine} {root}/logs/run.log",
        "of another folder": f"{os.getpid()} 1 {root}-2/logs/run.log",
        "of no run": "",
    }
    others = [start(["sleep", "600"], env={leftovers.RUN: text}) for text in logs.values()]
    reused = start(["sleep", "600"], env={leftovers.RUN: f"{others[2].pid} 1 {root}/logs/run.log"})
    until = time.monotonic() + 20
    while not leftovers.left_over(root) and time.monotonic() < until:
        time.sleep(0.01)
    assert [process.pid for process in leftovers.left_over(root)] == [reused.pid]
    leftovers.clear(root, lambda line: None)
    assert reused.wait(20) != 0
    # The number of its starter is a living process's now, which has another start time.
    assert [process.poll() for process in others] == [None] * 3


def test_half_written_files_of_the_dead_are_removed_and_a_record_that_was_being_replaced_is_put_back(root):
    dead = subprocess.Popen(["true"])
    dead.wait()
    node, there = platform.node(), []

    def make(name, stays=False, folder=False):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if folder else path.write_text("x")
        if folder:
            (path / "record.json").write_text(path.name)
        there.extend([path] * stays)

    with (root / "logs/held.log").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        make("executed/linear_probe/.run.ipynb")
        make("executed/linear_probe/.whole.ipynb")
        facts = {"end_time": "2025-06-06", "exception": None}
        (root / "executed/linear_probe/.whole.ipynb").write_text(json.dumps({"metadata": {"papermill": facts}}))
        there.append(root / "executed/linear_probe/whole.ipynb")
        make("executed/linear_probe/.failed.ipynb")
        facts["exception"] = True
        (root / "executed/linear_probe/.failed.ipynb").write_text(json.dumps({"metadata": {"papermill": facts}}))
        make("executed/linear_probe/run.ipynb", stays=True)
        make("executed/linear_probe/.held.ipynb", stays=True)
        make("executed/paper/.figure.json", stays=True)
        make("logs/run.yaml")
        make("logs/held.yaml", stays=True)
        make(f"figures/.figure.png.{node}.{dead.pid}.new")
        make(f"figures/.figure.pdf.{node}.{os.getpid()}.new", stays=True)
        make(f"tables/.table.csv.another-host.{dead.pid}.new", stays=True)
        make(f"records/.a.{node}.{dead.pid}.new", folder=True)
        make(f"records/.b.{node}.{dead.pid}.old", folder=True)
        make(f"records/.c.{node}.{dead.pid}.old", folder=True)
        make("records/c", stays=True, folder=True)
        assert leftovers.sweep(root) == 8
    found = {path for path in root.glob("*/*") if path.is_file() and path.suffix != ".log"}
    found |= {path for path in root.glob("*/*/*") if path.name != "record.json"} | set(root.glob("records/*"))
    assert found == {*there, root / "records/b"}
    assert (root / "records/b/record.json").read_text() == f".b.{node}.{dead.pid}.old"
    assert temporary(root / "records/a").name == f".a.{node}.{os.getpid()}.new"
