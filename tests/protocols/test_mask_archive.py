"""masks.zip: nothing is lost, nothing collides or escapes, and what does not fit is named."""

import io
import itertools
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from panderm_utils.protocols import segmentation
from panderm_utils.protocols.segmentation.masks import decode_mask, encode_mask, entry_name
from panderm_utils.stats import keep_largest, mask_scores, published_mask_scores
from tests.mask_record import draw_masks, ellipse

NAMES = "a.jpg|a.png|a|a/b.jpg|a//b.jpg|/a/b.jpg|../a.jpg|a/../b.jpg|..|.|a/./b|a\\b|C:/x.jpg|%2E%2E/a.jpg|é.jpg|%|a/"
NAMES = [*NAMES.split("|"), "e\u0301.jpg", "ISIC 0 (1).jpg", "a.jpg.png", "A.jpg", "\udc80.jpg"]


def rewritten(content, change):
    """A zip whose entries (name -> bytes) are those of another one after `change`."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, png in entries.items():
            archive.writestr(name, png)
    return out.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (8, 8), (5, 9), (224, 224), (90, 121)])
def test_a_png_returns_the_mask_bit_by_bit(size):
    for mask in (np.random.default_rng(0).random(size) > 0.5, np.zeros(size, dtype=bool), np.ones(size, dtype=bool)):
        found = decode_mask(encode_mask(mask))
        np.testing.assert_array_equal(found, mask)
        assert found.view(np.uint8).max() <= 1  # other bytes would be summed as they are
        flipped = mask.T[::-1]  # not contiguous
        np.testing.assert_array_equal(decode_mask(encode_mask(flipped)), flipped)


def test_what_is_packed_is_read_and_the_bytes_depend_on_the_masks_alone():
    names = [f"x/{i}.jpg" for i in range(5)]
    content = segmentation.pack_masks(draw_masks(names))
    assert segmentation.pack_masks(draw_masks(names)) == content
    archive = segmentation.MaskArchive(content)
    archive.check(names)
    for name, masks in draw_masks(names):
        found = archive.read(name)
        for kind in ("true", "predicted", "predicted_224"):
            np.testing.assert_array_equal(getattr(found, kind), getattr(masks, kind))
        assert found.true_224 is None
        np.testing.assert_array_equal(found.small_true, segmentation.shrink_mask(masks.true))


def test_a_small_true_mask_is_kept_only_where_it_is_not_the_nearest_resize():
    ((_, masks),) = draw_masks(["a.jpg"])
    nearest, other = segmentation.shrink_mask(masks.true), ~segmentation.shrink_mask(masks.true)
    for small, kept in ((nearest, False), (other, True)):
        content = segmentation.pack_masks(
            [("a.jpg", segmentation.ImageMasks(masks.true, masks.predicted, masks.predicted_224, small))]
        )
        assert ("true_224/a.jpg.png" in zipfile.ZipFile(io.BytesIO(content)).namelist()) == kept
        np.testing.assert_array_equal(segmentation.MaskArchive(content).read("a.jpg").small_true, small)


def test_shrinking_takes_the_pixels_that_pytorch_takes():
    import torch

    for size in ((450, 600), (224, 224), (767, 1022), (31, 500)):
        mask = np.random.default_rng(0).random(size) > 0.5
        expected = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None].float(), (224, 224))[0, 0] > 0.5
        np.testing.assert_array_equal(segmentation.shrink_mask(mask), expected)


def test_entries_of_different_images_differ_and_stay_in_their_folder():
    entries = [entry_name("true", name) for name in NAMES]
    assert len(set(entries)) == len(NAMES)
    for entry in entries:
        parts = entry.split("/")
        assert parts[0] == "true"
        assert not {"", ".", ".."} & set(parts)
        assert entry.isascii()
        assert not set(entry) & set('\\:*?"<>|\0')
    assert entry_name("true", "train/ISIC_0024306.jpg") == "true/train/ISIC_0024306.jpg.png"
    for one, other in itertools.permutations(["true", "true_224", "predicted", "predicted_224"], 2):
        assert entry_name(one, "a") != entry_name(other, "a")


def test_names_that_point_elsewhere_are_packed_and_unpacked_safely(tmp_path):
    content = segmentation.pack_masks(draw_masks(NAMES))
    archive = segmentation.MaskArchive(content)
    archive.check(NAMES)
    for name, masks in draw_masks(NAMES):
        np.testing.assert_array_equal(archive.read(name).predicted, masks.predicted)
    inside = tmp_path / "inside"
    zipfile.ZipFile(io.BytesIO(content)).extractall(inside)
    assert [path for path in tmp_path.iterdir() if path != inside] == []
    assert len([path for path in inside.rglob("*") if path.is_file()]) == 3 * len(NAMES)


def test_an_image_listed_twice_is_kept_once_unless_its_masks_differ():
    names = ["a.jpg", "b.jpg", "a.jpg"]
    pairs = list(draw_masks(names))
    assert segmentation.pack_masks(pairs) == segmentation.pack_masks(pairs[:2])
    table = segmentation.score_images(names, segmentation.pack_masks(pairs))
    assert table.iloc[0].equals(table.iloc[2])
    with pytest.raises(segmentation.MaskError, match=r"'a.jpg' has two different sets"):
        segmentation.pack_masks([*pairs, ("a.jpg", pairs[1][1])])


def test_masks_that_do_not_fit_are_refused_by_name():
    true, small = ellipse(20, 30, 0.5, 0.5, 0.3, 0.3), ellipse(8, 8, 0.5, 0.5, 0.3, 0.3)
    for masks, message in (
        (segmentation.ImageMasks(true, true.T, small), r"'true' and 'predicted' are \[20, 30\] and \[30, 20\]"),
        (segmentation.ImageMasks(true, true, small, true), r"'predicted_224' and 'true_224' are \[8, 8\]"),
        (segmentation.ImageMasks(true, true.astype(int), small), r"'predicted' must be bool"),
    ):
        with pytest.raises(segmentation.MaskError, match=f"^b.jpg: its mask.*{message}"):
            segmentation.pack_masks([("b.jpg", masks)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("predicted/b.jpg.png"), "lacks predicted/b.jpg.png; repeat"),
        (lambda e: e.update({"true/c.jpg.png": e["true/b.jpg.png"]}), "true/c.jpg.png belong to no test image"),
        (lambda e: e.update({"true/b.jpg.png": b"no picture"}), "true/b.jpg.png is damaged"),
        (lambda e: e.update({"true/b.jpg.png": e["true/b.jpg.png"][:-40]}), "true/b.jpg.png is damaged"),
        (lambda e: e.update({"true/b.jpg.png": grey_png()}), r"true/b.jpg.png is damaged \(a mask has 1 bit"),
    ],
)
def test_an_archive_that_was_changed_is_refused_by_entry(change, message):
    content = rewritten(segmentation.pack_masks(draw_masks(["a.jpg", "b.jpg"])), change)
    with pytest.raises(segmentation.MaskError, match=message):
        segmentation.score_images(["a.jpg", "b.jpg"], content)


def grey_png():
    png = io.BytesIO()
    Image.new("L", (120, 100)).save(png, "png")
    return png.getvalue()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(segmentation.MaskError, match=r"masks.zip is missing; repeat"):
        segmentation.MaskArchive(tmp_path / "masks.zip")
    with pytest.raises(segmentation.MaskError, match="not a zip file"):
        segmentation.MaskArchive(b"PK but no")
    content = bytearray(segmentation.pack_masks(draw_masks(["a.jpg"])))
    content[80] ^= 255  # a bit of a PNG
    with pytest.raises(segmentation.MaskError, match=r"true/a.jpg.png is damaged \(Bad CRC"):
        segmentation.MaskArchive(bytes(content)).read("a.jpg")


def test_the_scores_of_an_image_are_those_of_its_masks():
    names = ["a.jpg", "b/c.jpg"]
    table = segmentation.score_images(names, segmentation.pack_masks(draw_masks(names)), ["x", "x"])
    assert list(table)[:5] == ["filename", "true_mask", "cluster", "true_area", "predicted_area"]
    for row, (name, masks) in zip(table.to_dict("records"), draw_masks(names), strict=True):
        small = segmentation.shrink_mask(masks.true)
        both = keep_largest(masks.predicted_224) & small
        assert row["filename"] == name
        assert row["true_area"] == pytest.approx(100 * masks.true.mean())
        assert row["predicted_area"] == pytest.approx(100 * masks.predicted.mean())
        assert row["dice"] == pytest.approx(2 * both.sum() / (small.sum() + keep_largest(masks.predicted_224).sum()))
        expected = {**published_mask_scores(small, masks.predicted_224), **mask_scores(masks.true, masks.predicted)}
        assert {name: row[name] for name in expected} == expected
    means = segmentation.evaluate_masks(table.drop(columns="cluster"), replicates=20)
    assert means.loc["dice_original", "value"] == pytest.approx(table["dice_original"].mean())


def test_the_digest_of_a_true_mask_is_of_its_pixels_and_its_size():
    true = np.ones((4, 6), dtype=bool)
    shapes = {"a": true, "b": true.reshape(6, 4), "c": true.reshape(3, 8), "d": ~true, "e": true.copy()}
    pairs = [(name, segmentation.ImageMasks(mask, mask, true)) for name, mask in shapes.items()]
    digests = segmentation.score_images(list(shapes), segmentation.pack_masks(pairs))["true_mask"].tolist()
    assert len(set(digests)) == 4
    assert digests[0] == digests[4]


def test_a_thousand_images_take_less_than_20_mb_and_the_memory_of_a_few():
    height, width = 768, 1024
    rows, columns = np.mgrid[:height, :width]
    angle, far = np.arctan2(rows - 380, columns - 500), np.hypot(rows - 380, columns - 500)
    wave = sum(np.cos(k * angle + k * k) / k for k in range(2, 30))
    lesion = far < 230 + 40 * wave  # an outline of 2,000 pixels with waves of all lengths

    def images():
        for i in range(30):
            mask = np.roll(lesion, (i, 3 * i), (0, 1))
            yield f"{i}.jpg", segmentation.ImageMasks(mask, np.roll(mask, 5, 0), segmentation.shrink_mask(mask))

    tracemalloc.start()
    content = segmentation.pack_masks(images())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(content) / 30 < 20_000
    assert peak < 8 * height * width  # the masks of all images would be sixty times height x width


def test_best_median_and_worst_are_picked_by_rank():
    import pandas as pd

    table = pd.DataFrame(
        {"filename": list("abcdefghi"), "dice_original": [0.9, 0.1, 0.5, 0.8, 0.2, 0.6, 0.7, 0.4, 0.3]}
    )
    picked = segmentation.pick_examples(table, 3)
    assert picked["filename"].tolist() == list("adgfchieb")
    assert picked["group"].tolist() == ["best"] * 3 + ["median"] * 3 + ["worst"] * 3
    assert segmentation.pick_examples(table.head(2), 3)["filename"].tolist() == list("ab") * 3
