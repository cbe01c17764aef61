"""Copies are found whatever was done to them, each pair once, and images that merely look alike are not."""

import shutil

import numpy as np
import pytest
from PIL import Image, ImageOps

from panderm_utils import audit
from panderm_utils.audit import fingerprints
from panderm_utils.encoders import extract_features, load_encoder
from tests.audit.planted import draw, make_dataset

ROWS = [(f"{split}{i}.jpg", split, i % 7) for split in ("train", "val", "test") for i in range(7)]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "demo/images").mkdir(parents=True)
    return tmp_path


def kinds(found):
    return {(row.image_a, row.image_b): row.kind for row in found.pairs.itertuples()}


def smaller(image):
    return image.resize((97, 61), Image.Resampling.BILINEAR)


def cropped(image):
    return image.crop((2, 1, image.width - 1, image.height - 1))


COPIES = {
    "smaller": (smaller, ""),
    "cropped": (cropped, ""),
    "darker": (lambda image: image.point(lambda value: 0.85 * value), ""),
    "grey": (ImageOps.grayscale, ""),
    "mirrored": (ImageOps.mirror, "mirrored"),
    "upside down": (ImageOps.flip, "mirrored"),
    "turned by 90": (lambda image: image.rotate(90, expand=True), "turned"),
    "turned by 180": (lambda image: image.rotate(180), "turned"),
    "turned by 270": (lambda image: image.rotate(-90, expand=True), "turned"),
    "transposed": (lambda image: image.transpose(Image.Transpose.TRANSPOSE), "mirrored and turned"),
    "transversed": (lambda image: image.transpose(Image.Transpose.TRANSVERSE), "mirrored and turned"),
}


def test_no_pair_where_there_is_none(root):
    found = audit.audit_datasets([make_dataset(root, ROWS), make_dataset(root, ROWS, "ham10000")])
    assert found.pairs.empty
    assert found.notes == ()
    assert found.nearest["similarity"].max() < 0.85  # far below the threshold
    assert len(found.nearest) == 14
    assert audit.shared_table(found).empty


def test_equal_bytes_under_another_name_and_equal_pixels_in_another_file(root):
    images, original = root / "demo/images", draw(1)
    original.save(images / "test0.jpg", quality=90)
    shutil.copyfile(images / "test0.jpg", images / "val3.jpg")
    Image.open(images / "test0.jpg").save(images / "same.png")
    rows = [row for row in ROWS if row[0] != "train2.jpg"] + [("same.png", "train", 2)]
    found = audit.audit_datasets([make_dataset(root, rows)])
    assert kinds(found) == {("test0.jpg", "val3.jpg"): "same file", ("test0.jpg", "same.png"): "same pixels"}
    assert found.pairs["similarity"].tolist() == [1.0, 1.0]
    assert found.leaking("demo") == {"test0.jpg"}
    assert audit.shared_table(found)["two labels"].tolist() == [2]  # 0 in test, 3 in val, 2 in train


@pytest.mark.parametrize("change", COPIES)
def test_a_changed_copy_is_a_near_copy(root, change):
    images, original = root / "demo/images", draw(1)
    original.save(images / "test0.jpg", quality=90)
    COPIES[change][0](original).save(images / "train4.jpg", quality=50)
    found = audit.audit_datasets([make_dataset(root, ROWS)])
    assert kinds(found) == {("test0.jpg", "train4.jpg"): "near copy"}
    row = found.pairs.iloc[0]
    assert audit.COPY_SIMILARITY <= row["similarity"] < 1 or change not in ("smaller", "cropped")
    assert row["orientation"] == COPIES[change][1]
    assert (row["split_a"], row["split_b"], row["label_a"], row["label_b"]) == ("test", "train", "akiec", "mel")
    nearest = found.nearest.set_index("image_a").loc["test0.jpg"]
    assert (nearest["image_b"], nearest["similarity"]) == ("train4.jpg", row["similarity"])


def test_a_copy_within_a_split_or_between_train_and_val_is_no_leak(root):
    images = root / "demo/images"
    for name in ("train0.jpg", "train1.jpg", "val0.jpg"):
        draw(1).save(images / name)
    for name in ("test0.jpg", "test1.jpg"):
        draw(2).save(images / name)
    assert audit.audit_datasets([make_dataset(root, ROWS)]).pairs.empty


def test_two_datasets_share_copies_and_isic_ids_but_not_the_files_that_both_list(root):
    (root / "ham10000/images").mkdir(parents=True)
    draw(1).save(root / "demo/images/train0.jpg")
    draw(1).save(root / "ham10000/images/train5.jpg", quality=40)
    first = make_dataset(root, [*ROWS, ("ISIC_0000001.jpg", "val", 0)])
    second = make_dataset(root, [*ROWS, ("ISIC_0000001_downsampled.jpg", "train", 0)], "ham10000")
    found = audit.audit_datasets([first, second])
    expected = {("train0.jpg", "train5.jpg"): "near copy"}
    assert kinds(found) == {**expected, ("ISIC_0000001.jpg", "ISIC_0000001_downsampled.jpg"): "same ISIC id"}
    assert found.leaking("ham10000", source="demo") == {"train5.jpg", "ISIC_0000001_downsampled.jpg"}
    assert found.leaking("demo", source="ham10000") == {"train0.jpg", "ISIC_0000001.jpg"}
    assert found.leaking("demo") == set()
    linked = make_dataset(root, ROWS, "ham10000", "demo/images")  # as HAM10000 with labels, and with masks
    same = audit.audit_datasets([first, linked])
    assert same.pairs.empty
    assert same.notes == ("demo and ham10000 list 21 of the same files, which are not counted",)


