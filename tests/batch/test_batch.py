"""Batches run for real: throw-away notebooks, papermill, kernels, signals."""

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest

from panderm_utils import workspace
from panderm_utils.batch import estimates, execution, leftovers, plan
from panderm_utils.batch import running as batch
from panderm_utils.manifests import reading as manifests
from panderm_utils.protocols import load_protocol
from panderm_utils.protocols.label_efficiency import choose_rival
from panderm_utils.results import is_done, run_id
from tests.small_record import write_small_record

ROOT = Path(__file__).parents[2]

PARAMETERS = """\
dataset = "demo"
profile = "demo"
encoder = None
weights = None
data_root = None
weights_root = None
output_root = None
seed = 0
train_fraction = 1.0
solver = "published"
batch_size = 64
behaviour = "by seed"  # what to do
"""
SETUP = """\
import json, os, pathlib, sys, time
from panderm_utils import results, workspace
from panderm_utils.protocols import linear_probe
space = workspace.open_workspace(profile, output_root=output_root)
settings = {"solver": solver, "train_fraction": train_fraction}
run = results.run_id(linear_probe.PROTOCOL, profile, dataset, encoder, seed, **settings)
folder = space.records / run
(space.root / f"kernel-{seed}").write_text(str(os.getpid()))
"""
# Seed 0: well; 1: fails; 2: its kernel dies; 3: leaves no record; 4: never ends and ignores Ctrl-C; 5: sleeps.
ACT = """\
if seed == 1:
    raise ValueError("x: 1 x missing column, 12 x missing file\\n  my.csv:1: no `label`\\n  ... and 2 more")
if seed == 2:
    os._exit(1)
while seed == 4:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pass
if seed == 5:
    time.sleep(600)
if seed != 3:
    from tests.small_record import write_small_record
    seen = {"types": [type(train_fraction).__name__, type(batch_size).__name__], "cwd": os.getcwd()}
    seen |= {"threads": os.environ.get("OMP_NUM_THREADS"), "prefix": sys.prefix}
    write_small_record(folder, seen=seen)
"""
ASLEEP = """\
import os, time
from panderm_utils import workspace
space = workspace.open_workspace(profile, output_root=output_root)
(space.root / f"kernel-{seed}").write_text(str(os.getpid()))
time.sleep(600)
"""
# By a clock that is 50 years slow.
DRAW = """\
import os
from panderm_utils import results, workspace
from panderm_utils.protocols import linear_probe
space = workspace.open_workspace(profile, output_root=output_root)
space.figures.mkdir(exist_ok=True)
(space.figures / "figure.txt").write_text(" ".join(sorted(p.name for p in space.records.iterdir())))
os.utime(space.figures / "figure.txt", (0, 0))
(space.root / "threads").write_text(os.environ["OMP_NUM_THREADS"])
"""


# Opens a terminal as the leader of a session, which makes it that session's, and becomes the command given.
IN_TERMINAL = "import os, sys; os.open(sys.argv[1], os.O_RDWR); os.execv(sys.argv[2], sys.argv[2:])"


