"""A researcher's own CSV and images, as they come: guesses are explained, the dataset loads, nothing is replaced."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from panderm_utils.data import dataset as data
from panderm_utils.data.own_data import read_own_data
from panderm_utils.manifests import SPLITS
from panderm_utils.manifests import reading as manifests

NAME = "clinic_of_the_tests"  # unlike any dataset that a user may have here


def images(folder: Path, names) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i % 256, i // 256, 0)).save(folder / name)
    return folder


def make(tmp_path: Path, table: pd.DataFrame, folder: Path, name: str = NAME, **options):
    csv = tmp_path / "user.csv"
    table.to_csv(csv, index=False, **options)
    before = csv.read_bytes()
    own = read_own_data([csv], folder, name, tmp_path / "own")
    assert csv.read_bytes() == before
    return own.manifests[0], own.messages, (*own.written, csv)[0]


def test_a_clinic_table_becomes_a_dataset(tmp_path):
    rng = np.random.default_rng(0)
    n = 200
    table = pd.DataFrame(
        {
            "Patient ID": rng.integers(0, 80, n),
            "file": [f"IMG_{i}" for i in range(n)],
            "Diagnosis": rng.choice(["Melanoma", "nevus", "Nevus "], n, p=[0.3, 0.5, 0.2]),
            "age": rng.integers(20, 90, n),
        }
    )
    folder = images(tmp_path / "photos", [f"clinic/IMG_{i}.JPG" for i in range(n)])
    manifest, said, path = make(tmp_path, table, folder)
    assert path == tmp_path / "own" / f"{NAME}.csv"
    assert manifest.own
    assert manifest.task == "binary"
    assert manifest.headline_metric == "auroc"
    assert manifest.class_names == ("nevus", "Melanoma")
    assert manifest.melanoma == ("Melanoma",)
    assert manifest.groups == {"patient": "Patient ID"}
    assert manifest.metadata == {"age": "age"}
    assert manifest.image_suffix == ".JPG"
    assert Path(manifest.csv) == path
    assert Path(manifest.image_root) == folder
    text = "\n".join(said)
    for words in ("column `file` names the images: 200 found", "0 = nevus, 1 = Melanoma", "70/10/20", "Patient ID"):
        assert words in text
    dataset = data.load_dataset(manifest, tmp_path / "unused", check="pixels")
    assert dataset.problems.empty
    assert len(dataset.table) == n
    truth = table["Diagnosis"].eq("Melanoma").astype(int).to_numpy()
    order = dataset.table["image"].str.extract(r"IMG_(\d+)")[0].astype(int)
    assert (dataset.table["label"].to_numpy() == truth[order]).all()
    leaks = data.leakage_table(dataset)
    assert leaks.loc["patient", "in two splits"] == 0
    assert manifest.split_sizes == data.describe(dataset)["split_sizes"]
    assert manifest.class_counts["test"] == tuple(data.class_counts(dataset)["test"])
    (tmp_path / "manifests" / "datasets").mkdir(parents=True)
    manifests.write_dataset_manifest(manifest, tmp_path / "manifests")
    read = manifests.load_dataset_manifest(NAME, tmp_path / "manifests")
    assert (read.classes, read.csv, read.groups, read.own) == (manifest.classes, str(path), manifest.groups, True)


def test_a_table_that_keeps_the_contract_is_used_as_it_is(tmp_path):
    rows = [
        (f"{i}.png", split, k, text)
        for i, (split, k, text) in enumerate(
            (split, k, text) for split in ("train", "val", "test") for k, text in enumerate(("akiec", "bcc", "mel"))
        )
    ]
    table = pd.DataFrame(rows, columns=["image", "split", "label", "dx"])
    manifest, said, path = make(tmp_path, table, images(tmp_path / "i", table["image"]))
    assert path == tmp_path / "user.csv"
    assert not (tmp_path / "own").exists()
    assert manifest.class_names == ("akiec", "bcc", "mel")
    assert manifest.label_column == "label"
    assert manifest.headline_metric == "weighted_f1"
    assert any("used as it is" in line for line in said)
    assert data.load_dataset(manifest, tmp_path).problems.empty


def test_splits_in_other_words_and_text_labels_in_the_label_column(tmp_path):
    table = pd.DataFrame(
        {
            "image": [f"folder/{i}.png" for i in range(12)],
            "Set": ["Training"] * 6 + ["Valid"] * 2 + ["TEST"] * 3 + ["extra"],
            "label": ["c", "b", "a"] * 4,
        }
    )
    manifest, said, path = make(tmp_path, table, images(tmp_path / "i", [f"{i}.png" for i in range(12)]), sep=";")
    made = pd.read_csv(path)
    assert list(made["split"]) == ["train"] * 6 + ["val"] * 2 + ["test"] * 3
    assert list(made["label"]) == [2, 1, 0] * 3 + [2, 1]
    assert list(made["label_name"]) == ["c", "b", "a"] * 3 + ["c", "b"]
    assert made["image"].iloc[0] == "0.png"
    assert any("1 rows of other names are LEFT OUT" in line for line in said)
    assert len(data.load_dataset(manifest, tmp_path).table) == 11


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["benign", "malignant"], ("benign", "malignant")),
        (["melanoma", "nevus"], ("nevus", "melanoma")),
        (["non-cancer", "cancer"], ("non-cancer", "cancer")),
        (["yes", "no"], ("no", "yes")),
        ([True, False], ("False", "True")),
        ([1, 2], ("1", "2")),
        ([1.0, 0.0], ("0.0", "1.0")),
        (["10", "9", "2"], ("2", "9", "10")),
    ],
)
def test_class_order(tmp_path, labels, names):
    table = pd.DataFrame({"image": [f"{i}.png" for i in range(30)], "target": (labels * 30)[:30]})
    manifest, _, path = make(tmp_path, table, images(tmp_path / "i", table["image"]))
    assert manifest.class_names == names
    made = pd.read_csv(path, dtype=str)
    assert manifest.label_column == ("binary_label" if len(names) == 2 else "label")
    assert [names[int(k)] for k in made[manifest.label_column]] == [str(v) for v in table["target"]]


def test_rows_without_image_or_label_are_left_out_loudly(tmp_path):
    table = pd.DataFrame({"image": [f"{i}.png" for i in range(40)], "label": [0, 1] * 20}).astype({"label": object})
    table.loc[3, "label"] = None
    folder = images(tmp_path / "i", [f"{i}.png" for i in range(40) if i not in (7, 8)])
    manifest, said, path = make(tmp_path, table, folder)
    assert any("2 of 40 rows name no image" in line and "(rows 9, 10)" in line for line in said)
    assert any("1 rows without a label" in line and "(rows 5)" in line for line in said)
    assert len(pd.read_csv(path)) == 37
    assert data.load_dataset(manifest, tmp_path).problems["severity"].isin(["warning", "note"]).all()


def test_ambiguous_names_are_not_guessed(tmp_path):
    table = pd.DataFrame({"image": ["x.png", *(f"{i}.png" for i in range(20))], "label": [0, *[0, 1] * 10]})
    folder = images(tmp_path / "i", ["a/x.png", "b/x.png", *(f"{i}.png" for i in range(20))])
    _, said, path = make(tmp_path, table, folder)
    assert "x.png" not in set(pd.read_csv(path)["image"])
    assert any("1 of 21 rows name no image" in line for line in said)


def test_errors_say_what_to_do(tmp_path):
    good = pd.DataFrame({"image": [f"{i}.png" for i in range(10)], "label": [0, 1] * 5})
    folder = images(tmp_path / "i", good["image"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.dcm").write_bytes(b"x")
    for table, where, name, words in [
        (good, folder, "My Set", "--name my_set"),
        (good, folder, "ham10000", "already"),
        (good, folder, "all", "--name all_own"),
        (good, tmp_path / "nowhere", NAME, "no image folder"),
        (good, tmp_path / "raw", NAME, "1 x .dcm"),
        (good, tmp_path / "empty", NAME, "nothing"),
        (good.head(0), folder, NAME, "no rows"),
        (good.assign(image="zzz"), folder, NAME, "none of the first 10 rows.*'zzz'.*10 x .png.*'0.png'"),
        (good.rename(columns={"label": "score"}), folder, NAME, r"  --label score  2 classes: 0 5, 1 5"),
        (good[["image"]], folder, NAME, "no label column.*--label COLUMN"),
        (good.assign(label=0), folder, NAME, "at least 2"),
        (
            good.assign(label=""),
            folder,
            NAME,
            r"no label column among image, label \(empty\); name yours: --label COLUMN",
        ),
        (pd.concat([good] * 30).assign(label=range(300)), folder, NAME, "too many"),
    ]:
        with pytest.raises(data.DataError, match=words):
            make(tmp_path, table, where, name)
    with pytest.raises(data.DataError, match="there is no CSV"):
        read_own_data([tmp_path / "none.csv"], folder, NAME, tmp_path)
    assert not (tmp_path / "own").exists()


def test_an_existing_table_is_never_replaced(tmp_path):
    table = pd.DataFrame({"image": [f"{i}.png" for i in range(20)], "label": [0, 1] * 10})
    folder = images(tmp_path / "i", table["image"])
    _, _, path = make(tmp_path, table, folder)
    first = path.read_bytes()
    make(tmp_path, table, folder)  # the same again is the same file
    path.write_text("precious")
    with pytest.raises(data.DataError, match="exists and is not replaced"):
        make(tmp_path, table, folder)
    assert path.read_text() == "precious"
    assert first.startswith(b"image,split,label\n")
    user = tmp_path / "own" / "user.csv"  # the user's table, where the new one of this name would go
    table.to_csv(user, index=False)
    with pytest.raises(data.DataError, match="exists and is not replaced"):
        read_own_data([user], folder, "user", tmp_path / "own")
    assert pd.read_csv(user).equals(table)
    assert sorted(p.name for p in (tmp_path / "own").iterdir()) == [f"{NAME}.csv", "user.csv"]


def read(tmp_path: Path, columns: dict, flags: dict | None = None, folds: int = 0, own: str = "own"):
    """What is made of a table whose images are 0.png, 1.png, ...; no image is opened."""
    n = len(next(iter(columns.values())))
    folder = tmp_path / "i"
    folder.mkdir(exist_ok=True)
    for i in range(n):
        (folder / f"{i}.png").touch()
    pd.DataFrame({"image": [f"{i}.png" for i in range(n)], **columns}).to_csv(tmp_path / "user.csv", index=False)
    return read_own_data([tmp_path / "user.csv"], folder, NAME, tmp_path / own, flags, folds)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["True", "False"], ("not malignant", "malignant")),
        (["yes", "no"], ("not malignant", "malignant")),
        (["1.0", "0.0"], ("not malignant", "malignant")),
        (["malignant", "benign"], ("benign", "malignant")),
    ],
)
def test_a_column_named_after_a_disease_names_its_classes(tmp_path, labels, names):
    (manifest,) = read(tmp_path, {"Malignant": labels * 10}).manifests
    assert manifest.class_names == names
    assert pd.read_csv(manifest.csv)["binary_label"].tolist() == [1, 0] * 10


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"label": ["daignosis"]}, "--label daignosis: no such column; write one of diagnosis"),
        ({"image": ["zzz"]}, "--image zzz: no such column; write one of image, diagnosis, set, empty, ids"),
        ({"patient": ["empty"]}, "--patient empty: the column is empty; name another"),
        ({"patient": ["ids"], "lesion": ["ids"]}, "ids is both --patient and --lesion; a column has one role"),
        ({"patient": ["image"]}, "the name is for the image; rename it"),
        (
            {"split": ["ids"]},
            r"the split `ids` needs labelled images in both train and test; it has p0 5, p1 5.*--split n",
        ),
        ({"label": ["set", "ids"]}, "--label set ids: `set` has 'train'; one-hot cells are 0 or 1"),
    ],
)
def test_wrong_flags_are_refused(tmp_path, flags, words):
    ids = [f"p{i // 5}" for i in range(40)]
    table = {"diagnosis": ["a", "b"] * 20, "set": ["train", "test"] * 20, "empty": [""] * 40, "ids": ids}
    with pytest.raises(data.DataError, match=words):
        read(tmp_path, table, flags)


def test_flags_are_taken_over_every_guess(tmp_path):
    table = {
        "label": ["a", "b"] * 20,
        "other": ["x"] * 13 + ["y"] * 13 + ["z"] * 14,
        "split": ["train", "test"] * 20,
        "mine": ["train"] * 20 + ["test"] * 20,
        "patient_id": [f"p{i // 2}" for i in range(40)],
        "owner": [f"o{i // 4}" for i in range(40)],
    }
    (manifest,) = read(tmp_path, table, {"label": ["other"], "split": ["mine"], "patient": ["owner"]}).manifests
    assert manifest.class_names == ("x", "y", "z")
    assert manifest.groups == {"patient": "owner"}
    made = pd.read_csv(manifest.csv)
    assert made["split"].tolist() == table["mine"]
    assert made["csv_split"].tolist() == table["split"]
    assert made["csv_label"].tolist() == table["label"]
    none = read(tmp_path, table, {"label": ["other"], "split": ["none"], "patient": ["none"]}, own="none")
    assert none.manifests[0].groups == {}
    assert "split was drawn (seed 0), each image on its own" in "\n".join(none.messages)


def test_of_patients_and_their_cases_the_patient_is_kept_together(tmp_path):
    table = {
        "case_id": [f"c{i // 2}" for i in range(60)],
        "patient_id": [f"p{i // 6}" for i in range(60)],
        "label": ["a", "b"] * 30,
    }
    assert read(tmp_path, table).manifests[0].groups == {"patient": "patient_id"}
    table["case_id"] = [f"c{i % 20}" for i in range(60)]  # now no case is of one patient
    with pytest.raises(data.DataError, match=r"Which column is the patient\?\n  --patient patient_id  10 values in 60"):
        read(tmp_path, table)


def test_an_empty_column_has_no_role(tmp_path):
    table = {"case_id": [""] * 40, "case_num": [f"c{i // 2}" for i in range(40)], "age": ["nan"] * 40}
    own = read(tmp_path, {**table, "label": [""] * 40, "diagnosis": ["a", "b"] * 20})
    assert own.manifests[0].class_names == ("a", "b")
    assert own.manifests[0].groups == {"patient": "case_num"}
    assert own.manifests[0].metadata == {}
    assert any("column `case_id` is empty: it is not used as the patient" in line for line in own.messages)


def test_values_that_are_no_patients_are_not_asked_about(tmp_path):
    sexes = ["female", "male"] * 60
    table = {
        "label": ["a", "b"] * 60,
        "sex": sexes,
        "room": [f"room {i % 6}" for i in range(120)],  # few values
        "thickness": [f"{i % 40 / 7:.3f}" for i in range(120)],  # decimals
        "taken": [f"2020-01-{1 + i % 28:02}" for i in range(120)],  # dates
        "pixels": [600 + i % 31 for i in range(120)],  # of both sexes
        "serial": list(range(120)),  # all different
    }
    assert read(tmp_path, table).manifests[0].groups == {}
    table["nr"] = [i // 4 * 2 + i % 2 for i in range(120)]
    with pytest.raises(data.DataError, match=r"--patient nr    60 values in 120 rows, such as 0\n  --patient none"):
        read(tmp_path, table)


@pytest.mark.parametrize("patients", [False, True])
def test_rare_classes_are_tested_or_named(tmp_path, patients):
    ids = {"patient_id": [f"p{i // 2}" for i in range(400)]} if patients else {}
    unit = "patients" if patients else "images"
    rare = ["melanoma" if i in (5, 200, 399) else ("nevus", "bcc")[i % 2] for i in range(400)]
    own = read(tmp_path, {**ids, "label": rare})
    assert {split: counts[1] for split, counts in own.manifests[0].class_counts.items()} == dict.fromkeys(SPLITS, 1)
    assert "few test images of melanoma (1); add --folds 3, which tests every image once" in "\n".join(own.messages)
    rare[5] = "nevus"
    own = read(tmp_path, {**ids, "label": rare}, own="two")
    assert [counts[1] for counts in own.manifests[0].class_counts.values()] == [1, 0, 1]
    assert f"too few {unit} to be in train, test and val, which need 1 each: melanoma (2)" in "\n".join(own.messages)
    rare[200] = "nevus"
    assert read(tmp_path, {**ids, "label": rare}, own="one").manifests[0].class_counts["train"][1] == 1
    binary = ["melanoma" if text == "melanoma" else "rest" for text in rare]
    with pytest.raises(data.DataError, match=rf"of \d+ {unit}, only 1 has the class melanoma.*needs 2, better 3"):
        read(tmp_path, {**ids, "label": binary})


def test_folds_test_each_image_once_and_keep_patients_together(tmp_path):
    patients = [f"p{i // 3}" for i in range(240)]
    label = ["mel" if i // 3 % 8 == 0 else "nv" for i in range(240)]
    own = read(tmp_path, {"patient_id": patients, "label": label, "split": ["train", "test"] * 120}, folds=5)
    assert [manifest.name for manifest in own.manifests] == [f"{NAME}_fold{k}" for k in range(1, 6)]
    assert [manifest.melanoma for manifest in own.manifests] == [()] * 5
    tables = [data.load_dataset(manifest, tmp_path).table for manifest in own.manifests]
    tested = pd.concat([table[table["split"] == "test"] for table in tables])
    assert sorted(tested["image"]) == sorted(f"{i}.png" for i in range(240))
    for k, table in enumerate(tables):
        assert table.groupby("patient_id")["split"].nunique().max() == 1
        assert table[table["split"] == "test"]["label"].sum() == 6  # 10 of 80 patients, 30 of 240 images, over 5 folds
        following = tables[(k + 1) % 5]
        assert set(table[table["split"] == "val"]["image"]) == set(following[following["split"] == "test"]["image"])
    again = read(tmp_path, {"patient_id": patients, "label": label}, folds=5, own="again")
    assert pd.read_csv(again.written[2])["split"].tolist() == pd.read_csv(own.written[2])["split"].tolist()


@pytest.mark.parametrize(
    ("folds", "words"), [(2, "write 3 to 20"), (7, "6 images are of 6 images, too few for 7 folds")]
)
def test_folds_that_cannot_be_drawn_are_refused(tmp_path, folds, words):
    with pytest.raises(data.DataError, match=words):
        read(tmp_path, {"label": ["a", "b"] * 3}, folds=folds)


def test_more_than_200_classes_are_allowed_with_a_warning(tmp_path):
    own = read(tmp_path, {"diagnosis": [f"d{i % 250}" for i in range(1000)]})
    assert own.manifests[0].num_classes == 250
    assert any("WARNING: 250 classes" in line for line in own.messages)
    assert max(map(len, own.messages)) < 500


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).touch()
    return tmp_path / "f"


def test_images_outside_the_class_folders_are_left_out(tmp_path):
    names = [f"{name}/{i}.jpg" for name in ("mel", "nv") for i in range(9)]
    own = read_own_data([folder_of(tmp_path, "x.jpg", *names, "nv/._0.jpg", "a.csv")], None, NAME, tmp_path / "own")
    assert any("a.csv is not read; to read it: --new-dataset" in line for line in own.messages)
    assert own.manifests[0].class_names == ("nv", "mel")
    assert any("1 rows without a label are LEFT OUT (rows x.jpg)" in line for line in own.messages)
    assert len(pd.read_csv(own.written[0])) == 18


def test_folders_without_classes_are_refused(tmp_path):
    folder = folder_of(tmp_path, "1.jpg", "2.jpg")
    with pytest.raises(data.DataError, match="2 images but no folder per class; sort them into one, or give a CSV"):
        read_own_data([folder], None, NAME, tmp_path / "own")
    (folder / "meta.csv").write_text("image,label\n1.jpg,a\n2.jpg,b\n")
    with pytest.raises(data.DataError, match=r"give its CSV: --new-dataset .*meta\.csv --images "):
        read_own_data([folder], None, NAME, tmp_path / "own")
    with pytest.raises(data.DataError, match="leave --images out"):
        read_own_data([folder], tmp_path, NAME, tmp_path / "own")
    with pytest.raises(data.DataError, match="needs --images DIR"):
        read_own_data([folder / "meta.csv"], None, NAME, tmp_path / "own")


def test_a_known_header_is_no_data_even_if_an_image_has_its_name(tmp_path):
    folder = folder_of(tmp_path, "label.jpg", *(f"{i}.jpg" for i in range(20)))
    table = pd.DataFrame({"file": [f"{i}.jpg" for i in range(20)], "label": [0, 1] * 10})
    manifest, _, _ = make(tmp_path, table, folder)
    assert manifest.num_classes == 2


def test_stated_splits_without_labelled_test_images_are_refused(tmp_path):
    folder = folder_of(tmp_path, *(f"{i}.jpg" for i in range(20)))
    (tmp_path / "train.csv").write_text("image,target\n" + "".join(f"{i}.jpg,{i % 2}\n" for i in range(15)))
    (tmp_path / "test.csv").write_text("image\n" + "".join(f"{i}.jpg\n" for i in range(15, 20)))
    paths = [tmp_path / "train.csv", tmp_path / "test.csv"]
    with pytest.raises(
        data.DataError, match=r"labelled images in both train and test; it has train 15; .*--split none"
    ):
        read_own_data(paths, folder, NAME, tmp_path / "own")
    own = read_own_data(paths, folder, NAME, tmp_path / "own", {"split": ["none"]})
    assert any("5 rows without a label are LEFT OUT (rows test.csv:2, test.csv:3" in line for line in own.messages)
    assert sum(own.manifests[0].split_sizes.values()) == 15


def test_index_files_list_rows_by_name_or_number(tmp_path):
    folder = folder_of(tmp_path, *(f"{i}.jpg" for i in range(9)))
    pd.DataFrame({"image": [f"{i}.jpg" for i in range(9)], "label": [0, 1, 2] * 3}).to_csv(tmp_path / "all.csv")
    listed = {"train": ["image", "0.jpg", "1.jpg", "2.jpg", "3.jpg"], "test": ["idx", "6", "8", "7"]}
    for split, lines in listed.items():
        (tmp_path / f"{split}.csv").write_text("\n".join(lines))
    paths = [tmp_path / f"{name}.csv" for name in ("train", "all", "test")]
    own = read_own_data(paths, folder, NAME, tmp_path / "own", {"patient": ["none"]})
    made = pd.read_csv(own.written[0])
    assert dict(zip(made["image"], made["split"], strict=True)) == {
        **{f"{i}.jpg": "train" for i in range(4)},
        **{f"{i}.jpg": "test" for i in (6, 7, 8)},
    }
    assert any("2 rows of other names are LEFT OUT" in line for line in own.messages)
    for lines, words in (
        ("idx\n3\n4", "1 of its rows are in another split's file"),
        ("number\n3", "none of its columns"),
    ):
        paths[2].write_text(lines)
        with pytest.raises(data.DataError, match=words):
            read_own_data(paths, folder, NAME, tmp_path / "own")
