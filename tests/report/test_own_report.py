"""The report of own data: what a page shows, in a browser, of real records of drawn images."""

import dataclasses
import json
import shutil
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from panderm_utils import data, workspace
from panderm_utils.figures import plots
from panderm_utils.manifests import load_profile
from panderm_utils.manifests import reading as manifests
from panderm_utils.protocols import load_protocol
from panderm_utils.report import contents, gallery, manuscript, own, study, study_page
from panderm_utils.report import writing as report
from panderm_utils.results import read_record, read_records, records
from panderm_utils.stats import evaluate
from tests.report.test_report import CONTRASTS, NARROW, SCRIPT, Visit, browser, pages_of  # noqa: F401

CLASSES = ("nevus", "melanoma", SCRIPT)


def make_data(folder, name="mine"):
    """A clinic's images and table, and its manifest, as --new-dataset leaves them."""
    rng, rows = np.random.default_rng(0), []
    for i in range(60):
        path = folder / f"images/{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
        rows.append({"photo": path.name, "dx": CLASSES[i % 3], "patient_id": f"p{i // 6}", "age": 20 + i})
    csv = folder / f"{name}.csv"
    pd.DataFrame(rows).to_csv(csv, index=False)
    (card,) = data.read_own_data([csv], folder / "images", name, folder / "new").manifests
    manifests.write_dataset_manifest(card)
    return card


