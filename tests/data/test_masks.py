"""Masks on real files: every fault is planted, and the report must name its file and remedy."""

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from panderm_utils import data, manifests
from panderm_utils.manifests import DatasetManifest, Draw, Masks
from panderm_utils.manifests.problems import dataset_problems

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(40, 200, (12, 16, 3), dtype=np.uint8)
MASK = np.zeros((12, 16), np.uint8)
MASK[3:9, 4:12] = 255
FACTS = {
    "name": "toy",
    "title": "Toy",
    "modality": "dermoscopic",
    "institution": "nowhere",
    "task": "segmentation",
    "image_root": "toy",
    "image_suffix": ".jpg",
    "headline_metric": "jaccard",
    "licence": "CC0",
    "citation": "none",
}
FOLDERS = DatasetManifest(
    **FACTS,
    split_folders={"train": "A", "val": "B", "test": "C"},
    masks=Masks(root="toy", suffix="_mask.png", folders={"train": "A_GT", "val": "B_GT", "test": "C_GT"}),
)
TABLE = DatasetManifest(**{**FACTS, "image_root": "toy/images"}, csv="toy/toy.csv", masks=Masks(root="toy/masks"))
DRAWN = DatasetManifest(
    **{**FACTS, "image_root": "toy/images"},
    csv="toy/drawn.csv",
    draw=Draw(metadata="toy/lesions.csv", image="id", percent={"train": 64, "val": 16, "test": 20}, images=40),
    groups={"lesion": "lesion_id"},
    masks=Masks(root="toy/masks", suffix="_mask.png"),
)
SPLIT_OF = {"A": ("2", "1", "10"), "B": ("4",), "C": ("5", "6")}


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def folders(tmp_path):
    for folder, names in SPLIT_OF.items():
        for name in names:
            save(tmp_path / f"toy/{folder}/{name}.jpg", PHOTO)
            save(tmp_path / f"toy/{folder}_GT/{name}_mask.png", MASK)
    return tmp_path


@pytest.fixture
def table(tmp_path):
    rows = ["image,split,mask"]
    for i, split in enumerate(("train", "train", "val", "test")):
        save(tmp_path / f"toy/images/{i}.jpg", PHOTO)
        save(tmp_path / f"toy/masks/m{i}.png", MASK)
        rows.append(f"{i}.jpg,{split},m{i}.png")
    (tmp_path / "toy/toy.csv").write_text("\n".join(rows))
    return tmp_path


@pytest.fixture
def drawn(tmp_path):
    rows = ["id,lesion_id,age"] + [f"i{i:02d},L{i // 2:02d},{20 + i}" for i in range(40)]
    for i in range(40):
        save(tmp_path / f"toy/images/i{i:02d}.jpg", PHOTO)
        save(tmp_path / f"toy/masks/i{i:02d}_mask.png", MASK)
    (tmp_path / "toy/lesions.csv").write_text("\n".join(rows))
    return tmp_path


def found(study, kind: str) -> list[str]:
    return study.problems.loc[study.problems["kind"] == kind, "message"].tolist()


# --- reading ---


def test_split_folders_are_read_in_the_order_of_their_names(folders):
    (folders / "toy/A/notes.txt").write_text("not an image")
    (folders / "toy/A/._1.jpg").write_bytes(b"of macOS")
    study = data.load_dataset(FOLDERS, folders, check="pixels")
    assert study.table["image"].tolist() == ["A/1.jpg", "A/10.jpg", "A/2.jpg", "B/4.jpg", "C/5.jpg", "C/6.jpg"]
    assert study.table["mask"].tolist()[:2] == ["A_GT/1_mask.png", "A_GT/10_mask.png"]
    assert study.split("test")["image"].tolist() == ["C/5.jpg", "C/6.jpg"]
    assert "label" not in study.table
    assert study.problems.empty
    assert study.mask_path("B/4.jpg") == folders / "toy/B_GT/4_mask.png"
    with pytest.raises(data.DataError, match=r"no mask of '4.jpg'"):
        study.mask_path("4.jpg")
    assert data.split_table(study).loc["all"].tolist() == [3, 1, 2, 6]
    assert data.class_counts(study).shape == (0, 3)


def test_a_mask_is_named_by_the_table(table):
    study = data.load_dataset(TABLE, table, check="pixels")
    assert study.mask_path("2.jpg") == table / "toy/masks/m2.png"
    np.testing.assert_array_equal(data.open_mask(study.mask_path("2.jpg")), MASK > 0)


