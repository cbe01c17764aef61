"""What a plan says of data that are in place, incomplete, or nearly there; each remedy is carried out."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import run_all
from panderm_utils import manifests
from panderm_utils.batch.data_root import DataRoot, count_problems

ROOT = Path(__file__).parents[2]
HIBA = manifests.load_dataset_manifest("hiba")  # HIBA/hiba.csv and HIBA/images
HAM = manifests.load_dataset_manifest("ham10000")  # two folders in one folder


def put(card, table: Path, images: Path, lacking=(), header=None, rows=6) -> None:
    """Writes a dataset whose CSV and images are where the caller wants them."""
    table.parent.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    lines = [header or f"image,split,{card.label_column}"]
    for i in range(rows):
        lines.append(f"{i}.jpg,{('train', 'val', 'test')[i % 3]},{i % 2}")
        if i not in lacking:
            (images / f"{i}.jpg").touch()
    table.write_text("\n".join(lines))


def packed(root: Path, inside: str, name: str, kind: str = "zip") -> None:
    put(HIBA, root.parent / "in" / inside / "hiba.csv", root.parent / "in" / inside / "images")
    root.mkdir()
    shutil.make_archive(str(root / name), kind, root.parent / "in")


LAYOUTS = {
    "deeper": (lambda root: put(HIBA, root / "HIBA/HIBA/hiba.csv", root / "HIBA/HIBA/images"), "one folder deeper"),
    "spelling of the folder": (
        lambda root: put(HIBA, root / "HIBA dataset/hiba.csv", root / "HIBA dataset/images"),
        "it lies in .*HIBA dataset",
    ),
    "spelling inside": (
        lambda root: put(HIBA, root / "HIBA/HIBA.csv", root / "HIBA/Images"),
        "HIBA.csv must be spelled hiba.csv and Images must be spelled images",
    ),
    "without its folder": (lambda root: put(HIBA, root / "hiba.csv", root / "images"), "it lies in"),
    "elsewhere": (lambda root: put(HIBA, root / "a b/c/hiba.csv", root / "a b/c/images"), "it lies in .*a b/c"),
    "zip of the folder": (lambda root: packed(root, "HIBA", "x"), r"still packed in .*x\.zip"),
    "zip of its content": (lambda root: packed(root, "", "x"), r"still packed in .*x\.zip"),
    "zip of another folder": (lambda root: packed(root, "hiba_v2", "x"), r"still packed in .*x\.zip"),
    "tar": (lambda root: packed(root, "HIBA", "hiba", "gztar"), r"still packed in .*hiba\.tar\.gz"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_remedy_puts_the_data_in_place(tmp_path, layout):
    write, problem = LAYOUTS[layout]
    root = tmp_path / "data"
    write(root)
    finding = DataRoot(root).find(HIBA)
    assert re.search(problem, finding.problem), finding
    remedy = finding.remedy.replace("python run_all.py", f"{sys.executable} {ROOT / 'run_all.py'}")
    subprocess.run(["bash", "-ec", remedy], check=True)
    assert DataRoot(root).find(HIBA) == ("", "")
    assert len(list((root / "HIBA/images").iterdir())) == 6


@pytest.mark.parametrize("root", ["", "data/HIBA"])
def test_a_wrong_data_root_is_told_as_the_right_one(tmp_path, root):
    for card in (HIBA, HAM):
        put(card, tmp_path / "data" / card.csv, tmp_path / "data" / card.image_root)
    finding = DataRoot(tmp_path / root).find(HIBA)
    assert finding.remedy == f"--data-root {tmp_path / 'data'}"
    assert DataRoot(tmp_path / "data").find(HIBA) == ("", "")


def test_a_damaged_archive_is_to_be_downloaded_again(tmp_path):
    (tmp_path / "HIBA.zip").write_bytes(b"PK\x03\x04")
    finding = DataRoot(tmp_path).find(HIBA)
    assert "damaged or incomplete" in finding.problem
    assert finding.remedy == f"download it again: {HIBA.access[0].url}"


def test_images_in_another_folder_are_asked_for(tmp_path):
    put(HIBA, tmp_path / "HIBA/hiba.csv", tmp_path / "HIBA/pictures")
    finding = DataRoot(tmp_path).find(HIBA)
    assert finding.problem == f"its images are not in {tmp_path / 'HIBA/images'}"
    assert "holds hiba.csv, pictures" in finding.remedy


def test_nothing_is_found_where_nothing_is(tmp_path):
    put(HAM, tmp_path / HAM.csv, tmp_path / HAM.image_root)
    (tmp_path / "other.zip").write_bytes(b"")
    for root in (tmp_path, tmp_path / "absent"):
        problem, remedy = DataRoot(root).find(HIBA)
        assert "is not there" in problem
        assert remedy == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"header": "image;split;binary_label"}, {"ragged row": 6}),
        ({"header": "a,b,c"}, {"missing column": 3}),
        ({"header": "image,split,diagnosis", "lacking": (1, 2)}, {"missing column": 1, "missing file": 2}),
        ({"header": "name,split,binary_label", "lacking": (1, 2)}, {"missing column": 1}),
        ({"lacking": (0,)}, {"missing file": 1}),
    ],
)
def test_missing_columns_and_files_are_counted(tmp_path, changes, expected):
    put(HIBA, tmp_path / HIBA.csv, tmp_path / HIBA.image_root, **changes)
    assert dict(count_problems(HIBA, tmp_path)) == expected


@pytest.mark.parametrize(
    "content",
    [
        # As Excel saves it; names in another case and without suffix; a row that is left out.
        "\ufeffimage;split;binary_label\r\n0.JPG;train;0\r\n1;train;1\r\n2.jpg;test;1\r\n",
        'image,split,binary_label\n"0.jpg", train ,0\n\n1.jpg,train,1\n2.jpg,test,1\nlost.jpg,trainisic,1\n',
    ],
)
def test_what_a_run_accepts_is_no_problem(tmp_path, content):
    from panderm_utils.data import load_dataset

    put(HIBA, tmp_path / HIBA.csv, tmp_path / HIBA.image_root)
    (tmp_path / HIBA.csv).write_text(content, encoding="utf-8")
    load_dataset(HIBA, tmp_path)
    assert not count_problems(HIBA, tmp_path)


@pytest.mark.parametrize(("content", "problem"), [("", "1 x empty file"), ("a,b\n" + "x" * 200_000, "1 x ragged row")])
def test_a_csv_that_is_none_is_a_problem(tmp_path, content, problem):
    put(HIBA, tmp_path / HIBA.csv, tmp_path / HIBA.image_root)
    (tmp_path / HIBA.csv).write_text(content)
    assert DataRoot(tmp_path).find(HIBA).problem == problem


def test_the_plan_says_first_what_can_run_then_what_is_nearly_there_then_the_rest(tmp_path, capsys):
    put(HAM, tmp_path / HAM.csv, tmp_path / HAM.image_root)
    mskcc = manifests.load_dataset_manifest("mskcc")
    put(mskcc, tmp_path / mskcc.csv, tmp_path / mskcc.image_root, header="image,split,diagnosis", lacking=(1, 2))
    LAYOUTS["deeper"][0](tmp_path)
    folders = [f"--{name}={tmp_path}" for name in ("data-root", "weights-root", "output-root")]
    selection = ["--datasets", "ham10000", "hiba", "mskcc", "ddi", "--encoders", "random_tiny", "panderm_base"]
    chosen = ["--profile", "paper", "--protocols", "linear_probe", *selection, *folders, "--plan"]
    assert run_all.main(chosen) == 0
    text = capsys.readouterr().out
    assert text.startswith("8 runs (profile paper): 0 done, 1 to run, 7 missing")
    ready, nearly, missing = (text.index(title) for title in ("Can run now:", "Nearly there:", "Missing:"))
    assert "  linear_probe: random_tiny on ham10000\n" in text[ready:nearly]
    assert "  mskcc (2 runs): 1 x missing column, 2 x missing file\n" in text[nearly:missing]
    assert f"      mv {tmp_path}/HIBA/HIBA/* {tmp_path}/HIBA\n" in text[nearly:missing]
    assert "ddi (2 runs): https://drive.google.com" in text[missing:]
    assert "panderm_base (4 runs): https://github.com" in text[missing:]
    assert "ham10000-linear_probe-random_tiny-seed0" not in text
    assert run_all.main([*chosen, "--verbose"]) == 0
    verbose = capsys.readouterr().out
    assert "to run   ham10000-linear_probe-random_tiny-seed0" in verbose
    assert "missing  mskcc-linear_probe-random_tiny-seed0" in verbose
    assert f"at      {tmp_path / HAM.csv}" in verbose
    # The batch leaves the runs out, and says why in the same words.
    assert run_all.main([*chosen[:-1], "--only", "mskcc-*", "hiba-*"]) == 1
    summary = capsys.readouterr().out
    assert "data of mskcc: 1 x missing column, 2 x missing file; for the rows: " in summary
    assert "one folder deeper; mv " in summary


def test_a_target_that_would_stop_a_run_is_told(tmp_path, capsys):
    """A missing target is left out by the run, an incomplete one would stop it."""
    put(HAM, tmp_path / HAM.csv, tmp_path / HAM.image_root)
    put(HIBA, tmp_path / HIBA.csv, tmp_path / HIBA.image_root, lacking=(1,))
    folders = [f"--{name}={tmp_path}" for name in ("data-root", "weights-root", "output-root")]
    chosen = ["--profile", "paper", "--protocols", "external_validation", "--encoders", "random_tiny", *folders]
    for selected in (["ham10000"], ["ham10000", "hiba"]):
        assert run_all.main([*chosen, "--datasets", *selected, "--plan"]) == 0
        text = capsys.readouterr().out
        assert "Nothing can run now." in text
        assert "): 1 x missing file\n" in text
    assert run_all.main([*chosen, "--datasets", "ham10000", "-p", "targets=ph2, med_node", "--plan"]) == 0
    text = capsys.readouterr().out
    assert "external_validation: random_tiny on ham10000" in text
    assert "ph2 (optional for 1 run): " in text


def test_a_plan_of_real_data_loads_neither_torch_nor_pandas(tmp_path):
    put(HIBA, tmp_path / HIBA.csv, tmp_path / HIBA.image_root)
    code = "import sys, run_all; run_all.main(sys.argv[1:]); print({'torch', 'pandas'} & set(sys.modules))"
    arguments = ["--profile", "paper", "--plan", "--datasets", "hiba", "--data-root", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("set()\n"), done.stdout + done.stderr
    assert "on hiba" in done.stdout
