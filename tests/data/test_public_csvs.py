"""The CSVs and folders of public datasets, drawn in their shapes, are read as their users mean them, or asked about."""

import re
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from panderm_utils.data.column_contents import NAMES, plain
from panderm_utils.data.column_questions import OpenQuestions
from panderm_utils.data.csv_tables import DataError
from panderm_utils.data.dataset import leakage_table, load_dataset
from panderm_utils.data.own_data import read_own_data

N = 60  # rows
NAME = "shape_of_the_tests"
DIAGNOSES = ["nevus", "melanoma", "seborrheic keratosis"]
CODES = ["nv", "mel", "bkl"]
ISIC = [f"ISIC_{i:07}" for i in range(N)]
PATIENTS = [f"P{i // 3:03}" for i in range(N)]
LESIONS = [f"L{i // 2:03}" for i in range(N)]
AGES = [str(20 + i % 60) for i in range(N)]
SEXES = ["female" if i // 3 % 2 else "male" for i in range(N)]
SITES = [("back", "face", "arm", "leg")[i % 4] for i in range(N)]
TONES = [str(1 + i % 6) for i in range(N)]
SPLITS = ["train"] * 36 + ["val"] * 12 + ["test"] * 12


def cycle(values, every: int = 1) -> list:
    return [values[i // every % len(values)] for i in range(N)]


def one_hot(names: str, classes: list[int], one: str = "1.0", zero: str = "0.0") -> dict[str, list[str]]:
    return {name: [one if k == c else zero for c in classes] for k, name in enumerate(names.split())}


def jpgs(names, folder: str = "") -> list[str]:
    return [f"{folder}{name}.jpg" for name in names]


@dataclass
class Shape:
    """A public dataset: its files and images, what the user types, and what must come of it."""

    csvs: dict[str, dict[str, list[str]] | str]  # file name -> columns, or text
    images: list[str]
    arguments: dict[str, list[str]] = field(
        default_factory=dict
    )  # flag -> columns; "paths": what follows --new-dataset
    classes: tuple[str, ...] = ()  # in label order
    labels: list[int] | None = None  # of each row of the dataset, in order; None: not compared
    groups: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    melanoma: tuple[str, ...] = ()
    sizes: tuple[int, int, int] | None = None  # None: drawn
    told: tuple[str, ...] = ()  # patterns in the messages, or in the error
    asked: str = ""  # the flags of the example, if there is a question
    refused: bool = False


HAM = {
    "lesion_id": LESIONS,
    "image_id": ISIC,
    "dx": cycle(CODES, 2),
    "dx_type": cycle(["histo", "follow_up", "consensus"]),
    "age": [f"{age}.0" for age in AGES],
    "sex": SEXES,
    "localization": SITES,
}
PAD = {
    "patient_id": PATIENTS,
    "lesion_id": [str(i // 2) for i in range(N)],
    "smoke": cycle(["False", "True", ""], 3),
    "drink": cycle(["True", "False"], 3),
    "background_father": cycle(["POMERANIA", "GERMANY", ""], 3),
    "age": AGES,
    "gender": SEXES,
    "fitspatrick": [f"{tone}.0" for tone in TONES],
    "region": SITES,
    "diameter_1": [f"{3 + i % 9}.0" for i in range(N)],
    "diagnostic": cycle(["NEV", "MEL", "SEK"], 2),
    "itch": cycle(["True", "False", "UNK"]),
    "grew": cycle(["True", "UNK", "False"]),
    "img_id": [f"PAT_{i}_1.png" for i in range(N)],
    "biopsed": cycle(["True", "False"]),
}
ARCHIVE = {
    "isic_id": ISIC,
    "attribution": ["Hospital"] * N,
    "copyright_license": ["CC-0"] * N,
    "acquisition_day": [str(1 + i * 7 % 23) for i in range(N)],
    "age_approx": [str(20 + 5 * (i % 12)) for i in range(N)],
    "anatom_site_general": SITES,
    "anatom_site_special": cycle(["", "", "nail"]),
    "concomitant_biopsy": cycle(["True", "False"]),
    "diagnosis_1": cycle(["Benign", "Malignant", "Benign", "Malignant"], 2),
    "diagnosis_2": cycle(["Benign melanocytic", "Malignant melanocytic", "Benign epidermal", "Malignant adnexal"], 2),
    "diagnosis_3": cycle(["Nevus", "Melanoma, NOS", "Seborrheic keratosis", "Basal cell carcinoma", "Lentigo NOS"], 2),
    "diagnosis_4": [""] * N,
    "diagnosis_confirm_type": cycle(["histopathology", "expert consensus"]),
    "family_hx_mm": cycle(["True", "False", ""]),
    "fitzpatrick_skin_type": cycle(["I", "II", "III"], 3),
    "image_type": ["dermoscopic"] * N,
    "lesion_id": LESIONS,
    "mel_thick_mm": [f"{i * 0.1 + 0.05:.2f}" if i % 4 == 1 else "" for i in range(N)],
    "patient_id": PATIENTS,
    "pixels_x": [str(600 + i * 37 % 19) for i in range(N)],
    "sex": SEXES,
}
ISIC_2020 = {
    "image_name": ISIC,
    "patient_id": PATIENTS,
    "sex": SEXES,
    "age_approx": AGES,
    "anatom_site_general_challenge": SITES,
    "diagnosis": cycle(["unknown", "melanoma", "nevus", "melanoma"], 2),
    "benign_malignant": cycle(["benign", "malignant"], 2),
    "target": cycle(["0", "1"], 2),
}
ISIC_2024 = {
    "isic_id": ISIC,
    "target": cycle(["0", "0", "1"]),
    "patient_id": PATIENTS,
    "age_approx": AGES,
    "sex": SEXES,
    "anatom_site_general": SITES,
    "clin_size_long_diam_mm": [f"{3 + i / 7:.2f}" for i in range(N)],
    "tbp_lv_A": [f"{20 + i / 9:.4f}" for i in range(N)],
    "iddx_full": cycle(["Benign", "Benign", "Malignant::Melanoma"]),
    "iddx_1": cycle(["Benign", "Benign", "Malignant"]),
}
DERM7PT = {
    "case_num": [str(i + 1) for i in range(N)],
    "diagnosis": cycle(["clark nevus", "melanoma", "basal cell carcinoma"]),
    "seven_point_score": cycle([str(k) for k in range(8)]),
    "pigment_network": cycle(["absent", "typical", "atypical"]),
    "elevation": cycle(["flat", "palpable"]),
    "location": SITES,
    "sex": SEXES,
    "management": cycle(["excision", "no further examination"]),
    "clinic": [f"NEL/Nel{i:03}.jpg" for i in range(N)],
    "derm": [f"NEL/Ndl{i:03}.jpg" for i in range(N)],
    "case_id": [""] * N,
    "notes": [""] * N,
}
DERM7PT_IMAGES = [*DERM7PT["clinic"], *DERM7PT["derm"]]
DERM7PT_READ = {
    "classes": ("basal cell carcinoma", "clark nevus", "melanoma"),
    "labels": cycle([1, 2, 0]),
    "metadata": {"sex": "sex", "site": "location"},
    "melanoma": ("melanoma",),
}
DDI = {
    "column": [str(i) for i in range(N)],
    "DDI_ID": [str(i + 1) for i in range(N)],
    "DDI_file": [f"{i + 1:06}.png" for i in range(N)],
    "skin_tone": cycle(["12", "34", "56"]),
    "malignant": cycle(["True", "False"]),
    "disease": cycle(["melanoma", "nevus", "basal cell carcinoma", "wart"]),
}
FITZPATRICK = {
    "md5hash": [f"{i:032x}" for i in range(N)],
    "fitzpatrick_scale": TONES,
    "fitzpatrick_centaur": TONES[1:] + TONES[:1],
    "label": cycle(["psoriasis", "melanoma", "lupus", "acne"]),
    "nine_partition_label": cycle(["inflammatory", "malignant melanoma", "inflammatory", "benign dermal"]),
    "three_partition_label": cycle(["non-neoplastic", "malignant", "non-neoplastic", "benign"]),
    "qc": [""] * N,
    "url": [f"https://atlas.org/{i}.jpg" for i in range(N)],
    "url_alphanum": [f"atlasorg{i}" for i in range(N)],
}
SCIN = {
    "case_id": [f"-{i}" for i in range(N)],
    "fitzpatrick_skin_type": cycle(["FST1", "FST2", ""]),
    "image_1_path": jpgs(range(N), "dataset/images/a"),
    "image_2_path": jpgs(range(N), "dataset/images/b"),
    "diagnosis": cycle(["eczema", "urticaria"]),
}
CLINIC = {  # a German table: only the age of these names is in no list
    "Bild": jpgs(range(N), "foto"),
    "PatID": PATIENTS,
    "Diagnose": cycle(["Nävus", "Melanom", "Basaliom"], 3),
    "Gerät": cycle(["A", "B"]),
    "Aufnahme": [f"{1 + i // 3 % 28:02}.{1 + i // 3 % 12:02}.2021" for i in range(N)],
}
TRAIN = {"image_name": ISIC[:40], "target": ["0", "1"] * 20}
TEST = {"image_name": ISIC[40:], "target": ["1", "0"] * 10}
K = cycle([0, 1, 2])

SHAPES = {
    "HAM10000_metadata.csv, two folders": Shape(
        {"HAM10000_metadata.csv": HAM},
        jpgs(ISIC[:30], "HAM10000_images_part_1/") + jpgs(ISIC[30:], "HAM10000_images_part_2/"),
        classes=("bkl", "mel", "nv"),
        labels=cycle([2, 1, 0], 2),
        groups={"lesion": "lesion_id"},
        metadata={"age": "age", "sex": "sex", "site": "localization"},
        melanoma=("mel",),
    ),
    "PAD-UFES-20 metadata.csv": Shape(
        {"metadata.csv": PAD},
        PAD["img_id"],
        classes=("MEL", "NEV", "SEK"),
        labels=cycle([1, 0, 2], 2),
        groups={"lesion": "lesion_id", "patient": "patient_id"},
        metadata={"age": "age", "sex": "gender", "site": "region", "skin_tone": "fitspatrick"},
        melanoma=("MEL",),
    ),
    "PAD-UFES-20 as in the paper": Shape(
        {"2000.csv": {**PAD, "image": PAD["img_id"], "label": cycle(["0", "1", "2"], 2), "split": SPLITS}},
        PAD["img_id"],
        classes=("NEV", "MEL", "SEK"),
        labels=cycle([0, 1, 2], 2),
        groups={"lesion": "lesion_id", "patient": "patient_id"},
        metadata={"age": "age", "sex": "gender", "site": "region", "skin_tone": "fitspatrick"},
        melanoma=("MEL",),
        sizes=(36, 12, 12),
        told=("used as it is",),
    ),
    "BCN20000": Shape(
        {
            "bcn20000_metadata.csv": {
                "bcn_filename": jpgs(range(N), "BCN_000"),
                "age_approx": AGES,
                "anatom_site_general": SITES,
                "diagnosis": cycle(["NV", "MEL", "BCC"], 2),
                "lesion_id": LESIONS,
                "capture_date": [f"2012-0{1 + i // 6 % 9}-{10 + i // 3 % 18}" for i in range(N)],
                "sex": SEXES,
                "split": ["train"] * 42 + ["test"] * 18,
            }
        },
        jpgs(range(N), "images/BCN_000"),
        classes=("BCC", "MEL", "NV"),
        labels=cycle([2, 1, 0], 2),
        groups={"lesion": "lesion_id"},
        metadata={"age": "age_approx", "sex": "sex", "site": "anatom_site_general"},
        melanoma=("MEL",),
        sizes=(42, 0, 18),
    ),
    "ISIC 2016: no header": Shape(
        {"ISBI2016_ISIC_Part3_Training_GroundTruth.csv": "\n".join(f"{name},benign" for name in ISIC)},
        jpgs(ISIC),
        refused=True,
        told=(r"csv:1: the first line is data \(ISIC_0000000, benign\); add a line of column names",),
    ),
    "ISIC 2017": Shape(
        {
            "ISIC-2017_Training_Part3_GroundTruth.csv": {
                "image_id": ISIC,
                **one_hot("melanoma seborrheic_keratosis", cycle([0, 1, 2, 2])),
            }
        },
        jpgs(ISIC),
        classes=("not melanoma", "melanoma"),
        labels=cycle([1, 0, 0, 0]),
        melanoma=("melanoma",),
        told=("kept, without a role: `seborrheic_keratosis`",),
    ),
    "ISIC 2018: one-hot": Shape(
        {"ISIC2018_Task3_Training_GroundTruth.csv": {"image": ISIC, **one_hot("MEL NV BCC", K)}},
        jpgs(ISIC),
        classes=("MEL", "NV", "BCC"),
        labels=K,
        melanoma=("MEL",),
        told=("3 one-hot columns are the label: 0 = MEL, 1 = NV, 2 = BCC",),
    ),
    "ISIC 2019: one-hot, no unknown": Shape(
        {"ISIC_2019_Training_GroundTruth.csv": {"image": ISIC, **one_hot("MEL NV BCC SCC UNK", cycle([1, 0, 2, 3]))}},
        jpgs(ISIC),
        classes=("MEL", "NV", "BCC", "SCC"),
        labels=cycle([1, 0, 2, 3]),
        melanoma=("MEL",),
        told=("no row has a 1 in UNK: not a class",),
    ),
    "one-hot with faults": Shape(
        {
            "truth.csv": {
                "image": ISIC,
                **one_hot("MEL NV", [9, *K[1:]]),
                "BCC": ["0.0", "1.0", *["1.0" if k == 2 else "0.0" for k in K[2:]]],
            }
        },
        jpgs(ISIC),
        classes=("MEL", "NV", "BCC"),
        labels=K[2:],
        melanoma=("MEL",),
        told=(
            r"1 rows with a 1 in none of MEL, NV, BCC are LEFT OUT \(rows 2\)",
            r"1 rows with a 1 in several of MEL, NV, BCC are LEFT OUT \(rows 3\)",
        ),
    ),
    "one-hot by pandas.get_dummies": Shape(
        {"dummies.csv": {"file": jpgs(ISIC), **one_hot("dx_nv dx_mel dx_bcc", K, "True", "False"), "age": AGES}},
        jpgs(ISIC),
        classes=("dx_nv", "dx_mel", "dx_bcc"),
        labels=K,
        metadata={"age": "age"},
    ),
    "ISIC 2020": Shape(
        {"ISIC_2020_Training_GroundTruth.csv": ISIC_2020},
        jpgs(ISIC, "train/"),
        asked="--label target",
        told=(
            r"--label target     2 classes: 0 30, 1 30\n",
            r"--label diagnosis  3 classes: melanoma 30, unknown 16, nevus 14",
        ),
    ),
    "ISIC 2020, chosen": Shape(
        {"ISIC_2020_Training_GroundTruth.csv": ISIC_2020},
        jpgs(ISIC, "train/"),
        {"label": ["target"]},
        classes=("benign", "malignant"),
        labels=cycle([0, 1], 2),
        groups={"patient": "patient_id"},
        metadata={"age": "age_approx", "sex": "sex"},
    ),
    "ISIC 2024": Shape(
        {"train-metadata.csv": ISIC_2024},
        jpgs(ISIC, "train-image/image/"),
        classes=("0", "1"),
        labels=cycle([0, 0, 1]),
        groups={"patient": "patient_id"},
        metadata={"age": "age_approx", "sex": "sex", "site": "anatom_site_general"},
    ),
    "ISIC Archive": Shape(
        {"metadata.csv": ARCHIVE},
        jpgs(ISIC),
        asked="--label diagnosis_1",
        told=(
            "--label diagnosis_1  2 classes: Benign",
            "--label diagnosis_2  4 classes",
            "--label diagnosis_3  5 classes",
        ),
    ),
    "ISIC Archive, chosen": Shape(
        {"metadata.csv": ARCHIVE},
        jpgs(ISIC),
        {"label": ["diagnosis_3"]},
        classes=("Basal cell carcinoma", "Lentigo NOS", "Melanoma, NOS", "Nevus", "Seborrheic keratosis"),
        labels=cycle([3, 2, 4, 0, 1], 2),
        groups={"lesion": "lesion_id", "patient": "patient_id"},
        metadata={
            "age": "age_approx",
            "sex": "sex",
            "site": "anatom_site_general",
            "skin_tone": "fitzpatrick_skin_type",
        },
        melanoma=("Melanoma, NOS",),
        told=("column `diagnosis_4` is empty",),
    ),
    "ISIC Archive before 2024": Shape(
        {
            "metadata.csv": {
                "isic_id": ISIC,
                "benign_malignant": cycle(["benign", "malignant", "indeterminate"]),
                "diagnosis": cycle(["nevus", "melanoma", "AIMP", "angioma"]),
                "sex": SEXES,
            }
        },
        jpgs(ISIC),
        asked="--label diagnosis",
    ),
    "derm7pt": Shape(
        {"meta.csv": DERM7PT},
        DERM7PT_IMAGES,
        asked="--image clinic",
        told=(
            "--image clinic  60 images, such as NEL/Nel000.jpg\n  --image derm    60 images, such as NEL/Ndl000.jpg",
        ),
    ),
    "derm7pt, dermoscopic": Shape(
        {"meta.csv": DERM7PT},
        DERM7PT_IMAGES,
        {"image": ["derm"]},
        **DERM7PT_READ,
        told=("`clinic` names images too", "`case_num` has a different value in each row", "`case_id` is empty"),
    ),
    "derm7pt, with its index files": Shape(
        {
            "meta.csv": DERM7PT,
            "train_indexes.csv": {"indexes": [str(i) for i in range(36)]},
            "valid_indexes.csv": {"indexes": [str(i) for i in range(36, 48)]},
            "test_indexes.csv": {"indexes": [str(i) for i in range(48, 60)]},
        },
        DERM7PT_IMAGES,
        {"image": ["derm"]},
        **DERM7PT_READ,
        sizes=(36, 12, 12),
        told=("valid_indexes.csv is val: 12 rows",),
    ),
    "DDI": Shape({"ddi_metadata.csv": DDI}, DDI["DDI_file"], asked="--label malignant"),
    "DDI, chosen": Shape(
        {"ddi_metadata.csv": DDI},
        DDI["DDI_file"],
        {"label": ["malignant"]},
        classes=("not malignant", "malignant"),
        labels=cycle([1, 0]),
        metadata={"skin_tone": "skin_tone"},
    ),
    "Fitzpatrick17k": Shape(
        {"fitzpatrick17k.csv": FITZPATRICK},
        jpgs(FITZPATRICK["md5hash"], "data/"),
        classes=("acne", "lupus", "melanoma", "psoriasis"),
        labels=cycle([3, 2, 1, 0]),
        metadata={"skin_tone": "fitzpatrick_scale"},
        melanoma=("melanoma",),
    ),
    "SCIN: three images a case": Shape(
        {"scin.csv": SCIN}, SCIN["image_1_path"] + SCIN["image_2_path"], asked="--image image_1_path"
    ),
    "DermNet: a folder per split and class": Shape(
        {},
        [
            f"dermnet/{split}/{name} Photos/{i}.jpg"
            for split, n in (("train", 9), ("test", 4))
            for name in ("Acne", "Warts")
            for i in range(n)
        ],
        classes=("Acne Photos", "Warts Photos"),
        labels=[0] * 4 + [1] * 4 + [0] * 9 + [1] * 9,
        sizes=(18, 0, 8),
    ),
    "MED-NODE: a folder per class": Shape(
        {},
        [f"{name}/{i}.jpg" for name in ("melanoma", "naevus") for i in range(20)],
        classes=("naevus", "melanoma"),
        labels=[1] * 20 + [0] * 20,
        melanoma=("melanoma",),
    ),
    "a folder per clinic and class": Shape(
        {},
        [
            f"{clinic}/{name}/{i}.jpg"
            for clinic in ("graz", "wien", "brno")
            for name in ("mel", "nv")
            for i in range(10)
        ],
        asked="--label folder_2",
        told=("--label folder_2  2 classes: mel 30, nv 30",),
    ),
    "Kaggle: train.csv and test.csv": Shape(
        {"train.csv": TRAIN, "test.csv": TEST},
        jpgs(ISIC),
        classes=("0", "1"),
        labels=[0, 1] * 20 + [1, 0] * 10,
        sizes=(40, 0, 20),
        told=("train.csv is train: 40 rows", "test.csv is test: 20 rows"),
    ),
    "two CSVs of any name": Shape(
        {"a.csv": TRAIN, "b.csv": TEST}, jpgs(ISIC), refused=True, told=(r"--new-dataset\s+train=a.csv test=b.csv",)
    ),
    "Training, Validation, Testing; Windows paths": Shape(
        {
            "data.csv": {
                "Path": [rf"D:\data\images\{name}.JPG" for name in ISIC],
                "Class": cycle(["yes", "no"]),
                "Partition": [{"train": "Training", "val": "Validation", "test": "Testing"}[split] for split in SPLITS],
            }
        },
        jpgs(ISIC),
        classes=("no", "yes"),
        labels=cycle([1, 0]),
        sizes=(36, 12, 12),
    ),
    "a clinic's table in German": Shape(
        {"liste.csv": CLINIC},
        CLINIC["Bild"],
        asked="--label Diagnose --patient PatID",
        told=(
            "--label Diagnose  3 classes: Nävus",
            "--patient PatID  20 values in 60 rows, such as P000",
            "--patient none",
        ),
    ),
    "a clinic's table in German, answered": Shape(
        {"liste.csv": CLINIC},
        CLINIC["Bild"],
        {"label": ["Diagnose"], "patient": ["PatID"]},
        classes=("Basaliom", "Melanom", "Nävus"),
        labels=cycle([2, 1, 0], 3),
        groups={"patient": "PatID"},
        melanoma=("Melanom",),
        told=("kept, without a role: `Gerät`, `Aufnahme`",),
    ),
    "an unknown patient id, refused": Shape(
        {"liste.csv": {**CLINIC, "label": CLINIC["Diagnose"]}},
        CLINIC["Bild"],
        {"patient": ["none"]},
        classes=("Basaliom", "Melanom", "Nävus"),
        melanoma=("Melanom",),
    ),
    "an unknown patient id and a split": Shape(
        {"liste.csv": {**CLINIC, "label": CLINIC["Diagnose"], "Teil": SPLITS}},
        CLINIC["Bild"],
        classes=("Basaliom", "Melanom", "Nävus"),
        melanoma=("Melanom",),
        sizes=(36, 12, 12),
        told=("leakage by patient is not checked; if there is one: --patient PatID", "column `Teil` is the split"),
    ),
}


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (200, 120, 100)).save(buffer, "JPEG")
    return buffer.getvalue()


def draw(root: Path, shape: Shape, jpeg: bytes) -> tuple[list[Path], Path | None]:
    """Writes a shape's files; returns what the user names: CSVs and the folder of images, or that folder alone."""
    for name in shape.images:
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / name).write_bytes(jpeg)
    for name, columns in shape.csvs.items():
        text = columns if isinstance(columns, str) else pd.DataFrame(columns).to_csv(index=False)
        (root / name).write_text(text, encoding="utf-8")
    return ([root / name for name in shape.csvs], root / "images") if shape.csvs else ([root / "images"], None)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_public_dataset_is_read_as_it_is_meant(tmp_path, shape, jpeg):
    paths, images = draw(tmp_path, shape, jpeg)
    before = {path: path.read_bytes() for path in paths if path.is_file()}
    if shape.asked or shape.refused:
        with pytest.raises(OpenQuestions if shape.asked else DataError) as error:
            read_own_data(paths, images, NAME, tmp_path / "own", shape.arguments)
        assert " ".join(getattr(error.value, "example", [])) == shape.asked
        assert [pattern for pattern in shape.told if not re.search(pattern, str(error.value))] == []
        assert not (tmp_path / "own").exists()
        return
    own = read_own_data(paths, images, NAME, tmp_path / "own", shape.arguments)
    (manifest,) = own.manifests
    assert manifest.class_names == shape.classes
    assert manifest.groups == shape.groups
    assert manifest.metadata == shape.metadata
    assert manifest.melanoma == shape.melanoma
    assert [text for text in shape.told if not re.search(text, "\n".join(own.messages))] == []
    dataset = load_dataset(manifest, tmp_path, check="pixels")
    assert dataset.problems[dataset.problems["kind"] != "empty class"].empty
    if shape.labels:
        assert dataset.table["label"].tolist() == shape.labels
    sizes = tuple(manifest.split_sizes.values())
    assert sizes == shape.sizes if shape.sizes else min(sizes) > 0
    leaks = leakage_table(dataset)
    assert shape.sizes or (leaks["in two splits"].fillna(0) == 0).all()
    assert {path: path.read_bytes() for path in before} == before


def test_every_known_name_has_one_role():
    names = [plain(name) for names in NAMES.values() for name in names.split()]
    assert len(names) == len(set(names))
