"""Notebooks that need nothing of the demo batch: the data cells of the datasets that it leaves out, and own data."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest

from panderm_utils import results
from panderm_utils.data import dataset as data
from panderm_utils.demo import stand_ins
from panderm_utils.manifests import reading as manifests
from tests.notebooks.test_notebooks import DATASETS, ROOT, STUDIED, run_all

pytestmark = pytest.mark.notebooks


@pytest.mark.parametrize("dataset", [name for name in DATASETS if name not in STUDIED])
def test_the_data_cells_of_every_other_dataset_run(dataset, monkeypatch, tmp_path):
    monkeypatch.setenv("PANDERM_OUTPUT_ROOT", str(tmp_path))
    monkeypatch.setattr(stand_ins, "STAND_IN", stand_ins.Size(train=16, val=4, test=8))
    cells = nbformat.read(ROOT / f"notebooks/linear_probe/{dataset}.ipynb", as_version=4).cells
    encoder = next(i for i, cell in enumerate(cells) if cell.source.startswith("## The encoder"))
    seen = {}
    for cell in cells[:encoder]:
        if cell.cell_type == "code":
            exec(cell.source, seen)
    assert seen["study"].manifest.name == dataset
    assert len(seen["pictures"]) >= seen["card"].num_classes


def test_own_data_are_studied_from_a_table_to_a_report(monkeypatch, tmp_path):
    """Every study of data without a val split, by the commands that --new-dataset prints."""
    monkeypatch.setattr(stand_ins, "STAND_IN", stand_ins.Size(train=40, val=2, test=24))
    card = manifests.load_dataset_manifest("ddi")
    stand_ins.make_stand_in(card, tmp_path / "drawn")
    study = data.load_dataset(card, tmp_path / "drawn")
    table = study.table[study.table["split"] != "val"]
    table = table.assign(file=[str(study.path(image)) for image in table["image"]])
    table[["file", "label", "split"]].to_csv(tmp_path / "own.csv", index=False)
    for name in ("data_manifests", "notebooks", "panderm_utils"):  # a copy, so that the manifest stays out of ours
        shutil.copytree(ROOT / name, tmp_path / "clone" / name)
    shutil.copy(ROOT / "run_all.py", tmp_path / "clone")
    own = ("--new-dataset", tmp_path / "own.csv", "--images", tmp_path / "drawn", "--name", "mine")
    told = run_all(*own, "--data-root", tmp_path / "data", output=tmp_path, root=tmp_path / "clone")
    assert told.returncode == 0, told.stderr
    printed = told.stdout.strip().splitlines()[-1].split()
    command = [*printed[printed.index("--profile") :], "--output-root", tmp_path, "--jobs", "2"]
    command += ["--protocols", "linear_probe", "label_efficiency", "fine_tune"]
    command += [
        word for text in ("epochs=2", "warmup_epochs=1", "tta=1", "draws=2", "replicates=50") for word in ("-p", text)
    ]
    line = [sys.executable, "run_all.py", *command, "--data-root", tmp_path / "data"]
    done = subprocess.run(
        line, cwd=tmp_path / "clone", capture_output=True, text=True, env={**os.environ, "CI": "true"}
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "3 done" in done.stdout
    assert "panderm_tiny is a toy" in done.stdout
    (tuned,) = (tmp_path / "own/records").glob("mine-fine_tune-*")
    assert results.read_record(tuned)["training"]["chosen"] == "last epoch (no val split)"
    assert not (tuned / "predictions_val.csv").exists()
    page = (tmp_path / "own/report/index.html").read_text()
    for text in ("<h1>mine (own data)</h1>", "The worst mistakes", "The score against the number of labels", "CLAIM"):
        assert text in page
    assert "reproduced" not in page
    assert not (tmp_path / "own/executed/paper").exists()