def test_lesions_and_patients_in_two_splits_with_a_few_partners_each(root):
    rows = [("a.jpg", "train", 0, "L1", "P1"), ("b.jpg", "test", 0, "L1", "P1"), ("c.jpg", "val", 1, "L2", "P1")]
    rows += [(f"many{i}.jpg", "train", 2, "", "P2") for i in range(8)] + [("d.jpg", "test", 3, "L2", "P2")]
    rows += [("e.jpg", "test", 4, "", ""), ("f.jpg", "train", 4, "", ""), ("g.jpg", "test", 5, "L9", "P9")]
    rows += [("h.jpg", "test", 6, "L9", "P9")]
    found = audit.audit_datasets([make_dataset(root, rows)])
    table = found.pairs.groupby("kind")[["image_a", "image_b"]].apply(lambda part: sorted(map(tuple, part.to_numpy())))
    assert table["same lesion"] == [("b.jpg", "a.jpg"), ("d.jpg", "c.jpg")]
    assert table["same patient"][:2] == [("b.jpg", "a.jpg"), ("b.jpg", "c.jpg")]
    assert [a for a, _ in table["same patient"][2:]] == ["d.jpg"] * audit.PARTNERS
    assert found.leaking("demo", ["same lesion"]) == {"b.jpg", "d.jpg"}
    assert found.pairs["similarity"].isna().all()


def test_cached_features_list_pairs_above_a_threshold_and_nothing_is_computed(root, tmp_path):
    images, cache = root / "demo/images", tmp_path / "cache"
    draw(1).save(images / "test0.jpg")
    draw(1).save(images / "val4.jpg", quality=40)
    study, encoder = make_dataset(root, ROWS), load_encoder("panderm_tiny", device="cpu")
    none = audit.audit_datasets([study], cache, "panderm_tiny")
    assert "demo (train val test)" in none.notes[0]
    assert set(none.nearest["kind"]) == {"near copy"}
    x = {split: extract_features(encoder, study, split, cache, num_workers=0).x for split in ("val", "test")}
    unit = {split: rows / np.linalg.norm(rows, axis=1, keepdims=True) for split, rows in x.items()}
    cosines = unit["test"] @ unit["val"].T
    threshold = np.sort(cosines.ravel())[-5] - 1e-6
    found = audit.audit_datasets([study], cache, "panderm_tiny", feature_similarity=threshold)
    similar = found.pairs[found.pairs["kind"].isin(["similar features", "near copy"])]
    expected = {(f"test{i}.jpg", f"val{j}.jpg") for i, j in np.argwhere(cosines >= threshold)}
    assert set(zip(similar["image_a"], similar["image_b"], strict=True)) == expected | {("test0.jpg", "val4.jpg")}
    assert kinds(found)["test0.jpg", "val4.jpg"] == "near copy"  # the stronger kind
    near = found.nearest[found.nearest["kind"] == "similar features"].set_index("image_a")["similarity"]
    assert near.to_numpy() == pytest.approx(cosines.max(axis=1), abs=1e-6)
    assert "demo (train)" in found.notes[0]
    toy = audit.audit_datasets([study], cache, "panderm_tiny")
    assert "is a toy" in toy.notes[-1]
    assert "similar features" not in set(toy.pairs["kind"])
    draw(9).save(images / "val4.jpg")  # a changed image has no features any more
    assert "demo (train val)" in audit.audit_datasets([make_dataset(root, ROWS)], cache, "panderm_tiny").notes[0]


def test_unreadable_images_are_named_and_match_nothing(root):
    study = make_dataset(root, ROWS)
    for name in ("test0.jpg", "train0.jpg"):
        (root / "demo/images" / name).write_bytes(b"<html>")
    found = audit.audit_datasets([study], root / "cache")
    assert found.pairs.empty
    assert len(found.notes) == 2
    assert "train0.jpg: the file is a web page" in found.notes[0]


def test_fingerprints_come_from_the_cache_until_a_file_changes(root, monkeypatch):
    make_dataset(root, ROWS)
    paths = sorted(str(path) for path in (root / "demo/images").iterdir())
    names = [path.rsplit("/", 1)[1] for path in paths]
    first = fingerprints.fingerprint_files(paths, names, root / "cache")
    made = []
    monkeypatch.setattr(
        fingerprints, "fingerprint", lambda image, of=fingerprints.fingerprint: made.append(1) or of(image)
    )
    again = fingerprints.fingerprint_files(paths, names, root / "cache")
    for part in ("files", "pixels", "signs"):
        np.testing.assert_array_equal(getattr(again, part), getattr(first, part))
    assert made == []
    draw(5).save(paths[3])
    changed = fingerprints.fingerprint_files(paths, names, root / "cache")
    assert len(made) == len(paths)
    assert (changed.signs != first.signs).any(axis=1).tolist() == [i == 3 for i in range(len(paths))]


def test_an_audit_of_nothing_is_empty():
    found = audit.audit_datasets([])
    assert len(found.images) == len(found.pairs) == len(found.nearest) == 0
    assert found.leaking("demo") == set()
