"""Writes drawn lesions to disk in the layout of a real dataset: folders, file names, CSV columns and quirks.

Every dataset of the paper has a small stand-in with its own classes, so that its notebook runs on a laptop. A stand-in
is drawn on first use, completely or not at all, and drawn again only when its manifest or this code changes.
"""

import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from panderm_utils.demo import lesions
from panderm_utils.demo.cameras import camera_of
from panderm_utils.demo.signs import draw_signs, draw_tone, recipe_of
from panderm_utils.disk import write_file
from panderm_utils.manifests import SPLITS, DatasetManifest
from panderm_utils.messages import UserError
from panderm_utils.system import keep_freed_memory

SEED = 20250606  # combined with the dataset's name; pre-training of panderm_tiny uses another seed
SIDES = {  # height and width in pixels; each image has one of them; by modality, or dataset
    "dermoscopic": ((225, 300),),
    "clinical": ((225, 300), (300, 225), (256, 256)),  # phones are held upright or sideways
    "pathology": ((200, 200),),
    "isic2018_task1": ((225, 300), (192, 256), (256, 256), (200, 300), (288, 216)),
}
NAMES = {  # file names like the released ones; n counts images from 1
    "pad_ufes": "PAT_{patient}_{lesion}_{n:03d}.png",
    "ddi": "{n:06d}.png",
    "derm7pt_clinical": "{class_name}/{class_name}{n:03d}a.JPG",
    "derm7pt_dermoscopic": "{class_name}/{class_name}{n:03d}l.JPG",
    "dermnet": "{class_name}/{class_name}-{n}.jpg",
    # An ISIC Archive id is one image, so stand-ins must not share ids; HAM10000 has the lowest numbers.
    **{name: f"ISIC_{k}{{n:06d}}.jpg" for k, name in enumerate(("bcn20000", "mskcc", "hiba", "isic2018_task1"), 1)},
    # The draws from one table of lesions have the same images.
    "HAM10000_clean/HAM10000_metadata.csv": "ISIC_5{n:06d}.jpg",
    "patch16": "{class_name}/{class_name}_{n:05d}.jpg",
    "demo": "lesion_{n:04d}.jpg",
    "ph2": "IMD{n:03d}.bmp",
    "med_node": "{class_name}/{n:05d}.jpg",
}
SITES = ("back", "abdomen", "trunk", "lower extremity", "upper extremity", "chest", "face", "foot")
CLINICS = ("clinic A", "clinic B", "clinic C")


@dataclass(frozen=True)
class Size:
    """Number of images of a stand-in; `imbalance` is the ratio of the most common to the rarest class."""

    train: int
    val: int
    test: int
    imbalance: float = 6.0

    def of_class(self, rank: int, num_classes: int) -> tuple[int, int, int]:
        """Returns train, val and test images of the class of this rank (0: most common); at least 6, 1 and 4."""
        share = self.imbalance ** -(np.arange(num_classes) / max(1, num_classes - 1))
        share = share[rank] / share.sum()
        return max(6, round(share * self.train)), max(1, round(share * self.val)), max(4, round(share * self.test))


COMMONEST = ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df")  # of the demo dataset, as in HAM10000
# Large enough for meaningful label fractions.
DEMO = Size(train=600, val=80, test=320, imbalance=3.5)
STAND_IN = Size(train=150, val=60, test=200, imbalance=4.0)
MASKS_ONLY = Size(train=150, val=25, test=60, imbalance=4.0)
# Datasets with more test images: that from which external validation sets out, where few are of melanoma, and those of
# two classes, whose AUROC varies more (not ddi, which `make demo` draws).
TEST_FACTORS = {"ham10000": 1.6, **dict.fromkeys(("mskcc", "hiba", "derm7pt_dermoscopic", "derm7pt_clinical"), 2.0)}


def make_stand_in(card: DatasetManifest, data_root: str | Path) -> Path:
    """Returns the table of a dataset's stand-in below `data_root` (see `DatasetManifest.table`), drawing it if needed.

    A stand-in is complete if its stamp, written last, says so. Concurrent processes draw it once. Datasets that share
    an image folder, as the real ones do, may share it here.

    Raises:
        ValueError: The manifest has paths outside the data root, as for your own data, which have no stand-in.
    """
    if card.own or Path(card.csv).is_absolute() or Path(card.image_root).is_absolute():
        raise UserError(f'{card.name} is your own data and has no synthetic stand-in; write profile = "own"')
    root = Path(data_root)
    place = root / card.table
    home = place if card.split_folders else (root / card.csv).parent
    stamp = home / f".{card.name}.drawn"
    home.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(home / f".{card.name}.lock"):
        version = _version(card)
        if place.exists() and stamp.is_file() and stamp.read_text(encoding="utf-8") == version:
            return place
        if not card.split_folders:  # so that an interrupted redraw is not taken for complete
            place.unlink(missing_ok=True)
            (root / card.csv).unlink(missing_ok=True)
        table = plan_rows(card)
        if stamp.is_file():
            _remove_others(card, table, root)
        write_file(stamp, "")
        drawn = _draw_all(card, table, root)
        if not card.split_folders:
            write_file(place, _columns(card, table, drawn).to_csv(index=False, lineterminator="\n"))
        write_file(stamp, version)
    return place