def write_notebook(path, parameters, *sources):
    cells = [nbformat.v4.new_markdown_cell("# title", id="title")]
    cells.append(nbformat.v4.new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}))
    cells += [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    return write_notebooks(tmp_path_factory.mktemp("notebooks"))


def write_notebooks(folder, act=ACT):
    for dataset in ("ham10000", "demo"):
        write_notebook(folder / f"linear_probe/{dataset}.ipynb", PARAMETERS.replace("demo", dataset, 1), SETUP, act)
    write_notebook(folder / "paper/figure.ipynb", 'profile = "demo"\noutput_root = None\n', DRAW)
    return folder


@pytest.fixture
def space(tmp_path):
    return workspace.open_workspace("demo", output_root=tmp_path)


def make(space, notebooks, **selection):
    selection = {"datasets": ["demo"], "encoders": ["random_tiny"], **selection}
    return plan.make_plan(space, notebooks=notebooks, **{"protocols": ["linear_probe"], **selection})


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, notebooks):
    """A forced batch of four runs of which one ends well; the last, which leaves no record, has an old one."""
    space = workspace.open_workspace("demo", output_root=tmp_path_factory.mktemp("mixed"))
    planned = make(space, notebooks, seeds=[0, 1, 2, 3], overrides=["train_fraction=1", "batch_size=8"])
    write_small_record(planned.runs[3].record)
    user = tmp_path_factory.mktemp("user")  # whose own python3 kernel is another one, and no good
    (user / "kernels/python3").mkdir(parents=True)
    kernel = {"argv": ["false", "{connection_file}"], "display_name": "other", "language": "python"}
    (user / "kernels/python3/kernel.json").write_text(json.dumps(kernel))
    said = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("PATH", user), ("DATA_DIR", user), ("PREFER_ENV_PATH", "0")):
            patch.setenv(f"JUPYTER_{name}", str(value))
        patch.delenv("OMP_NUM_THREADS", raising=False)
        first = batch.run_batch(planned, batch.BatchOptions(jobs=2, force=True), say=said.append)
    return space, planned, first, said


def test_one_failure_does_not_stop_the_rest_and_each_says_where_and_why(mixed):
    space, _, outcomes, said = mixed
    assert [o.status for o in outcomes] == ["done", "failed", "failed", "failed", "done"]
    assert (outcomes[1].cell, outcomes[1].error) == ("cell-1", "ValueError: x: 1 x missing column, 12 x missing file")
    assert outcomes[2].cell == "cell-1"
    assert "died" in outcomes[2].error
    assert "without writing a complete record" in outcomes[3].error  # for which its old record does not vouch
    assert batch.exit_status(outcomes) == 1
    text = batch.describe_outcomes(outcomes)
    assert "cell cell-1: ValueError: x: 1 x missing column, 12 x missing file\n" in text
    assert str(outcomes[1].job.log) in text
    assert "2 done, 3 failed" in text
    assert [line[:5] for line in said if line.startswith("[")] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]", "[1/1]"]
    for seed in range(4):
        assert not alive(int((space.root / f"kernel-{seed}").read_text()))


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("x: 12 x missing file\n  x.csv:2: a.jpg\n  ... and 2 more of this kind", "E: x: 12 x missing file"),
        (
            "2 processes ended with 1; the end of x.log:\n  a\n  b: no memory",
            "E: 2 processes ended with 1; the end of x.log: b: no memory",
        ),
        ("\x1b[31mno\x1b[0m\n", "E: no"),
        ("", "E:"),
    ],
)
def test_the_summary_shows_the_line_of_an_error_that_helps(tmp_path, message, line):
    failed = nbformat.v4.new_output("error", ename="E", evalue=message, traceback=[])
    cells = [nbformat.v4.new_code_cell("1", id="a"), nbformat.v4.new_code_cell("2", id="b", outputs=[failed])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "x.ipynb")
    assert execution.diagnose(tmp_path / "x.ipynb", tmp_path / "x.log") == ("b", line)


def test_executed_notebooks_are_kept_whole_or_marked_as_failed(mixed):
    space, _, _, _ = mixed
    name = "demo-linear_probe-random_tiny-seed"
    kept = sorted(p.name for p in (space.root / "executed/linear_probe").iterdir())
    assert kept == [f"{name}0.ipynb", *[f"{name}{seed}.failed.ipynb" for seed in (1, 2, 3)]]
    assert sorted(p.suffix for p in (space.root / "logs").iterdir()) == [".log"] * 5


