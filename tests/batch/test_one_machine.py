"""One box: GPUs, retries, what is seen while it runs, and what a plan says it will cost. Real kernels, real kills."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from panderm_utils import workspace
from panderm_utils.batch import estimates, jobs, leftovers, plan, progress
from panderm_utils.batch import running as batch
from panderm_utils.batch import running as devices
from panderm_utils.batch.costs import Costs
from tests.batch.test_batch import PARAMETERS, make, write_notebook
from tests.small_record import write_small_record

ROOT = Path(__file__).parents[2]

# Seed 0 notes its GPUs; 4: it goes on once it was seen on the terminal; 5: its papermill is killed;
# 6: its kernel is killed, the first time; 7: each time; 8: dies of its own; 9: an error.
ACT = """\
import json, os, pathlib, signal, time
from panderm_utils import results, workspace
from panderm_utils.protocols import linear_probe
space = workspace.open_workspace(profile, output_root=output_root)
settings = {"solver": solver, "train_fraction": train_fraction}
run = results.run_id(linear_probe.PROTOCOL, profile, dataset, encoder, seed, **settings)
folder, tries = space.records / run, space.root / f"tries-{seed}"
tries.write_text((tries.read_text() if tries.exists() else "") + "x")
ballast = bytearray(200_000_000)
patience = time.monotonic() + 60
while seed == 4 and not (space.root / "seen").exists() and time.monotonic() < patience:
    time.sleep(0.05)
if seed == 7 or (seed == 6 and tries.read_text() == "x"):
    os.kill(os.getpid(), signal.SIGKILL)
if seed == 5:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(600)
if seed == 8:
    os._exit(3)
if seed == 9:
    raise ValueError("no image")
