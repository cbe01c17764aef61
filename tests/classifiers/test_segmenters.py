"""Masks of new images: the study's own, one file each; refusals, and a folder that survives kills."""

import json
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from panderm_utils import classifiers, cli, data, manifests, results, workspace
from panderm_utils.protocols import segmentation
from panderm_utils.protocols.training import state

pytestmark = pytest.mark.usefixtures("one_thread")
KIND = "isic2018_task1", "random_tiny"
TINY = replace(manifests.load_encoder_manifest("random_tiny"), width=48, depth=4, heads=3, num_features=48)
COLUMNS = ["image", "mask", "lesion_pixels", "lesion_percent", "bytes"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twenty-two noisy images of two sizes, in two folders."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(22):
        path = root / ("test" if i < 18 else "train") / f"{i:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((60, 40) if i % 2 else (50, 70)).save(path)
    return root


@pytest.fixture(scope="module")
def space(photos, tmp_path_factory):
    """A workspace with a record as the notebook leaves it, of a model that was not trained, on some of the images."""
    space = workspace.open_workspace("demo", output_root=tmp_path_factory.mktemp("outputs"))
    run = results.begin_run(segmentation.PROTOCOL, *KIND, 0, space, replicates=20)
    recipe = segmentation.make_recipe({}, channels=8)
    made = segmentation.load_segmentation_model(TINY, recipe)
    origin = segmentation.SegmentationTraining(made, None, None, recipe, space.checkpoints).origin()
    path = space.checkpoints / run.run_id / "best.safetensors"
    path.parent.mkdir(parents=True)
    state.save_model(path, made, origin)
    trained = segmentation.evaluate_only(path)
    names = [path.relative_to(photos).as_posix() for path in sorted(photos.glob("test/*"))]
    paths = np.array([str(photos / name) for name in names])
    images = segmentation.MaskedImages(paths, np.full(len(names), ""), np.array(names), np.arange(len(names)))
    found = segmentation.predict(trained.model, images, "cpu", num_workers=0)
    trues = [np.zeros(Image.open(path).size[::-1], dtype=bool) for path in paths]
    masks = [segmentation.ImageMasks(true, found.mask(i, true.shape), found.mask(i)) for i, true in enumerate(trues)]
    run.files[segmentation.MASKS_FILE] = segmentation.pack_masks(zip(names, masks, strict=True))
    predictions = segmentation.score_images(names, run.files[segmentation.MASKS_FILE])
    run.note(encoder_facts=segmentation.describe(made), training=trained.describe(), precision="fp32")
    digests = {"rows_sha256": "0" * 64, "csv_sha256": "0" * 64}
    run.note(data={"split_sizes": {"train": 0, "val": 0, "test": len(names)}, **digests})
    results.save_record(run, segmentation.evaluate_masks(predictions, 20), predictions, "jaccard")
    return space


@pytest.fixture(scope="module")
def record(space):
    return next(space.records.iterdir())


@pytest.fixture
def segmenter(record):
    return classifiers.load_segmenter(record, "cpu")


@pytest.fixture
def folder(photos, tmp_path):
    """Nested folders, hostile names, and files that are no images."""
    root = tmp_path / "new"
    sources = sorted(photos.rglob("*.jpg"))[:12]
    names = ["a.jpg", "b#1.jpg", 'c, "d".jpg', "deep/er/é.jpg", "deep/a.JPG", *(f"{i:02}.jpg" for i in range(7))]
    for name, source in zip(names, sources, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, root / name)
    (root / "broken.png").write_bytes(b"no image")
    return root


def read(to):
    return pd.read_csv(to / "predictions.csv", comment="#")


def command(space, run, folder, to, *more):
    words = ["--predict", run, "--images", folder, "--to", to, "--output-root", space.root.parent, *more]
    return list(map(str, words))


def test_the_study_s_own_images_get_its_masks(record, photos, segmenter, tmp_path):
    """In another order, among other images, through files, and alone."""
    done = classifiers.predict_folder(segmenter, photos, tmp_path / "out")
    images = list(photos.rglob("*.jpg"))
    assert (done.predicted, done.kept, done.unreadable) == (len(images), 0, [])
    table = read(tmp_path / "out").set_index("image")
    names = pd.read_csv(record / "predictions.csv")["filename"]
    archive = segmentation.MaskArchive(record / segmentation.MASKS_FILE)
    sizes = set()
    for name in names:
        expected, row = archive.read(name).predicted, table.loc[name]
        with Image.open(tmp_path / "out" / row["mask"]) as png:
            assert png.mode == "L"
            pixels = np.asarray(png)
        np.testing.assert_array_equal(pixels, np.where(expected, 255, 0))
        assert row["lesion_pixels"] == expected.sum()
        assert row["lesion_percent"] == pytest.approx(100 * expected.mean(), abs=1e-4)
        sizes.add(expected.shape)
    assert len(sizes) > 1
    assert table.loc[names, "lesion_percent"].between(1, 99).any()
    (alone,) = segmenter.stream([photos / names[0]], [0], num_workers=0)
    np.testing.assert_array_equal(next(alone.masks), archive.read(names[0]).predicted)


def test_a_folder_gets_masks_what_cannot_be_read_is_listed_and_a_repetition_does_the_rest(
    space, record, folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    to = tmp_path / "out"
    assert cli.main(command(space, record.name, folder, to)) == 1
    told = capsys.readouterr()
    assert f"wrote {to}: 12 images predicted; " in told.out
    assert "without a lesion" in told.out
    assert "not a medical device" in told.out
    assert f"1 image cannot be read:\n  {folder}/broken.png: the file is not a readable image" in told.err
    assert "not a medical device" in (to / "predictions.csv").read_text().splitlines()[0]
    table = read(to)
    assert list(table) == COLUMNS
    assert set(table["image"]) == {path.relative_to(folder).as_posix() for path in folder.rglob("*.[jJ]*")}
    assert table.set_index("image").loc["deep/er/é.jpg", "mask"] == "deep/er/é_segmentation.png"
    written = {path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file()}
    assert written == {*table["mask"], "predictions.csv"}
    shutil.copy(folder / "a.jpg", folder / "broken.png")
    assert cli.main(command(space, record, folder, to)) == 0
    assert "1 images predicted, 12 before" in capsys.readouterr().out
    repaired = read(to).set_index("image")
    assert repaired.loc["broken.png", "lesion_pixels"] == repaired.loc["a.jpg", "lesion_pixels"]


def test_masks_and_images_are_a_dataset_again_whose_report_shows_the_outlines(space, photos, segmenter, tmp_path):
    images = shutil.copytree(photos, tmp_path / "photos")
    classifiers.predict_folder(segmenter, images, tmp_path / "out")
    given = [images], None, "predicted_masks_of_the_tests", tmp_path / "own", {}, 0, tmp_path / "out"
    made = data.read_own_data(*given)
    assert any("22 of 22 images have one" in line for line in made.messages)
    study = data.load_dataset(made.manifests[0], tmp_path)
    runs = results.study_runs(results.read_records(space.records), "demo", segmentation.PROTOCOL)
    without = [exhibit.name for exhibit in segmentation.study_exhibits(runs)]
    (added,) = [exhibit for exhibit in segmentation.study_exhibits(runs, study) if exhibit.name not in without]
    assert added.title == "Best, median and worst outlines of random_tiny (untrained)"
    assert len(added.figure.axes) == 12
    shutil.rmtree(images)
    assert [exhibit.name for exhibit in segmentation.study_exhibits(runs, study)] == without


def test_a_killed_call_is_continued_and_no_mask_differs(folder, segmenter, tmp_path):
    to, partial = tmp_path / "out", tmp_path / "out/predictions.csv.partial"
    predict = segmenter.predictor.model.forward

    def mortal(images):
        if partial.read_bytes().count(b"\n") > 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return predict(images)

    child = os.fork()  # so that it is quick
    if child == 0:
        segmenter.predictor.batch_size, segmenter.predictor.model.forward = 2, mortal
        classifiers.predict_folder(segmenter, folder, to)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not (to / "predictions.csv").exists()
    written = partial.read_bytes()
    partial.write_bytes(written[:-30])  # as after a power cut: the last row is incomplete, and so is its mask
    last = written.splitlines()[-1].split(b",")[1].decode().strip('"')
    (to / last).write_bytes(b"")
    done = classifiers.predict_folder(segmenter, folder, to)
    assert done.kept == written.count(b"\n") - 4  # two comments, the header, and the row that was cut
    assert done.kept + done.predicted == 12
    whole = tmp_path / "whole"
    classifiers.predict_folder(segmenter, folder, whole)
    files = [path.relative_to(whole) for path in whole.rglob("*.png")]
    assert [path for path in files if (whole / path).read_bytes() != (to / path).read_bytes()] == []
    pd.testing.assert_frame_equal(*(read(each).sort_values("image", ignore_index=True) for each in (to, whole)))


def refuse_file(folder, to):
    return to.with_suffix(".csv"), "masks need a folder; write --to DIR"


def refuse_folder_of_the_images(folder, to):
    return folder / "masks", "is in the folder of the images"


def refuse_two_images_of_a_mask(folder, to):
    shutil.copy(folder / "a.jpg", folder / "a.png")
    return to, r"a\.jpg and a\.png would have one mask, a_segmentation\.png; rename one image"


def refuse_a_file_of_the_user(folder, to):
    to.mkdir()
    (to / "a_segmentation.png").write_bytes(b"mine")
    return to, r"a_segmentation\.png: exists and is of no earlier call; choose another --to"


@pytest.mark.parametrize("plant", [value for name, value in list(globals().items()) if name.startswith("refuse_")])
def test_a_mask_replaces_nothing_and_is_no_image(folder, segmenter, tmp_path, plant):
    to, message = plant(folder, tmp_path / "out")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message):
        classifiers.predict_folder(segmenter, folder, to)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_mask_that_is_gone_is_told(folder, segmenter, tmp_path):
    classifiers.predict_folder(segmenter, folder, tmp_path / "out")
    (tmp_path / "out/a_segmentation.png").unlink()
    with pytest.raises(ValueError, match=r"the mask of a\.jpg is gone, a_segmentation\.png; restore it, or delete"):
        classifiers.predict_folder(segmenter, folder, tmp_path / "out")


def test_a_record_without_its_weights_says_what_to_run(space, record, folder, tmp_path, capsys):
    shutil.copytree(space.root, tmp_path / "moved", ignore=shutil.ignore_patterns("last.safetensors"))
    moved = tmp_path / "moved/records" / record.name
    best = tmp_path / "moved/checkpoints" / record.name / "best.safetensors"
    assert classifiers.load_segmenter(moved, "cpu").predictor.model.weights == best
    content = json.loads((moved / "record.json").read_text())
    for training, told in (
        ({**content["training"], "weights": str(best)}, "checkpoint is gone"),
        ({}, "no checkpoint"),
    ):
        (moved / "record.json").write_text(json.dumps({**content, "training": training}))
        best.unlink(missing_ok=True)
        assert cli.main(command(space, moved, folder, tmp_path / "out")) == 2
        message = capsys.readouterr().err
        assert told in message
        assert f"python run_all.py --profile demo --protocols segmentation --datasets {KIND[0]}" in message
        assert "--force" in message
    assert not (tmp_path / "out").exists()


def test_what_is_for_classifiers_is_refused(space, record, folder, tmp_path, capsys):
    assert cli.main(command(space, record.name, folder, tmp_path / "out", "--tta", "2")) == 2
    assert "for masks, leave --tta out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="keeps no classifier; use a record of fine-tuning or linear probing"):
        classifiers.load_classifier(record)


def test_a_folder_of_images_is_predicted_batch_by_batch(photos, segmenter):
    """No part of what is yielded is kept, and the masks of a batch are made one by one."""
    paths = sorted(map(str, photos.rglob("*.jpg")))
    parts = segmenter.stream(paths, range(len(paths)), num_workers=0)
    sizes = [(len(part.images), next(part.masks).dtype) for part in parts]
    assert max(count for count, _ in sizes) <= segmenter.predictor.batch_size < len(paths)
    assert sum(count for count, _ in sizes) == len(paths)