def test_images_with_classes_may_have_masks_too(table):
    card = dataclasses.replace(
        TABLE,
        task="binary",
        headline_metric="auroc",
        label_column="label",
        classes=tuple(manifests.ClassName(name, name) for name in "ab"),
    )
    assert dataset_problems(card, Path("toy.yaml")) == []
    rows = pd.read_csv(table / "toy/toy.csv").assign(label=[0, 1, 0, 1])
    rows.to_csv(table / "toy/toy.csv", index=False)
    study = data.load_dataset(card, table)
    assert study.table[["label", "mask"]].iloc[1].tolist() == [1, "m1.png"]
    assert card.content == "2 classes and lesion masks"
    without = data.load_dataset(dataclasses.replace(card, masks=None), table)
    assert data.describe(study)["rows_sha256"] == data.describe(without)["rows_sha256"]  # as before there were masks


@pytest.mark.parametrize(
    ("mode", "values", "lesion"),
    [
        ("L", [[0, 255]], [[False, True]]),
        ("L", [[127, 128]], [[False, True]]),
        ("L", [[0, 1]], [[False, True]]),
        ("L", [[0, 0]], [[False, False]]),
        ("1", [[0, 1]], [[False, True]]),
        ("I;16", [[0, 65535]], [[False, True]]),
    ],
)
def test_a_mask_is_true_where_it_is_bright(tmp_path, mode, values, lesion):
    kinds = {"1": bool, "L": np.uint8, "I;16": np.uint16}
    path = save(tmp_path / "m.png", np.array(values, kinds[mode]))
    mask = data.open_mask(path)
    assert mask.dtype == bool
    assert mask.tolist() == lesion
    assert data.open_mask("elsewhere.png", path.read_bytes()).tolist() == lesion