def test_a_failed_notebook_says_below_its_title_and_at_its_end_where_it_stopped_and_why(mixed):
    _, planned, outcomes, _ = mixed
    place = r"\[(In \[4\]: )?title\]\(#cell-id=cell-1\)"
    at_cell = rf"\*\*This run stopped at {place}\.\*\* The cells after it did not run\."
    starts = {1: at_cell, 2: at_cell, 3: r"\*\*This run failed\.\*\*"}
    for seed, start in starts.items():
        job, outcome = planned.runs[seed], outcomes[seed]
        failed = job.output.with_suffix(".failed.ipynb")
        notebook = nbformat.read(failed, as_version=4)
        nbformat.validate(notebook)
        title, note, *cells, end = notebook.cells
        assert (title.source, note.source) == ("# title", end.source)
        assert not any("papermill" in cell.source for cell in cells)
        assert re.fullmatch(rf"{start}\n\n    {re.escape(outcome.error)}", note.source)
    for seed in (1, 2):  # as the report reads them
        job, outcome = planned.runs[seed], outcomes[seed]
        assert execution.diagnose(job.output.with_suffix(".failed.ipynb"), job.log)[0] == outcome.cell


def test_the_kernel_is_the_projects_own_and_sees_exact_types(mixed):
    space, *_ = mixed
    seen = json.loads((space.records / "demo-linear_probe-random_tiny-seed0/record.json").read_text())["seen"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    expected = {"types": ["float", "int"], "cwd": str(ROOT), "threads": str(max(1, cores // 2)), "prefix": sys.prefix}
    assert seen == expected
    assert (space.root / "threads").read_text() == seen["threads"]  # or the figure could not use the runs' server


def test_what_is_done_is_skipped_and_drawings_follow_their_inputs(mixed, notebooks):
    space, *_ = mixed
    again = make(space, notebooks, seeds=[0])
    figure, name = space.figures / "figure.txt", "demo-linear_probe-random_tiny-seed"
    assert figure.read_text() == f"{name}0 {name}3"

    def statuses(**options):
        return [o.status for o in batch.run_batch(again, batch.BatchOptions(**options), say=lambda line: None)]

    assert statuses() == ["skipped", "skipped"]
    write_small_record(space.records / "another-run")
    assert statuses() == ["skipped", "done"]
    assert figure.read_text() == f"another-run {name}0 {name}3"
    figure.unlink()
    assert statuses() == ["skipped", "done"]
    assert figure.is_file()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "record.json").write_text('{"run_id": '),
        lambda folder: (folder / "record.json").write_text("[]"),
        lambda folder: (folder / "record.json").unlink(),
        lambda folder: (folder / "predictions.csv").unlink(),
        lambda folder: folder.rename(folder.with_name("renamed")),
    ],
)
def test_only_a_whole_record_of_the_run_counts(tmp_path, damage):
    write_small_record(tmp_path / "run")
    assert is_done(tmp_path / "run")
    damage(tmp_path / "run")
    assert not is_done(tmp_path / "run")
    assert not is_done(tmp_path / "renamed")


def test_a_record_of_a_run_under_way_does_not_count(tmp_path):
    write_small_record(tmp_path / "run", status="running")
    assert not is_done(tmp_path / "run")


def test_a_timeout_ends_even_a_kernel_that_ignores_signals(space, notebooks, monkeypatch):
    monkeypatch.setattr(leftovers, "GRACE", 1.0)
    planned = make(space, notebooks, seeds=[4])
    mark = space.root / "kernel-4"  # the clock jumps once the kernel is there, however long that takes

    def clock():
        return time.monotonic() + (20 if mark.is_file() and mark.read_text() else 0)

    monkeypatch.setattr(execution, "time", SimpleNamespace(monotonic=clock))
    outcomes = batch.run_batch(planned, batch.BatchOptions(timeout=20), say=lambda line: None)
    assert outcomes[0].status == "failed"
    assert "longer than 20 s" in outcomes[0].error
    assert not alive(int((space.root / "kernel-4").read_text()))


@pytest.fixture(scope="module")
def sleepers(tmp_path_factory):
    """Notebooks that are quickly at work, without torch, and then sleep."""
    folder = tmp_path_factory.mktemp("sleepers")
    for dataset in ("ham10000", "demo"):
        path = folder / f"linear_probe/{dataset}.ipynb"
        write_notebook(path, PARAMETERS.replace("demo", dataset, 1), ASLEEP)
    return folder


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, None])
def test_an_interrupt_leaves_no_kernel_and_no_half_record(space, sleepers, sent, monkeypatch):
    monkeypatch.setenv("PANDERM_START", "cold")  # quicker than a server that imports everything
    code = "import sys, pathlib, run_all; sys.exit(run_all.main(sys.argv[2:], pathlib.Path(sys.argv[1])))"
    arguments = ["--protocols", "linear_probe", "--datasets", "demo", "--encoders", "random_tiny", "--seeds", "5", "0"]
    command = [sys.executable, "-c", code, sleepers, *arguments, "--output-root", space.root.parent]
    screen = None
    if sent is None:  # in a terminal of its own, which is closed
        here, screen = pty.openpty()
        command = [sys.executable, "-c", IN_TERMINAL, os.ttyname(screen), *command]
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=screen or subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    mark = space.root / "kernel-5"
    until = time.monotonic() + 90
    while not (mark.is_file() and mark.read_text()) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    kernel = int(mark.read_text())
    assert kernel in {child.pid for child in family}
    if sent is None:
        os.close(screen)
        os.close(here)
    else:
        process.send_signal(sent)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    assert sent is None or "2 interrupted" in output
    assert not space.records.exists()
    assert list((space.root / "executed/linear_probe").iterdir()) == []


