"""Records whose predictions are masks: written, read, verified and compared as any others, whatever the protocol."""

import dataclasses
import hashlib
import io
import json
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest

from panderm_utils import figures, protocols, results, stats, workspace
from panderm_utils.manifests import PublishedResult, load_dataset_manifest
from panderm_utils.protocols import segmentation
from panderm_utils.report import manuscript, study, writing
from panderm_utils.results import comparison, records, verdicts
from panderm_utils.results.recorded_features import FeaturesGone, read_features
from panderm_utils.stats import MASK_METRICS
from tests.mask_record import PROTOCOL, draw_masks, save_mask_record

NAMES = [f"{i:02}.jpg" for i in range(40)]


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return workspace.open_workspace("paper", output_root=tmp_path_factory.mktemp("masks"))


@pytest.fixture(scope="module")
def folder(space):
    metadata = pd.DataFrame({"filename": NAMES, "sex": ["male", "female"] * 20, "age": [30, 70] * 20})
    return save_mask_record(space, NAMES, metadata=metadata)


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the record, to be changed."""
    return shutil.copytree(folder, tmp_path / folder.name)


def rewrite(folder, change, file=segmentation.MASKS_FILE):
    """Changes a file of a record, and its digest in the record, as one who has a reason to."""
    path = folder / file
    change(path)
    record = json.loads((folder / "record.json").read_text())
    record["files"][file] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "record.json").write_text(json.dumps(record))


def change_entries(change):
    def rewritten(path):
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        change(entries)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content)

    return rewritten


def copy(entries, to, source):
    assert entries[to] != entries[source]
    entries[to] = entries[source]


def swap(entries, one, other):
    entries[one], entries[other] = entries[other], entries[one]


def verified(folder):
    table = results.verify_records(folder.parent, lambda name: PROTOCOL, jobs=1)
    return table, results.describe_verification(table)


def test_a_record_is_listed_with_its_metrics_and_digests(space, folder):
    record = results.read_record(folder)
    assert record["files"].keys() == {"masks.zip", "metadata.csv", "predictions.csv"}
    assert record["scored"]["images"] == 40
    rows = results.read_records(space.records)
    rows = rows[rows["run_id"] == folder.name]
    assert rows["metric"].tolist() == list(MASK_METRICS)
    assert rows.loc[rows["headline"], "metric"].tolist() == ["jaccard"]
    assert rows["test_images"].eq(40).all()


def test_the_digest_of_what_was_scored_is_of_images_and_true_masks():
    def digest(pairs):
        pairs = list(pairs)
        table = segmentation.score_images([name for name, _ in pairs], segmentation.pack_masks(pairs))
        return results.describe_scored(table)["rows_sha256"]

    drawn = list(draw_masks(NAMES[:3]))
    other = [(name, segmentation.ImageMasks(m.true, ~m.predicted, m.predicted_224)) for name, m in drawn]
    assert digest(drawn) == digest(other)  # predictions do not matter
    wrong = [(name, segmentation.ImageMasks(~m.true, m.predicted, m.predicted_224)) for name, m in drawn]
    assert len({digest(drawn), digest(wrong), digest(drawn[::-1]), digest(drawn[:2])}) == 4


def test_class_predictions_keep_their_digest():
    table = records.prediction_table(["a", "b"], [0, 1], np.eye(2))
    expected = hashlib.sha256(b"filename,true_label\na,0\nb,1\n").hexdigest()
    assert results.describe_scored(table) == {"images": 2, "rows_sha256": expected}


def test_every_number_is_recomputed_from_the_masks(folder, tmp_path):
    shutil.copytree(folder, tmp_path / folder.name)
    table, text = verified(tmp_path / folder.name)
    assert table["problem"].eq("").all(), text
    assert (table["column"] == "value").sum() == len(MASK_METRICS) + 1  # and the correlation
    assert set(table["metric"]) == {*MASK_METRICS, "size_correlation"}
    assert "all equal" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: copy(e, "predicted/07.jpg.png", "predicted/06.jpg.png"), ["07.jpg dice_original: stored"]),
        (
            lambda e: copy(e, "predicted/08.jpg.png", "predicted/01.jpg.png"),
            ["08.jpg: its masks"],
        ),
        (lambda e: swap(e, "predicted_224/03.jpg.png", "predicted_224/04.jpg.png"), ["03.jpg dice:", "04.jpg dice:"]),
        (lambda e: swap(e, "true/01.jpg.png", "true/03.jpg.png"), ["true mask of 01.jpg, 03.jpg (2 in all)"]),
        (lambda e: e.pop("predicted/05.jpg.png"), ["lacks predicted/05.jpg.png"]),
        (lambda e: e.update({"true/99.jpg.png": e["true/01.jpg.png"]}), ["true/99.jpg.png belong to no test image"]),
        (lambda e: e.update({"true/02.jpg.png": b"x"}), ["true/02.jpg.png is damaged"]),
    ],
)
def test_masks_that_were_changed_with_their_digest_are_named(copied, change, words):
    rewrite(copied, change_entries(change))
    _, text = verified(copied)
    assert "1 of the records cannot be confirmed" in text
    assert all(part in text for part in words), text


def test_other_bytes_a_missing_file_and_a_changed_score_are_named(copied):
    masks, table = copied / segmentation.MASKS_FILE, copied / "predictions.csv"
    content = masks.read_bytes()
    masks.write_bytes(content + b"\0")
    assert "masks.zip was changed after it was written" in verified(copied)[1]
    masks.unlink()
    assert "masks.zip is missing" in verified(copied)[1]
    masks.write_bytes(content)

    def nudge(path):
        rows = pd.read_csv(path)
        rows.loc[9, "hd95_original"] += 1e-6
        rows.to_csv(path, index=False)

    rewrite(copied, nudge, table.name)
    assert "09.jpg hd95_original: stored" in verified(copied)[1]


def test_a_changed_mean_and_correlation_are_named(copied):
    record = json.loads((copied / "record.json").read_text())
    record["metrics"]["dice"]["high"] += 1e-6
    record["size_correlation"]["low"] -= 1e-6
    (copied / "record.json").write_text(json.dumps(record))
    text = verified(copied)[1]
    assert "dice high: stored" in text
    assert "size_correlation low: stored" in text


def labelled(space, encoders=("panderm_large", "panderm_base")):
    rows = results.paper_scores(results.read_records(space.records), "paper", PROTOCOL, replicates=60)
    return rows[rows["encoder"].isin(encoders)].reset_index(drop=True)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    space = workspace.open_workspace("paper", output_root=tmp_path_factory.mktemp("compared"))
    lesions = [f"L{i // 2}" for i in range(40)]
    save_mask_record(space, NAMES, encoder="panderm_large", shift=0.03, clusters=lesions)
    save_mask_record(space, NAMES[::-1], encoder="panderm_base", shift=0.12, clusters=lesions[::-1])
    return space


def test_two_encoders_are_compared_on_the_same_images(compared):
    scores = labelled(compared)
    table = results.compare_encoders(scores, "panderm_large", replicates=99).set_index("metric")
    assert table.index.tolist() == list(MASK_METRICS)
    assert table["images"].eq(40).all()
    large, base = (results.read_image_scores(folder) for folder in scores["folder"].unique())
    by_name = large[0].set_axis(large[2]).loc[base[2]].reset_index(drop=True)
    expected = stats.compare_image_scores(base[0], by_name, base[1], 99, 0)
    np.testing.assert_allclose(table["difference"], expected["difference"])
    np.testing.assert_allclose(table["low"], expected["low"])
    np.testing.assert_allclose(table["p_value"], expected["p_value"])
    # The better one has the higher Dice and the lower distance.
    assert table.loc["dice", "difference"] > 0 > table.loc["hd95_original", "difference"]
    verdicts = table.loc[["dice", "hd95_original"], "verdict"]
    assert verdicts.str.endswith("is better").all()
    assert verdicts.nunique() == 1


def test_records_with_other_true_masks_or_of_classes_are_left_out_and_named(tmp_path):
    space = workspace.open_workspace("paper", output_root=tmp_path)
    first = save_mask_record(space, NAMES[:30], encoder="panderm_large")
    second = save_mask_record(space, NAMES[:30], encoder="panderm_base")
    table = pd.read_csv(second / "predictions.csv")
    table.loc[4, "true_mask"] = "0123456789abcdef"
    table.to_csv(second / "predictions.csv", index=False)
    with pytest.raises(comparison.ComparisonError, match=r"1 images have two true masks, first 04.jpg \("):
        comparison.read_scores_pair(first, second)
    records.prediction_table(NAMES[:30], [0, 1] * 15, np.eye(2)[[0, 1] * 15]).to_csv(second / "predictions.csv")
    with pytest.raises(comparison.ComparisonError, match="one predicts masks, the other one classes"):
        comparison.read_pair(first, second)
    with pytest.raises(ValueError, match="masks, not class probabilities"):
        results.read_predictions(first)


def test_subgroups_are_those_of_the_scores(folder, space):
    rows = results.paper_scores(results.read_records(space.records), "paper", PROTOCOL, replicates=60)
    headline = rows[rows["headline"]]
    groups, gaps, without = results.subgroups_of_records(headline, replicates=30)
    assert without.empty
    assert groups["group"].tolist() == ["female", "male", "0-39", "60+"]
    scores, _, _ = results.read_image_scores(folder)
    assert groups["value"].tolist()[:2] == pytest.approx(
        [scores["jaccard"][1::2].mean(), scores["jaccard"][::2].mean()]
    )
    table = figures.groups_table(groups)
    assert "Rarest" not in table
    assert table["Images"].tolist() == [20] * 4
    assert len(figures.gaps_table(gaps)) == 2
    figures.subgroup_panels(groups, gaps, headline, "#0072B2")


def test_tables_and_texts_show_every_metric(compared):
    scores = labelled(compared)
    table = figures.metrics_table(scores)
    assert len(table.columns) == 2 + len(MASK_METRICS)
    assert table.notna().all(axis=None)
    assert "Jaccard" in figures.scores_alt_text(scores[scores["headline"]])
    pairs = results.compare_encoders(scores, "panderm_large", replicates=30)
    colors = figures.encoder_colors(scores)
    assert figures.comparisons_table(pairs)["Metric"].tolist() == ["Jaccard"]
    figures.encoder_differences(pairs[pairs["headline"]], colors)


def test_features_of_such_a_record_are_gone_and_why(folder):
    with pytest.raises(FeaturesGone, match="does not say which features"):
        read_features(folder, folder, folder, ".jpg")


def test_a_published_number_of_masks_has_a_verdict():
    assert stats.widest_interval("jaccard", [1000]) == stats.widest_interval("accuracy", [1000])
    result = PublishedResult("ham10000", PROTOCOL.name, "panderm_large", {"jaccard": 0.8}, "nowhere")
    row = verdicts._compare(0.8, {"value": 0.79, "low": 0.77, "high": 0.81}, "jaccard", [], result)
    assert row["verdict"] == verdicts.REPRODUCED


def test_the_report_shows_such_a_run(compared):
    """The page of a run in the report of a profile, and the parts of the page of your data."""
    index = writing.write_report(compared, [])
    pages = sorted(index.parent.glob("runs/*.html"))
    assert len(pages) == 2
    text = pages[0].read_text()
    assert "surface dice original" in text.lower().replace("_", " ")
    assert "masks.zip" in text
    assert len(list(index.parent.glob("records/*/masks.zip"))) == 2


def test_the_page_of_a_dataset_of_masks_has_sections_and_texts(compared, monkeypatch):
    monkeypatch.setattr(protocols, "load_protocol", lambda name: PROTOCOL)  # it has no module
    scores = labelled(compared)
    card = dataclasses.replace(load_dataset_manifest("ham10000"), classes=(), class_counts=None, melanoma=())
    of_masks = study.Study(card, {}, {PROTOCOL: scores})
    found = [results.read_record(folder) for folder in scores["folder"].unique()]
    sections = list(study.make_sections(of_masks, found[0], None))
    assert [section.title for section in sections] == ["The images", "Outlining"]
    assert sections[0].exhibits[0].table.to_dict("records") == [
        {"class": "all", "train": 0, "val": 0, "test": 40, "all": 40}
    ]
    table, *drawn = sections[1].exhibits
    assert table.table["metric"].tolist() == [figures.METRIC_TITLES[metric] for metric in MASK_METRICS]
    assert table.table["what it means"].notna().all()
    assert [exhibit.figure is not None for exhibit in drawn] == [True] * 4
    answers = [*manuscript.claim_answers(of_masks, found, None), *manuscript.tripod_answers(of_masks, found, None)]
    text = " ".join(answer for _, answer in [*answers, *manuscript.write_methods(of_masks, found, None)])
    assert "the main one is Jaccard" in text
    assert "Outlining of PanDerm (large): Jaccard 0." in text
    assert "40 images, each with the mask of its lesion" in text
    assert not {"class", "classes", "probability"} & set(text.lower().replace(".", "").split())


def test_a_single_test_image_has_no_correlation_and_yet_a_record(tmp_path):
    own = workspace.open_workspace("paper", output_root=tmp_path)
    folder = save_mask_record(own, NAMES[:1])
    record = results.read_record(folder)
    assert record["size_correlation"]["value"] is None
    again = {(metric, column): value for metric, column, _, value in segmentation.recompute_masks(record, folder)}
    assert again["size_correlation", "value"] is None
