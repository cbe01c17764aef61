"""`--features`: the features of a folder or of datasets in a file that numpy or pandas reads alone."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from panderm_utils import cli
from panderm_utils.data import dataset as data
from panderm_utils.data.image_files import open_image
from panderm_utils.demo import stand_ins
from panderm_utils.encoders import feature_files
from panderm_utils.encoders.features import FeatureError
from panderm_utils.encoders.loading import load_encoder
from panderm_utils.manifests import SPLITS
from panderm_utils.manifests import reading as manifests


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("panderm_tiny", device="cpu")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for seed, name in enumerate(("b.jpg", "a/2.png", "a/1.jpg")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def features(tmp_path, *arguments, file="x.npz"):
    """Returns the exit status, and the file's path."""
    where = ("--to", str(tmp_path / file), "--output-root", str(tmp_path / "out"))
    return cli.main(["--features", "panderm_tiny", *map(str, arguments), *where]), tmp_path / file


def test_a_folder_s_features_are_the_encoder_s_by_name_and_repeated_from_the_cache(images, encoder, tmp_path, capsys):
    status, path = features(tmp_path, "--images", images)
    assert status == 0
    first = path.read_bytes()
    saved = np.load(path)
    assert saved["image"].tolist() == ["a/1.jpg", "a/2.png", "b.jpg"]
    expected = [encoder(encoder.transform(open_image(images / name))[None])[0].numpy() for name in saved["image"]]
    assert saved["features"].dtype == np.float32
    np.testing.assert_allclose(saved["features"], expected, atol=1e-5)
    assert saved["weights_sha256"] == encoder.digest
    assert str(saved["encoder"]) == "panderm_tiny"
    assert saved["transform"] == repr(encoder.transform)
    assert saved["precision"] == "fp32"
    assert not saved["synthetic"]
    assert "3 images x 96 features (image, features); 0 from the cache" in capsys.readouterr().out
    assert features(tmp_path, "--images", images)[0] == 0
    assert "3 from the cache" in capsys.readouterr().out
    assert path.read_bytes() == first


def test_unreadable_images_are_listed_and_left_out_and_the_status_says_so(images, tmp_path, capsys):
    (images / "a/0.jpg").write_bytes(b"<html>")
    (images / "gone.jpg").symlink_to(images / "nowhere.jpg")
    (images / "notes.txt").write_text("no image")
    for _ in range(2):  # the second time from the cache
        status, path = features(tmp_path, "--images", images)
        told = capsys.readouterr()
        assert status == 1
        assert "left out: a/0.jpg: the file is a web page" in told.err
        assert "left out: gone.jpg: broken link" in told.err
        assert "not images by their suffix: 1 .txt" in told.out
        saved = np.load(path)
        assert saved["image"].tolist() == ["a/1.jpg", "a/2.png", "b.jpg"]
        assert np.isfinite(saved["features"]).all()
    for name in ("a/1.jpg", "a/2.png", "b.jpg"):
        (images / name).write_bytes(b"")
    status, path = features(tmp_path, "--images", images, file="none.npz")
    assert status == 1
    assert "nothing written" in capsys.readouterr().err
    assert not path.exists()


def test_a_csv_holds_the_same_numbers_to_the_last_digit(images, tmp_path):
    _, npz = features(tmp_path, "--images", images)
    _, csv = features(tmp_path, "--images", images, file="x.csv")
    saved, table = np.load(npz), pd.read_csv(csv)
    assert table["image"].tolist() == saved["image"].tolist()
    np.testing.assert_array_equal(table.filter(regex="^feature_").to_numpy(np.float32), saved["features"])
    for fact in ("encoder", "weights_sha256", "transform", "precision", "computed_by"):
        assert set(table[fact]) == {str(saved[fact])}


def test_a_dataset_s_features_come_with_split_and_class(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(stand_ins, "STAND_IN", stand_ins.Size(train=20, val=4, test=8))
    status, path = features(tmp_path, "--datasets", "ddi", "ph2")
    assert status == 0
    saved = np.load(path)
    start = 0
    for name in ("ddi", "ph2"):
        study = data.load_dataset(manifests.load_dataset_manifest(name), tmp_path / "out/cache/demo")
        table = pd.concat([study.split(split) for split in SPLITS])
        rows = slice(start, start + len(table))
        assert set(saved["dataset"][rows]) == {name}
        for column in ("image", "split", "label"):
            assert saved[column][rows].tolist() == table[column].tolist()
        assert saved["class"][rows].tolist() == [study.manifest.class_names[k] for k in table["label"]]
        x = encoder(encoder.transform(open_image(study.path(table["image"].iloc[-1])))[None])
        np.testing.assert_allclose(saved["features"][rows][-1], x[0].numpy(), atol=1e-5)
        start += len(table)
    assert start == len(saved["features"])
    assert saved["synthetic"]


@pytest.mark.parametrize(
    ("name", "images", "remedy"),
    [
        ("x.parquet", 1, r"write x\.npz \(pandas turns it into Parquet"),
        ("x", 1, r"must end in \.npz"),
        ("x.csv", 100_000, r"102,400,000 numbers, a CSV takes 5,000,000.*write x\.npz"),
        ("", 1, r"must end in \.npz"),
    ],
)
def test_files_that_cannot_be_are_refused_with_the_remedy(tmp_path, name, images, remedy):
    with pytest.raises(FeatureError, match=remedy):
        feature_files.check_feature_file(tmp_path / name, images, 1024)


def test_nothing_is_computed_for_a_file_that_is_refused(images, tmp_path, capsys):
    status, _ = features(tmp_path, "--images", images, file="x.parquet")
    assert status == 2
    assert "write x.npz" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--features", "panderm_tiny", "--to", "x.npz"],
        ["--features", "panderm_tiny", "--images", "i"],
        ["--features", "panderm_tiny", "--images", "i", "--datasets", "ddi", "--to", "x.npz"],
        ["--features", "panderm_tiny", "--images", "i", "--to", "x.npz", "-p", "precision=bf16"],
        ["--to", "x.npz"],
    ],
)
def test_flags_that_contradict_each_other_are_refused(arguments):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
