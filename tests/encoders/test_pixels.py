"""Kept pixels: a second encoder decodes nothing, and gets the same features to the last bit as without them."""

import panderm_utils  # noqa: F401  first of all: makes torchvision, and so timm, importable

# isort: split
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from panderm_utils import workspace
from panderm_utils.batch import estimates
from panderm_utils.encoders import feature_cache, features, pixels
from panderm_utils.encoders.feature_cache import FeatureCacheWarning
from panderm_utils.encoders.features import extract_files
from panderm_utils.encoders.loading import load_encoder
from panderm_utils.manifests import EncoderManifest
from panderm_utils.messages import UserError

pytestmark = pytest.mark.usefixtures("one_thread", "small_shards")

SMALL = EncoderManifest(
    name="small",
    title="s",
    architecture="beit",
    layout="none",
    licence="MIT",
    width=48,
    depth=1,
    heads=3,
    num_features=48,
)
COUNT, SHARD, KEPT = 19, 8, 3  # images, in a shard of features, and in one of pixels


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(features, "SHARD", SHARD)
    monkeypatch.setattr(pixels, "PIXEL_SHARD", KEPT)
    monkeypatch.setattr(pixels, "PIXEL_RESERVE", 0)
    monkeypatch.setattr(feature_cache, "TICK", 0)  # else the files just drawn are too fresh to be recognised by time
    monkeypatch.delenv(workspace.PIXELS, raising=False)


@pytest.fixture(scope="module")
def two():
    """Two encoders of other widths."""
    wide = replace(SMALL, name="wide", width=96, num_features=96)
    return [load_encoder(manifest, device="cpu") for manifest in (SMALL, wide)]


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "images").mkdir()
    return [draw(tmp_path / f"images/{i}.jpg", i) for i in range(COUNT)]


@pytest.fixture
def decoded(monkeypatch):
    """The files that are decoded in this process."""
    seen = []

    def opening(path, content=None, original=features.open_image):
        seen.append(path)
        return original(path, content)

    monkeypatch.setattr(features, "open_image", opening)
    return seen


def draw(path, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((300 + seed % 7, 260), Image.Resampling.BICUBIC).save(path, quality=90)
    return str(path)


def extract(encoder, paths, cache=None, **options):
    return extract_files(encoder, paths, cache=cache, num_workers=0, **options).x


def test_a_second_encoder_decodes_nothing_and_its_features_are_bit_equal(two, paths, tmp_path, decoded):
    alone = [extract(encoder, paths) for encoder in two]
    decoded.clear()
    for encoder, expected in zip(two, alone, strict=True):
        np.testing.assert_array_equal(extract(encoder, paths, tmp_path / "cache"), expected)
    assert decoded == paths


def test_kept_pixels_go_through_worker_processes_and_smaller_batches(two, paths, tmp_path):
    first = extract_files(two[0], paths, cache=tmp_path, num_workers=2, batch_size=5)
    np.testing.assert_array_equal(first.x, extract(two[0], paths, batch_size=5))
    np.testing.assert_array_equal(extract(two[1], paths, tmp_path, batch_size=5), extract(two[1], paths, batch_size=5))


def test_a_changed_file_is_decoded_again_with_its_shard_and_a_moved_folder_is_not(two, paths, tmp_path, decoded):
    names = [Path(path).name for path in paths]
    extract(two[0], paths, tmp_path / "cache", names=names)
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    moved = [str(tmp_path / "moved" / name) for name in names]
    decoded.clear()
    np.testing.assert_array_equal(extract(two[1], moved, tmp_path / "cache", names=names), extract(two[1], moved))
    assert decoded == moved  # of the second, without a cache
    time.sleep(0.01)  # a clock tick
    draw(moved[9], 77)
    decoded.clear()
    third = load_encoder(replace(SMALL, name="third", depth=2), device="cpu")
    found = extract(third, moved, tmp_path / "cache", names=names)
    assert decoded == moved[SHARD : 2 * SHARD]
    np.testing.assert_array_equal(found, extract(third, moved))


def test_the_budget_is_kept_and_what_does_not_fit_is_decoded(two, paths, tmp_path, decoded, monkeypatch):
    monkeypatch.setenv(workspace.PIXELS, str(4.1 * KEPT * pixels.PIXEL_BYTES / 1e9))  # four shards of seven
    extract(two[0], paths, tmp_path / "cache")
    kept = list((tmp_path / "cache/pixels").rglob("*.shard"))
    assert len(kept) == 4
    decoded.clear()
    found = extract(two[1], paths, tmp_path / "cache")
    assert decoded == paths[SHARD:]  # the first shard of features is three whole shards of pixels
    np.testing.assert_array_equal(found, extract(two[1], paths))
    assert len(list((tmp_path / "cache/pixels").rglob("*.shard"))) == 4


@pytest.mark.parametrize("why", ["no budget", "no room"])
def test_without_a_budget_or_room_nothing_is_kept(two, paths, tmp_path, monkeypatch, why):
    if why == "no budget":
        monkeypatch.setenv(workspace.PIXELS, "0")
    else:
        monkeypatch.setattr(pixels, "PIXEL_RESERVE", 10**18)
    extract(two[0], paths, tmp_path / "cache")
    assert not (tmp_path / "cache/pixels").exists()


def test_damaged_pixels_are_told_and_decoded_again(two, paths, tmp_path, decoded):
    extract(two[0], paths, tmp_path / "cache")
    for shard in (tmp_path / "cache/pixels").rglob("*.shard"):
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    decoded.clear()
    with pytest.warns(FeatureCacheWarning, match="damaged; its pixels are computed again"):
        found = extract(two[1], paths, tmp_path / "cache")
    assert decoded == paths
    np.testing.assert_array_equal(found, extract(two[1], paths))


def test_a_shard_with_an_unreadable_image_is_not_kept(two, paths, tmp_path, decoded):
    Path(paths[2]).write_bytes(b"<html>")
    extract(two[0], paths, tmp_path / "cache", skip_unreadable=True)
    decoded.clear()
    found = extract_files(two[1], paths, cache=tmp_path / "cache", num_workers=0, skip_unreadable=True)
    assert list(found.unreadable) == [paths[2]]
    assert set(decoded) == set(paths[:SHARD])


@pytest.mark.parametrize("text", ["-1", "much", "inf", "nan"])
def test_a_budget_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv(workspace.PIXELS, text)
    with pytest.raises(UserError, match=r"PANDERM_PIXELS: .* write a number of GB"):
        workspace.pixel_budget()


def test_the_plan_counts_the_same_bytes():
    assert estimates.PIXEL_BYTES == pixels.PIXEL_BYTES
