"""Batches on a real Slurm: arrays, failures, requeues, time limits, a controller that restarts; accounting is off."""

import json
import os
import pickle
import pty
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import panderm_utils  # noqa: F401  first of all: makes torchvision, and so timm, importable

# isort: split
import pytest
import torch
from safetensors.torch import load_file

import run_all
from panderm_utils import results, workspace
from panderm_utils.batch import parameters, plan, slurm, slurm_queue, slurm_submission
from panderm_utils.batch import running as batch
from tests.batch.slurm_on_loopback import missing_programs, slurm_on_loopback, until
from tests.batch.test_batch import write_notebooks
from tests.chaos import house

ROOT = Path(__file__).parents[2]
NAME, ROW = "demo-linear_probe-random_tiny-seed", "row 7 of my.csv has no image"
SELECTION = ["--protocols", "linear_probe", "--datasets", "demo", "--encoders", "random_tiny"]
MAIN = "import sys, pathlib, run_all; sys.exit(run_all.main(sys.argv[2:], pathlib.Path(sys.argv[1])))"
# Seed 1: fails; 2 and 5: wait to be interrupted, and are well when they run again; 3 and 7: wait for ever; 4: waits for
# a file; others: well.
ACT = """\
lives = space.root / f"lives-{seed}"
with lives.open("a") as file:
    file.write(os.environ.get("SLURM_JOB_ID", "here") + "\\\\n")
first = len(lives.read_text().split()) == 1
if seed == 1:
    raise ValueError("row 7 of my.csv has no image")
try:
    while seed in (3, 7) or (seed in (2, 5) and first) or (seed == 4 and not (space.root / "go").exists()):
        time.sleep(0.05)
except KeyboardInterrupt:
    (space.root / f"saved-{seed}").touch()
    raise
from tests.small_record import write_small_record
write_small_record(folder, threads=os.environ["OMP_NUM_THREADS"])
""".replace("\\\\", "\\")


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("submitit", reason='needs submitit: pip install -e ".[cluster]"')
    if absent := missing_programs():
        pytest.skip(f"needs {', '.join(absent)}: apt-get install slurm-wlm munge")
    with slurm_on_loopback() as running, pytest.MonkeyPatch.context() as patch:
        patch.setattr(slurm_queue, "QUERY_INTERVAL", 0.5)
        patch.setattr(slurm, "POLL", 0.1)
        patch.delenv("OMP_NUM_THREADS", raising=False)
        yield running


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    return write_notebooks(tmp_path_factory.mktemp("notebooks"), ACT)


@pytest.fixture
def space(tmp_path):
    return workspace.open_workspace("demo", output_root=tmp_path / "all outputs")


def make(space, notebooks, *seeds):
    """A plan without drawings, which are drawn here and not in Slurm."""
    return replace(make_all(space, notebooks, *seeds), paper=())


def make_all(space, notebooks, *seeds):
    return plan.make_plan(space, ["demo"], ["random_tiny"], ["linear_probe"], seeds, notebooks=notebooks)


def job_of(space, seed):
    """The Slurm job that the batch noted for a run."""
    return json.loads((space.root / "slurm/jobs.json").read_text())[f"demo-linear_probe-random_tiny-seed{seed}"]


def lives(space, seed):
    file = space.root / f"lives-{seed}"
    return len(file.read_text().split()) if file.is_file() else 0


def begin(planned, jobs=1, options=()):
    """Starts a batch in a thread; returns what it says, and a function that waits for its outcomes."""
    said, outcomes = [], []

    def follow():
        outcomes.extend(slurm.run_on_slurm(planned, batch.BatchOptions(jobs), options, said.append))

    thread = threading.Thread(target=follow, daemon=True)  # it waits as long as Slurm is away, so also after a failure
    thread.start()

    def wait():
        thread.join(120)
        return {outcome.job.parameters.get("seed"): outcome for outcome in outcomes}

    return said, wait