def test_a_mask_in_colour_or_of_a_palette_is_read_by_its_grey(tmp_path):
    colour = np.zeros((2, 2, 3), np.uint8)
    colour[0] = 255
    assert data.open_mask(save(tmp_path / "rgb.png", colour)).tolist() == [[True, True], [False, False]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([255, 255, 255, 0, 0, 0])
    palette.save(tmp_path / "p.png")
    assert data.open_mask(tmp_path / "p.png").tolist() == [[True, False]]


def test_a_mask_that_is_none_is_an_error(tmp_path):
    (tmp_path / "web.png").write_text("<html>")
    with pytest.raises(data.ImageError, match=r"web\.png: the file is a web page"):
        data.open_mask(tmp_path / "web.png")
    with pytest.raises(data.ImageError, match="does not exist"):
        data.open_mask(tmp_path / "absent.png")
    dark = save(tmp_path / "dark.png", np.array([[0, 2]], np.uint8))
    with pytest.raises(data.ImageError, match=r"dark\.png: .* highest grey value is 2, lesions are above 127; save"):
        data.open_mask(dark)


# --- checks ---


def plant_missing(root):
    (root / "toy/A_GT/2_mask.png").unlink()


def plant_no_folder(root):
    for path in (root / "toy/C").iterdir():
        path.unlink()


def plant_second(root):
    save(root / "toy/A_GT/2_mask.jpg", MASK)


def plant_size(root):
    save(root / "toy/C_GT/5_mask.png", MASK[:, :10])


def plant_greys(root):
    save(root / "toy/C_GT/5_mask.png", PHOTO[..., 0])


def plant_dark(root):
    save(root / "toy/C_GT/5_mask.png", MASK // 100)


def plant_swapped(root):
    one, other = root / "toy/A/2.jpg", root / "toy/A_GT/2_mask.png"
    pixels = np.stack([np.where(MASK, 255, 0).astype(np.uint8)] * 3, axis=-1)
    save(one, pixels, quality=100, subsampling=0)
    save(other, PHOTO)


def plant_damaged(root):
    (root / "toy/A_GT/2_mask.png").write_bytes(b"no image")


ERRORS = {
    "missing mask": (
        plant_missing,
        "files",
        r"\[A/2.jpg\] its mask A_GT/2_mask.png: the file is missing below .*; add",
    ),
    "empty split": (plant_no_folder, "files", "no .jpg file in the folder C; unpack the images there"),
    "two masks": (plant_second, "files", "its masks are A_GT/2_mask.png and A_GT/2_mask.jpg below .*; keep one file"),
    "mask size": (plant_size, "pixels", r"5_mask.png has 10 x 12 pixels, its image 16 x 12; get .* masks.other_sizes"),
    "mask values": (plant_greys, "pixels", "5_mask.png has .* grey values, .* in between; .* swapped"),
    "image like a mask": (plant_swapped, "pixels", r"2.jpg has only black and white pixels; is it swapped with 2_mask"),
    "unreadable image": (plant_damaged, "pixels", "2_mask.png: the file is not a readable image"),
    "unreadable image, dark": (plant_dark, "pixels", "5_mask.png: no pixel is lesion: the highest grey value is 2"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_each_fault_is_an_error_with_its_file_and_remedy(folders, kind):
    plant, check, message = ERRORS[kind]
    plant(folders)
    with pytest.raises(data.DataError, match=message) as error:
        data.load_dataset(FOLDERS, folders, check)
    problems = error.value.problems
    assert kind.split(",")[0] in set(problems.loc[problems["severity"] == "error", "kind"])
    assert "toy:" in str(error.value)
    assert ".jpg:" not in str(error.value).split("\n")[1].split("[")[0]  # no line number of a CSV that does not exist


def test_faults_of_pixels_need_their_check(folders):
    for plant in (plant_size, plant_greys, plant_swapped):
        plant(folders)
    assert data.load_dataset(FOLDERS, folders).problems.empty


def test_a_mask_without_image_is_a_warning(folders):
    (folders / "toy/A/2.jpg").unlink()
    study = data.load_dataset(FOLDERS, folders)
    (message,) = found(study, "mask without image")
    assert "toy/A_GT/2_mask.png is of no image in the table; add its image, or remove it" in message


def test_grey_edges_are_a_warning_and_empty_and_full_masks_a_note(folders):
    big = np.kron(MASK, np.ones((20, 20), np.uint8))
    photo = RNG.integers(40, 200, (240, 320, 3), dtype=np.uint8)
    card = dataclasses.replace(FOLDERS, masks=dataclasses.replace(FOLDERS.masks, suffix="_mask.jpg"))
    for folder, names in SPLIT_OF.items():
        for name in names:
            save(folders / f"toy/{folder}/{name}.jpg", photo)
            save(folders / f"toy/{folder}_GT/{name}_mask.jpg", big, quality=80)
            (folders / f"toy/{folder}_GT/{name}_mask.png").unlink()
    save(folders / "toy/A_GT/1_mask.jpg", 0 * big)
    save(folders / "toy/A_GT/2_mask.jpg", 0 * big + 255)
    study = data.load_dataset(card, folders, check="pixels")
    assert len(found(study, "grey edges")) == 4
    assert "those above 127 are read as lesion" in found(study, "grey edges")[0]
    assert [Path(text.split(" has")[0]).name for text in found(study, "empty mask")] == ["1_mask.jpg"]
    assert [Path(text.split(" has")[0]).name for text in found(study, "full mask")] == ["2_mask.jpg"]
    assert set(study.problems.loc[study.problems["kind"].str.endswith("mask"), "severity"]) == {"note"}


def test_a_known_other_size_is_a_note(folders):
    plant_size(folders)
    masks = dataclasses.replace(FOLDERS.masks, other_sizes=("C/5.jpg",))
    study = data.load_dataset(dataclasses.replace(FOLDERS, masks=masks), folders, check="pixels")
    assert "5_mask.png has 10 x 12 pixels, its image 16 x 12" in found(study, "known size")[0]


def test_one_name_in_two_split_folders_is_leakage(folders):
    save(folders / "toy/C/2.jpg", PHOTO)
    save(folders / "toy/C_GT/2_mask.png", MASK)
    study = data.load_dataset(FOLDERS, folders)
    assert data.leakage_table(study).loc["image", "test images"] == 1
    assert found(study, "leakage") == ["1 image ids are in more than one split; see leakage_table"]


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ("0.jpg,train,m1.png", "two masks", r"\[0.jpg\] its masks are m0.png and m1.png; keep one row"),
        ("3.jpg,test,", "missing mask", "`mask` is empty: the file is missing"),
        ("3.jpg,test,../x.png", "missing mask", "the path leaves the image root"),
    ],
)
def test_a_row_without_a_mask_of_its_own_is_an_error(table, row, kind, message):
    path = table / "toy/toy.csv"
    lines = path.read_text().splitlines()
    lines = [*lines, row] if kind == "two masks" else [*lines[:-1], row]
    path.write_text("\n".join(lines))
    with pytest.raises(data.DataError, match=message):
        data.load_dataset(TABLE, table)


def test_missing_columns_and_folders_are_errors(table):
    (table / "toy/toy.csv").write_text("image,split\n0.jpg,train\n3.jpg,test\n")
    with pytest.raises(data.DataError, match="no column `mask` among image, split; rename or add it"):
        data.load_dataset(TABLE, table)
    card = dataclasses.replace(TABLE, masks=Masks(root="toy/elsewhere", suffix="_mask.png"))
    with pytest.raises(
        data.DataError, match=r"no folder of masks .*elsewhere; unpack the masks there, or correct masks"
    ):
        data.load_dataset(card, table)
    with pytest.raises(data.DataError, match=r"there is no folder .*nowhere; data_root is"):
        data.load_dataset(dataclasses.replace(FOLDERS, image_root="nowhere"), table)


def test_a_record_notices_other_masks(folders):
    before = data.describe(data.load_dataset(FOLDERS, folders))
    assert before["split_sizes"] == {"train": 3, "val": 1, "test": 2}
    assert before["class_counts"] == {"train": [], "val": [], "test": []}
    assert before["csv"] == "toy"
    save(folders / "toy/C_GT/5_mask.png", np.where(RNG.random((12, 16)) > 0.5, 255, 0).astype(np.uint8))
    after = data.describe(data.load_dataset(FOLDERS, folders))
    assert before.pop("masks_sha256") != after.pop("masks_sha256")
    assert before == after


# --- draws ---


def test_a_draw_keeps_lesions_whole_and_is_written_down(drawn):
    study = data.load_dataset(DRAWN, drawn, check="pixels")
    written = drawn / "toy/drawn.csv"
    assert study.csv == written
    assert study.csv_sha256 == hashlib.sha256(written.read_bytes()).hexdigest()
    rows = pd.read_csv(written)
    assert list(rows) == ["image", "split", "lesion_id"]
    assert rows["image"].tolist() == [f"i{i:02d}.jpg" for i in range(40)]
    assert (rows.groupby("lesion_id")["split"].nunique() == 1).all()
    assert Counter(rows["split"]) == {"train": 26, "val": 6, "test": 8}
    (note,) = found(study, "drawn split")
    assert (
        f"seed 0 (train 64%, val 16%, test 20%); SHA-256 of the names and splits: {data.describe(study)['rows_sha256']}"
        in note
    )
    assert data.shortfall(study) == ""
    assert "38 images, not 40" in data.shortfall(dataclasses.replace(study, table=study.table[2:]))


def test_a_draw_is_pinned():
    """By seed and ids alone: these splits must be the same on every machine and for ever."""
    groups = {f"HAM_{i:07d}": 1 + i % 3 for i in range(60)}
    first = data.draw_splits(groups, {"train": 64, "val": 16, "test": 20}, seed=0)
    again = data.draw_splits(dict(reversed(groups.items())), {"train": 64, "val": 16, "test": 20}, seed=0)
    assert first == again
    text = ",".join(f"{group}:{first[group]}" for group in sorted(first))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "91ef55850058f1d1"
    other = data.draw_splits(groups, {"train": 70, "val": 10, "test": 20}, seed=0)
    assert {g for g in groups if first[g] == "test"} == {g for g in groups if other[g] == "test"}
    assert data.draw_splits(groups, {"train": 64, "val": 16, "test": 20}, seed=1) != first
    images = Counter()
    for group, split in first.items():
        images[split] += groups[group]
    assert images == {"train": 77, "val": 19, "test": 24}


def test_a_draw_does_not_depend_on_the_order_of_rows(drawn):
    data.load_dataset(DRAWN, drawn)
    content = (drawn / "toy/drawn.csv").read_bytes()
    path = drawn / "toy/lesions.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\r\n".join([header.replace(",", "\t"), *(row.replace(",", "\t") for row in reversed(rows))]))
    (drawn / "toy/drawn.csv").unlink()
    data.load_dataset(DRAWN, drawn)
    assert (drawn / "toy/drawn.csv").read_bytes() == content


def test_a_draw_without_its_metadata_is_refused(drawn):
    (drawn / "toy/lesions.csv").unlink()
    with pytest.raises(data.DataError, match=r"there is no CSV .*toy/lesions\.csv; data_root is"):
        data.load_dataset(DRAWN, drawn)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("lesion_id", "lesion"),
            r"lesions\.csv:1: no column `lesion_id` among id, lesion, age; get the official file",
        ),
        (("i03,L01", "i02,L01"), r"lesions\.csv:5: \[i02\] the image is in two rows; keep one"),
        (("i03,L01", "i03,"), r"lesions\.csv:5: `lesion_id` is empty"),
    ],
)
def test_damaged_metadata_are_refused(drawn, change, message):
    path = drawn / "toy/lesions.csv"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(data.DataError, match=message):
        data.load_dataset(DRAWN, drawn)
    assert not (drawn / "toy/drawn.csv").exists()


