"""The CSV contract on real files: every fault is planted, and the report must name its file, row and remedy."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from panderm_utils import data
from panderm_utils.data.csv_tables import Problems, read_text
from panderm_utils.data.splits import connected_groups
from panderm_utils.manifests import Access, ClassName, DatasetManifest, load_dataset_manifest
from panderm_utils.protocols.fine_tune import fine_tune_fraction


def card(classes=("a", "b", "c"), **changes) -> DatasetManifest:
    facts = {
        "name": "toy",
        "title": "Toy",
        "modality": "dermoscopic",
        "institution": "nowhere",
        "task": "binary" if len(classes) == 2 else "multiclass",
        "classes": tuple(ClassName(name=name, long_name=f"long {name}") for name in classes),
        "classes_verified": True,
        "label_column": "label",
        "csv": "toy/toy.csv",
        "image_root": "toy/images",
        "image_suffix": ".png",
        "split_sizes": None,
        "class_counts": None,
        "headline_metric": "auroc" if len(classes) == 2 else "weighted_f1",
        "groups": {},
        "metadata": {},
        "access": (Access(what="images", url="https://example.org/toy", note=""),),
        "licence": "CC0",
        "citation": "",
        "caveats": (),
        "unverified": (),
    }
    return DatasetManifest(**{**facts, **changes})


GOOD = [
    "1.png,train,0",
    "2.png,train,1",
    "3.png,train,2",
    "4.png,test,0",
    "5.png,test,1",
    "6.png,test,2",
    "7.png,val,0",
]


def lay_out(root: Path, rows=GOOD, header="image,split,label", images=range(1, 10), text: bytes | None = None) -> Path:
    folder = root / "toy" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for i in images:
        Image.new("RGB", (8, 8), (i, i, i)).save(folder / f"{i}.png")
    csv = root / "toy" / "toy.csv"
    csv.write_bytes(text if text is not None else "\n".join([header, *rows, ""]).encode())
    return csv


def kinds(dataset: data.Dataset, kind: str) -> pd.DataFrame:
    return dataset.problems[dataset.problems["kind"] == kind]


def test_a_good_table_is_read_as_it_stands(tmp_path):
    csv = lay_out(tmp_path, [f"{row},{30 + i},00{i}" for i, row in enumerate(GOOD)], "image,split,label,age,lesion_id")
    dataset = data.load_dataset(card(groups={"lesion": "lesion_id"}), tmp_path, check="pixels")
    assert dataset.problems.empty
    assert list(dataset.table) == ["row", "image", "split", "label", "age", "lesion_id"]
    assert list(dataset.table["row"]) == list(range(2, 9))
    assert dataset.table["label"].dtype == np.int64
    assert list(dataset.table["label"]) == [0, 1, 2, 0, 1, 2, 0]
    assert list(dataset.table["age"]) == list(range(30, 37))
    assert list(dataset.table["lesion_id"])[:2] == ["000", "001"]
    assert list(dataset.split("test")["image"]) == ["4.png", "5.png", "6.png"]
    assert dataset.path("4.png") == tmp_path / "toy" / "images" / "4.png"
    assert dataset.csv == csv
    with pytest.raises(data.DataError, match=r"not an image of toy"):
        dataset.path("../toy.csv")
    with pytest.raises(data.DataError, match="train, val, test"):
        dataset.split("training")


def test_every_fatal_fault_is_in_one_report_with_row_and_remedy(tmp_path):
    rows = [
        *GOOD,
        "8.png,train,7",  # line 9
        "9.png,train,",  # 10
        "none.png,train,1",  # 11
        "../../secret.png,train,1",  # 12
        "/etc/passwd,test,1",  # 13
        ",test,1",  # 14
        "1.png,train,2",  # 15, contradicts line 2
        "link.png,train,0",  # 16
        "broken.png,val,0",  # 17
        "10.png,train,benign",  # 18
        "11.png,train,1.5",  # 19
    ]
    csv = lay_out(tmp_path, rows, images=range(1, 12))
    (tmp_path / "secret.png").write_bytes((tmp_path / "toy/images/1.png").read_bytes())
    (tmp_path / "toy/images/link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "toy/images/broken.png").write_bytes((tmp_path / "toy/images/1.png").read_bytes()[:50])
    with pytest.raises(data.DataError) as caught:
        data.load_dataset(card(), tmp_path, check="pixels")
    text = str(caught.value)
    for row, words in {
        9: "label '7' is not a class",
        10: "the label is empty",
        11: "missing",
        12: "leaves the image root",
        13: "absolute",
        14: "the image name is empty",
        2: "labels 0, 2 in rows 2, 15",
        16: "symbolic link",
        17: "broken.png",
        18: "label 'benign' is not a class",
        19: "label '1.5' is not a class",
    }.items():
        line = [line for line in text.splitlines() if line.strip().startswith(f"{csv}:{row}:")]
        assert line, (row, text)
        assert words in line[0], (words, line)
        assert ";" in line[0], f"no remedy: {line[0]}"
    assert "root:" not in text  # nothing outside the image root was opened
    assert "0 = a, 1 = b, 2 = c" in text


@pytest.mark.parametrize("check", ["table", "files"])
def test_paths_that_leave_the_root_are_refused_at_every_check(tmp_path, check):
    lay_out(tmp_path, [*GOOD, "x/../../../8.png,train,0"])
    with pytest.raises(data.DataError, match=r"toy\.csv:9: .*leaves the image root"):
        data.load_dataset(card(), tmp_path, check=check)


def test_a_long_report_is_cut_and_counted(tmp_path):
    lay_out(tmp_path, [*GOOD, *(f"no{i}.png,train,1" for i in range(500))])
    with pytest.raises(data.DataError) as caught:
        data.load_dataset(card(), tmp_path)
    text = str(caught.value)
    assert "500 x missing file" in text
    assert "and 490 more" in text
    assert len(text.splitlines()) == 12


def test_the_published_typo_is_dropped_and_counted(tmp_path):
    lay_out(tmp_path, [GOOD[0], "8.png,trainisic,1", *GOOD[1:], "9.png,,1"])
    dataset = data.load_dataset(card(), tmp_path)
    found = kinds(dataset, "unknown split")
    assert list(found["row"]) == [3, 10]
    assert list(found["image"]) == ["8.png", "9.png"]
    assert "'trainisic'" in found["message"].iloc[0]
    assert set(found["severity"]) == {"warning"}
    assert list(dataset.table["row"]) == [2, 4, 5, 6, 7, 8, 9]
    assert data.describe(dataset)["problems"] == {"unknown split": 2}
    assert data.describe(dataset)["split_sizes"] == {"train": 3, "val": 1, "test": 3}


def test_missing_columns_are_named_together(tmp_path):
    lay_out(tmp_path, ["1.png,0"], "Image,binary_label")
    with pytest.raises(data.DataError) as caught:
        data.load_dataset(card(), tmp_path)
    for words in ("no column `image` among Image", "no column `split`", "no column `label`", "toy.csv:1:"):
        assert words in str(caught.value)


def test_two_classes_are_read_from_binary_label(tmp_path):
    rows = ["1.png,train,5,0", "2.png,train,5,1", "3.png,test,6,0", "4.png,test,6,1.0"]
    lay_out(tmp_path, rows, "image,split,label,binary_label")
    dataset = data.load_dataset(card(("benign", "malignant"), label_column="binary_label"), tmp_path)
    assert list(dataset.table["label"]) == [0, 1, 0, 1]
    assert list(dataset.table["csv_label"]) == [5, 5, 6, 6]


def test_spreadsheet_habits_are_read_and_noted(tmp_path):
    lines = ["\ufeffimage;split;label;note", ' 1.png ;train;0;"two', 'lines"', "2.png;train;1; x", "", "3.png;test ;1;"]
    text = "\r\n".join([*lines, "4.png;test;0;", ""])
    lay_out(tmp_path, text=text.encode())
    dataset = data.load_dataset(card(("a", "b")), tmp_path)
    assert list(dataset.table["image"]) == ["1.png", "2.png", "3.png", "4.png"]
    assert list(dataset.table["split"]) == ["train", "train", "test", "test"]
    assert list(dataset.table["row"]) == [2, 4, 6, 7]  # lines as an editor shows them, after the quoted line break
    assert list(kinds(dataset, "stray blanks")["row"]) == [2, 4, 6]
    assert {"byte order mark", "line ends", "separator"} <= set(dataset.problems["kind"])
    assert set(dataset.problems["severity"]) == {"note"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,split,label\n1.png,train,0\n2.png,train\n", r"toy\.csv:3: 2 cells under 3"),
        ("image,split,label\n1.png,train,0,9\n", r"toy\.csv:2: 4 cells under 3"),
        ("image,split,label\n1.png,Train,0\n2.png,Test,1\n", "no row has the split `train`"),
        ("image,split,label\n1.png,train,0\n2.png,train,0\n3.png,test,1\n", "all train rows have one class"),
    ],
)
def test_damaged_tables_stop_with_a_reason(tmp_path, text, words):
    lay_out(tmp_path, text=text.encode())
    with pytest.raises(data.DataError, match=words):
        data.load_dataset(card(), tmp_path)


def test_names_that_differ_in_case_or_lack_the_suffix_are_found_and_noted(tmp_path):
    lay_out(tmp_path)
    (tmp_path / "toy/images/1.png").rename(tmp_path / "toy/images/1.PNG")
    rows = [*GOOD[:1], "2,train,1", *GOOD[2:]]
    lay_out(tmp_path, rows, images=[])
    dataset = data.load_dataset(card(), tmp_path)
    assert dataset.path("1.png").name == "1.PNG"
    assert dataset.path("2").name == "2.png"
    assert list(kinds(dataset, "file name")["row"]) == [2, 3]
    lay_out(tmp_path, ["3.jpg,train,0", *GOOD], images=[])
    with pytest.raises(data.DataError, match=r"3\.jpg\] the file is missing \(there is 3\.png\)"):
        data.load_dataset(card(), tmp_path)


def test_the_pixel_check_tells_modes_and_rotation(tmp_path):
    lay_out(tmp_path)
    Image.new("RGBA", (8, 8)).save(tmp_path / "toy/images/2.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (8, 8)).save(tmp_path / "toy/images/5.png", exif=exif)
    assert data.load_dataset(card(), tmp_path, check="files").problems.empty
    found = kinds(data.load_dataset(card(), tmp_path, check="pixels"), "image mode")
    assert list(found["row"]) == [3, 6]
    assert "RGBA" in found["message"].iloc[0]
    assert "EXIF orientation 3" in found["message"].iloc[1]


def test_empty_classes_and_other_sizes_are_told(tmp_path):
    lay_out(tmp_path, ["1.png,train,0", "2.png,train,1", "3.png,test,0"])
    dataset = data.load_dataset(card(split_sizes={"train": 5, "val": 0, "test": 1}), tmp_path)
    assert len(kinds(dataset, "empty class")) == 3  # c in train, b and c in test
    assert len(kinds(dataset, "single class")) == 1
    assert "2 train rows, 5 in the published data" in kinds(dataset, "split size")["message"].item()


def test_an_absent_csv_or_folder_says_where_it_was_sought_and_where_to_get_it(tmp_path):
    with pytest.raises(data.DataError) as caught:
        data.load_dataset(card(), tmp_path)
    for words in (str(tmp_path / "toy" / "toy.csv"), f"data_root is {tmp_path}", "https://example.org/toy"):
        assert words in str(caught.value)
    assert "--fetch" not in str(caught.value)  # nothing in its manifest says how
    with pytest.raises(data.DataError, match=r"get the data \(python run_all.py --fetch ham10000\):"):
        data.load_dataset(load_dataset_manifest("ham10000"), tmp_path)
    lay_out(tmp_path)
    with pytest.raises(data.DataError, match="there is no image root"):
        data.load_dataset(card(image_root="toy/none"), tmp_path)
    assert len(data.load_dataset(card(image_root="toy/none"), tmp_path, check="table").table) == 7
    with pytest.raises(data.DataError, match='"pixels"'):
        data.load_dataset(card(), tmp_path, check="all")


def test_split_table_and_class_counts(tmp_path):
    lay_out(tmp_path)
    counts = {"train": (1, 1, 1), "test": (2, 2, 2)}
    dataset = data.load_dataset(card(split_sizes={"train": 3, "val": 1, "test": 6}, class_counts=counts), tmp_path)
    table = data.split_table(dataset)
    assert table.loc["all", ["train", "val", "test", "all"]].tolist() == [3, 1, 3, 7]
    assert table["test"].tolist() == [1, 1, 1, 3]
    assert table["published test"].tolist() == [2, 2, 2, 6]
    assert table["published val"].isna().tolist() == [True, True, True, False]
    assert data.class_counts(dataset).loc["a"].tolist() == [1, 1, 1]
    assert list(data.class_counts(dataset).index) == ["a", "b", "c"]


def test_leakage_counts_agree_with_a_brute_force_count(tmp_path):
    rng = np.random.default_rng(3)
    rows = []
    for _ in range(120):
        patient = rng.choice(["", "nan", *(f"p{k}" for k in range(40))])
        rows.append(f"{rng.integers(1, 80)}.png,{rng.choice(['train', 'val', 'test'], p=[0.6, 0.1, 0.3])},0,{patient}")
    names = {row.split(",")[0] for row in rows}
    rows = [row.replace(",0,", f",{int(row.split('.')[0]) % 3},") for row in rows]  # a label goes with its image
    lay_out(tmp_path, rows, "image,split,label,pid", images=[int(name[:-4]) for name in names])
    dataset = data.load_dataset(card(groups={"patient": "pid", "lesion": "lid"}), tmp_path)
    table = data.leakage_table(dataset)
    for kind, cell in (("image", 0), ("patient", 3)):
        cells = [row.split(",") for row in rows if row.split(",")[cell] not in ("", "nan")]
        splits = {value[cell]: {other[1] for other in cells if other[cell] == value[cell]} for value in cells}
        shared = {value for value, where in splits.items() if len(where) > 1}
        assert table.loc[kind, "ids"] == len(splits)
        assert table.loc[kind, "in two splits"] == len(shared) > 0
        assert table.loc[kind, "train & test"] == sum({"train", "test"} <= where for where in splits.values())
        assert table.loc[kind, "test images"] == sum(c[1] == "test" and c[cell] in shared for c in cells)
        assert table.loc[kind, "example"] in shared
    assert pd.isna(table.loc["lesion", "ids"])
    assert len(kinds(dataset, "leakage")) == 2
    assert len(kinds(dataset, "missing group")) == 1
    repeated = pd.Series([tuple(row.split(",")[:2]) for row in rows])
    assert len(kinds(dataset, "repeated image")) == repeated[repeated.duplicated()].map(lambda pair: pair[0]).nunique()


def test_one_file_under_two_spellings_is_one_image(tmp_path):
    lay_out(tmp_path, [*GOOD, "./1.png,test,0", "4.PNG,test,0"])
    dataset = data.load_dataset(card(), tmp_path)
    assert data.leakage_table(dataset).loc["image", "train & test"] == 1
    assert len(kinds(dataset, "repeated image")) == 1


def test_describe_is_json_and_follows_the_rows(tmp_path):
    lay_out(tmp_path)
    first = data.describe(data.load_dataset(card(), tmp_path))
    assert json.loads(json.dumps(first)) == first
    lay_out(tmp_path, text="\r\n".join(["image,split,label", *GOOD]).encode())
    same_rows = data.describe(data.load_dataset(card(), tmp_path))
    assert same_rows["rows_sha256"] == first["rows_sha256"]
    assert same_rows["csv_sha256"] != first["csv_sha256"]
    lay_out(tmp_path, [*GOOD[1:], GOOD[0]])
    assert data.describe(data.load_dataset(card(), tmp_path))["rows_sha256"] != first["rows_sha256"]


def test_label_fraction_is_the_published_subset():
    train = pd.DataFrame({"image": [f"{i}.png" for i in range(10)], "label": [0, 1] * 5})
    assert list(data.label_fraction(train, 0.5)["image"]) == ["8.png", "1.png", "5.png", "0.png", "7.png"]
    for n, fraction in ((1493, 0.1), (8207, 0.05), (137, 0.3), (50, 1.0)):
        train = pd.DataFrame({"image": np.arange(n), "label": np.arange(n) % 2})
        expected = np.random.RandomState(42).permutation(n)[: int(n * fraction)]
        assert list(data.label_fraction(train, fraction)["image"]) == list(expected)


def test_label_fraction_refuses_and_warns():
    train = pd.DataFrame({"image": np.arange(49), "label": [0] * 48 + [1]})
    for fraction in (0, -0.1, 1.01, float("nan"), "half"):
        with pytest.raises(ValueError, match=r"\(0, 1\]"):
            data.label_fraction(train, fraction)
    for n in (*range(1, 400), 3125, 8207, 71000):
        few = pd.DataFrame({"label": np.zeros(n, dtype=int)})
        with pytest.raises(ValueError, match="smallest usable") as caught:
            data.label_fraction(few, 0.9 / n)
        smallest = float(str(caught.value).split()[-1])
        assert len(data.label_fraction(few, smallest)) >= 1, n
        assert smallest <= 1
    with pytest.warns(UserWarning, match="of class 1$"):
        data.label_fraction(train, 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.label_fraction(train, 1.0)


def test_the_fine_tuning_fraction_shuffles_the_whole_table_first():
    splits = ["train", "train", "test", "train", "val", "train", "train", "test", "train", "val"]
    table = pd.DataFrame({"image": [f"{i}.png" for i in range(10)], "split": splits, "label": [0, 1] * 5})
    # The whole table's order under random state 42 is 8 1 5 0 7 2 9 4 3 6, of which 8 1 5 0 3 6 are training rows.
    assert list(fine_tune_fraction(table, 0.5)["image"]) == ["8.png", "1.png", "5.png"]
    assert list(fine_tune_fraction(table, 1.0)["image"]) == ["8.png", "1.png", "5.png", "0.png", "3.png", "6.png"]
    rng = np.random.default_rng(0)
    for n, fraction in ((1493, 0.1), (8207, 0.05), (137, 0.3)):
        splits = rng.choice(["train", "val", "test"], n, p=[0.7, 0.1, 0.2])
        table = pd.DataFrame({"image": np.arange(n), "split": splits, "label": np.arange(n) % 2})
        order = np.random.RandomState(42).permutation(n)
        train = order[splits[order] == "train"]
        chosen = fine_tune_fraction(table, fraction)
        assert list(chosen["image"]) == list(train[: int(len(train) * fraction)])
        assert list(chosen["image"]) != list(data.label_fraction(table[splits == "train"], fraction)["image"])


def test_the_fine_tuning_fraction_refuses_and_warns():
    table = pd.DataFrame({"image": np.arange(50), "split": ["train"] * 49 + ["test"], "label": [0] * 48 + [1, 1]})
    for fraction in (0, 1.01, float("nan")):
        with pytest.raises(ValueError, match=r"\(0, 1\].*all 49 training rows"):
            fine_tune_fraction(table, fraction)
    with pytest.raises(ValueError, match="smallest usable"):
        fine_tune_fraction(table, 0.01)
    with pytest.raises(ValueError, match=r"study\.table"):
        fine_tune_fraction(table.drop(columns="split"), 0.5)
    with pytest.raises(ValueError, match="no row's split is train"):
        fine_tune_fraction(table[table["split"] == "test"], 0.5)
    with pytest.warns(UserWarning, match="of class melanoma$") as caught:
        fine_tune_fraction(table, 0.1, ["nevus", "melanoma"])
    assert caught[0].filename == __file__


def test_propose_splits_without_groups_is_stratified_and_pinned():
    table = pd.DataFrame({"label": ["a"] * 700 + ["b"] * 90 + ["c"] * 3 + ["d"] * 2 + ["e"]})
    split = data.propose_splits(table, "label", seed=0)
    counts = pd.crosstab(table["label"], split)
    assert counts.loc["a", ["train", "val", "test"]].tolist() == [490, 70, 140]
    assert counts.loc["b", ["train", "val", "test"]].tolist() == [63, 9, 18]
    assert (counts.loc[["c", "d"], ["train", "test"]] >= 1).all(axis=None)
    assert counts.loc["e", "train"] == 1
    assert split.equals(data.propose_splits(table, "label", seed=0))
    assert not split.equals(data.propose_splits(table, "label", seed=1))
    small = data.propose_splits(pd.DataFrame({"y": [0, 1] * 5}), "y", seed=0)
    assert list(small[small == "test"].index) == [2, 9]


@pytest.mark.parametrize("seed", range(5))
def test_propose_splits_keeps_groups_together_and_the_shares(seed):
    rng = np.random.default_rng(seed)
    n = 2000
    patient = rng.integers(0, 500, n).astype(object)
    label = np.where(np.array([p % 10 for p in patient]) == 0, 1, rng.choice([0, 2], n, p=[0.8, 0.2]))
    lesion = np.array([f"{p}-{rng.integers(3)}" for p in patient], dtype=object)
    patient[rng.random(n) < 0.3] = None  # then only the lesion ties the images together
    table = pd.DataFrame({"patient": patient, "lesion": lesion, "label": label}).sample(frac=1, random_state=seed)
    split = data.propose_splits(table, "label", ["patient", "lesion"], seed=seed)
    assert split.index.equals(table.index)
    for column in ("patient", "lesion"):
        assert split.groupby(table[column]).nunique().max() == 1
    shares = pd.crosstab(table["label"], split, normalize="index")[["train", "val", "test"]]
    assert np.abs(shares.to_numpy() - [0.7, 0.1, 0.2]).max() < 0.02


@pytest.mark.parametrize("seed", range(20))
def test_propose_splits_has_every_class_wherever_enough_groups_have_it(seed):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 90, 300)
    rare = rng.choice(90, rng.integers(1, 9), replace=False)  # each of these groups has images of a rare class
    label = np.where(
        np.isin(group, rare) & (rng.random(300) < 0.7), 2 + rng.integers(0, 2, 300), rng.integers(0, 2, 300)
    )
    table = pd.DataFrame({"group": group, "label": label})
    split = data.propose_splits(table, "label", "group", seed=seed)
    assert split.groupby(group).nunique().max() == 1
    found = split.groupby(label).agg(set)
    for k, n in table.groupby("label")["group"].nunique().items():
        assert found[k] >= set(("train", "test", "val")[:n]), (k, n)


def test_connected_groups_against_scipy():
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.integers(0, 150, 200), "b": rng.integers(0, 150, 200)})
    same = (table["a"].to_numpy()[:, None] == table["a"].to_numpy()) | (
        table["b"].to_numpy()[:, None] == table["b"].to_numpy()
    )
    count, expected = connected_components(coo_array(same))
    result = connected_groups(table, ["a", "b"])
    assert len(set(result)) == count
    assert len(set(zip(result, expected, strict=True))) == count


def test_read_text_names_nameless_and_repeated_columns(tmp_path):
    (tmp_path / "t.csv").write_text(",row,x,x\n1,2,3,4\n")
    problems = Problems(tmp_path / "t.csv")
    table = read_text((tmp_path / "t.csv").read_bytes(), problems)
    assert list(table) == ["row", "column_1", "csv_row", "x", "x.4"]
    assert table.iloc[0].tolist() == [2, "1", "2", "3", "4"]
    assert [problem["kind"] for problem in problems.found] == ["repeated column"]