def test_a_run_that_another_process_executes_is_left_alone(space, notebooks):
    planned = replace(make(space, notebooks, seeds=[0]), paper=())
    log = planned.runs[0].log
    log.parent.mkdir(parents=True)
    log.write_text("at work")
    with log.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        outcome = batch.run_batch(planned, say=lambda line: None)[0]
    assert outcome.status == "failed"
    assert str(log) in outcome.error
    assert log.read_text() == "at work"
    assert batch.run_batch(planned, say=lambda line: None)[0].status == "done"


def test_missing_data_and_weights_are_reported_and_start_nothing(tmp_path, notebooks):
    space = workspace.open_workspace("paper", tmp_path / "data", tmp_path / "weights", tmp_path)
    planned = make(space, notebooks, datasets=["ham10000"], encoders=["panderm_large", "random_tiny"])
    outcomes = batch.run_batch(planned, say=lambda line: None)
    assert [o.status for o in outcomes[:2]] == ["missing", "missing"]
    assert str(tmp_path / "data/HAM10000_clean/ISIC2018_splits/HAM_clean.csv") in outcomes[1].error
    assert "https://drive.google.com" in outcomes[1].error
    assert str(tmp_path / "weights/panderm_ll_data6_checkpoint-499.pth") in outcomes[0].error
    assert batch.exit_status(outcomes) == 1
    assert not space.root.exists()
    text = estimates.describe_plan(planned, verbose=True)
    assert "CC BY-NC-ND 4.0" in text
    assert "0 done, 0 to run, 2 missing" in text


