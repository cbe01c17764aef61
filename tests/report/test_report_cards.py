"""The cards of a report: from records and manifests alone, linked, complete, and made again only if needed."""

import json
import re
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from panderm_utils import results, stats, workspace
from panderm_utils.protocols import load_protocol
from panderm_utils.report import cards, model_cards
from panderm_utils.report import writing as report
from tests.manifests.test_cards import parse_bibtex
from tests.mask_record import save_mask_record

IMAGES = 140


def leave_model(space, dataset="demo", protocol="linear_probe", seed=0):
    """A record that keeps a model of seven classes, with real predictions and made-up people."""
    rng = np.random.default_rng(seed)
    y = np.arange(IMAGES) % 7
    proba = rng.dirichlet(np.ones(7), IMAGES) + 0.2 * np.eye(7)[y]
    proba /= proba.sum(axis=1, keepdims=True)
    names = [f"{i}.jpg" for i in range(IMAGES)]
    run = results.begin_run(load_protocol(protocol), dataset, "panderm_tiny", seed, space)
    counts = {"train": [30] * 7, "val": [5] * 7, "test": [IMAGES // 7] * 7}
    sizes = {split: sum(n) for split, n in counts.items()}
    run.note(
        encoder_facts={"digest": "ab" * 32}, data={"split_sizes": sizes, "class_counts": counts, "rows_sha256": "cd"}
    )
    run.note(prediction_sets={"asked": 0.9, "val_images": 35, "threshold": 0.2, "coverage": 0.91, "mean_size": 1.4})
    run.files[results.CLASSIFIER_FILE] = b"a model"
    people = {
        "age": rng.choice(["30", "50", "70", ""], IMAGES),
        "sex": np.where(np.arange(IMAGES) % 2, "male", "female"),
    }
    table = results.prediction_table(names, y, proba)
    scores = stats.evaluate(y, proba, 20, seed)
    return results.save_record(
        run, scores, table, "weighted_f1", {"metadata.csv": pd.DataFrame({"filename": names, **people})}
    )


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    space = workspace.open_workspace("demo", output_root=tmp_path_factory.mktemp("outputs"))
    leave_model(space)
    leave_model(space, "ham10000")
    return space


@pytest.fixture(scope="module")
def pages(space):
    """The text of each card by its name, without tags."""
    report.write_report(space, [], processes=1)
    paths = sorted((space.root / "report/cards").glob("*.html"))
    return {path.stem: re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", path.read_text())) for path in paths}


def test_each_dataset_encoder_and_kept_model_has_a_card(space, pages):
    assert set(pages) == {
        "dataset-demo", "dataset-ham10000", "encoder-panderm_tiny",
        "demo-linear_probe-panderm_tiny-seed0", "ham10000-linear_probe-panderm_tiny-seed0",
    }  # fmt: skip
    folder = space.root / "report"
    assert {path.stem for path in (folder / "cards").glob("*.md")} == set(pages)
    linked = {"index.html", *(f"runs/{path.name}.html" for path in space.records.iterdir())}
    found = {
        target
        for page in linked
        for target in re.findall(r'href="(?:\.\./)?cards/([^"]+)"', (folder / page).read_text())
    }
    assert found == {f"{name}.html" for name in pages}
    for path in [*(folder / "cards").glob("*.html"), *(folder / page for page in linked)]:
        for target in re.findall(r'href="(?!\w+:)([^"#]+)', path.read_text()):
            assert (path.parent / unquote(target)).is_file(), f"{path}: {target}"


def test_the_card_of_a_model_has_what_mitchell_asks_for_from_its_record_alone(space, pages):
    folder = space.records / "demo-linear_probe-panderm_tiny-seed0"
    record, text = results.read_record(folder), pages[folder.name]
    for part in (
        "Intended",
        "Out of scope",
        "not a medical device",
        "trained on drawn images",
        "Training data",
        "Known faults",
    ):
        assert part in text
    for numbers in record["metrics"].values():
        assert f"{numbers['value']:.3f} [{numbers['low']:.3f}, {numbers['high']:.3f}]" in text
    assert "Weighted F1 (headline)" in text
    assert "melanoma 30, melanocytic nevus 30" in text
    assert "train 210; val 35" in text
    assert "140 test images" in text
    assert "on test 91.0% have the true class" in text
    y, proba, _ = results.read_predictions(folder)
    ece = stats.evaluate_calibration(y, proba).loc["ece", "value"]
    assert f"Expected calibration error {ece:.3f} [" in text
    assert "Sensitivity at 90% specificity" in text
    assert re.search(r"Sex female 70 10 0\.\d+ \[0\.\d+, 0\.\d+\]", text)
    assert "Largest gap by age" in text
    assert "Not evaluated site, skin tone, institution" in text
    assert "ab" * 32 in text
    assert record["files"][results.CLASSIFIER_FILE] in text


def test_people_are_counted_in_the_test_images_of_a_record(pages):
    counted = re.search(
        r"0-39: (\d+), 40-59: (\d+), 60\+: (\d+), unknown: (\d+) \(of 140 drawn test images\)",
        pages["dataset-ham10000"],
    )
    assert sum(map(int, counted.groups())) == IMAGES
    assert "missing for 57 images; column sex of its table; female: 70, male: 70" in pages["dataset-ham10000"]
    assert "Skin tone not recorded" in pages["dataset-ham10000"]


def test_the_card_of_an_encoder_lists_its_runs(pages):
    text = pages["encoder-panderm_tiny"]
    for part in (
        "demo linear probing weighted F1 0.",
        "ham10000 linear probing weighted F1 0.",
        "ab" * 32,
        "not a medical device",
    ):
        assert part in text


def test_the_report_cites_what_its_runs_used(space, pages):
    text = (space.root / "report/references.bib").read_text()
    assert set(parse_bibtex(text)) == {"tschandl2018", "yan2025"}
    assert "% demo: none; these lesions are drawn" in text


def test_a_card_is_made_again_only_if_its_record_changes(tmp_path):
    space = workspace.open_workspace("demo", output_root=tmp_path)
    folders = [leave_model(space, seed=seed) for seed in (0, 1)]
    report.write_report(space, [], processes=1)
    pages = [space.root / f"report/cards/{folder.name}.html" for folder in folders]
    before = [page.stat().st_mtime_ns for page in pages]
    record = json.loads((folders[1] / "record.json").read_text())
    (folders[1] / "record.json").write_text(json.dumps({**record, "warnings": ["it was <late>"]}))
    report.write_report(space, [], processes=1)
    after = [page.stat().st_mtime_ns for page in pages]
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert "it was &lt;late&gt;" in pages[1].read_text()


def test_a_model_whose_record_no_longer_fits_has_a_card_that_says_so(tmp_path):
    space = workspace.open_workspace("demo", output_root=tmp_path)
    folder = leave_model(space)
    people = folder / "metadata.csv"
    people.write_text("filename,age\nanother.jpg,30\n")
    record = json.loads((folder / "record.json").read_text())
    del record["files"]["metadata.csv"]
    (folder / "record.json").write_text(json.dumps(record))
    report.write_report(space, [], processes=1)
    assert "could not be made" in (space.root / f"report/cards/{folder.name}.html").read_text()


def test_a_segmentation_model_has_scores_but_neither_thresholds_nor_calibration(tmp_path):
    space = workspace.open_workspace("demo", output_root=tmp_path)
    protocol = load_protocol("segmentation")
    names = [f"{i}.jpg" for i in range(6)]
    folder = save_mask_record(space, names, "isic2018_task1", protocol=protocol, train=9)
    record = results.read_record(folder)
    assert cards._keeps_model(record, protocol)
    record["training"] = {"recipe": record["settings"], "chosen": "best"}
    card = model_cards.model_card(record, folder)
    titles = [section.title for section in card.sections]
    assert "Thresholds" not in titles
    assert "Calibration" not in titles
    text = card.markdown()
    assert "mask of its lesion" in text
    assert "Jaccard (headline)" in text
    assert "**How the masks were made:** unknown" in text
    assert "the terms of single images vary (unverified)" in text
    assert "@article{codella2019," in text


def test_a_run_without_a_model_has_no_card():
    assert not cards._keeps_model({"files": {"predictions.csv": ""}}, load_protocol("label_efficiency"))