@pytest.fixture(scope="module")
def under_way(cluster, notebooks, tmp_path_factory):
    """Two batches to which much happens; as Slurm looks at time limits twice a minute only, other tests go first."""
    space = workspace.open_workspace("demo", output_root=tmp_path_factory.mktemp("eventful"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slurm_submission, "WARNING", 0)  # none, so that Slurm kills at the time limit
        _, wait_killed = begin(make(space, notebooks, 3))
        until(lambda: (space.root / "slurm/jobs.json").is_file() and not job_of(space, 3).startswith("held"))
    killed = job_of(space, 3)
    said, wait = begin(make(space, notebooks, 2, 4, 5, 7), jobs=4)
    until(lambda: all(lives(space, seed) for seed in (2, 3, 4, 5, 7)))
    cluster.stop("slurmctld")
    until(lambda: any("Slurm does not answer" in line for line in said))
    (space.root / "go").touch()
    until(lambda: results.is_done(space.records / f"{NAME}4"))
    cluster.start("slurmctld")
    until(lambda: cluster.facts(job_of(space, 2))["JobState"] == "RUNNING")
    cluster("scontrol", "update", f"JobId={killed}", "EndTime=now")
    cluster("scontrol", "update", f"JobId={job_of(space, 5)}", "EndTime=now+85seconds")
    cluster("scontrol", "requeue", job_of(space, 2))
    cluster("scancel", job_of(space, 7))
    cluster.hurry(job_of(space, 2))

    def end():
        cluster.hurry(job_of(space, 5), "TimeLimit=60")  # a new end had made it two minutes
        return wait() | wait_killed()

    return space, end, said


def test_an_array_completes_and_a_failure_is_as_it_is_here(cluster, under_way, space, notebooks):
    assert subprocess.run(["sacct"], capture_output=True).returncode  # accounting is off, and not needed
    planned, said = make_all(space, notebooks, 0, 1, 6), []
    options = ["cpus-per-task=1", "linear_probe:comment=two words"]
    (space.root / "slurm").mkdir(parents=True)
    for number in range(20):  # outcomes of an earlier Slurm that gave the same numbers
        (space.root / f"slurm/{number}_0_0_result.pkl").write_bytes(pickle.dumps(("error", "an old one")))
    outcomes = slurm.run_on_slurm(planned, batch.BatchOptions(jobs=2), options, said.append)
    assert [outcome.status for outcome in outcomes] == ["done", "failed", "done", "done"]
    assert batch.exit_status(outcomes) == 1
    (here,) = batch.run_batch(make(space, notebooks, 1), say=lambda line: None)
    assert (outcomes[1].cell, outcomes[1].error) == (here.cell, here.error) == ("cell-1", f"ValueError: {ROW}")
    jobs = [job_of(space, seed) for seed in (0, 1, 6)]
    array = jobs[0].split("_")[0]
    assert jobs == [f"{array}_{index}" for index in range(3)]
    facts = cluster.facts(jobs[2])
    assert (facts["ArrayTaskThrottle"], facts["TimeLimit"], facts["Requeue"]) == ("2", "04:00:00", "1")
    assert said[0] == f"3 of 3 runs submitted as Slurm job {array}, 2 at a time"
    assert [line[:5] for line in said if line.startswith("[")] == ["[1/3]", "[2/3]", "[3/3]", "[1/1]"]
    assert sorted(p.name for p in (space.root / "executed/linear_probe").iterdir()) == [
        f"{NAME}0.ipynb",
        f"{NAME}1.failed.ipynb",
        f"{NAME}6.ipynb",
    ]
    record = json.loads((space.records / f"{NAME}0/record.json").read_text())
    assert record["threads"] == "1"  # not all of the node's, which no control group hides here
    assert (space.figures / "figure.txt").read_text() == f"{NAME}0 {NAME}6"
    again = slurm.run_on_slurm(make_all(space, notebooks, 0, 6), batch.BatchOptions(), [], said.append)
    assert [outcome.status for outcome in again] == ["skipped"] * 3


def test_a_run_that_reaches_its_time_limit_too_often_has_failed(cluster, space, notebooks, monkeypatch):
    monkeypatch.setattr(slurm_submission, "MAX_TIMEOUTS", 0)
    _, wait = begin(make(space, notebooks, 3), options=["time=5"])
    until(lambda: lives(space, 3))
    cluster("scancel", "--signal=USR2", job_of(space, 3))  # as Slurm does before the limit
    outcome = wait()[3]
    assert (outcome.status, lives(space, 3)) == ("failed", 1)
    assert "timed-out too many times" in outcome.error


def test_a_batch_that_is_left_can_be_attached_to_again(cluster, space, notebooks):
    command = [sys.executable, "-c", MAIN, str(notebooks), *SELECTION, "--output-root", str(space.root.parent)]
    command += ["--slurm", "--seeds"]
    left = subprocess.Popen([*command, "4"], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    until(lambda: lives(space, 4))
    left.send_signal(signal.SIGINT)
    told, _ = left.communicate(timeout=60)
    job = job_of(space, 4)
    assert left.returncode == 130
    assert f"1 run left in Slurm; the same command attaches to them, `scancel {job}` cancels them" in told
    said, wait = begin(make_all(space, notebooks, 4, 0))
    until(lambda: len(said) > 1)
    assert said[0] == f"1 of 2 runs are already in Slurm, as job {job}"
    assert said[1].startswith("1 of 2 runs submitted")
    assert job_of(space, 4) == job
    (space.root / "go").touch()
    assert {seed: outcome.status for seed, outcome in wait().items()} == {4: "done", 0: "done", None: "done"}
    assert lives(space, 4) == 1


@pytest.mark.parametrize(("answer", "state"), [("l", "RUNNING"), ("c", "CANCELLED")])
def test_ctrl_c_on_a_terminal_offers_to_leave_or_to_cancel(cluster, space, notebooks, answer, state):
    arguments = [str(notebooks), *SELECTION, "--seeds", "3", "--output-root", str(space.root.parent), "--slurm"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", MAIN, *arguments])
    shown = b""

    def show(text):
        nonlocal shown
        while text not in shown:
            shown += os.read(terminal, 1000)

    show(b"Slurm's logs")
    os.write(terminal, b"\x03")
    show(b"[l]eave them in Slurm or [c]ancel them?")
    os.write(terminal, answer.encode() + b"\n")
    show(b"outputs: ")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    until(lambda: cluster.facts(job_of(space, 3))["JobState"] == state)
    cluster("scancel", job_of(space, 3))


def test_a_printed_script_does_the_same(cluster, space, notebooks, tmp_path, capsys):
    front = tmp_path / "front.py"
    front.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        + MAIN.replace("sys.argv[2:]", "None").replace("sys.argv[1]", repr(str(notebooks)))
    )
    arguments = [*SELECTION, "--seeds", "2", "0", "--output-root", str(space.root.parent), "--jobs", "2"]
    assert run_all.main([*arguments, "--slurm-script", "--slurm-option", "partition=main"], notebooks) == 0
    script = capsys.readouterr().out.replace(str(ROOT / "run_all.py"), str(front))
    (tmp_path / "runs.sh").write_text(script)
    line = next(line for line in script.splitlines() if line.startswith("# sbatch"))
    last = subprocess.run(
        line[1:], shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    array = cluster.facts(last)["Dependency"].split(":")[1].split("_")[0]
    until(lambda: lives(space, 2) and results.is_done(space.records / f"{NAME}0"))
    cluster("scancel", "--batch", "--signal=USR2", f"{array}_0")  # as Slurm does before the time limit
    cluster.hurry(f"{array}_0")
    until(lambda: cluster.facts(last)["JobState"] == "COMPLETED")
    assert (space.root / "saved-2").is_file()
    assert (lives(space, 2), lives(space, 0)) == (2, 1)
    assert (space.figures / "figure.txt").read_text() == f"{NAME}0 {NAME}2"


@pytest.fixture(scope="module")
def eventful(under_way):
    """The outcomes of the two batches."""
    space, end, said = under_way
    return space, end(), said


def test_a_requeued_run_is_executed_again(eventful):
    space, outcomes, _ = eventful
    assert (outcomes[2].status, lives(space, 2)) == ("done", 2)
    assert results.is_done(space.records / f"{NAME}2")


def test_a_restart_of_the_controller_is_waited_out(eventful):
    space, outcomes, said = eventful
    assert (outcomes[4].status, lives(space, 4)) == ("done", 1)
    assert len([line for line in said if "Slurm does not answer" in line]) == 1


def test_before_its_time_limit_a_run_is_ended_cleanly_and_queued_again(eventful):
    space, outcomes, _ = eventful
    assert (space.root / "saved-5").is_file()  # the notebook heard of it, and could write a checkpoint
    assert (outcomes[5].status, lives(space, 5)) == ("done", 2)


@pytest.mark.parametrize(("seed", "state"), [(3, "TIMEOUT"), (7, "CANCELLED")])
def test_what_slurm_ended_for_good_is_a_failure_that_says_so(eventful, seed, state):
    space, outcomes, _ = eventful
    job = job_of(space, seed)
    log = space.root / f"slurm/{job}_0_log.out"
    assert (outcomes[seed].status, lives(space, seed)) == ("failed", 1)
    assert outcomes[seed].error == f"Slurm ended job {job}: {state}; see {log}"
    assert log.is_file()


def test_a_preempted_run_goes_on_later(cluster, space, notebooks):
    """Where Slurm asks with TERM and leaves a minute's grace, a run that just ended would not be queued again."""
    _, wait = begin(make(space, notebooks, 2))
    until(lambda: lives(space, 2))
    cluster("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    cluster.hurry(job_of(space, 2))
    assert (wait()[2].status, lives(space, 2)) == ("done", 2)


def test_fine_tuning_on_two_nodes_goes_on_when_it_was_queued_again_and_does_what_one_process_does(cluster, tmp_path):
    at = house.House(tmp_path)
    outputs, run = at.new_outputs(), house.run_name("fine_tune")
    space = workspace.open_workspace("paper", at.data, at.root, outputs)
    selection = ([house.DATASET], ["panderm_tiny"], ["fine_tune"])
    planned = plan.make_plan(space, *selection, notebooks=at.root / "notebooks", overrides=["processes=2"])
    _, wait = begin(planned, options=["nodes=2", "partition=both"])
    until(lambda: house.epochs(outputs))
    job = json.loads((space.root / "slurm/jobs.json").read_text())[run]
    cluster("scontrol", "requeue", job)
    cluster.hurry(job)
    before = house.epochs(outputs)
    assert 1 <= len(before) < 3
    outcome = wait()[0]
    assert outcome.status == "done", planned.runs[0].log.read_text()
    facts = cluster.facts(job)
    assert (facts["Restarts"], facts["NumNodes"]) == ("1", "2")
    after = house.epochs(outputs)
    assert (len(after), after[: len(before)]) == (3, before)  # with the seconds that each had taken

    here = {}  # the same in this process
    roots = {"data_root": str(at.data), "output_root": str(tmp_path / "here")}
    exec(house.PARAMETERS, here)
    here |= {"encoder": "panderm_tiny", "dataset": house.DATASET, **roots}
    exec(house.SETUP.replace("PROTOCOL", "fine_tune.PROTOCOL") + house.TUNE, here)
    facts = results.read_record(planned.runs[0].record)["training"]
    assert facts["processes"] == 2 and facts["best_epoch"] == here["tuned"].facts["best_epoch"]
    kept = load_file(space.checkpoints / run / "best.safetensors")
    for name, value in load_file(here["folder"] / "best.safetensors").items():
        assert torch.allclose(kept[name], value, rtol=0, atol=5e-6), name


def test_an_array_longer_than_slurm_allows_is_split_and_its_parts_follow_each_other(cluster, space, notebooks):
    assert slurm_submission.longest_array() == 4
    said, wait = begin(make(space, notebooks, 0, 4, 6, 8, 9), jobs=2, options=["comment=all"])
    until(lambda: lives(space, 4) and len(said) > 1)
    first, last = job_of(space, 0), job_of(space, 9)
    array = first.split("_")[0]
    assert [job_of(space, seed) for seed in (0, 4, 6, 8)] == [f"{array}_{index}" for index in range(4)]
    facts = cluster.facts(last)
    assert (facts["JobState"], facts["Dependency"].split(":")[0], facts["Comment"]) == ("PENDING", "afterany", "all")
    assert array in facts["Dependency"]
    assert lives(space, 9) == 0
    (space.root / "go").touch()
    assert {outcome.status for outcome in wait().values()} == {"done"}
    assert [lives(space, seed) for seed in (0, 4, 6, 8, 9)] == [1] * 5
    assert [line.split(" as ")[0] for line in said[:2]] == ["4 of 5 runs submitted", "1 of 5 runs submitted"]


def killed_batch(space, notebooks, folder, program, script):
    """Runs a batch of seed 0 in which this program is a script that kills the batch; returns what Slurm has then."""
    folder.mkdir()
    (folder / program).write_text(f"#!/bin/sh\nreal={shutil.which(program)}\n{script}\n")
    (folder / program).chmod(0o755)
    command = [sys.executable, "-c", MAIN, str(notebooks), *SELECTION, "--output-root", str(space.root.parent)]
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run([*command, "--slurm", "--seeds", "0"], cwd=ROOT, env=environment, timeout=100)
    assert done.returncode == -signal.SIGKILL
    return slurm_queue.query_jobs(slurm_submission.job_name(make(space, notebooks, 0)))


def test_a_batch_killed_before_it_noted_its_job_loses_none_and_runs_none_twice(cluster, space, notebooks, tmp_path):
    found = killed_batch(space, notebooks, tmp_path / "bin", "sbatch", '"$real" "$@"\nkill -9 $PPID')
    assert list(found.values()) == [("PENDING", "JobHeldUser")]
    assert not (space.root / "slurm/jobs.json").exists()
    said, wait = begin(make(space, notebooks, 0))
    assert wait()[0].status == "done"
    (stray,) = found
    assert said[0].startswith(f"cancelled Slurm job {stray}: a killed batch had submitted it")
    assert cluster.facts(stray)["JobState"] == "CANCELLED"
    assert (lives(space, 0), job_of(space, 0) == stray) == (1, False)


def test_a_batch_killed_before_it_released_its_job_finds_it_again(cluster, space, notebooks, tmp_path):
    script = '[ "$1" = release ] && kill -9 $PPID && exit\nexec "$real" "$@"'
    ((job, held),) = killed_batch(space, notebooks, tmp_path / "bin", "scontrol", script).items()
    assert (held, job_of(space, 0)) == (("PENDING", "JobHeldUser"), f"held {job}")
    said, wait = begin(make(space, notebooks, 0))
    assert wait()[0].status == "done"
    assert said[0] == f"1 of 1 runs are already in Slurm, as job {job}"
    assert lives(space, 0) == 1


def test_limits_are_read_as_slurm_reads_them(cluster):
    for limit in ("90", "90:30", "4:00:00", "1-12", "1-12:30", "2-0:0:30"):
        job = cluster("sbatch", "--parsable", "--hold", f"--time={limit}", "--wrap=true").strip()
        days, _, clock = cluster.facts(job)["TimeLimit"].rpartition("-")
        hours, mins, _ = map(int, clock.split(":"))
        assert slurm_submission.minutes(limit) == int(days or 0) * 1440 + hours * 60 + mins, limit
        cluster("scancel", job)
    with pytest.raises(parameters.PlanError, match="time=soon"):
        slurm_submission.minutes("soon")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("partition=nowhere", "invalid partition"),
        ("array=0-3", "not array"),
        ("fine_tune:mem=1G", "linear_probe"),
    ],
)
def test_what_slurm_does_not_take_is_told_in_a_line(cluster, space, notebooks, option, message, capsys):
    arguments = [*SELECTION, "--output-root", str(space.root.parent), "--slurm", "--slurm-option", option]
    assert run_all.main(arguments, notebooks) == 2
    assert message in capsys.readouterr().err


def test_what_is_not_installed_is_told_in_a_line(cluster, space, notebooks, monkeypatch, capsys):
    arguments = [*SELECTION, "--output-root", str(space.root.parent), "--slurm"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        assert run_all.main(arguments, notebooks) == 2
    monkeypatch.setenv("PATH", "")
    assert run_all.main(arguments, notebooks) == 2
    told = capsys.readouterr().err.splitlines()
    assert ['pip install -e ".[cluster]"' in told[0], "no `squeue` here" in told[1]] == [True, True]


def test_runs_of_one_shape_share_an_array(space):
    runs = plan.make_plan(space, datasets=["demo"]).runs
    given = ["partition=gpu", "fine_tune:gpus-per-node=1", "linear_probe:time=30"]
    shapes = slurm_submission.group_into_arrays(runs, slurm_submission.settle_options(runs, given))
    usual = {"partition": "gpu", "time": slurm_submission.DEFAULT_TIME}
    fitting = set(plan.list_protocols()) - {"segmentation"}  # `demo` has no masks
    expected = {**dict.fromkeys(fitting, usual), "linear_probe": {**usual, "time": "30"}}
    expected["fine_tune"] = {**usual, "gpus_per_node": "1"}
    assert {run.notebook.parent.name: options for options, alike in shapes for run in alike} == expected
    assert len(shapes) == 3
