"""`--audit`: what a test plants in a dataset's images is found, written and summarised."""

import shutil

import pandas as pd
import pytest

from panderm_utils import cli
from panderm_utils.data import dataset as data
from panderm_utils.data.image_files import open_image
from panderm_utils.demo import stand_ins
from panderm_utils.manifests import reading as manifests
from panderm_utils.workspace import open_workspace


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stand_ins, "STAND_IN", stand_ins.Size(train=40, val=8, test=16))

    def audit(*arguments):
        status = cli.main(["--audit", *arguments, "--output-root", str(tmp_path)])
        return status, capsys.readouterr()

    return audit


def test_drawn_images_share_nothing_and_planted_copies_are_found(run, tmp_path):
    status, said = run("hiba", "derm7pt_clinical")
    assert status == 0
    assert "no copy of an image is in two splits or two datasets: drawn images are all different" in said.out
    assert "panderm_tiny is a toy" not in said.out  # there is no feature of it
    space = open_workspace("demo", output_root=tmp_path)
    hiba, clinical = (
        data.load_dataset(manifests.load_dataset_manifest(name), space.data_root)
        for name in ("hiba", "derm7pt_clinical")
    )
    test, train = (hiba.split(name)["image"].tolist() for name in ("test", "train"))
    shutil.copyfile(hiba.path(test[0]), hiba.path(train[0]))
    open_image(hiba.path(test[1])).save(hiba.path(train[1]), quality=60)
    open_image(hiba.path(test[2])).resize((150, 110)).save(clinical.path(clinical.split("train")["image"][0]))
    status, said = run()  # all that are there
    assert status == 0
    assert "hiba and its train and val, pairs: same file 1, near copy 1; 2 of its test images" in said.out
    assert "hiba and derm7pt_clinical, pairs: near copy 1" in said.out.replace(
        "derm7pt_clinical and hiba", "hiba and derm7pt_clinical"
    )
    assert "no copy" not in said.out
    clinical.path(clinical.split("val")["image"][0]).unlink()
    status, said = run()
    assert status == 0
    assert "derm7pt_clinical is left out, see --check-data: derm7pt_clinical: 1 x missing file" in said.out
    status, said = run("derm7pt_clinical", "hiba")
    assert status == 2
    assert "1 x missing file" in said.err
    pairs = pd.read_csv(space.root / "audit/pairs.csv")
    within = pairs[pairs["dataset_a"] == pairs["dataset_b"]]
    assert within[["image_a", "image_b"]].to_numpy().tolist() == [[test[0], train[0]], [test[1], train[1]]]
    assert {path.name for path in (space.root / "audit").iterdir()} == {
        "pairs.csv",
        "nearest.csv",
        "costs.csv",
        "doubtful_labels.csv",
    }


def test_without_data_it_says_what_to_do(run, tmp_path):
    status, said = run()
    assert status == 1
    assert "no dataset: not in" in said.err and "--audit demo" in said.err
    status, said = run("ham10000", "--profile", "paper", "--data-root", str(tmp_path / "nothing"))
    assert status == 1
    assert "ham10000: not in" in said.err and "--profile paper --plan" in said.err
    status, said = run("ham1000")
    assert status == 2
    assert "ham10000" in said.err