def leave_run(space, card, protocol="linear_probe", encoder="panderm_tiny", seed=0):
    """The record of a run on own data, with real predictions."""
    dataset, protocol = data.load_dataset(card, space.data_root), load_protocol(protocol)
    run = records.begin_run(protocol, card.name, encoder, seed, space, replicates=50)
    records.note_data(run, dataset)
    run.note(encoder_facts={"title": encoder, "digest": "ab" * 32}, probe={"c": 2.5})
    test = dataset.split("test")
    proba = np.random.default_rng(seed).dirichlet(np.ones(3), len(test)) + 0.3 * np.eye(3)[test["label"]]
    proba /= proba.sum(axis=1, keepdims=True)
    scores = evaluate(test["label"], proba, 50, 0)
    table = records.prediction_table(test["image"], test["label"], proba)
    extra = {"metadata.csv": data.metadata_table(dataset, "test")}
    return records.save_record(run, scores, table, card.headline_metric, extra)


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A copy of the manifests, to which a test adds its own data."""
    root = tmp_path / "data_manifests"
    shutil.copytree(manifests.MANIFEST_ROOT, root, ignore=shutil.ignore_patterns("weights"))
    for name in load_profile("own").datasets:  # of whoever runs the tests
        (root / f"datasets/{name}.yaml").unlink()
    monkeypatch.setattr(manifests, "MANIFEST_ROOT", root)
    return tmp_path


@pytest.fixture
def space(house):
    return workspace.open_workspace("own", house / "data", house / "weights", house / "outputs")


def test_the_page_of_a_dataset_shows_it_whole_also_after_it_was_moved(house, space, browser):  # noqa: F811
    card = make_data(house)
    runs = [leave_run(space, card), leave_run(space, card, "fine_tune")]
    assert report.write_report(space, []) == space.root / "report/index.html"
    moved = house / "elsewhere/a report"
    shutil.copytree(space.root / "report", moved)
    shutil.rmtree(space.root)
    shutil.rmtree(house / "images")
    for path in sorted(moved.rglob("*.html")):
        visit = Visit(browser, path, NARROW)
        assert visit.said == [], path
        for link in {*visit.all("a[href]", "href"), *visit.all("img, script[src]", "src")}:
            parts = urlsplit(link)
            if not parts.scheme:
                target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                assert target.is_file(), f"{path}: {link}"
                assert moved in target.parents, f"{path}: {link}"
                assert not parts.fragment or f'id="{unquote(parts.fragment)}"' in target.read_text(), link
        for width in (1280, NARROW):
            visit.page.set_viewport_size({"width": width, "height": 800})
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert visit.page.evaluate(CONTRASTS)[0][0] >= 4.5, path
        assert all(visit.all("img", "alt")), path
        assert "reproduced" not in visit.text()
        visit.page.close()
    page = Visit(browser, moved / "index.html").page
    text = page.inner_text("body")
    assert page.title() == "Report · mine (own data)"
    assert page.inner_text("h1") == "mine (own data)"
    value = read_records(moved / "records").query("headline")["value"].iloc[0]
    assert f"{value:.3f}" in text
    assert page.locator(".gallery img").count() > 9  # samples and mistakes
    assert page.evaluate("[...document.querySelectorAll('.gallery img')].every((i) => (i.loading = 'eager'))")
    # Fails if a picture is broken. (wait_for_function would need eval, which the page's policy forbids.)
    page.evaluate("Promise.all([...document.querySelectorAll('.gallery img')].map((i) => i.decode()))")
    for told in ("Leakage", "Sensitivity and specificity", "Calibration", "Subgroups", "Fine-tuning against linear"):
        assert told in text
    for told in (
        "Datasheet",
        "0-39: 20, 40-59: 20, 60+: 20 (of 60 images)",
        "write collection, population, labelling, licence and references in data_manifests/datasets/mine.yaml",
        "Copied" if False else "CLAIM",
        "TRIPOD+AI",
        "ab" * 32,
        "stratified by class",
        *(r.name for r in runs),
    ):
        assert told in text
    assert SCRIPT in text
    assert page.query_selector_all("main script") == []
    assert "HAM10000" not in text


def test_a_page_is_made_again_only_for_a_change_and_a_deleted_dataset_leaves_it(house, space, monkeypatch):
    monkeypatch.setitem(plots.STYLE, "savefig.dpi", 40)
    cards = make_data(house / "a", "one"), make_data(house / "b", "two_fold1")
    for card in cards:
        leave_run(space, card)
    report.write_report(space, [])
    folder = space.root / "report"
    assert all(f'href="{name}.html"' in (folder / "index.html").read_text() for name in ("one", "two_fold1"))
    assert "Means of the folds" in (folder / "index.html").read_text()

    def drawn():
        return {path: path.stat().st_ino for path in folder.glob("*/one/*")} | {
            "page": (folder / "one.html").stat().st_ino
        }

    before = drawn()
    assert len(before) > 20
    report.write_report(space, [])
    assert drawn() == before
    later = leave_run(space, cards[0], seed=1)
    (house / "data_manifests/datasets/two_fold1.yaml").unlink()
    report.write_report(space, [])
    page = (folder / "index.html").read_text()
    assert "<title>Report · one (own data)</title>" in page
    assert later.name in page
    assert sorted(path.name for path in folder.glob("*.html")) == ["index.html"]
    assert not list(folder.glob("*/two_fold1/*"))


def test_images_that_are_gone_or_a_changed_table_are_a_note(house, space):
    card = make_data(house)
    record, found = read_record(leave_run(space, card)), contents.gather(space, [])
    dataset, problem = study_page._open_data(card, found, record)
    assert (len(dataset.table), problem) == (60, "")
    assert [each.name for each in own._studied(found)] == ["mine"]
    found.datasets[0] = dataclasses.replace(card, classes=card.classes[:2])
    assert own._studied(found) == []  # a page would name the wrong classes
    shutil.move(house / "images", house / "elsewhere")
    dataset, problem = study_page._open_data(card, found, record)
    assert dataset is None
    assert "cannot be read any more" in problem
    sections = study.make_sections(study.read_study(card, read_records(space.records), "own"), record, dataset)
    assert [each.name for each in next(sections).exhibits] == ["splits", "class_counts"]  # from the record
    shutil.move(house / "elsewhere", house / "images")
    pd.read_csv(card.csv).iloc[:-1].to_csv(card.csv, index=False)
    assert "has changed since the run" in study_page._open_data(card, found, record)[1]


def test_of_several_runs_the_profile_s_is_shown(house, space):
    card = make_data(house)
    ids = [leave_run(space, card, seed=seed).name for seed in (1, 0)]
    shown = study.read_study(card, read_records(space.records), "own")
    assert shown.ids == [ids[1]]
    assert len(shown.headlines) == 1


def test_the_answers_are_those_of_the_record(house, space):
    card = make_data(house)
    folder = leave_run(space, card)
    dataset, record = data.load_dataset(card, space.data_root), read_record(folder)
    shown = study.read_study(card, read_records(space.records), "own")
    tables = [make(shown, [record], dataset) for make in (manuscript.claim_answers, manuscript.tripod_answers)]
    claim, tripod = map(dict, tables)
    assert "into 70% train, 10% val and 20% test was drawn at random" in claim["How data were assigned to partitions"]
    assert "images of one patient kept together" in claim["How data were assigned to partitions"]
    assert "of 10 patients, none is in two splits" in claim["Level at which partitions are disjoint"]
    assert f"{len(dataset.table)} images of 3 classes ({SCRIPT} 20, melanoma 20, nevus 20)" in claim["Numbers of cases"]
    value = record["metrics"]["weighted_f1"]
    assert (
        f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        in claim["Performance with its uncertainty"]
        == tripod["Performance with intervals"]
    )
    assert "by age" in tripod["Fairness"]
    methods = dict(manuscript.write_methods(shown, [record], dataset))
    assert "C = 2.5" in methods["Models"]
    assert "50 bootstrap resamples" in methods["Statistics"]
    for told in (record["data"]["rows_sha256"], folder.name):
        assert told in methods["Reproducibility"]


def test_copies_of_images_are_small_and_without_metadata(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    Image.new("RGB", (1200, 900), "red").save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "b.jpg").write_text("no image")
    paths = (tmp_path / "a.jpg", tmp_path / "b.jpg")
    pictures, written = gallery.write_gallery(gallery.Gallery("x", "", "", paths, ("a", "b")), tmp_path / "out")
    assert pictures == [("x-00.jpg", "a")]
    with Image.open(written[0]) as image:
        assert image.size == (300, 225)
        assert not image.getexif()


def test_own_data_and_their_profile_belong_together(house, space):
    card = make_data(house)
    dataset = data.load_dataset(card, space.data_root)
    public = dataclasses.replace(dataset, manifest=dataclasses.replace(card, own=False))
    paper = workspace.open_workspace("paper", house / "data", house / "weights", house / "outputs")
    for place, one, told in ((paper, dataset, 'profile = "own"'), (space, public, 'profile = "demo"')):
        run = records.begin_run(load_protocol("linear_probe"), "mine", "panderm_tiny", 0, place)
        with pytest.raises(data.DataError, match=told):
            records.note_data(run, one)
    assert json.loads(json.dumps(run.notes)) == {}


def test_a_report_loads_what_draws_only_where_it_draws_and_never_torch():
    code = (
        "import sys; from panderm_utils.report import write_report; print('matplotlib' in sys.modules); "
        "from panderm_utils.report import study_page; "
        "from panderm_utils.protocols import external_validation, label_efficiency; "
        "external_validation.study_exhibits, label_efficiency.study_exhibits; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
