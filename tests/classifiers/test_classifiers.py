"""Classifiers from records: the study's numbers to the last digit, refusals, and a file that survives kills."""

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from panderm_utils import classifiers, cli, data, demo, encoders, manifests, results, stats, workspace
from panderm_utils.demo import stand_ins
from panderm_utils.protocols import fine_tune, linear_probe
from panderm_utils.protocols.fine_tune import prediction
from panderm_utils.protocols.linear_probe import classifier as probe_classifier
from panderm_utils.protocols.training import state

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:fewer than 20 test images"),
]
KIND = "pad_ufes", "panderm_tiny"  # six classes, images of several sizes


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """A workspace with the record of a probe and of a fine-tuned model, on the same few images."""
    space = workspace.open_workspace("demo", output_root=tmp_path_factory.mktemp("outputs"))
    card = manifests.load_dataset_manifest(KIND[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stand_ins, "STAND_IN", stand_ins.Size(train=36, val=12, test=24))
        demo.make_stand_in(card, space.data_root)
    study = data.load_dataset(card, space.data_root)
    save_probe(space, study)
    save_tuned(space, study)
    return space


@pytest.fixture(scope="module")
def probe(space):
    return next(space.records.glob("*-linear_probe-*"))


@pytest.fixture(scope="module")
def tuned(space):
    return next(space.records.glob("*-fine_tune-*"))


@pytest.fixture(scope="module")
def photos(space):
    return space.data_root / manifests.load_dataset_manifest(KIND[0]).image_root


def save_probe(space, study):
    run = results.begin_run(linear_probe.PROTOCOL, *KIND, 0, space, replicates=20)
    results.note_data(run, study)
    model = encoders.load_encoder(KIND[1], None, "cpu")
    run.note(encoder_facts=encoders.describe(model))
    train, val, test = (encoders.extract_features(model, study, s, num_workers=0) for s in ("train", "val", "test"))
    fit = linear_probe.fit_linear_probe(train.x, train.y, study.manifest.num_classes)
    proba = fit.predict_proba(test.x)
    predictions = results.prediction_table(test.image_ids, test.y, proba)
    linear_probe.keep_classifier(run, fit, train, val, predictions, study.manifest.class_names)
    return results.save_record(run, stats.evaluate(test.y, proba, 20), predictions, "weighted_f1")


def save_tuned(space, study):
    run = results.begin_run(fine_tune.PROTOCOL, *KIND, 0, space, replicates=20, tta=0)
    results.note_data(run, study)
    model = fine_tune.load_finetune_model(KIND[1], study.manifest.num_classes)
    run.note(encoder_facts=fine_tune.describe(model))
    model.head.weight.data.mul_(3000)  # as if trained
    path = space.checkpoints / run.run_id / "best.safetensors"
    path.parent.mkdir(parents=True)
    state.save_model(path, model, {})
    best = fine_tune.evaluate_only(path, KIND[1])
    run.note(training=best.describe())
    train, val, test = (fine_tune.labelled_images(study, study.split(name)) for name in ("train", "val", "test"))
    proba = fine_tune.predict(best.model, test, device="cpu", num_workers=0).proba
    predictions = results.prediction_table(test.image_ids, test.y, proba)
    fine_tune.keep_classifier(run, best.model, train, val, predictions, study.manifest.class_names, device="cpu")
    return results.save_record(run, fine_tune.evaluate_fine_tuning(test.y, proba, 20), predictions, "weighted_f1")


def read(file, **options):
    return pd.read_csv(file, comment="#", **options)


@pytest.mark.parametrize("kind", ["probe", "tuned"])
def test_an_image_gets_the_study_s_numbers_to_the_last_digit(kind, request, photos, tmp_path):
    """In another order, among other images, through a file, and alone."""
    folder = request.getfixturevalue(kind)
    y, expected, names = results.read_predictions(folder)
    classifier = classifiers.load_classifier(folder, device="cpu")
    done = classifiers.predict_folder(classifier, photos, tmp_path / "a.csv")
    assert (done.predicted, done.kept, done.unreadable) == (len(list(photos.rglob("*.png"))), 0, [])
    table = read(tmp_path / "a.csv", dtype=str).set_index("image").loc[[Path(name).name for name in names]]
    columns = [f"probability_{name}" for name in manifests.load_dataset_manifest(KIND[0]).class_names]
    np.testing.assert_array_equal(table[columns].map(float).to_numpy(), expected)
    for i in (0, 7):
        alone = classifier.predict([photos / table.index[i]])
        np.testing.assert_array_equal(alone.proba[0], expected[i])
    assert (table["predicted"] == [classifier.class_names[k] for k in expected.argmax(axis=1)]).all()
    sets = [
        [k for k in np.argsort(-p) if p[k] >= classifier.facts["sets"]["threshold"]] or [p.argmax()] for p in expected
    ]
    assert table["prediction_set"].tolist() == ["; ".join(classifier.class_names[k] for k in one) for one in sets]
    covered = np.mean([k in one for k, one in zip(y, sets, strict=True)])
    assert results.read_record(folder)["prediction_sets"]["coverage"] == covered


@pytest.mark.parametrize("kind", ["probe", "tuned"])
def test_pictures_without_skin_are_flagged_and_training_images_are_not(kind, request, photos):
    classifier = classifiers.load_classifier(request.getfixturevalue(kind), device="cpu")
    noise = np.random.default_rng(0).integers(0, 256, (240, 240, 3), dtype=np.uint8)
    strange = classifier.predict([Image.fromarray(noise), Image.new("L", (90, 200), 255)])
    assert (strange.distance > 1).all()
    assert strange.table()["unlike_training"].all()
    known = classifier.predict(sorted(photos.glob("*.png"))[:30])
    assert (known.distance > 1).mean() < 0.1


def test_the_record_verifies_and_a_changed_threshold_or_file_is_found(space, probe, tmp_path):
    verified = results.verify_records(space.records, load, jobs=1)
    assert (verified["problem"] == "").all()
    assert set(verified.query("metric == 'prediction_sets'")["column"]) == {
        *("asked", "val_images", "threshold", "coverage", "mean_size")
    }
    folder = shutil.copytree(probe, tmp_path / "records" / probe.name)
    record = json.loads((folder / "record.json").read_text())
    record["prediction_sets"]["coverage"] += 1e-6
    (folder / "record.json").write_text(json.dumps(record))
    wrong = results.verify_records(folder.parent, load, jobs=1).query("problem != ''")
    assert wrong["column"].tolist() == ["coverage"]
    (folder / "classifier.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"classifier\.safetensors was changed after it was written"):
        classifiers.load_classifier(folder)


def load(name):
    return {"linear_probe": linear_probe, "fine_tune": fine_tune}[name].PROTOCOL


def test_another_encoder_s_weights_are_refused(probe, tmp_path):
    source = encoders.load_encoder(KIND[1], None, "cpu").weights
    tensors = torch.load(source, weights_only=True)
    tensors = tensors.get("model", tensors) if isinstance(tensors, dict) else tensors
    first = next(name for name, value in tensors.items() if value.is_floating_point() and value.ndim > 1)
    tensors[first] = tensors[first] * 1.001
    torch.save(tensors, tmp_path / source.name)
    with pytest.raises(ValueError, match="would mean nothing"):
        classifiers.load_classifier(probe, weights_root=tmp_path)


def test_a_checkpoint_that_is_gone_or_replaced_is_refused_and_one_that_was_moved_is_found(space, tuned, tmp_path):
    new = tmp_path / "moved"
    shutil.copytree(space.root, new, ignore=shutil.ignore_patterns("last.safetensors"))
    folder, path = new / "records" / tuned.name, new / "checkpoints" / tuned.name / "best.safetensors"
    assert classifiers.load_classifier(folder, device="cpu").predictor.model.model.weights == path
    tensors = load_file(path)
    save_file({name: value * 1.001 for name, value in tensors.items()}, path)
    with pytest.raises(ValueError, match="trained again or replaced"):
        classifiers.load_classifier(folder, device="cpu")
    record = json.loads((folder / "record.json").read_text())
    record["training"]["weights"] = str(tmp_path / "no.safetensors")
    (folder / "record.json").write_text(json.dumps(record))
    path.unlink()
    with pytest.raises(ValueError, match="its checkpoint is gone"):
        classifiers.load_classifier(folder, device="cpu")


def test_a_record_without_a_classifier_says_what_to_run(probe, tmp_path):
    folder = shutil.copytree(probe, tmp_path / probe.name)
    record = json.loads((folder / "record.json").read_text())
    del record["files"]["classifier.safetensors"]
    (folder / "record.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="--force"):
        classifiers.load_classifier(folder)
    (folder / "record.json").write_text(json.dumps({**record, "protocol": "label_efficiency"}))
    with pytest.raises(ValueError, match="use a record of fine-tuning or linear probing"):
        classifiers.load_classifier(folder)


def test_views_change_a_fine_tuned_model_s_numbers_and_a_probe_refuses_them(probe, tuned, photos):
    with pytest.raises(ValueError, match="leave --tta out"):
        classifiers.load_classifier(probe, device="cpu", tta=2)
    paths = sorted(photos.glob("*.png"))[:5]
    plain, views = (classifiers.load_classifier(tuned, device="cpu", tta=n).predict(paths) for n in (0, 2))
    assert not np.isclose(plain.proba, views.proba, rtol=0.001).all()
    np.testing.assert_allclose(plain.distance, views.distance, rtol=1e-4)
    model = classifiers.load_classifier(tuned, device="cpu").predictor.model.model
    images = prediction.LabelledImages(np.array(paths, dtype=str), np.zeros(5, int))
    same = fine_tune.predict(model, images, tta=2, device="cpu")
    np.testing.assert_allclose(views.proba, same.proba, rtol=1e-5)


@pytest.fixture
def folder(photos, tmp_path):
    """Nested folders, hostile names, and files that are no images."""
    root = tmp_path / "new"
    sources = sorted(photos.glob("*.png"))
    names = ["a.png", "b#1.png", 'c, "d".png', "deep/er/é.png", "deep/z.PNG", *(f"{i:03}.png" for i in range(20))]
    for name, source in zip(names, sources, strict=False):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, root / name)
    (root / "broken.png").write_bytes(b"no image")
    (root / "empty.jpg").touch()
    (root / "notes.txt").write_text("not an image")
    return root


def command(space, run, folder, file, *more):
    return [
        "--predict",
        str(run),
        "--images",
        str(folder),
        "--to",
        str(file),
        "--output-root",
        str(space.root.parent),
        *more,
    ]


def test_a_folder_is_predicted_what_cannot_be_read_is_listed_and_a_repetition_does_the_rest(
    space, probe, folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    file = tmp_path / "out/a.csv"
    assert cli.main(command(space, probe.name, folder, file)) == 1
    told = capsys.readouterr()
    assert "25 images predicted" in told.out
    assert "not a medical device" in told.out
    assert "2 images cannot be read" in told.err
    assert f"{folder}/broken.png: the file is not a readable image" in told.err
    assert f"{folder}/empty.jpg: the file is empty" in told.err
    first = file.read_text().splitlines()[0]
    assert "not a medical device" in first
    assert "trained on drawn images" in first
    table = read(file)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() == ".png"}
    assert set(table["image"]) == found - {"broken.png"}
    assert len(table) == 25
    assert table["unlike_training"].dtype == bool
    assert not list(file.parent.glob("*.partial"))
    before = file.read_bytes()
    shutil.copy(folder / "a.png", folder / "broken.png")
    (folder / "empty.jpg").unlink()
    assert cli.main(command(space, probe, folder, file)) == 0  # by the record's path
    assert "1 images predicted, 25 before" in capsys.readouterr().out
    assert file.read_bytes().startswith(before)
    repaired = read(file).set_index("image")
    assert repaired.loc["broken.png", "probability_bcc"] == repaired.loc["a.png", "probability_bcc"]


def predict_slowly(words):
    call = probe_classifier.ProbePredictor.__call__
    probe_classifier.BATCH["cpu"] = 4
    probe_classifier.ProbePredictor.__call__ = lambda self, images: (time.sleep(0.2), call(self, images))[1]
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    cli.main(words)


def test_a_killed_call_is_continued_and_no_digit_differs(space, probe, folder, tmp_path):
    file = tmp_path / "a.csv"
    partial = tmp_path / "a.csv.partial"
    words = command(space, probe.name, folder, file)
    process = multiprocessing.get_context("fork").Process(target=predict_slowly, args=(words,))
    process.start()
    while process.is_alive() and not (partial.exists() and partial.read_bytes().count(b"\n") > 10):
        time.sleep(0.02)
    process.kill()
    process.join()
    written = partial.read_bytes()
    assert not file.exists()
    partial.write_bytes(written[:-30])  # as after a power cut: the last row is incomplete
    classifier = classifiers.load_classifier(probe, device="cpu")
    done = classifiers.predict_folder(classifier, folder, file)
    assert done.kept == written.count(b"\n") - 4  # two comments, the header, and the row that was cut
    assert done.kept + done.predicted == 25
    whole = tmp_path / "whole.csv"
    classifiers.predict_folder(classifier, folder, whole)
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())


def test_what_is_of_other_images_or_another_classifier_is_refused_and_left_as_it_is(probe, tuned, folder, tmp_path):
    file = tmp_path / "a.csv"
    classifier = classifiers.load_classifier(probe, device="cpu")
    classifiers.predict_folder(classifier, folder, file)
    content = file.read_bytes()
    with pytest.raises(ValueError, match=r"is of run .*linear_probe.*not.*fine_tune.*another --to"):
        classifiers.predict_folder(classifiers.load_classifier(tuned, device="cpu"), folder, file)
    other = shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(ValueError, match=f"is of images .*new.*, not .*{other.name}"):
        classifiers.predict_folder(classifier, other, file)
    shutil.copy(folder / "001.png", folder / "000.png")
    with pytest.raises(ValueError, match=r"has a prediction of 000\.png, which was changed or removed"):
        classifiers.predict_folder(classifier, folder, file)
    assert file.read_bytes() == content
    (tmp_path / "mine.csv").write_text("5\n5\n5\n")
    with pytest.raises(ValueError, match="holds no predictions; choose another --to"):
        classifiers.predict_folder(classifier, folder, tmp_path / "mine.csv")
    (tmp_path / "mine.csv").write_text("image,label\na,b\n")
    with pytest.raises(ValueError, match="holds no predictions; choose another --to"):
        classifiers.predict_folder(classifier, folder, tmp_path / "mine.csv")
    assert (tmp_path / "mine.csv").read_text() == "image,label\na,b\n"


def test_a_file_killed_before_its_header_was_written_is_begun_anew(probe, folder, tmp_path):
    (tmp_path / "a.csv.partial").write_text("# Research only: this is")
    classifier = classifiers.load_classifier(probe, device="cpu")
    done = classifiers.predict_folder(classifier, folder, tmp_path / "a.csv")
    assert done.kept == 0
    assert len(read(tmp_path / "a.csv")) == done.predicted


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing-here"], "neither a record's folder nor a run"),
        (["{run}", "--images", "/no/such/folder"], "no such folder"),
        (["{run}", "--images", "{empty}"], "no image below this folder"),
        (["{run}", "--tta", "2"], "leave --tta out"),
    ],
)
def test_what_cannot_be_predicted_is_told_in_a_line(space, probe, photos, tmp_path, capsys, words, told):
    (tmp_path / "empty").mkdir()
    words = [word.format(run=probe.name, empty=tmp_path / "empty") for word in words]
    assert cli.main([*command(space, words[0], photos, tmp_path / "a.csv"), *words[1:]]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "a.csv").exists()