def test_what_is_there_is_found(tmp_path, notebooks):
    space = workspace.open_workspace("paper", tmp_path / "data", tmp_path / "weights", tmp_path)
    csv = tmp_path / "data/HAM10000_clean/ISIC2018_splits/HAM_clean.csv"
    csv.parent.mkdir(parents=True)
    csv.write_text("image,split,label\n")
    weights = tmp_path / "weights/panderm_ll_data6_checkpoint-499.pth"
    weights.parent.mkdir()
    weights.touch()
    selection = {"datasets": ["ham10000"], "encoders": ["panderm_large"]}
    assert [need.name for need in make(space, notebooks, **selection).runs[0].missing] == ["ham10000"]  # no images yet
    (tmp_path / "data/HAM10000_clean/ISIC2018").mkdir()
    assert make(space, notebooks, **selection).runs[0].missing == ()
    weights.parent.joinpath("deeper").mkdir()
    weights.rename(weights.parent / "deeper" / weights.name)
    (need,) = make(space, notebooks, **selection).runs[0].missing
    assert need.remedy == f"mv {weights.parent / 'deeper' / weights.name} {weights}"
    (weights.parent / "deeper" / weights.name).rename(tmp_path / "mine.pth")
    assert make(space, notebooks, **selection, overrides=[f"weights={tmp_path}/mine.pth"]).runs[0].missing == ()


def test_settings_name_the_run_and_speed_does_not(space, notebooks):
    given = ["train_fraction=0.1", "solver=converged", "batch_size=8"]
    run = make(space, notebooks, overrides=given).runs[0]
    assert run.name == "demo-linear_probe-random_tiny-seed0-solver_converged-train_fraction_0.1"
    assert run.parameters["batch_size"] == 8
    assert run.record == space.records / run.name


def test_all_of_a_profile_in_its_order(space, notebooks):
    planned = make(space, notebooks, datasets=["demo", "ham10000"], encoders=[], seeds=[2, 1])
    names = [(run.parameters["seed"], run.parameters["encoder"], run.notebook.stem) for run in planned.runs]
    encoders, datasets = ("panderm_tiny", "random_tiny"), ("demo", "ham10000")
    assert names == [(seed, e, d) for seed in (2, 1) for e in encoders for d in datasets]


def test_a_run_whose_papermill_dies_after_the_record_is_done_for_the_batch_the_next_one_and_the_report(tmp_path):
    dies = f"{ACT}import signal\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(600)\n"
    space = workspace.open_workspace("demo", output_root=tmp_path)
    planned = replace(make(space, write_notebooks(tmp_path / "notebooks", dies)), paper=())
    for status in ("done", "skipped"):
        (outcome,) = batch.run_batch(planned, say=lambda line: None)
        assert outcome.status == status
        assert outcome.error.startswith("its record is whole, but then: ") == (status == "done")
    assert not list(space.root.rglob("*.failed.ipynb"))


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"datasets": ["ham1000"]}, "did you mean 'ham10000'"),
        ({"encoders": ["panderm_larg"]}, "did you mean 'panderm_large'"),
        ({"encoders": ["timm:vit_tiny_patch16_224x"]}, "timm:vit_tiny_patch16_224"),
        ({"protocols": ["linear_prob"]}, "did you mean 'linear_probe'"),
        ({"overrides": ["trian_fraction=0.1"]}, "did you mean -p train_fraction=0.1"),
        ({"overrides": ["batch_size=many"]}, "write a whole number, 1 or more"),
        ({"overrides": ["train_fraction=nan"]}, "train_fraction=nan: write a number above 0, up to 1"),
        ({"overrides": ["solver=newton"]}, "solver=newton: write one of published, converged, sklearn"),
        ({"overrides": ["train_fraction=0"]}, "write a number above 0, up to 1"),
        ({"overrides": ["batch_size=0"]}, "write a whole number, 1 or more"),
        ({"overrides": ["behaviour=", "train_fraction=10"]}, "train_fraction=10: write a number above 0, up to 1"),
        ({"seeds": [-1]}, "seed -1: write a whole number, 0 to 4294967295"),
        ({"overrides": ["wieghts=x.pth"]}, "did you mean -p weights=x.pth"),
        ({"overrides": ["weights=x.pth"]}, "x.pth: write the path of a file or folder that exists, or None"),
        ({"overrides": ["seed=3"]}, "write --seeds 3"),
        ({"overrides": ["solver"]}, "write -p solver=VALUE"),
        ({"datasets": ["ddi"]}, "python run_all.py --sync"),
        ({"overrides": ["weights=x.pth"], "encoders": ["panderm_tiny", "random_tiny"]}, "name one with --encoders"),
    ],
)
def test_what_is_unknown_is_an_error_before_anything_runs(space, notebooks, selection, message):
    with pytest.raises(plan.PlanError, match=message):
        make(space, notebooks, **selection)


