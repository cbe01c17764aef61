"""External validation on real files: what is shared is found, what is scored is what scikit-learn says of it."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics as sklearn_metrics

from panderm_utils import workspace
from panderm_utils.data import dataset as data
from panderm_utils.encoders.features import extract_files
from panderm_utils.encoders.loading import load_encoder
from panderm_utils.manifests import reading as manifests
from panderm_utils.protocols import load_protocol
from panderm_utils.protocols.external_validation import study as external_validation
from panderm_utils.protocols.external_validation.protocol import TargetError, choose_targets
from panderm_utils.protocols.external_validation.study import (
    find_shared,
    find_targets,
    melanoma_labels,
    target_features,
)
from panderm_utils.results import read_record, records, selection
from panderm_utils.stats import metrics

HAM, PAD, PH2 = (manifests.load_dataset_manifest(name) for name in ("ham10000", "pad_ufes", "ph2"))


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8))


def lay_out(root, card, rows) -> manifests.DatasetManifest:
    """Writes rows (file name, split, label, picture) as the dataset of a card; returns the card with its own places."""
    card = dataclasses.replace(card, csv=f"{card.name}.csv", image_root=card.name, image_suffix=".png", groups={})
    (root / card.image_root).mkdir()
    for name, _, _, image in rows:
        image.save(root / card.image_root / name)
    table = pd.DataFrame([row[:3] for row in rows], columns=["image", "split", card.label_column])
    table.drop(columns="split" if card.external else []).to_csv(root / card.csv, index=False)
    return card


@pytest.fixture
def three(tmp_path):
    """A source and two targets, of which the first shares five images with it; all else is their own."""
    mel, nv = HAM.class_names.index("mel"), HAM.class_names.index("nv")
    source = [(f"ISIC_000000{i}.png", "train", (mel, nv)[i % 2], picture(i)) for i in range(6)]
    source += [("ISIC_0000006.png", "val", nv, picture(6)), ("ISIC_0000007.png", "test", nv, picture(7))]
    source += [("ISIC_0000008.png", "test", mel, picture(8)), ("dropped.png", "trainisic", nv, picture(9))]
    pads = len(PAD.class_names)
    target = [(f"own_{i}.png", ("train", "val", "test")[i % 3], i % pads, picture(100 + i)) for i in range(18)]
    target += [
        ("copy_train.png", "train", 0, picture(1)),  # the same bytes under another name, of a training image
        ("copy_val.png", "test", 5, picture(6)),  # ... of a val image
        ("isic_0000007_small.png", "val", 5, picture(7).resize((25, 20))),  # another file of the same id
        ("ISIC_0000008.png", "test", 5, picture(8)),  # both: counted once, as a file
        ("x_ISIC_0000002.png", "test", 0, picture(50)),
        ("ISIC_00000021.png", "test", 1, picture(51)),  # a longer id is another id
        ("copy_dropped.png", "test", 2, picture(9)),  # the source leaves that row out
    ]
    third = [(f"IMD{i}.png", "", i % 2, picture(200 + i)) for i in range(4)]
    cards = [lay_out(tmp_path, *pair) for pair in ((HAM, source), (PAD, target), (PH2, third))]
    return tmp_path, *cards


def test_shared_images_are_found_by_their_bytes_and_by_their_id(three):
    root, ham, pad, _ = three
    source, target = (data.load_dataset(card, root) for card in (ham, pad))
    shared = find_shared(source, target).set_index("image")
    assert shared.to_dict("index") == {
        "copy_train.png": {"kind": "file", "source_image": "ISIC_0000001.png"},
        "copy_val.png": {"kind": "file", "source_image": "ISIC_0000006.png"},
        "isic_0000007_small.png": {"kind": "isic_id", "source_image": "ISIC_0000007.png"},
        "ISIC_0000008.png": {"kind": "file", "source_image": "ISIC_0000008.png"},
        "x_ISIC_0000002.png": {"kind": "isic_id", "source_image": "ISIC_0000002.png"},
    }
    everything = find_shared(source, source)  # not least: each image is its own twin
    assert len(everything) == 9
    assert (everything["image"] == everything["source_image"]).all()


def test_targets_are_what_is_there_less_what_is_shared(three):
    root, ham, pad, ph2 = three
    source = data.load_dataset(ham, root)
    absent = dataclasses.replace(PAD, name="hiba", csv="hiba/hiba.csv")
    targets, left_out = find_targets(source, [pad, absent, ph2], root)
    assert list(targets) == ["pad_ufes", "ph2"]
    assert left_out == {"hiba": f"{root / 'hiba/hiba.csv'} is not there"}
    assert len(targets["pad_ufes"].table) == 25 - 5
    assert not targets["pad_ufes"].table["image"].isin(targets["pad_ufes"].shared["image"]).any()
    assert targets["ph2"].table["split"].tolist() == ["test"] * 4  # of which its CSV says nothing
    table = external_validation.target_table(targets, left_out).set_index("dataset")
    assert table.loc["pad_ufes", ["images", "melanoma", "excluded_file", "excluded_isic_id"]].tolist() == [20, 3, 3, 2]
    tests, _ = find_targets(source, [pad], root, "test")
    assert set(tests["pad_ufes"].table["split"]) == {"test"}
    assert tests["pad_ufes"].shared["kind"].tolist() == ["file", "file", "isic_id"]


def test_a_target_of_one_class_is_none_and_without_any_target_there_is_nothing_to_do(three):
    root, ham, pad, ph2 = three
    csv = pd.read_csv(root / ph2.csv).assign(binary_label=0)
    csv.to_csv(root / ph2.csv, index=False)
    source = data.load_dataset(ham, root)
    targets, left_out = find_targets(source, [pad, ph2], root)
    assert list(targets) == ["pad_ufes"]
    assert "all melanoma, or none" in left_out["ph2"]
    with pytest.raises(TargetError, match=r"no target is left(.|\n)*ph2: its 4 images"):
        find_targets(source, [ph2], root)
    with pytest.raises(TargetError, match='write "all" or "test"'):
        find_targets(source, [pad], root, "val")


def test_melanoma_is_what_the_manifest_says():
    both = dataclasses.replace(HAM, melanoma=("mel", "bcc"))
    labels = np.arange(7)
    assert melanoma_labels(HAM, labels).tolist() == [0, 0, 0, 0, 1, 0, 0]
    assert melanoma_labels(both, labels).tolist() == [0, 1, 0, 0, 1, 0, 0]
    assert melanoma_labels(PAD, pd.Series([5, 0, 5])).tolist() == [1, 0, 1]


def test_melanoma_counts_add_up(three):
    root, ham, *_ = three
    counts = external_validation.melanoma_counts(data.load_dataset(ham, root))
    assert counts.index.tolist() == ["rest (akiec, bcc, bkl, df, nv, vasc)", "melanoma (mel)"]
    assert counts.to_numpy().tolist() == [[3, 1, 1], [3, 0, 1]]


def test_features_are_those_of_the_images_that_are_left(three, tmp_path):
    root, ham, pad, _ = three
    targets, _ = find_targets(data.load_dataset(ham, root), [pad], root)
    target, encoder = targets["pad_ufes"], load_encoder("random_tiny", device="cpu")
    found = target_features(encoder, target, tmp_path / "cache")
    assert sorted(found.image_ids) == sorted(target.table["image"])
    again = extract_files(encoder, [target.dataset.path(image) for image in found.image_ids])
    np.testing.assert_allclose(found.x, again.x, atol=1e-5)
    label = target.table.set_index("image")["label"]
    assert found.y.tolist() == [int(label[image] == PAD.class_names.index("mel")) for image in found.image_ids]
    once_more = target_features(encoder, target, tmp_path / "cache")
    assert (once_more.computed, once_more.from_cache > 0) == (0, True)


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)

    def of(n, shift):
        y = np.arange(n) % 4 == 0
        p = np.round(1 / (1 + np.exp(-rng.normal(shift * y, 1))), 2)  # ties, as in float32
        return y.astype(int), np.stack([1 - p, p], axis=1), [f"{i:03}" for i in range(n)]

    return {"pad_ufes": of(90, 1.0), "ph2": of(40, 2.5)}


def test_scores_are_scikit_learns(answers):
    table = external_validation.score_targets(answers, replicates=50).set_index(["dataset", "metric"])
    for name, (y, proba, _) in answers.items():
        rows = table.loc[name]
        assert rows.loc["auroc", "value"] == pytest.approx(sklearn_metrics.roc_auc_score(y, proba[:, 1]), abs=1e-12)
        expected = sklearn_metrics.balanced_accuracy_score(y, proba.argmax(axis=1))
        assert rows.loc["balanced_accuracy", "value"] == pytest.approx(expected, abs=1e-12)
        assert (rows["images"] == len(y)).all()
        assert (rows["melanoma"] == y.sum()).all()
        assert (rows["low"] < rows["high"]).all()


def test_the_misses_are_the_melanomas_held_least_likely(answers):
    missed = external_validation.missed_melanomas(answers, count=2)
    for name, (y, proba, images) in answers.items():
        order = sorted((p, image) for is_melanoma, p, image in zip(y, proba[:, 1], images, strict=True) if is_melanoma)
        mine = missed[missed["dataset"] == name]
        assert list(zip(mine["probability"], mine["filename"], strict=True)) == order[:2]


def test_every_number_of_a_record_can_be_computed_anew_and_drawn(three, answers, tmp_path):
    root, ham, pad, ph2 = three
    targets, left_out = find_targets(data.load_dataset(ham, root), [pad, ph2], root)
    space = workspace.open_workspace("demo", output_root=tmp_path / "outputs")
    settings = {**load_protocol("external_validation").settings, "replicates": 50}
    run = records.begin_run(load_protocol("external_validation"), "ham10000", "random_tiny", 0, space, **settings)
    run.note(left_out={**left_out, "hiba": "x.csv is not there"})
    external = external_validation.score_targets(answers, 50, 0)
    y, proba, names = answers["ph2"]
    scores = external_validation.record_scores(metrics.evaluate(y, proba, 50, 0), external)
    more = external_validation.record_tables(answers, external, targets)
    folder = records.save_record(run, scores, records.prediction_table(names, y, proba), "auroc", more)

    kept = read_record(folder)["metrics"]
    read = external_validation.read_external_predictions(folder)
    assert list(read) == ["pad_ufes", "ph2"]
    of_source = metrics.evaluate(*records.read_predictions(folder)[:2], 50, 0)
    for metric, numbers in kept.items():
        dataset = metric.removeprefix("auroc_")
        again = metrics.evaluate(*read[dataset][:2], 50, 0).loc["auroc"] if dataset in read else of_source.loc[metric]
        assert numbers == pytest.approx({name: again.get(name) for name in numbers}, abs=1e-12), metric
    assert {"auroc", "auroc_pad_ufes", "auroc_ph2"} <= set(kept)
    assert read["ph2"][2] == names

    runs = selection.paper_scores(
        records.read_records(space.records), "demo", load_protocol("external_validation"), replicates=50
    )
    panel = external_validation.read_panel(runs)
    assert panel["dataset"].tolist() == ["ham10000", "pad_ufes", "ph2"]
    assert panel["internal"].tolist() == [True, False, False]
    assert panel["images"].tolist() == [40, 90, 40]
    assert panel.loc[1, ["excluded_file", "excluded_isic_id"]].tolist() == [3, 2]
    assert panel.loc[1, "value"] == kept["auroc_pad_ufes"]["value"]
    assert external_validation.read_left_out(runs)["target"].tolist() == ["hiba"]


def test_no_record_gives_an_empty_panel():
    nothing = selection.paper_scores(records.read_records("/nowhere"), "demo", load_protocol("external_validation"))
    assert external_validation.read_panel(nothing).empty
    assert external_validation.read_left_out(nothing).empty


def test_the_targets_are_all_others_with_melanoma_unless_named():
    demo, paper = (manifests.load_profile(name) for name in ("demo", "paper"))
    names = [card.name for card in choose_targets(HAM, paper)]
    with_melanoma = [name for name in paper.datasets if manifests.load_dataset_manifest(name).melanoma]
    assert names == [name for name in with_melanoma if name != "ham10000"]
    assert [card.name for card in choose_targets(HAM, demo)] == ["demo", "pad_ufes", "ph2", "med_node"]
    assert [card.name for card in choose_targets(HAM, paper, "ph2,hiba ham10000")] == ["ph2", "hiba"]
    clinical = manifests.load_dataset_manifest("derm7pt_clinical")
    assert "derm7pt_dermoscopic" not in [card.name for card in choose_targets(clinical, paper)]
    with pytest.raises(TargetError, match="derm7pt_clinical itself, or of its image folder"):
        choose_targets(clinical, paper, "derm7pt_dermoscopic")