def test_images_none_of_which_can_be_read_are_all_listed(probe, photos, tmp_path, capfd):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"no image")
    classifier = classifiers.load_classifier(probe, device="cpu")
    paths = sorted(photos.glob("*.png"))[:48]
    found = classifier.predict([*paths, *tmp_path.glob("*.jpg")])  # the last batch has none
    assert found.images == [str(path) for path in paths]
    assert len(found.unreadable) == 3
    done = classifiers.predict_folder(classifier, tmp_path, tmp_path / "a.csv")
    assert (done.predicted, len(done.unreadable)) == (0, 3)
    assert read(tmp_path / "a.csv").empty
    with pytest.raises(ValueError, match="there is no image to predict"):
        classifier.predict([])


def test_memory_does_not_grow_with_the_images(probe, photos):
    """No part of what is yielded is kept: a batch holds its own images only."""
    classifier = classifiers.load_classifier(probe, device="cpu")
    paths = [str(path) for path in sorted(photos.glob("*.png"))[:55]]
    sizes = [len(part.images) for part in classifier.stream(paths, range(len(paths)), num_workers=0)]
    assert max(sizes) <= classifier.predictor.batch_size
    assert sum(sizes) == len(paths)


def test_a_study_without_a_val_split_has_no_sets(space, tmp_path):
    study = data.load_dataset(manifests.load_dataset_manifest(KIND[0]), space.data_root)
    without = data.Dataset(**{**vars(study), "table": study.table[study.table["split"] != "val"]})
    elsewhere = workspace.open_workspace("demo", output_root=tmp_path)
    folder = save_probe(elsewhere, without)
    assert "prediction_sets" not in results.read_record(folder)
    assert not (folder / "predictions_val.csv").exists()
    classifier = classifiers.load_classifier(folder, device="cpu")
    table = classifier.predict([study.path(study.table["image"][0])]).table()
    assert "prediction_set" not in table
    assert (results.verify_records(elsewhere.records, load, jobs=1)["problem"] == "").all()