def test_each_protocol_has_its_own_usual_datasets_and_encoders(space):
    usual, runs = manifests.load_profile("demo"), plan.make_plan(space).runs
    for protocol in usual.protocols:
        chosen = usual.choice(protocol)
        named = {
            (run.record.name.split("-")[0], run.parameters["encoder"]) for run in runs if f"-{protocol}-" in run.name
        }
        assert named == {(d, e) for d in chosen.quick for e in chosen.encoders}
    assert usual.choice("fine_tune").quick != usual.choice("linear_probe").quick == usual.quick
    named = plan.make_plan(space, datasets=["ddi"], encoders=["random_tiny"]).runs
    unfit = ("external_validation", "segmentation")  # no class of DDI is melanoma, and it has no masks
    fitting = [p for p in usual.protocols if p not in unfit]
    assert [run.name.split("-")[:3] for run in named] == [["ddi", p, "random_tiny"] for p in fitting]


def test_label_efficiency_asks_for_fine_tuning_at_fractions_as_runs_of_their_own(space):
    def names(*given, **selection):
        selection = {"protocols": ["label_efficiency"], "datasets": ["demo"], **selection}
        return [run.name for run in plan.make_plan(space, overrides=given, **selection).runs]

    def run(protocol, encoder, **settings):
        return run_id(load_protocol(protocol), "demo", "demo", encoder, 0, **settings)

    probes = [run("label_efficiency", encoder) for encoder in ("panderm_tiny", "random_tiny")]
    tuned = run("fine_tune", "panderm_tiny")
    assert names() == names("finetune_fractions=None") == probes
    assert names("finetune_fractions=0.1, 1") == [*probes, run("fine_tune", "panderm_tiny", train_fraction=0.1), tuned]
    assert names("finetune_fractions=1", protocols=["label_efficiency", "fine_tune"]) == [*probes, tuned]
    with pytest.raises(plan.PlanError, match="finetune_fractions=10%: write numbers above 0, up to 1"):
        names("finetune_fractions=10%")
    with pytest.raises(plan.PlanError, match="linear_probe has no such parameter"):
        names("finetune_fractions=0.1", protocols=["linear_probe"])


def test_several_numbers_are_a_run_each(space):
    def names(*given):
        selection = {"protocols": ["fine_tune"], "datasets": ["demo"], "encoders": ["panderm_tiny"]}
        return [run.name for run in plan.make_plan(space, overrides=given, **selection).runs]

    def run(**settings):
        return run_id(load_protocol("fine_tune"), "demo", "demo", "panderm_tiny", 0, **settings)

    several = names("train_fraction=0.1, 0.5,1", "epochs=2,3")
    assert several == [run(train_fraction=f, epochs=e) for f in (0.1, 0.5, 1.0) for e in (2, 3)]
    assert names("train_fraction=0.5", "epochs=3") == [several[3]]
    with pytest.raises(plan.PlanError, match="train_fraction=2: write"):
        names("train_fraction=0.1,2")


