"""The command line: arguments, output and exit status of run_all.py."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

import run_all
from panderm_utils import cli
from panderm_utils.batch import plan
from panderm_utils.manifests import reading as manifests
from panderm_utils.protocols import list_protocols, load_protocol

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "timm", "pandas", "numpy", "matplotlib", "papermill", "sklearn", "scipy", "nbformat")
HEAVY += ("nbconvert", "jinja2")


@pytest.mark.parametrize("arguments", [["--help"], ["--list"], ["--plan", "--datasets", "ham10000"]])
def test_answers_load_nothing_heavy(arguments):
    code = (
        "import sys, contextlib, run_all\n"
        "with contextlib.suppress(SystemExit): run_all.main(sys.argv[1:])\n"
        f"print('LOADED', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert "LOADED []" in done.stdout, done.stdout + done.stderr
    assert "ham10000" in done.stdout or "--datasets" in done.stdout


def test_help_names_every_flag_of_the_readme(capsys):
    with pytest.raises(SystemExit):
        run_all.main(["--help"])
    text = capsys.readouterr().out
    flags = (
        "profile data-root weights-root output-root datasets protocols encoders seeds list plan jobs force sync check"
    )
    flags += " verbose check-data pixels report verify only slurm slurm-script slurm-option features predict to tta"
    flags += " fetch from accept-licence cite"
    assert [f for f in [*flags.split(), "new-dataset", "images", "name"] if f"--{f}" not in text] == []


def test_list_names_every_dataset_and_encoder(capsys):
    assert run_all.main(["--list"]) == 0
    text = capsys.readouterr().out
    assert [name for name in (*manifests.list_datasets(), *manifests.list_encoders()) if f"  {name} " not in text] == []


def test_the_plan_of_the_paper_says_where_to_get_everything(capsys, tmp_path):
    folders = ["--data-root", str(tmp_path), "--weights-root", str(tmp_path), "--output-root", str(tmp_path)]
    assert run_all.main(["--profile", "paper", "--plan", "--verbose", *folders]) == 0
    text = capsys.readouterr().out
    profile = manifests.load_profile("paper")
    chosen = {protocol: profile.choice(protocol) for protocol in profile.protocols}
    assert chosen["external_validation"].quick == ("ham10000",)
    runs = sum(len(load_protocol(p).supported(c.quick)) * len(c.encoders) for p, c in chosen.items())
    assert text.startswith(f"{runs} runs (profile paper)")
    for name in profile.datasets:
        card = manifests.load_dataset_manifest(name)
        assert str(tmp_path / card.table) in text
        assert card.licence in text
        assert all(access.url in text for access in card.access)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "papr"], "papr"),
        (["--datasets", "nothing"], "dataset 'nothing' is unknown"),
        (["-p", "sovler=sklearn", "--datasets", "ham10000"], "did you mean -p solver=sklearn"),
        (["--datasets", "ham10000", "--only", "ham10000"], "--only ham10000: not in this plan"),
        (
            ["--slurm-script", "--seeds", "98", "--slurm-option", "fine_tune:mem=9G"],
            "a script holds one: name --protocols",
        ),
    ],
)
def test_what_is_wrong_is_told_in_a_line_with_status_2(capsys, arguments, message):
    assert run_all.main(arguments) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert "Traceback" not in told.err
    assert told.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--new-dataset", "x.csv"],
        ["--images", "x"],
        ["--jobs", "0"],
        ["--seeds", "a"],
        ["--verbose"],
        ["--predict", "run"],
        ["--tta", "2"],
    ],
)
def test_flags_that_do_not_go_together_are_refused(arguments):
    with pytest.raises(SystemExit) as told:
        run_all.main(arguments)
    assert told.value.code == 2


def test_a_batch_ends_with_a_report_also_when_data_are_missing(capsys, tmp_path):
    folders = [f"--{name}={tmp_path}" for name in ("data-root", "weights-root", "output-root")]
    selection = ["--profile", "paper", "--protocols", "linear_probe", "--datasets", "ham10000", *folders]
    for arguments, told in ((["--report"], "no report"), (["--verify"], "no record"), ([], "no report")):
        assert run_all.main([*selection, *arguments]) == 1  # nothing to show yet
        assert told in capsys.readouterr().err
    failed = tmp_path / "paper/executed/linear_probe/ddi-linear_probe-panderm_base-seed0.failed.ipynb"
    failed.parent.mkdir(parents=True)
    failed.write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    assert run_all.main(selection) == 1
    index = tmp_path / "paper/report/index.html"
    assert f"report: {index}" in capsys.readouterr().out
    for text in (failed.name.removesuffix(".failed.ipynb"), manifests.load_dataset_manifest("bcn20000").access[0].url):
        assert text in index.read_text()  # what failed before, and what other runs of the profile lack
    assert run_all.main([*selection, "--report"]) == 0


def test_a_report_needs_no_notebook_that_nobody_asked_for(house, capsys, tmp_path):
    (house / "notebooks/linear_probe/dermnet.ipynb").unlink()
    failed = tmp_path / "demo/executed/linear_probe/x.failed.ipynb"
    failed.parent.mkdir(parents=True)
    failed.write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    selection = ["--datasets", "ddi", "--encoders", "random_tiny", "--protocols", "linear_probe"]
    assert run_all.main([*selection, "--output-root", str(tmp_path), "--report"], house / "notebooks") == 0
    page = (tmp_path / "demo/report/index.html").read_text()
    assert "--protocols linear_probe --datasets ddi --encoders random_tiny" in page


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A copy of the manifests and the notebooks, without a user's own, which a test may write to."""
    own = [name for name in manifests.list_datasets() if manifests.load_dataset_manifest(name).own]
    ignored = shutil.ignore_patterns("weights", *(f"{name}.*" for name in own))
    for name in ("data_manifests", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    monkeypatch.setattr(manifests, "MANIFEST_ROOT", tmp_path / "data_manifests")
    return tmp_path


def test_check_finds_a_wrong_manifest_and_a_drifted_notebook(house, capsys):
    notebooks = house / "notebooks"
    assert run_all.main(["--sync"], notebooks) == 0
    assert run_all.main(["--check"], notebooks) == 0
    sibling = notebooks / "linear_probe/ddi.ipynb"
    sibling.write_text(sibling.read_text().replace("seed = 0", "seed = 1"))
    for arguments in (["--check"], ["--sync", "--check"]):
        assert run_all.main(arguments, notebooks) == 1
        assert "python run_all.py --sync" in capsys.readouterr().err
    assert run_all.main(["--sync"], notebooks) == 0
    assert run_all.main(["--sync", "--check"], notebooks) == 0
    card = house / "data_manifests/datasets/ddi.yaml"
    card.write_text(card.read_text().replace("task: binary", "task: regression"))
    assert run_all.main(["--check"], notebooks) == 2
    assert "ddi.yaml" in capsys.readouterr().err


def test_own_data_become_a_manifest_notebooks_and_a_command_that_plans(house, capsys):
    rows = []
    for i in range(40):
        path = house / f"images/{i:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (5 * i, 100, 90)).save(path)
        rows.append({"image": path.name, "label": ("mole", "melanoma")[i % 2]})
    csv = house / "my.csv"
    pd.DataFrame(rows).to_csv(csv, index=False)
    before = csv.read_bytes()
    weights = house / "data_manifests/weights/panderm_tiny.pth"
    weights.parent.mkdir()
    weights.touch()
    there = sorted(house.rglob("*"))
    arguments = ["--new-dataset", str(csv), "--images", str(house / "images"), "--name", "mine"]
    assert run_all.main([*arguments, "--data-root", str(house / "data")], house / "notebooks") == 0
    text = capsys.readouterr().out
    assert csv.read_bytes() == before
    assert "split" in text  # explains what it guessed
    command = text.strip().splitlines()[-1].split()
    assert command[1:] == ["run_all.py", "--profile", "own", "--datasets", "mine", "--jobs", "2"]
    for protocol in ("linear_probe", "label_efficiency", "fine_tune"):
        assert f" {' '.join(command[1:-2])} --protocols {protocol} " in text
    assert "# fine-tuning, only if named" in text
    assert "panderm_tiny is a toy" in text
    assert plan.read_parameters(house / "notebooks/linear_probe/mine.ipynb")["profile"] == "own"
    selection = [*command[2:], "--encoders", "random_tiny", "--output-root", str(house / "outputs"), "--plan"]
    assert run_all.main(selection, house / "notebooks") == 0
    shown = capsys.readouterr().out
    assert "2 runs (profile own): 0 done, 2 to run, 0 missing; then the report" in shown
    assert "random_tiny is a toy" in shown
    for other in ([], ["--profile", "paper"]):  # the demo would draw over it
        assert run_all.main([*other, "--datasets", "mine"], house / "notebooks") == 2
        assert "write --profile own --datasets mine" in capsys.readouterr().err
    assert run_all.main(["--profile", "own", "--datasets", "ham10000"], house / "notebooks") == 2
    assert "write --profile paper --datasets ham10000" in capsys.readouterr().err
    alone = ["--profile", "own", "--protocols", "external_validation"]  # melanomas, but nothing else to test them on
    assert run_all.main(alone, house / "notebooks") == 2
    assert "name public ones: -p targets=ham10000" in capsys.readouterr().err
    assert run_all.main([*arguments, "--data-root", str(house / "data")], house / "notebooks") == 2  # never overwritten
    # What a user made is nobody's drift, also when it was edited; and the line that undoes it all leaves nothing.
    (house / "notebooks/linear_probe/mine.ipynb").write_text("edited")
    run_all.main(["--sync"], house / "notebooks")
    (house / "notebooks/linear_probe/mine.ipynb").write_text("edited")
    assert run_all.main(["--check"], house / "notebooks") == 0
    undo = shlex.split(next(line for line in text.splitlines() if " to undo " in line).partition(": ")[2])
    assert undo[0] == "rm"
    for path in undo[1:]:
        Path(path).unlink()
    assert [path for path in house.rglob("*") if path.is_file() and path not in there] == []
    assert csv.read_bytes() == before


def test_own_masks_become_a_dataset_with_the_notebooks_that_fit(house, capsys):
    (house / "data_manifests/weights").mkdir()
    (house / "data_manifests/weights/panderm_tiny.pth").touch()  # the toy, with which fine-tuning is on request
    for i in range(20):
        for folder, suffix, mode in (("images", ".jpg", "RGB"), ("masks", "_mask.png", "L")):
            (house / folder).mkdir(exist_ok=True)
            picture = Image.new(mode, (40, 30), 120 if mode == "RGB" else 0)
            picture.paste("white", (10, 10, 20, 20))
            picture.save(house / folder / f"{i:02}{suffix}")
    arguments = [
        "--new-dataset",
        str(house / "images"),
        "--masks",
        str(house / "masks"),
        "--data-root",
        str(house / "d"),
    ]
    assert run_all.main([*arguments, "--name", "outlines"], house / "notebooks") == 0
    text = capsys.readouterr().out
    assert "no label: the dataset has masks alone" in text
    fitting = [name for name in list_protocols() if "masks" in load_protocol(name).dataset_keys]
    assert [path.parent.name for path in sorted(house.glob("notebooks/*/outlines.ipynb"))] == fitting
    assert "--datasets outlines --protocols " + fitting[0] in text
    assert "only if named" not in text
    assert run_all.main(["--profile", "own", "--datasets", "outlines", "--plan"], house / "notebooks") == 0
    assert "1 run (profile own)" in capsys.readouterr().out
    chosen = ["--profile", "own", "--datasets", "outlines", "--protocols", "linear_probe"]
    assert run_all.main(chosen, house / "notebooks") == 2
    assert "outlines: linear_probe needs `classes` in its manifest" in capsys.readouterr().err
    assert run_all.main(["--check-data", "outlines", "--pixels"], house / "notebooks") == 0
    pd.DataFrame({"image": [f"{i:02}.jpg" for i in range(20)], "dx": ["nv", "mel"] * 10}).to_csv(house / "c.csv")
    arguments[1:2] = [str(house / "c.csv"), "--images", str(house / "images")]
    assert run_all.main([*arguments, "--name", "both"], house / "notebooks") == 0
    shown = capsys.readouterr().out
    assert {*fitting, "linear_probe"} <= {path.parent.name for path in house.glob("notebooks/*/both.ipynb")}
    assert "20 of 20 images have one" in shown
    assert f"--protocols {fitting[0]} " in shown
    assert "all but fine-tuning, segmentation at once" in shown
    assert run_all.main(["--profile", "own", "--plan", "--verbose"], house / "notebooks") == 0
    planned = capsys.readouterr().out
    assert f"outlines-{fitting[0]}-" in planned  # nothing else can be studied on it
    assert f"both-{fitting[0]}-" not in planned


def test_the_profile_of_own_data_without_any_says_how_to_add_some(house, capsys):
    assert run_all.main(["--profile", "own"], house / "notebooks") == 2
    assert "--new-dataset my.csv --images DIR --name mine" in capsys.readouterr().err


def test_an_open_question_is_answered_by_the_command_it_prints(house, capsys):
    rows = []
    for i in range(40):
        Image.new("RGB", (40, 30), (5 * i, 100, 90)).save(house / f"{i}.png")
        rows.append({"image": f"{i}.png", "Owner id": f"p{i // 3}", "dx": "ab"[i % 2], "disease": "xyz"[i % 3]})
    pd.DataFrame(rows).to_csv(house / "my data.csv", index=False)
    arguments = ["--new-dataset", str(house / "my data.csv"), "--images", str(house), "--name", "mine"]
    arguments += ["--data-root", str(house / "data")]
    assert run_all.main(arguments, house / "notebooks") == 2
    text = capsys.readouterr().err
    for line in ("--label dx       2 classes: a 20, b 20", "--patient 'Owner id'  14 values in 40 rows, such as p0"):
        assert f"\n  {line}\n" in text
    command = shlex.split(text.splitlines()[-1])
    assert command[1] == "run_all.py"
    assert command[2:] == [*arguments, "--label", "dx", "--patient", "Owner id"]
    assert run_all.main([*command[2:], "--folds", "3"], house / "notebooks") == 0
    shown = capsys.readouterr().out
    assert shown.strip().endswith("--profile own --datasets mine_fold1 mine_fold2 mine_fold3")
    undo = shlex.split(next(line for line in shown.splitlines() if " to undo " in line).partition(": ")[2])
    assert sorted(path.name for path in house.rglob("mine_*")) == sorted(Path(path).name for path in undo[1:])


def test_a_csv_that_is_used_as_it_is_is_not_named_for_deletion(house, capsys):
    rows = []
    for i, split in enumerate(["train", "train", "test", "test"]):
        Image.new("RGB", (40, 30), (5 * i, 100, 90)).save(house / f"{i}.png")
        rows.append({"image": f"{i}.png", "split": split, "binary_label": i % 2})
    pd.DataFrame(rows).to_csv(house / "my.csv", index=False)
    arguments = ["--new-dataset", str(house / "my.csv"), "--images", str(house), "--name", "mine"]
    assert run_all.main(arguments, house / "notebooks") == 0
    undo = next(line for line in capsys.readouterr().out.splitlines() if " to undo " in line)
    assert "my.csv" not in undo
    assert "mine.yaml" in undo


def test_commands_are_told_as_they_must_be_typed_elsewhere(monkeypatch, tmp_path):
    assert shlex.split(cli.program())[-1] == ("run_all.py" if Path.cwd() == ROOT else str(ROOT / "run_all.py"))
    monkeypatch.chdir(tmp_path)
    python, script = shlex.split(cli.program())
    done = subprocess.run([python, script, "--help"], capture_output=True, text=True)
    assert "--new-dataset" in done.stdout, done.stderr


@pytest.mark.parametrize("buffered", [[], ["-u"]])  # the pipe breaks at the last flush, or at a print
def test_a_reader_who_has_had_enough_is_no_traceback(buffered):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, *buffered, str(ROOT / "run_all.py"), "--list"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("--profile ", "own"),
        ("--datasets ham", "ham10000"),
        ("--encoders panderm_t", "panderm_tiny"),
        ("--new", "--new-dataset"),
    ],
)
def test_a_shell_completes_flags_and_names(typed, offered, tmp_path):
    line = f"panderm {typed}"
    shell = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "out"), "COMP_TYPE": "9"}
    shell |= {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    subprocess.run(
        [Path(sys.executable).parent / "panderm"], env={**os.environ, **shell}, check=True, capture_output=True
    )
    assert offered in [name.strip() for name in (tmp_path / "out").read_text().splitlines()]
