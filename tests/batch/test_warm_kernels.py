"""Runs that are forked from a warm server: results, exit codes and logs as of cold ones. Real kernels, real kills."""

import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from panderm_utils import workspace
from panderm_utils.batch import leftovers, warm_kernels
from panderm_utils.batch import running as batch
from panderm_utils.batch.execution import child_environment, execute_once
from panderm_utils.batch.execution import execute as execute_job
from tests.batch.test_batch import PARAMETERS, make, write_notebook

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="warm starts are for Linux")

SETUP = """\
import json, os, signal, sys, time
from panderm_utils import results, workspace
from panderm_utils.protocols import linear_probe
space = workspace.open_workspace(profile, output_root=output_root)
settings = {"solver": solver, "train_fraction": train_fraction}
run = results.run_id(linear_probe.PROTOCOL, profile, dataset, encoder, seed, **settings)
folder, tries = space.records / run, space.root / f"tries-{seed}"
tries.write_text((tries.read_text() if tries.exists() else "") + "x")
(space.root / f"kernel-{seed}").write_text(str(os.getpid()))
warm = "panderm_utils.batch.warm_server" in sys.modules and "papermill.cli" in sys.modules
seen = {"warm": warm}
"""
# Seed 0, 1: well, and look around; 2: its kernel is killed; 3: is ended with 7; 4: its first kernel waits to be killed
# with its server; 5: well.
ACT = """\
if seed == 2:
    ballast = bytearray(300_000_000)
    os.kill(os.getpid(), signal.SIGKILL)
if seed == 3:
    os._exit(7)
if seed == 4 and tries.read_text() == "x":
    time.sleep(600)
"""
LOOK = """\
import multiprocessing, random, threading
import matplotlib, numpy as np, tqdm.auto, tqdm.notebook, torch
from matplotlib import pyplot as plt
threads_at_start = [thread.name for thread in threading.enumerate()]
seen |= {
    "environment": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MPLBACKEND", "PANDERM_RUN")},
    "threads": torch.get_num_threads(),
    "backend": matplotlib.get_backend(),
    "bars": tqdm.auto.tqdm.__mro__[1] is tqdm.notebook.tqdm,
    "folder": os.getcwd(),
    "argv": [sys.argv[0]],
    "main": __name__,
    "short_errors": [kind.__name__ for kind in get_ipython().custom_exceptions],  # see `messages`
    "path": sys.path,
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
    "session": os.getsid(0) == os.getpid(),
    "output": [os.readlink(f"/proc/self/fd/{fd}") for fd in (1, 2)],
    "parent": open(f"/proc/{os.getppid()}/cmdline").read().split("\\0")[1:3],
    "command": open("/proc/self/cmdline").read().split("\\0")[1:3],
}
drawn = [random.random(), np.random.random(), torch.rand(1).item(), torch.initial_seed()]
product = float((torch.ones(300, 300) @ torch.ones(300, 300)).sum())  # starts the threads of torch
with multiprocessing.get_context("fork").Pool(1) as pool:
    product += pool.apply(abs, (-1,))
plt.plot([1, 2]);
"""
LOOK_IF = "if seed < 2:\n" + textwrap.indent(LOOK, "    ")  # its imports take seconds where it starts cold
RECORD = """\
from tests.small_record import write_small_record
write_small_record(folder, seen=seen, drawn=globals().get("drawn"))
"""


THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # set for the tests themselves


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    for dataset in ("ham10000", "demo"):
        parameters = PARAMETERS.replace("demo", dataset, 1)
        write_notebook(folder / f"linear_probe/{dataset}.ipynb", parameters, SETUP, ACT, LOOK_IF, RECORD)
    return folder


@pytest.fixture
def space(tmp_path):
    return workspace.open_workspace("demo", output_root=tmp_path)


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setenv(warm_kernels.START, "warm")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


def record_of(run):
    return json.loads((run.record / "record.json").read_text())


def execute(planned, **options):
    return batch.run_batch(planned, batch.BatchOptions(**options), say=lambda line: None)


def servers():
    """Returns the servers of this process; one that has just been started may have no command line yet."""
    return [process for process in psutil.Process().children() if "warm_server" in " ".join(process.cmdline())]