def _remove_others(card: DatasetManifest, table: pd.DataFrame, root: Path) -> None:
    """Removes the files of an older stand-in that are not drawn again, from the folders that are read by listing."""
    planned = {root / card.image_root / name for name in table["image"]}
    if card.masks:
        planned |= {root / card.masks.root / name for name in table["mask"]}
    listed = [*card.places] if card.split_folders else [card.masks.root] if card.masks else []
    for path in (path for folder in listed for path in (root / folder).glob("[!.]*")):
        if path not in planned:
            path.unlink()


def plan_rows(card: DatasetManifest) -> pd.DataFrame:
    """Returns a stand-in's plan: one row per image with split, label, n, patient, lesion and file name; draws nothing.

    A third of the lesions have two images and some patients have two lesions, all in one split; only in the stand-in
    of PAD-UFES-20, whose published split may not separate patients, are a few patients in two splits.
    """
    rng = np.random.default_rng(_seed(card))
    size = DEMO if card.name == "demo" else STAND_IN if card.classes else MASKS_ONLY
    size = replace(size, test=round(size.test * TEST_FACTORS.get(card.name, 1)))
    names = card.class_names or COMMONEST  # lesions without classes are drawn after those of the demo
    num_classes = len(names)
    counts = np.array(next(iter((card.class_counts or {}).values()), range(num_classes, 0, -1)))
    if card.name == "demo":
        counts = np.array([COMMONEST.index(name) for name in names]) * -1
    rank = np.empty(num_classes, int)
    rank[np.argsort(-counts, kind="stable")] = np.arange(num_classes)
    rows = [
        (split, label)
        for label in range(num_classes)
        for split, n in zip(SPLITS, size.of_class(rank[label], num_classes), strict=True)
        if split == "test" or not card.external
        for _ in range(n)
    ]
    table = pd.DataFrame(rows, columns=["split", "label"])
    second = (rng.random(len(table)) < 0.25) & table.duplicated().to_numpy()
    table["lesion"] = 1 + np.cumsum(~second)  # a second view follows the first, with the same split and class
    lesion = table.drop_duplicates("lesion")
    patient = pd.Series(1 + np.arange(len(lesion)), index=lesion["lesion"])
    for _, members in lesion.groupby("split"):
        ids = rng.permutation(members["lesion"])
        for one, other in zip(ids[: len(ids) // 5], ids[len(ids) // 5 : 2 * (len(ids) // 5)], strict=True):
            patient[other] = patient[one]
    if card.name == "pad_ufes":
        train, test = (lesion.loc[lesion["split"] == split, "lesion"].iloc[:3] for split in ("train", "test"))
        patient[test] = patient[train].to_numpy()
    table["patient"] = table["lesion"].map(patient)
    table["second"] = second
    # The order in which images are numbered: lesions shuffled, views of one lesion together.
    order = rng.permutation(table["lesion"].nunique())
    table = table.iloc[np.argsort(order[table["lesion"] - table["lesion"].min()], kind="stable")]
    table["n"] = 1 + np.arange(len(table))
    table["class_name"] = [names[k] for k in table["label"]]
    pattern = NAMES.get(_identity(card), "ISIC_{n:07d}.jpg")
    table["image"] = [pattern.format(**row) for row in table.to_dict("records")]
    if card.split_folders:
        table["image"] = table["split"].map(card.split_folders) + "/" + table["image"]
    if card.masks:
        table["mask"] = [card.masks.name(*row) for row in zip(table["image"], table["split"], strict=True)]
    return table.iloc[rng.permutation(len(table))].reset_index(drop=True)


def _draw_all(card: DatasetManifest, table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Draws every image of a plan, with a progress bar; returns their attributes, one row per image."""
    images = root / card.image_root
    masks = root / card.masks.root if card.masks else images.with_name("masks")
    if card.name == "demo":
        table = table.assign(mask=[f"{Path(name).stem}_segmentation.png" for name in table["image"]])
    elif not card.masks:
        table = table.assign(mask="")
    sides, camera = SIDES.get(card.name, SIDES[card.modality]), camera_of(card.name, card.modality)

    def draw(row: tuple) -> dict[str, float]:
        _, name, mask, class_name, lesion, patient, second, n = row
        lesion_rng, outline, patient_rng, rng = (
            np.random.default_rng([SEED, _seed(card), *parts])
            for parts in ((1, lesion), (2, lesion), (3, patient), (4, lesion, second, n))
        )
        signs = draw_signs(recipe_of(card.name, class_name, lesion_rng), lesion_rng)
        side = sides[rng.integers(len(sides))]
        tone = draw_tone(patient_rng, even=card.name == "ddi")
        drawn = lesions.draw_lesion(signs, rng, side, card.modality, tone, outline, camera)
        write_file(images / name, encode(Image.fromarray(drawn.image), Path(name).suffix))
        if mask:
            pixels = Image.fromarray(np.where(drawn.mask, 255, 0).astype(np.uint8))
            write_file(masks / mask, encode(pixels.convert("1"), ".png"))
        return drawn.attributes

    rows = list(table[["image", "mask", "class_name", "lesion", "patient", "second", "n"]].itertuples())
    keep_freed_memory()
    # In one thread: two take turns in Python so often that they are hardly faster and cost half as much again.
    return pd.DataFrame(map(draw, tqdm(rows, desc=f"drawing {card.name}", unit="image", delay=1)), index=table.index)


def _columns(card: DatasetManifest, table: pd.DataFrame, drawn: pd.DataFrame) -> pd.DataFrame:
    """Returns the CSV: the required columns, those named in the manifest, and extra ones of the released file."""
    rng = np.random.default_rng(_seed(card) + 1)
    csv = table[["image", "split"]].assign(**{card.label_column: table["label"]} if card.classes else {})
    if card.draw:
        csv = pd.DataFrame({card.draw.image: [Path(name).stem for name in table["image"]]})
    patients = table["patient"].max() + 1
    people = pd.DataFrame({"age": 5 * rng.integers(4, 18, patients), "sex": rng.choice(["female", "male"], patients)})
    people = people.loc[table["patient"]].reset_index(drop=True)
    ids = {
        "lesion": table["lesion"].map("LES_{:05d}".format),
        "patient": table["patient"].map("PAT_{}".format),
        "case": table["lesion"],
    }
    facts = {
        "age": people["age"].mask(rng.random(len(table)) < 0.02),
        "sex": people["sex"],
        "site": rng.choice(SITES, len(table)),
        "skin_tone": drawn["tone"].astype(int),
        "institution": rng.choice(CLINICS, patients)[table["patient"]],
    }
    csv = csv.assign(**{column: ids[kind] for kind, column in card.groups.items()})
    csv = csv.assign(**{column: facts[kind] for kind, column in card.metadata.items()})
    if card.name == "ddi":  # two Fitzpatrick types per group
        csv["skin_tone"] = drawn["tone"].map({1: 12, 2: 12, 3: 34, 4: 34, 5: 56, 6: 56})
    if card.name == "ham10000":
        csv["image_id"], csv["dx"] = table["image"].str.removesuffix(".jpg"), table["class_name"]
        csv["binary_label"] = (table["class_name"] == "mel").astype(int)
        csv.loc[csv.index[table["split"] == "train"][7], "split"] = "trainisic"  # as in one row of the released file
    if card.name.startswith("derm7pt"):
        csv["image"] = csv["image"].str.replace(".JPG", ".jpg")  # the files' suffix is upper case
    return csv


def encode(image: Image.Image, suffix: str) -> bytes:
    """Returns an image as the bytes of a PNG, a BMP or, for any other suffix, a JPEG file."""
    buffer, kind = io.BytesIO(), {".png": "PNG", ".bmp": "BMP"}.get(suffix.lower(), "JPEG")
    image.save(buffer, format=kind, quality=90, compress_level=1)  # the latter of a PNG
    return buffer.getvalue()


def _identity(card: DatasetManifest) -> str:
    """Returns the name of the images: that of the dataset, or the table of lesions that it shares with other draws."""
    return card.draw.metadata if card.draw else card.name


def _seed(card: DatasetManifest) -> int:
    return int.from_bytes(hashlib.sha256(_identity(card).encode()).digest()[:4], "big")


def _version(card: DatasetManifest) -> str:
    """Returns a digest of everything a stand-in depends on: the code that draws it and its manifest."""
    digest = hashlib.sha256(repr(card).encode())
    for module in ("signs.py", "cameras.py", "lesions.py", Path(__file__).name):
        digest.update(Path(__file__).with_name(module).read_bytes())
    return digest.hexdigest()
