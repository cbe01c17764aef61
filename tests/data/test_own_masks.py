"""A researcher's own masks, as they come: by a column or by name; each guess is explained, wrong masks are refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from panderm_utils import data, manifests
from panderm_utils.data.own_data import read_own_data
from panderm_utils.manifests import reading

NAME = "masks_of_the_tests"  # unlike any dataset that a user may have here
PHOTO = np.random.default_rng(0).integers(40, 200, (8, 10, 3), dtype=np.uint8)
MASK = np.zeros((8, 10), np.uint8)
MASK[2:6, 3:7] = 255
N = 20


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def lay_out(root: Path, image: str = "images/{}.jpg", mask: str = "masks/{}_mask.png", n: int = N) -> Path:
    for i in range(n):
        save(root / image.format(i), PHOTO)
        save(root / mask.format(i), MASK)
    return root


def read(root: Path, table: pd.DataFrame | None, masks: str | None = None, images: str = "images", **columns):
    """Returns the only manifest, the messages and the loaded dataset; a table stands for a CSV."""
    source = root / images
    if table is not None:
        source = root / "mine.csv"
        table.to_csv(source, index=False)
    flags = {role: [names] if isinstance(names, str) else names for role, names in columns.items()}
    image_dir, mask_dir = (None if table is None else root / images), (masks and root / masks)
    own = read_own_data([source], image_dir, NAME, root / "own", flags, mask_dir=mask_dir)
    (card,) = own.manifests
    study = data.load_dataset(card, root / "nowhere", check="pixels")
    assert study.problems[study.problems["severity"] == "error"].empty
    for name in study.table["image"]:
        stem = study.path(name).stem
        assert study.mask_path(name).stem.startswith(stem)
        np.testing.assert_array_equal(data.open_mask(study.mask_path(name)), MASK > 0)
    return card, "\n".join(own.messages), study


def rows(n: int = N, **columns) -> pd.DataFrame:
    return pd.DataFrame({"image": [f"{i}.jpg" for i in range(n)], **columns})


LABELS = {"dx": ["mel", "nv"] * (N // 2)}
ENDINGS = [
    "masks/{}_segmentation.png",
    "masks/{}_mask.png",
    "masks/{}_seg.tif",
    "masks/{}.png",
    "masks/a/b/{}_Mask.PNG",
]


@pytest.mark.parametrize("mask", ENDINGS)
def test_masks_are_found_by_the_names_of_their_images(tmp_path, mask):
    lay_out(tmp_path, mask=mask)
    card, told, study = read(tmp_path, rows(**LABELS), "masks")
    assert (card.task, card.class_names, card.content) == ("binary", ("nv", "mel"), "2 classes and lesion masks")
    assert card.masks == manifests.Masks(root=str(tmp_path / "masks"))
    assert len(study.table) == N
    assert "are named after the images: 20 of 20 images have one" in told


def test_a_folder_of_images_and_one_of_masks_are_a_dataset_without_classes(tmp_path):
    lay_out(tmp_path)
    save(tmp_path / "masks/other_mask.png", MASK)
    card, told, study = read(tmp_path, None, "masks")
    assert (card.task, card.headline_metric, card.classes, card.class_counts) == ("segmentation", "jaccard", (), None)
    assert card.split_sizes == {"train": 14, "val": 2, "test": 4} == data.describe(study)["split_sizes"]
    assert "no label: the dataset has masks alone" in told
    assert "a 70/10/20 split was drawn (seed 0), each image on its own" in told
    assert "1 files in" in told
    assert "stratified" not in told + "".join(card.caveats)
    (tmp_path / "m/datasets").mkdir(parents=True)
    text = reading.write_dataset_manifest(card, tmp_path / "m").read_text()
    assert "folders" not in text  # nothing empty
    assert reading.load_dataset_manifest(NAME, tmp_path / "m").masks == card.masks


@pytest.mark.parametrize(
    ("image", "mask", "images", "masks"),
    [
        ("all/{}.jpg", "all/{}_mask.png", "all", "all"),
        ("all/{}.jpg", "all/masks/{}.png", "all", "all/masks"),
        ("all/images/{}.jpg", "all/masks/{}.png", "all", "all/masks"),
    ],
)
def test_masks_beside_or_below_the_images_are_not_taken_for_images(tmp_path, image, mask, images, masks):
    lay_out(tmp_path, image, mask)
    card, _, study = read(tmp_path, None, masks, images)
    assert len(study.table) == N
    assert not card.classes


def test_folders_named_after_splits_are_the_splits(tmp_path):
    for split, ids in {"train": range(12), "val": range(12, 15), "test": range(15, 20)}.items():
        for i in ids:
            save(tmp_path / f"images/{split}/{i}.jpg", PHOTO)
            save(tmp_path / f"masks/{split}/{i}.png", MASK)
    card, told, study = read(tmp_path, None, "masks")
    assert card.split_sizes == {"train": 12, "val": 3, "test": 5}
    assert "is read as a folder per split" in told
    assert study.mask_path("train/3.jpg") == tmp_path / "masks/train/3.png"


def test_the_folder_decides_between_masks_of_one_name(tmp_path):
    for folder in ("a", "b"):
        lay_out(tmp_path, f"images/{folder}/{{}}.jpg", f"masks/{folder}/{{}}.png")
    card, _, study = read(tmp_path, None, "masks", label="none")
    assert len(study.table) == 2 * N
    assert all(Path(image).parent == Path(mask).parent for image, mask in study.table[["image", "mask"]].to_numpy())
    assert not card.classes


@pytest.mark.parametrize("name", ["mask", "Mask file", "segmentation_path"])
def test_a_column_names_the_masks(tmp_path, name):
    lay_out(tmp_path)
    table = rows(**{name: [f"masks/{i}_mask.png" for i in range(N)]}, patient_id=[f"p{i // 2}" for i in range(N)])
    card, told, study = read(tmp_path, table, images=".")
    assert card.masks.root == str(tmp_path)
    assert f"column `{name}` names the masks: 20 of 20 images have one" in told
    assert not card.classes
    assert data.leakage_table(study).loc["patient", "in two splits"] == 0


def test_a_column_is_looked_up_in_the_folder_of_masks(tmp_path):
    lay_out(tmp_path)
    card, _, study = read(tmp_path, rows(outline=[f"{i}_mask" for i in range(N)], **LABELS), "masks", mask="outline")
    assert card.masks.root == str(tmp_path / "masks")
    assert study.table["mask"].tolist() == [f"{i}_mask.png" for i in range(N)]


def test_a_table_that_keeps_the_contract_is_used_as_it_is(tmp_path):
    lay_out(tmp_path)
    split = ["train"] * 12 + ["val"] * 3 + ["test"] * 5
    table = rows(split=split, label=[0, 1] * 10, mask=[f"{i}_mask.png" for i in range(N)])
    card, told, _ = read(tmp_path, table, "masks")
    assert card.csv == str(tmp_path / "mine.csv")
    assert "needs no changes and is used as it is" in told
    assert (card.num_classes, card.masks.root) == (2, str(tmp_path / "masks"))


def test_masks_may_be_refused_and_classes_too(tmp_path):
    lay_out(tmp_path)
    table = rows(mask=[f"masks/{i}_mask.png" for i in range(N)], **LABELS)
    table.to_csv(tmp_path / "mine.csv", index=False)
    own = read_own_data([tmp_path / "mine.csv"], tmp_path, NAME, tmp_path / "one", {"mask": ["none"]})
    assert (own.manifests[0].masks, own.manifests[0].num_classes) == (None, 2)
    card, _, _ = read(tmp_path, table, images=".", label="none")
    assert (card.masks is None, card.classes) == (False, ())


def test_rows_without_a_mask_are_left_out_loudly(tmp_path):
    lay_out(tmp_path)
    for i in (3, 4):
        (tmp_path / f"masks/{i}_mask.png").unlink()
    card, told, study = read(tmp_path, rows(**LABELS), "masks")
    assert "18 of 20 images have one" in told
    assert "2 rows without a mask are LEFT OUT (rows 5, 6)" in told
    assert len(study.table) == 18
    assert sum(card.split_sizes.values()) == 18


def test_what_could_be_a_label_is_named_but_not_asked_for(tmp_path):
    lay_out(tmp_path)
    card, told, _ = read(tmp_path, rows(device=["a", "b"] * 10), "masks")
    assert not card.classes
    assert "no label: the dataset has masks alone; if there are classes: --label device" in told


def test_a_column_of_masks_elsewhere_says_what_to_give(tmp_path):
    lay_out(tmp_path)
    table = rows(mask=[f"../masks/{i}_mask.png" for i in range(N)], **LABELS)
    table.to_csv(tmp_path / "mine.csv", index=False)
    own = read_own_data([tmp_path / "mine.csv"], tmp_path / "images", NAME, tmp_path / "one")
    told = f"column `mask` names no mask below {tmp_path / 'images'}; to use it, give the folder"
    assert any(line.startswith(told) for line in own.messages)
    assert own.manifests[0].masks is None
    card, _, _ = read(tmp_path, table, "masks")
    assert card.masks.root == str(tmp_path / "masks")
    table.drop(columns="dx").to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(ValueError, match=r"no label column among image, mask; .*or give masks: --masks DIR"):
        read_own_data([tmp_path / "mine.csv"], tmp_path / "images", NAME, tmp_path / "two")


def test_folds_of_masks_alone(tmp_path):
    lay_out(tmp_path)
    own = read_own_data([tmp_path / "images"], None, NAME, tmp_path / "own", {}, 4, tmp_path / "masks")
    tested = [data.load_dataset(card, tmp_path).split("test")["image"] for card in own.manifests]
    assert sorted(pd.concat(tested)) == sorted(f"{i}.jpg" for i in range(N))


def refuse_absent(root):
    return "elsewhere", {}, r"there is no folder of masks .*elsewhere; give --masks the folder"


def refuse_empty(root):
    (root / "elsewhere").mkdir()
    return (
        "elsewhere",
        {},
        r"elsewhere has no mask; give --masks a folder of images named as x_segmentation\.png, x_mask",
    )


def refuse_other_names(root):
    save(root / "elsewhere/lesion_1.png", MASK)
    return (
        "elsewhere",
        {},
        r"no image has a mask below .*elsewhere\. Of 0\.jpg, that would be 0_segmentation\.png, 0_mask",
    )


def refuse_two(root):
    save(root / "masks/3_seg.png", MASK)
    return (
        "masks",
        {},
        r"the masks of 3\.jpg are 3_mask\.png and 3_seg\.png; remove one, or name the right one in a col",
    )


def refuse_shared(root):
    save(root / "images/b/3.jpg", PHOTO)
    save(root / "images/a/3.jpg", PHOTO)
    (root / "images/3.jpg").unlink()
    return "masks", {}, r"3_mask\.png would be the mask of a/3\.jpg and b/3\.jpg; put the masks into folders named as"


def refuse_swapped(root):
    save(root / "masks/3_mask.png", PHOTO)
    return "masks", {}, r"3_mask\.png has .* grey values, .*; a mask is black and white; is it swapped"


def refuse_dark(root):
    save(root / "masks/3_mask.png", MASK // 100)
    return "masks", {}, r"3_mask\.png: no pixel is lesion: the highest grey value is 2"


def refuse_column(root):
    return "masks", {"mask": ["dx"]}, r"Of 0\.jpg, that would be the cell 'mel'; the folder has .*--mask COLUMN"


def refuse_no_labels_no_masks(root):
    return None, {"label": ["none"]}, "--label none is for images with masks; give them with --masks DIR"


def refuse_two_roles(root):
    return "masks", {"mask": ["dx"], "label": ["dx"]}, "dx is both --mask and --label; a column has one role"


@pytest.mark.parametrize("plant", [value for name, value in list(globals().items()) if name.startswith("refuse_")])
def test_unusable_masks_are_refused(tmp_path, plant):
    lay_out(tmp_path)
    masks, flags, message = plant(tmp_path)
    files = sorted(path.relative_to(tmp_path / "images").as_posix() for path in tmp_path.glob("images/**/*.jpg"))
    table = pd.DataFrame({"image": sorted(files, key=lambda name: int(Path(name).stem))})
    table.assign(dx=(LABELS["dx"] * 2)[: len(table)]).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(ValueError, match=message):
        read_own_data(
            [tmp_path / "mine.csv"], tmp_path / "images", NAME, tmp_path / "own", flags, 0, masks and tmp_path / masks
        )
    assert not (tmp_path / "own").exists()


def test_of_several_columns_the_user_chooses(tmp_path):
    lay_out(tmp_path)
    lay_out(tmp_path, mask="masks/{}_seg.png")
    table = rows(mask_a=[f"{i}_mask.png" for i in range(N)], mask_b=[f"{i}_seg.png" for i in range(N)])
    with pytest.raises(data.OpenQuestions, match="Which column names the masks") as error:
        read(tmp_path, table, "masks")
    assert error.value.example == ["--mask", "mask_a"]
    assert "--mask none" in str(error.value)
    _, _, study = read(tmp_path, table, "masks", mask="mask_b")
    assert study.table["mask"][0] == "0_seg.png"