def until(true, seconds=90):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.01)
    return found


@pytest.fixture(scope="module")
def forked(tmp_path_factory, notebooks):
    """A warm batch of two runs that end well, one whose kernel is killed and one that ends with 7."""
    space = workspace.open_workspace("demo", output_root=tmp_path_factory.mktemp("forked"))
    planned = make(space, notebooks, seeds=[0, 1, 2, 3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(warm_kernels.START, "warm")
        for variable in THREADS:
            patch.delenv(variable, raising=False)
        return space, planned, execute(planned)


def test_a_warm_kernel_is_as_a_cold_one(forked, notebooks, tmp_path, monkeypatch):
    _, planned, outcomes = forked
    assert [o.status for o in outcomes[:2]] == ["done", "done"], planned.runs[0].log.read_text()
    for variable in THREADS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(warm_kernels.START, "cold")
    elsewhere = workspace.open_workspace("demo", output_root=tmp_path / "cold")
    cold = make(elsewhere, notebooks, seeds=[0])
    assert [o.status for o in execute(cold)] == ["done"]
    (first, second), other = map(record_of, planned.runs[:2]), record_of(cold.runs[0])
    assert (first["seen"].pop("warm"), other["seen"].pop("warm")) == (True, False)
    marks = [record["seen"]["environment"].pop("PANDERM_RUN") for record in (first, second, other)]
    logs = [run.log for run in (*planned.runs[:2], *cold.runs)]
    assert [mark.split(" ")[::2] for mark in marks] == [[str(os.getpid()), str(log)] for log in logs]
    for record, log in ((first, logs[0]), (other, logs[2])):
        assert record["seen"].pop("output") == [str(log)] * 2
        assert "papermill" in " ".join(record["seen"].pop("parent"))
    assert first["seen"] == other["seen"]
    assert first["seen"]["bars"] and "inline" in first["seen"]["backend"] and first["seen"]["threads"] == 2
    assert not set(first["drawn"]) & set(second["drawn"])  # whatever draws without a seed draws anew in each
    outputs = []
    for run in (planned.runs[0], cold.runs[0]):
        cells = json.loads(run.output.read_text())["cells"]
        outputs.append([[output["output_type"] for output in cell.get("outputs", [])] for cell in cells])
    assert outputs[0] == outputs[1]
    assert ["display_data"] in outputs[0]  # the figure
    assert servers() == []


def test_how_a_warm_kernel_ended_is_told_and_a_killed_one_tried_again(forked):
    space, _, (*_, killed, ended) = forked
    told = re.search(r"exit code 137, peak memory (\d+) MB; tried 2 times", killed.error)
    assert told, killed.error
    assert 300 < int(told[1]) < 1500
    assert "died" in ended.error
    assert "the kernel ended with exit code 7; its peak memory was" in ended.job.log.read_text()
    assert [(space.root / f"tries-{seed}").read_text() for seed in (2, 3)] == ["xx", "x"]


def test_a_server_that_cannot_import_leaves_all_to_cold_starts(space, notebooks, tmp_path, monkeypatch):
    broken = tmp_path / "site"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import sys\nif any('warm_server' in part for part in sys.orig_argv):\n    raise SystemExit('no')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(broken))
    planned = make(space, notebooks, seeds=[5])
    assert [o.status for o in execute(planned, retries=0)] == ["done"]
    assert record_of(planned.runs[0])["seen"]["warm"] is False


def test_a_killed_batch_takes_its_server_along_and_the_next_one_ends_its_runs(space, notebooks):
    code = "import sys, pathlib, run_all; sys.exit(run_all.main(sys.argv[2:], pathlib.Path(sys.argv[1])))"
    chosen = ["--protocols", "linear_probe", "--datasets", "demo", "--encoders", "random_tiny", "--seeds", "4"]
    command = [sys.executable, "-c", code, notebooks, *chosen, "--output-root", space.root.parent]
    driver = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=subprocess.DEVNULL)
    kernel = space.root / "kernel-4"
    until(lambda: kernel.exists() and kernel.read_text())
    (server,) = psutil.Process(driver.pid).children()
    below = server.children(recursive=True)
    log = space.root / "logs/demo-linear_probe-random_tiny-seed4.log"
    assert int(kernel.read_text()) in {process.pid for process in below}
    assert {process.pid for process in leftovers.processes_of(log)} == {process.pid for process in below}
    driver.kill()
    driver.wait()
    until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)
    assert len(leftovers.leftover_processes(space.root)) == len(below)
    said = []
    leftovers.clear_leftovers(space.root, said.append)
    assert [process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert f"ended {len(below)} leftover processes" in said[0]


def test_a_server_is_started_for_two_runs_not_for_one_and_never_where_it_is_not_wanted(monkeypatch):
    with warm_kernels.Server() as warm:
        monkeypatch.setenv(warm_kernels.START, "cold")
        warm.prepare({**os.environ}, waiting=100)
        monkeypatch.delenv(warm_kernels.START)
        warm.prepare({**os.environ}, waiting=1)
        assert servers() == []
        warm.prepare({**os.environ}, waiting=2)
        (server,) = until(servers)
    assert not server.is_running()


@pytest.fixture(scope="module")
def served():
    """A server, ready or soon to be, and the environment of its runs."""
    with pytest.MonkeyPatch.context() as patch, warm_kernels.Server() as warm:
        patch.setenv(warm_kernels.START, "warm")
        environment = child_environment(1)
        warm.prepare(environment, waiting=1)
        yield warm, environment


def test_a_run_that_is_let_go_before_its_fork_never_begins(served, tmp_path):
    warm, environment = served
    with (tmp_path / "let go.log").open("wb") as log:
        (server,) = until(servers)
        command = ("timeit", ["-n", "1", "-r", "1", "-s", "import time", "open('begun', 'w'); time.sleep(600)"])
        mark = leftovers.run_mark(tmp_path / "let go.log")[leftovers.RUN]
        warm.start(*command, environment, mark, log).abandon()
        ended = warm.start("this", [], environment, mark, log)
        assert until(lambda: ended.poll() is not None) and ended.poll() == 0
        assert b"Beautiful is better than ugly" in (tmp_path / "let go.log").read_bytes()
        assert not Path("begun").exists()
        until(lambda: not leftovers.processes_of(tmp_path / "let go.log"))
        assert warm.start("this", [], environment | {"CUDA_VISIBLE_DEVICES": "1"}, mark, log) is None
        assert server.num_threads() == 1


def test_ctrl_c_reaches_a_cell_that_runs(served, space):
    """As papermill is told to end, its kernel is interrupted, so that a training saves its state."""
    write_notebook(
        space.root / "nb/linear_probe/demo.ipynb",
        PARAMETERS,
        SETUP,
        "try:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    (space.root / 'saved').touch()\n    raise\n",
    )
    write_notebook(space.root / "nb/linear_probe/ham10000.ipynb", PARAMETERS.replace("demo", "ham10000", 1), SETUP)
    (run,) = make(space, space.root / "nb", seeds=[0]).runs
    (warm, environment), stop, kernel = served, threading.Event(), space.root / "kernel-0"
    threading.Thread(target=lambda: (until(kernel.exists), time.sleep(0.5), stop.set())).start()
    outcome = execute_once(run, environment, None, stop, warm)
    assert outcome.status == "interrupted"
    assert (space.root / "saved").exists()


def test_once_the_server_is_killed_all_goes_on_cold(served, space, notebooks):
    """The last of those that share a server, as it kills it."""
    (warm, environment), planned, killed = served, make(space, notebooks, seeds=[4, 5]), []

    def kill():
        until(lambda: (space.root / "kernel-4").exists() and (space.root / "kernel-4").read_text())
        for server in servers():
            killed.append(server.open_files())
            server.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes = [execute_job(run, environment, None, threading.Event(), 0, warm) for run in planned.runs]
    killer.join()
    assert [o.status for o in outcomes] == ["done", "done"], outcomes
    assert (space.root / "tries-4").read_text() == "xx"
    assert record_of(planned.runs[1])["seen"]["warm"] is False
    assert len(killed) == 1
    assert [file.path for file in killed[0] if file.path.endswith(".log")] == []  # it would hold its lock
    assert leftovers.processes_of(planned.runs[0].log) == []
