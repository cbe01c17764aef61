"""What a plan and `--check-data` say of datasets with masks, and which protocols they are left out of."""

import dataclasses
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run_all
from panderm_utils import batch, manifests, workspace
from panderm_utils.batch.data_root import DataRoot, count_problems
from panderm_utils.manifests import reading

ROOT = Path(__file__).parents[2]
ISIC = manifests.load_dataset_manifest("isic2018_task1")
HAM = manifests.load_dataset_manifest("ham10000_masks")
CLASSES = ("external_validation", "fine_tune", "label_efficiency", "linear_probe")


def picture(path: Path, mask: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((12, 16, 3), 120, np.uint8)
    pixels[4:8, 4:8] = 255
    Image.fromarray(np.where(pixels[..., 0] > 127, 255, 0).astype(np.uint8) if mask else pixels).save(path)


def put(card, root: Path, lacking=(), images=range(1, 9)) -> None:
    """Writes a dataset of masks in its layout."""
    rows = [f"{card.draw.image},lesion_id"] if card.draw else []
    for i in images:
        split = ("train", "train", "val", "test")[i % 4]
        name = f"{card.split_folders[split]}/{i}.jpg" if card.split_folders else f"{i}.jpg"
        rows.append(f"{i},L{i}")
        picture(root / card.image_root / name)
        if i not in lacking:
            picture(root / card.masks.root / card.masks.name(name, split), mask=True)
    if card.draw:
        (root / card.draw.metadata).write_text("\n".join(rows))


@pytest.mark.parametrize("card", [ISIC, HAM], ids=lambda card: card.name)
def test_masks_in_place_are_found_and_missing_ones_counted(card, tmp_path):
    put(card, tmp_path)
    assert DataRoot(tmp_path).find(card) == ("", "")
    put(card, tmp_path / "other", lacking=(2, 3))
    assert dict(count_problems(card, tmp_path / "other")) == {"missing mask": 2}
    problem, remedy = DataRoot(tmp_path / "other").find(card)
    assert problem == "2 x missing mask"
    assert remedy == f"for the rows: python run_all.py --check-data {card.name}"


def test_an_empty_folder_and_metadata_without_lesions_are_problems(tmp_path):
    put(ISIC, tmp_path)
    for path in (tmp_path / "ISIC2018/Test_Data").iterdir():
        path.unlink()
    assert dict(count_problems(ISIC, tmp_path)) == {"empty split": 1}
    put(HAM, tmp_path)
    (tmp_path / HAM.draw.metadata).write_text("image_id,dx\n1,nv\n")
    assert dict(count_problems(HAM, tmp_path)) == {"missing column": 1}


@pytest.mark.parametrize("card", [ISIC, HAM], ids=lambda card: card.name)
def test_a_remedy_puts_masks_in_place(card, tmp_path):
    home = Path(card.places[0]).parent
    put(card, tmp_path / "x")
    shutil.move(tmp_path / "x" / home, tmp_path / "my download")
    shutil.rmtree(tmp_path / "x")
    finding = DataRoot(tmp_path).find(card)
    assert finding.problem == f"it lies in {tmp_path / 'my download'}"
    subprocess.run(["bash", "-ec", finding.remedy], check=True)
    assert DataRoot(tmp_path).find(card) == ("", "")
    shutil.rmtree(tmp_path / card.mask_places[0])
    finding = DataRoot(tmp_path).find(card)
    assert finding.problem == f"its masks are not in {tmp_path / card.mask_places[0]}"
    assert finding.remedy.startswith("put them there; ")


def test_check_data_lists_masks(tmp_path, capsys):
    put(ISIC, tmp_path)
    picture(tmp_path / "ISIC2018/Test_GroundTruth/99_segmentation.png", mask=True)
    Image.new("L", (16, 12)).save(tmp_path / "ISIC2018/Test_GroundTruth/3_segmentation.png")
    put(HAM, tmp_path, lacking=(5,))
    arguments = ["--data-root", str(tmp_path), "--check-data", ISIC.name, HAM.name, "--pixels"]
    assert run_all.main(arguments) == 1
    text = capsys.readouterr().out
    lines = text.splitlines()
    cells = {name: lines[0].index(name) for name in ("result", "missing masks", "wrong masks", "labels", "manifest")}
    seen = {
        line.split()[0]: {name: (line[at:] + " ").split("  ")[0].strip() for name, at in cells.items()}
        for line in lines[1:3]
    }
    assert seen == {
        ISIC.name: {
            "result": "other sizes",
            "missing masks": "0",
            "wrong masks": "1",
            "labels": "",
            "manifest": "2,594/100/1,000",
        },
        HAM.name: {
            "result": "errors",
            "missing masks": "1",
            "wrong masks": "0",
            "labels": "",
            "manifest": "10,015 in all",
        },
    }
    assert "isic2018_task1: note: 1 x empty mask: " in text
    assert "99_segmentation.png is of no image in the table" in text
    assert "[5.jpg] its mask 5_segmentation.png: the file is missing" in text


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """The manifests, with both datasets in the profiles."""
    folder = tmp_path / "data_manifests"
    shutil.copytree(ROOT / "data_manifests", folder, ignore=shutil.ignore_patterns("weights"))
    text = (folder / "profiles.yaml").read_text()
    if ISIC.name not in text:
        text = text.replace("ph2, med_node]\n", "ph2, med_node, isic2018_task1, ham10000_masks]\n")
    (folder / "profiles.yaml").write_text(text)
    monkeypatch.setattr(reading, "MANIFEST_ROOT", folder)
    return tmp_path


@pytest.mark.parametrize("profile", ["demo", "paper"])
def test_protocols_on_classes_leave_masks_out_silently(profile, listed):
    assert ISIC.name in manifests.load_profile(profile).datasets
    space = workspace.open_workspace(profile, listed, listed, listed)
    planned = batch.make_plan(space, ["all"], protocols=CLASSES, encoders=["panderm_base"])
    studied = {run.parameters.get("dataset", run.notebook.stem) for run in planned.runs}
    assert {"ham10000", "pad_ufes"} <= studied
    assert not {ISIC.name, HAM.name} & studied


def test_masks_named_for_a_protocol_on_classes_are_an_error(listed):
    space = workspace.open_workspace("paper", listed, listed, listed)
    with pytest.raises(
        batch.PlanError, match="isic2018_task1: linear_probe needs `classes` in its manifest; choose from"
    ):
        batch.make_plan(space, [ISIC.name], protocols=["linear_probe"])


def test_a_title_says_what_comes_with_the_images():
    from panderm_utils import protocols
    from panderm_utils.batch.stamper import title_markdown

    protocol = dataclasses.replace(protocols.load_protocol("linear_probe"), name="mine", dataset_keys=("masks",))
    title = title_markdown(protocol, ISIC)
    assert "Dataset `isic2018_task1` (dermoscopic, lesion masks), protocol `mine`." in title
    assert batch.sync(check=True) == []