def test_a_table_that_is_not_the_draw_of_its_metadata_is_refused(drawn):
    data.load_dataset(DRAWN, drawn)
    path = drawn / "toy/lesions.csv"
    path.write_text(path.read_text().replace("i39,L19", "i39,L00"))
    with pytest.raises(data.DataError, match=r"drawn\.csv: is not the table that is drawn from .*delete it to draw it"):
        data.load_dataset(DRAWN, drawn)


def test_a_draw_of_incomplete_metadata_is_told(drawn):
    path = drawn / "toy/lesions.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-2]))
    study = data.load_dataset(DRAWN, drawn)
    assert found(study, "split size") == ["38 rows, 40 in the complete data: the draw is another"]
    assert len(found(study, "mask without image")) == 2
    assert data.shortfall(study) == "38 images, not 40"


# --- manifests ---

FAULTS = [
    (FOLDERS, {"masks": None}, "masks: missing; write masks: {root, suffix}"),
    (
        FOLDERS,
        {"label_column": "label"},
        "label_column: a segmentation has no classes; remove it, or write another task",
    ),
    (FOLDERS, {"headline_metric": "auroc"}, "headline_metric: 'auroc' is not for segmentation; write jaccard"),
    (
        FOLDERS,
        {"split_folders": {}, "masks": Masks("toy", "_m.png")},
        "csv: missing; write csv: text, or split_folders",
    ),
    (FOLDERS, {"csv": "toy/toy.csv"}, "split_folders: the CSV has the splits; remove csv or split_folders"),
    (FOLDERS, {"split_folders": {"train": "A", "test": "C"}}, "masks.folders: are not those of the splits"),
    (
        FOLDERS,
        {"split_folders": {"train": "A", "valid": "B", "test": "C"}},
        "split_folders.valid: no such split; write",
    ),
    (
        FOLDERS,
        {"split_folders": {"train": "../A", "val": "B", "test": "C"}},
        "split_folders.train: '../A' is not below",
    ),
    (FOLDERS, {"masks": dataclasses.replace(FOLDERS.masks, suffix="")}, "masks.suffix: missing; without a CSV"),
    (TABLE, {"masks": Masks("toy", "", {"train": "A"})}, "masks.folders: are for split_folders; remove them"),
    (TABLE, {"masks": Masks("/toy")}, "masks.root: '/toy' is not below the data root"),
    (DRAWN, {"groups": {}}, "groups: a draw keeps one kind of group in a split; write groups: {lesion: COLUMN}"),
    (
        DRAWN,
        {"draw": Draw("x.csv", "id", {"train": 80, "test": 20}, 40)},
        "draw.percent: write whole numbers for train",
    ),
    (DRAWN, {"draw": Draw("x.csv", "id", {"train": 80, "val": 1, "test": 20}, 40)}, "that sum to 100"),
    (DRAWN, {"draw": Draw("x.csv", "id", {"train": 60, "val": 20, "test": 20}, 0)}, "draw.images: 0; write the number"),
]


@pytest.mark.parametrize("card", [FOLDERS, TABLE, DRAWN])
def test_the_manifests_of_these_tests_are_valid(card):
    assert dataset_problems(card, Path("toy.yaml")) == []


@pytest.mark.parametrize(("card", "changes", "message"), FAULTS)
def test_each_fault_of_a_manifest_has_its_message(card, changes, message):
    problems = dataset_problems(dataclasses.replace(card, **changes), Path("toy.yaml"))
    assert any(message in text for text in problems), problems


def test_a_protocol_on_classes_does_not_apply_to_masks_alone():
    from panderm_utils import protocols

    card = manifests.load_dataset_manifest("isic2018_task1")
    for name in ("linear_probe", "fine_tune", "label_efficiency", "external_validation"):
        protocol = protocols.load_protocol(name)
        assert protocol.lacks(card) in ("`classes` in its manifest", "`melanoma` in its manifest")
        assert protocol.lacks(manifests.load_dataset_manifest("ham10000")) == ""
    for_masks = dataclasses.replace(protocols.load_protocol("linear_probe"), dataset_keys=("masks",))
    assert for_masks.lacks(card) == ""
    assert for_masks.supported(["ham10000", "isic2018_task1"]) == ["isic2018_task1"]