def test_a_rival_is_another_encoder_whose_weights_a_run_can_do_without(tmp_path):
    choice = manifests.load_profile("paper").choice("label_efficiency")
    assert choose_rival(choice, "panderm_large") == choose_rival(choice, "timm:vit_tiny_patch16_224") == "dinov2_large"
    assert choose_rival(choice, "dinov2_large") == "panderm_large"
    assert choose_rival(manifests.load_profile("paper").choice("linear_probe"), "panderm_large") is None
    space = workspace.open_workspace("paper", output_root=tmp_path, weights_root=tmp_path, data_root=tmp_path)

    def needed(*given, protocol="label_efficiency"):
        (run,) = plan.make_plan(space, ["ddi"], ["panderm_base"], [protocol], overrides=given).runs
        assert {need.name for need in run.missing} == {"ddi", "panderm_base"}  # never the rival
        return [need.name for need in run.needs], run.name

    def name(rival=None):
        return run_id(load_protocol("label_efficiency"), "paper", "ddi", "panderm_base", 0, rival=rival)

    assert needed() == (["ddi", "panderm_base", "dinov2_large"], name())
    other = "swavderm_resnet50"
    assert needed(f"rival={other}") == (["ddi", "panderm_base", other], name(other))
    assert name(other) == f"ddi-label_efficiency-panderm_base-seed0-rival_{other}"
    assert needed("rival=panderm_base") == (["ddi", "panderm_base"], name("panderm_base"))
    assert needed(protocol="linear_probe")[0] == ["ddi", "panderm_base"]
    with pytest.raises(plan.PlanError, match="dino"):
        needed("rival=dino")


EXTERNAL = ["external_validation"]


def test_a_protocol_takes_the_datasets_that_fit_it(space):
    every = plan.make_plan(space, ["all"], ["random_tiny"], EXTERNAL).runs
    unfit = ("ddi", "dermnet", "patch16", "ph2", "med_node", "isic2018_task1", "ham10000_masks", "ham10000_masks_70")
    fit = [name for name in manifests.load_profile("demo").datasets if name not in unfit]
    assert [run.notebook.stem for run in every] == fit
    with pytest.raises(plan.PlanError, match=r"ddi: external_validation needs `melanoma` in its manifest; .*ham10000"):
        plan.make_plan(space, ["ddi", "hiba"], ["random_tiny"], EXTERNAL)
    with pytest.raises(plan.PlanError, match="ph2: linear_probe needs a training split"):  # nor does any other
        plan.make_plan(space, ["ph2"])
    assert "ph2" not in {run.notebook.stem for run in plan.make_plan(space, ["all"]).runs}


def test_targets_are_checked_and_named_and_may_be_missing(tmp_path):
    space = workspace.open_workspace("paper", tmp_path / "data", tmp_path, tmp_path)
    card = manifests.load_dataset_manifest("ham10000")
    (space.data_root / card.image_root).mkdir(parents=True)
    (space.data_root / card.csv).parent.mkdir()
    (space.data_root / card.csv).write_text("image,split,label\n")
    (run,) = plan.make_plan(space, ["ham10000"], ["random_tiny"], EXTERNAL).runs
    assert not run.missing
    states = {need.name: need.state for need in run.needs}
    assert states.pop("ham10000") == "found"
    assert states == dict.fromkeys(states, "missing, so not a target")
    assert {"ph2", "med_node", "hiba", "bcn20000"} <= set(states)
    assert not set(states) & {"ddi", "patch16", "demo"}
    (run,) = plan.make_plan(space, ["ham10000"], ["random_tiny"], EXTERNAL, overrides=["targets=ph2, hiba"]).runs
    assert [need.name for need in run.needs] == ["ham10000", "ph2", "hiba"]
    assert run.name == "ham10000-external_validation-random_tiny-seed0-targets_ph2..hiba"
    for targets, message in (("ddi", "no `melanoma`"), ("ham10000", "itself"), ("hba", "did you mean 'hiba'")):
        with pytest.raises(plan.PlanError, match=message):
            plan.make_plan(space, ["ham10000"], ["random_tiny"], EXTERNAL, overrides=[f"targets={targets}"])


def test_all_problems_are_told_at_once(space, notebooks):
    with pytest.raises(plan.PlanError) as told:
        make(space, notebooks, datasets=["x"], encoders=["y"], overrides=["z=1", "seed=2"])
    assert len(str(told.value).splitlines()) == 4
