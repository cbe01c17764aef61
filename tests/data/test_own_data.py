"""A researcher's own CSV and images, as they come: guesses are explained, the dataset loads, nothing is replaced."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from panderm_utils.data import dataset as data
from panderm_utils.data.own_data import read_own_data
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
        (good.assign(label=""), folder, NAME, "has 0 class"),
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
