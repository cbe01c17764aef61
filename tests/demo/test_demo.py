"""Drawn lesions and the stand-ins that they make: deterministic, laid out as the real data, learnable."""

import argparse
import dataclasses
import hashlib
import multiprocessing
import os
import runpy
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from panderm_utils.data import dataset as data
from panderm_utils.demo import cameras, lesions
from panderm_utils.demo import stand_ins as demo
from panderm_utils.demo.signs import DEFAULT_SIGNS, RECIPES, draw_signs, recipe_of
from panderm_utils.encoders.loading import load_encoder
from panderm_utils.manifests import reading as manifests
from panderm_utils.protocols.external_validation.study import isic_id

ROOT = Path(__file__).parents[2]
STAND_INS = [n for n in manifests.list_datasets() if not manifests.load_dataset_manifest(n).own]
SMALL = demo.Size(train=8, val=2, test=4)
FORK = multiprocessing.get_context("fork")  # other processes, without imports


@pytest.fixture
def small(monkeypatch):
    """Stand-ins of few images, a quarter of their pixels each."""
    half = {kind: tuple((height // 2, width // 2) for height, width in sides) for kind, sides in demo.SIDES.items()}
    monkeypatch.setattr(demo, "SIDES", half)
    monkeypatch.setattr(demo, "STAND_IN", SMALL)
    monkeypatch.setattr(demo, "DEMO", SMALL)
    monkeypatch.setattr(demo, "MASKS_ONLY", SMALL)


def digests(folder: Path) -> dict[str, str]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# --- lesions ---


@pytest.mark.parametrize("modality", ["dermoscopic", "clinical", "pathology"])
def test_a_seed_is_an_image(modality):
    signs = draw_signs(recipe_of("demo", "mel"), np.random.default_rng(1))
    one, same, other = (lesions.draw_lesion(signs, np.random.default_rng(s), (90, 120), modality) for s in (3, 3, 4))
    assert one.image.shape == (90, 120, 3)
    assert one.image.dtype == np.uint8
    assert one.mask.shape == (90, 120)
    np.testing.assert_array_equal(one.image, same.image)
    assert (one.image != other.image).mean() > 0.5


def test_the_mask_is_where_the_lesion_is():
    signs = draw_signs(recipe_of("demo", "nv"), np.random.default_rng(0)) | {
        "darkness": 0.9,
        "size": 0.5,
    }
    for seed in range(5):
        drawn = lesions.draw_lesion(signs, np.random.default_rng(seed), (225, 300), "dermoscopic")
        middle = drawn.image[45:180, 60:240].mean(axis=2)
        mask = drawn.mask[45:180, 60:240]
        assert 0.03 < drawn.mask.mean() < 0.7
        assert middle[mask].mean() < middle[~mask].mean() - 10


def test_layers_are_where_the_signs_are():
    signs = draw_signs(DEFAULT_SIGNS, np.random.default_rng(0)) | {"veil": 0.9, "scar": 0.0}
    drawn = lesions.draw_lesion(signs, np.random.default_rng(0), (90, 120))
    assert "scar" not in drawn.layers
    assert drawn.layers["veil"].shape == drawn.mask.shape
    assert drawn.layers["veil"].max() > 0.3
    assert drawn.layers["veil"][~drawn.mask].max() == 0


@pytest.mark.parametrize("modality", ["dermoscopic", "clinical", "pathology"])
def test_cameras_change_the_picture_and_not_the_lesion(modality):
    signs = draw_signs(recipe_of("demo", "mel"), np.random.default_rng(1))
    warm = dataclasses.replace(cameras.MODALITIES[modality], colour=(1.15, 0.9, 0.8))
    one, other = (
        lesions.draw_lesion(signs, np.random.default_rng(3), (90, 120), modality, camera=camera)
        for camera in (None, warm)
    )
    np.testing.assert_array_equal(one.mask, other.mask)
    assert one.attributes == other.attributes
    redness = [drawn.image[..., 0].mean() - drawn.image[..., 2].mean() for drawn in (one, other)]
    assert redness[1] > redness[0] + 20


def test_a_tone_curve_without_a_change_is_none_and_a_gamma_darkens_the_middle_only():
    plain = np.array(cameras.tone_curve(cameras.Camera())).reshape(3, 256)
    np.testing.assert_array_equal(plain, np.tile(np.arange(256), (3, 1)))
    dark = np.array(cameras.tone_curve(cameras.Camera(gamma=2.0)))[:256]
    assert (dark[0], dark[128], dark[255]) == (0, 64, 255)


def test_lesions_stand_out_less_on_dark_skin():
    signs = draw_signs(recipe_of("demo", "mel"), np.random.default_rng(1)) | {"darkness": 0.5, "size": 0.5}
    contrast = []
    for tone in (1, 6):
        drawn = [lesions.draw_lesion(signs, np.random.default_rng(s), (90, 120), "clinical", tone) for s in range(6)]
        contrast.append(np.mean([np.std(d.image[d.mask], axis=0).mean() for d in drawn]))
    assert contrast[1] < 0.8 * contrast[0]


def test_institutions_differ_and_a_dataset_keeps_its_camera():
    one, other = (cameras.camera_of(name, "clinical") for name in ("pad_ufes", "ddi"))
    assert one != other
    assert one == cameras.camera_of("pad_ufes", "clinical")


def test_signs_stay_in_bounds_and_classes_differ_in_them():
    rng = np.random.default_rng(0)
    drawn = {name: [draw_signs(recipe_of("demo", name), rng) for _ in range(200)] for name in RECIPES}
    for rows in drawn.values():
        table = pd.DataFrame(rows)
        assert list(table) == list(DEFAULT_SIGNS)
        assert table.to_numpy().min() >= 0
        assert table.to_numpy().max() <= 1
    veil = {name: np.mean([row["veil"] for row in rows]) for name, rows in drawn.items()}
    assert max(veil, key=veil.get) == "mel"


def test_unknown_classes_have_recipes_of_their_own_that_last():
    one, other = recipe_of("dermnet", "acne"), recipe_of("dermnet", "eczema")
    assert one != other
    assert one == recipe_of("dermnet", "acne")
    assert sum(abs(one[sign][0] - DEFAULT_SIGNS[sign][0]) > 0.15 for sign in DEFAULT_SIGNS) == 5
    assert recipe_of("mskcc", "melanoma") == recipe_of("demo", "mel")


def test_some_nevi_and_melanomas_look_alike():
    rng = np.random.default_rng(0)
    nevi, melanomas = ([recipe_of("demo", name, rng) for _ in range(60)] for name in ("nv", "mel"))
    assert 5 < sum(nevus in melanomas for nevus in nevi) < 40
    assert all(recipe_of("demo", "bcc", rng) == recipe_of("demo", "bcc") for _ in range(5))


# --- plans ---


@pytest.mark.parametrize("name", STAND_INS)
def test_a_plan_has_every_class_in_every_split_and_keeps_lesions_and_patients_whole(name):
    card = manifests.load_dataset_manifest(name)
    rows = demo.plan_rows(card)
    counts = pd.crosstab(rows["label"], rows["split"])
    assert counts.shape == (card.num_classes or 7, 1 if card.external else 3)
    assert card.external or (counts["train"] >= 6).all()
    assert (counts["test"] >= 4).all()
    assert rows["image"].is_unique
    assert (rows.groupby("lesion")["split"].nunique() == 1).all()
    assert (rows.groupby("lesion")["label"].nunique() == 1).all()
    assert 1.1 < len(rows) / rows["lesion"].nunique() < 1.6
    straddling = (rows.groupby("patient")["split"].nunique() > 1).sum()
    assert straddling == (3 if name == "pad_ufes" else 0)
    pd.testing.assert_frame_equal(rows, demo.plan_rows(card))


def test_no_two_stand_ins_share_an_id_of_the_isic_archive():
    cards = map(manifests.load_dataset_manifest, STAND_INS)
    one_of_each = {card.draw.metadata if card.draw else card.name: card for card in cards}  # draws share their images
    plans = [demo.plan_rows(card) for card in one_of_each.values()]
    ids = [isic_id(image) for plan in plans for image in plan["image"] if isic_id(image)]
    assert len(ids) == len(set(ids)) > 1000


def test_plans_follow_the_published_order_of_class_sizes():
    card = manifests.load_dataset_manifest("ham10000")
    counts = demo.plan_rows(card)["label"].value_counts().sort_index().to_numpy()
    assert counts.argmax() == card.class_names.index("nv")
    assert counts.argmin() == card.class_names.index("df")


# --- stand-ins on disk ---


@pytest.mark.parametrize("name", STAND_INS)
def test_a_stand_in_is_read_by_the_reader_of_real_data(name, small, tmp_path):
    card = manifests.load_dataset_manifest(name)
    csv = demo.make_stand_in(card, tmp_path)
    assert csv == tmp_path / card.table
    study = data.load_dataset(card, tmp_path, check="pixels")
    kinds = set(study.problems["kind"])
    assert kinds <= {"unknown split", "split size", "file name", "leakage", "drawn split"}
    assert ("drawn split" in kinds) == (card.draw is not None)
    assert ("unknown split" in kinds) == (name == "ham10000")
    assert ("leakage" in kinds) == (name == "pad_ufes")
    assert ("file name" in kinds) == name.startswith("derm7pt")  # .JPG on disk, .jpg in the table
    wanted = {card.label_column, "image", "split", *card.groups.values(), *card.metadata.values()}
    assert wanted <= {*study.table, *(pd.read_csv(csv) if card.classes else [""])}
    first = Image.open(study.path(study.table["image"][0]))
    assert first.format == {".png": "PNG", ".bmp": "BMP"}.get(card.image_suffix, "JPEG")
    if name in ("pad_ufes", "ddi"):
        assert len({Image.open(study.path(image)).size for image in study.table["image"]}) > 1


def test_the_same_stand_in_every_time_and_masks_for_the_demo(small, tmp_path):
    card = manifests.load_dataset_manifest("demo")
    for folder in ("one", "other"):
        demo.make_stand_in(card, tmp_path / folder)
    assert digests(tmp_path / "one") == digests(tmp_path / "other")
    images = sorted((tmp_path / "one/demo/images").iterdir())
    masks = sorted((tmp_path / "one/demo/masks").iterdir())
    assert [m.name for m in masks] == [f"{i.stem}_segmentation.png" for i in images]
    assert Image.open(masks[0]).size == Image.open(images[0]).size


def test_drawn_once_then_left_alone_until_something_changes(small, tmp_path):
    card = manifests.load_dataset_manifest("hiba")
    csv = demo.make_stand_in(card, tmp_path)
    image = next((tmp_path / card.image_root).iterdir())
    image.write_bytes(b"mine")
    demo.make_stand_in(card, tmp_path)
    assert image.read_bytes() == b"mine"
    csv.unlink()  # as a killed drawing leaves it
    demo.make_stand_in(card, tmp_path)
    assert image.read_bytes() != b"mine"
    image.write_bytes(b"mine")
    demo.make_stand_in(dataclasses.replace(card, title="another"), tmp_path)
    assert image.read_bytes() != b"mine"


def test_a_killed_drawing_leaves_no_table(tmp_path):
    card, encode, count = manifests.load_dataset_manifest("mskcc"), demo.encode, []

    def dying(*image):
        count.append(1)
        if len(count) == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(*image)

    def draw():
        demo.encode = dying
        demo.make_stand_in(card, tmp_path)

    process = FORK.Process(target=draw)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / card.csv).exists()
    assert any((tmp_path / card.image_root).iterdir())


def test_two_processes_draw_one_stand_in_between_them(small, tmp_path):
    counts = FORK.SimpleQueue()

    def draw():
        drawn, encode = [], demo.encode
        demo.encode = lambda *image: drawn.append(1) or encode(*image)
        demo.make_stand_in(manifests.load_dataset_manifest("hiba"), tmp_path)
        counts.put(len(drawn))

    started = [FORK.Process(target=draw) for _ in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    drawn = sorted(counts.get() for _ in started)
    assert drawn[0] == 0
    assert drawn[1] == len(list((tmp_path / "HIBA/images").glob("[!.]*")))


def test_own_data_have_no_stand_in(tmp_path):
    card = dataclasses.replace(manifests.load_dataset_manifest("hiba"), csv=str(tmp_path / "mine.csv"), own=True)
    with pytest.raises(ValueError, match='no synthetic stand-in; write profile = "own"'):
        demo.make_stand_in(card, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_classes_can_be_told_apart_by_colour_only_in_part():
    """A crude reader, nine colour statistics, does better than chance and far from well."""
    rng, x, y = np.random.default_rng(0), [], []
    for label, name in enumerate(RECIPES):
        for _ in range(30):
            signs = draw_signs(recipe_of("demo", name), rng)
            image = lesions.draw_lesion(signs, rng, (90, 120), "dermoscopic").image[25:65, 40:80].reshape(-1, 3)
            x.append([*image.mean(0), *image.std(0), *np.quantile(image, 0.9, axis=0)])
            y.append(label)
    x, y = np.array(x), np.array(y)
    x = (x - x.mean(0)) / x.std(0)
    order = rng.permutation(len(x))
    fitted = LogisticRegression(max_iter=500).fit(x[order[:140]], y[order[:140]])
    assert 1.8 / 7 < fitted.score(x[order[140:]], y[order[140:]]) < 0.85


# --- panderm_tiny ---


def test_the_shipped_encoder_is_tiny_and_laid_out_as_the_released_large_file():
    file = ROOT / "data_manifests/weights/panderm_tiny.pth"
    assert file.stat().st_size <= 6_000_000
    model = load_encoder("panderm_tiny", weights=file, device="cpu")
    assert sum(p.numel() for p in model.parameters()) <= 3_000_000
    used = model.loading[model.loading["status"] == "used"]
    aside = model.loading[model.loading["status"] == "left aside"]
    assert used["group"].str.startswith("encoder.").all()
    assert {"mask_token", "regresser"} <= set(aside["group"])


def test_pre_training_shares_no_seed_with_the_stand_ins_and_runs(tmp_path):
    script = runpy.run_path(str(ROOT / "scripts/pretrain_panderm_tiny.py"))
    assert script["SEED"] != demo.SEED
    options = argparse.Namespace(images=4, steps=2, batch=2, lr=1e-3, work=tmp_path)
    script["save"](script["train"](options), tmp_path / "tiny.pth")
    assert load_encoder("panderm_tiny", weights=tmp_path / "tiny.pth", device="cpu").num_features == 96


def test_pre_training_goes_on_where_it_stopped_and_can_be_ended_at_another_step(monkeypatch, tmp_path):
    script = runpy.run_path(str(ROOT / "scripts/pretrain_panderm_tiny.py"))
    monkeypatch.setitem(script["train"].__globals__, "EVERY", 1)
    sizes = {"images": 4, "batch": 2, "lr": 1e-3}
    whole = script["train"](argparse.Namespace(steps=2, work=tmp_path / "whole", **sizes)).state_dict()
    script["train"](argparse.Namespace(steps=1, work=tmp_path / "parts", **sizes))
    parts = script["train"](argparse.Namespace(steps=2, work=tmp_path / "parts", **sizes)).state_dict()
    assert whole.keys() == parts.keys()
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)