"""
RECORD = """\
from tests.small_record import write_small_record
from ipykernel.connect import get_connection_info
seen = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "address": get_connection_info(unpack=True)["ip"]}
write_small_record(folder, seen=seen)
"""


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    for dataset in ("ham10000", "demo"):
        parameters = PARAMETERS.replace("demo", dataset, 1) + "processes = 1\n"
        write_notebook(folder / f"linear_probe/{dataset}.ipynb", parameters, ACT, RECORD)
    return folder


@pytest.fixture
def space(tmp_path):
    return workspace.open_workspace("demo", output_root=tmp_path)


def seen(run):
    return json.loads((run.record / "record.json").read_text())["seen"]


def test_each_run_has_a_gpu_of_its_own_and_a_wide_one_several(space, notebooks):
    quiet = {"say": lambda line: None}
    how = batch.BatchOptions(gpus=("2", "5"))
    narrow = make(space, notebooks, seeds=[0, 1]).runs
    (wide,) = make(space, notebooks, seeds=[3], overrides=["processes=2"]).runs
    assert batch.exit_status(batch.run_batch(jobs.Plan(space, (*narrow, wide), ()), how, **quiet)) == 0
    assert {seen(run)["gpus"] for run in narrow} == {"2", "5"}
    assert sorted(seen(wide)["gpus"].split(",")) == ["2", "5"]  # in the order in which they were given back
    if sys.platform == "linux":  # kernels do not contend for ports
        assert len({seen(run)["address"] for run in (*narrow, wide) if seen(run)["address"][0] == "@"}) == 3
    with pytest.raises(ValueError, match=r"needs 3 GPUs; name as many with --gpus"):
        devices.check_gpus(make(space, notebooks, seeds=[4], overrides=["processes=3"]).runs, how.gpus)


def test_gpus_are_named_by_the_user_the_scheduler_or_the_driver(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-8a1b,7")
    assert devices.read_gpus("all") == ("4", "GPU-8a1b", "7")
    assert devices.read_gpus("7, 4") == ("7", "4")
    with pytest.raises(ValueError, match=r"no GPU 0 here; write --gpus all, or choose from 4, GPU-8a1b, 7 \(CUDA_VIS"):
        devices.read_gpus("0,4")
    with pytest.raises(ValueError, match="each GPU once"):
        devices.read_gpus("4,4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ValueError, match="shows no GPU; leave --gpus out"):
        devices.read_gpus("all")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    driver = tmp_path / "nvidia-smi"  # what the real one prints
    driver.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H100 (UUID: GPU-2)'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert devices.read_gpus("all") == ("0", "1")
    driver.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="nvidia-smi -L shows no GPU"):
        devices.read_gpus("0")


def test_a_killed_kernel_is_tried_again_and_an_error_of_the_code_never(space, notebooks):
    planned = make(space, notebooks, seeds=[6, 7, 8, 9])
    outcomes = batch.run_batch(planned, batch.BatchOptions(jobs=2, retries=1), say=lambda line: None)
    assert [o.status for o in outcomes[:4]] == ["done", "failed", "failed", "failed"], outcomes
    assert [len((space.root / f"tries-{seed}").read_text()) for seed in (6, 7, 8, 9)] == [2, 2, 1, 1], outcomes
    told = re.search(r"exit code 137, peak memory (\d+) MB; tried 2 times", outcomes[1].error)
    assert told, outcomes[1].error
    assert 200 < int(told[1]) < 1000  # the ballast was never in use by papermill or by this process
    assert "died" in outcomes[2].error


def test_a_killed_papermill_leaves_no_kernel_and_is_tried_again(space, notebooks):
    planned = make(space, notebooks, seeds=[5])
    outcome = batch.run_batch(planned, say=lambda line: None)[0]
    assert outcome.error == "papermill was killed, probably because memory ran out; tried 2 times"
    assert (space.root / "tries-5").read_text() == "xx"
    assert leftovers.processes_of(planned.runs[0].log) == []


def test_a_kernel_that_does_not_start_is_tried_again(space, notebooks, tmp_path, monkeypatch):
    broken = tmp_path / "site"  # makes ipykernel fail, the first time
    broken.mkdir()
    (broken / "ipykernel_launcher.py").write_text(
        f"import os, runpy, sys\nmark = {str(tmp_path / 'tried')!r}\n"
        "if not os.path.exists(mark):\n    open(mark, 'w').close()\n    sys.exit(1)\n"
        "sys.path.remove(os.path.dirname(os.path.abspath(__file__)))\n"
        "runpy.run_module('ipykernel_launcher', run_name='__main__')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(broken))
    outcome = batch.run_batch(make(space, notebooks, seeds=[1]), batch.BatchOptions(retries=0), say=lambda line: None)[
        0
    ]
    assert outcome.status == "failed"
    assert "the kernel did not start" in outcome.error
    (tmp_path / "tried").unlink()
    assert batch.run_batch(make(space, notebooks, seeds=[1]), say=lambda line: None)[0].status == "done"


def record_of(folder, seconds, memory=2_000, gpu=None, gpu_memory=None):
    facts = {"peak_memory_mb": {"process": memory, "gpu": gpu_memory}, "environment": {"gpu": gpu}}
    write_small_record(folder, timings={"total_seconds": seconds}, **facts)


def test_a_plan_tells_what_like_runs_took_and_never_guesses(tmp_path):
    space = workspace.open_workspace("paper", tmp_path, tmp_path, tmp_path)
    for seed, seconds, memory in ((1, 3600, 9_800), (2, 7200, 9_900)):
        name = f"ham10000-fine_tune-panderm_large-seed{seed}"
        record_of(space.records / name, seconds, 4_100, "H100", memory)
        (space.checkpoints / name).mkdir(parents=True)
        (space.checkpoints / name / "best.safetensors").write_bytes(bytes(3_000_000))
    chosen = {"datasets": ["ham10000"], "encoders": ["panderm_large", "panderm_base"]}
    planned = plan.make_plan(space, **chosen, protocols=["fine_tune", "linear_probe"])
    text = estimates.describe_plan(planned, verbose=True)
    assert "ham10000-fine_tune-panderm_large-seed0  90 min, 4.1 GB, 9.9 GB of a H100 (from 2 similar runs)" in text
    assert "ham10000-fine_tune-panderm_base-seed0  unknown" in text
    assert "GPU time: 90 min for 1 run, estimated from similar runs" in text
    assert "Time and memory of 3 runs: unknown" in text
    size = 4 * (8207 + 575 + 1232) * (1024 + 768) / 1e6
    pixels = (8207 + 575 + 1232) * 3 * 224 * 224 / 1e9  # once for all encoders
    needed = f"features {size:.0f} MB; decoded images {pixels:.1f} GB; checkpoints 3 MB, checkpoints of 1 run unknown"
    assert needed in text
    other = plan.make_plan(space, datasets=["ddi"], encoders=["panderm_large"], protocols=["linear_probe"])
    assert "Registration or a signed agreement is needed for: ddi" in estimates.describe_plan(other)
    quicker = plan.make_plan(space, **chosen, protocols=["fine_tune"], seeds=[0], overrides=["epochs=5"])
    assert "Time and memory of 2 runs: unknown" in estimates.describe_plan(
        quicker
    )  # with other settings, runs are not similar


def test_the_longest_run_starts_first_and_the_time_left_is_what_like_runs_took(space, notebooks):
    for encoder, seconds in (("panderm_tiny", 10), ("random_tiny", 400)):
        record_of(space.records / f"demo-linear_probe-{encoder}-seed9", seconds)
    planned = make(space, notebooks, encoders=["panderm_tiny", "random_tiny"], seeds=[0, 1])
    costs = Costs(planned)
    ordered = costs.longest_first(list(planned.runs))
    assert [run.parameters["encoder"] for run in ordered] == ["random_tiny"] * 2 + ["panderm_tiny"] * 2
    assert [run.parameters["seed"] for run in ordered] == [0, 1, 0, 1]
    seen = progress.Progress(ordered, 2, print, costs, live=False)
    assert seen.seconds_left() == pytest.approx((10 + 10 + 400 + 400) / 2)


def test_without_similar_runs_trainings_start_first(tmp_path):
    space = workspace.open_workspace("demo", output_root=tmp_path)
    planned = plan.make_plan(space, ["demo", "ddi"], ["panderm_tiny"], ["linear_probe", "fine_tune"])
    costs = Costs(planned)
    ordered = costs.longest_first([*planned.runs, *planned.paper])
    assert [job.protocol for job in ordered[:4]] == ["fine_tune", "fine_tune", "linear_probe", "linear_probe"]
    assert [job.name for job in ordered[4:]] == [job.name for job in planned.paper]


def run_all(notebooks, space, seed, **options):
    code = "import sys, pathlib, run_all; sys.exit(run_all.main(sys.argv[2:], pathlib.Path(sys.argv[1])))"
    chosen = ["--protocols", "linear_probe", "--datasets", "demo", "--encoders", "random_tiny", "--seeds", seed]
    command = [sys.executable, "-c", code, notebooks, *chosen, "--only", "*", "--output-root", space.root.parent]
    return subprocess.Popen([str(part) for part in command], cwd=ROOT, **options)


def test_a_terminal_sees_what_runs_and_a_pipe_or_ci_only_lines(space, notebooks, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))
    process = run_all(notebooks, space, "4", stdout=slave, stderr=slave)
    os.close(slave)
    shown, heading = b"", b"demo-linear_probe-random_tiny-seed4: title"  # the one above the cell that runs
    while True:
        try:
            part = os.read(master, 65_536)
        except OSError:  # the terminal's other side is closed
            break
        shown += part
        if heading in shown:
            (space.root / "seen").touch()
    assert process.wait() == 0
    text = shown.decode()
    assert "runs" in text
    assert (space.root / "seen").exists()
    assert "[1/1] done" in text
    piped = workspace.open_workspace("demo", output_root=space.root.parent / "piped")
    output, _ = run_all(notebooks, piped, "0", stdout=subprocess.PIPE, stderr=subprocess.STDOUT).communicate()
    assert b"\r" not in output
    assert b"[1/1] done" in output
