"""Records: written whole or not at all, read back exactly."""

import dataclasses
import json
import subprocess
import sys
import warnings
from itertools import product

import numpy as np
import pandas as pd
import pytest

from panderm_utils import data, manifests, results, workspace
from panderm_utils.batch import leftovers
from panderm_utils.demo import stand_ins
from panderm_utils.protocols import load_protocol
from panderm_utils.results import identity, records, run_id
from panderm_utils.results.verification import verify_records
from panderm_utils.stats import MetricWarning, evaluate


@pytest.fixture
def space(tmp_path):
    return workspace.open_workspace("demo", output_root=tmp_path)


def scores():
    rows = {"accuracy": {"value": 0.75, "low": 0.5, "high": 1.0}, "auroc": {"value": 0.9, "low": 0.8, "high": np.nan}}
    return pd.DataFrame.from_dict(rows, orient="index")


def save(space, dataset="demo", seed=0, **settings):
    run = records.begin_run(load_protocol("linear_probe"), dataset, "random_tiny", seed, space, **settings)
    proba = np.random.default_rng(seed).dirichlet(np.ones(3), size=5)
    table = records.prediction_table([f"00{i}.jpg" for i in range(5)], [0, 1, 2, 0, 1], proba)
    return records.save_record(run, scores(), table, "accuracy"), proba


def test_run_ids_say_what_differs(monkeypatch):
    protocol = load_protocol("linear_probe")
    name = run_id(protocol, "paper", "ham10000", "panderm_large", 0)
    assert name == "ham10000-linear_probe-panderm_large-seed0"
    name = run_id(protocol, "demo", "demo", "timm:vit/x", 3, solver="converged", train_fraction=0.1)
    assert name == "demo-linear_probe-timm.vit.x-seed3-solver_converged-train_fraction_0.1"
    assert run_id(protocol, "demo", "demo", "e", 0, **protocol.settings) == "demo-linear_probe-e-seed0"


def test_a_name_that_no_disk_would_take_is_cut_and_stays_the_same_for_ever():
    protocol = load_protocol("linear_probe")
    fits = run_id(protocol, "demo", "demo", "e" * 156, 0)
    assert fits == f"demo-linear_probe-{'e' * 156}-seed0"
    assert len(fits) == 180
    # The end is from `printf demo-linear_probe-eee...-seed0 | sha256sum`: a record is found by its name alone.
    cut = run_id(protocol, "demo", "demo", "e" * 200, 0)
    assert cut == f"demo-linear_probe-{'e' * 145}-17a565ca2f763585"
    assert len(cut) == 180


def test_two_runs_that_may_differ_in_their_numbers_never_share_an_id(monkeypatch, tmp_path):
    """What the profile changes, whom a run is held against, which file the weights are of: all of it is in the id."""

    def ids(**settings):
        found = set()
        for name in ("fine_tune", "label_efficiency", "external_validation"):
            found.add(run_id(load_protocol(name), "demo", "ham10000", "panderm_tiny", 0, **settings))
        return found

    before = ids()
    profile = manifests.load_profile("demo")
    for protocol, changed in (("fine_tune", {"epochs": 6}), ("label_efficiency", {"fractions": [0.5]})):
        choice = dataclasses.replace(
            profile.choice(protocol), settings={**profile.choice(protocol).settings, **changed}
        )
        edited = dataclasses.replace(profile, protocols={**profile.protocols, protocol: choice})
        with monkeypatch.context() as patch:
            patch.setattr(identity, "load_profile", lambda name, edited=edited: edited)
            assert len(before - ids()) == 1
    tuned = load_protocol("fine_tune")
    named = [
        run_id(load_protocol("label_efficiency"), "demo", "demo", "panderm_tiny", 0, rival=rival)
        for rival in (None, "random_tiny", "dinov2_large")
    ]
    named += [run_id(tuned, "demo", "demo", "panderm_tiny", 0, **more) for more in ({}, {"epochs": 5}, {"lr": 0.1})]
    for kind, folder in product(("weights", "checkpoint"), ("a/x", "b/x")):
        named.append(run_id(tuned, "demo", "demo", "panderm_tiny", 0, **{kind: tmp_path / folder / "best.pth"}))
    assert len(set(named)) == len(named)
    # The same path, written otherwise, is the same run.
    monkeypatch.chdir(tmp_path)
    assert run_id(tuned, "demo", "demo", "panderm_tiny", 0, weights="a/../a/x/best.pth") in named


def test_folders_are_settled_by_argument_then_variable_then_default(monkeypatch, tmp_path):
    monkeypatch.setenv("PANDERM_OUTPUT_ROOT", str(tmp_path / "variable"))
    assert workspace.open_workspace("paper").root == tmp_path / "variable" / "paper"
    assert workspace.open_workspace("paper", output_root=tmp_path / "flag").root == tmp_path / "flag" / "paper"
    monkeypatch.delenv("PANDERM_OUTPUT_ROOT")
    assert workspace.open_workspace("paper").root == workspace.REPOSITORY / "outputs" / "paper"


def test_a_demo_never_reads_real_data(tmp_path):
    space = workspace.open_workspace("demo", data_root=tmp_path / "patients", output_root=tmp_path / "out")
    assert space.data_root == tmp_path / "out" / "cache" / "demo"


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match='profile = "demo"'):
        workspace.open_workspace("papr")


def test_a_record_is_read_back_as_it_was(space):
    folder, proba = save(space, solver="published")
    y, read, names = records.read_predictions(folder)
    np.testing.assert_array_equal(read, proba)
    assert y.tolist() == [0, 1, 2, 0, 1]
    assert names[0] == "000.jpg"
    table = records.read_records(space.records)
    assert table["metric"].tolist() == ["accuracy", "auroc"]
    assert table["headline"].tolist() == [True, False]
    assert table.loc[0, "value"] == 0.75
    assert np.isnan(table.loc[1, "high"])
    assert table.loc[0, "synthetic"]
    record = results.read_record(folder)
    assert record["environment"]["versions"]["numpy"] == np.__version__
    assert record["peak_memory_mb"]["process"] > 10


def test_two_classes_keep_one_probability(tmp_path):
    proba = np.array([[0.25, 0.75], [0.9, 0.1]])
    table = records.prediction_table(["a", "b"], [1, 1], proba)
    assert list(table) == ["filename", "true_label", "predicted_label", "probability"]
    assert table["predicted_label"].tolist() == [1, 0]
    table.to_csv(tmp_path / "predictions.csv", index=False)
    np.testing.assert_allclose(records.read_predictions(tmp_path)[1], proba, atol=1e-16)


def test_a_newer_record_replaces_the_older(space):
    save(space)
    folder, proba = save(space)
    assert len(records.read_records(space.records)) == 2
    np.testing.assert_array_equal(records.read_predictions(folder)[1], proba)
    assert [p.name for p in space.records.iterdir()] == [folder.name]


@pytest.mark.parametrize("damage", ["cut", "empty", "other run", "no predictions", "a list", "no metrics"])
def test_a_damaged_record_is_reported_and_skipped(space, damage):
    save(space)
    folder, _ = save(space, dataset="ham10000")
    path = folder / "record.json"
    text = path.read_text()
    if damage == "cut":
        path.write_text(text[: len(text) // 2])
    elif damage == "empty":
        path.write_text("")
    elif damage == "other run":
        path.write_text(text.replace(folder.name, "x"))
    elif damage == "a list":
        path.write_text("[1]")
    elif damage == "no metrics":
        path.write_text(json.dumps({**json.loads(text), "metrics": {"accuracy": 0.5}}))
    else:
        (folder / "predictions.csv").unlink()
    with pytest.warns(records.RecordWarning, match="ham10000.*delete the folder"):
        table = records.read_records(space.records)
    assert set(table["dataset"]) == {"demo"}
    assert not results.is_done(folder)


def test_no_record_is_not_done(space):
    folder, _ = save(space)
    (folder / "record.json").unlink()
    assert not results.is_done(folder)
    assert not results.is_done(space.records / "never run")


@pytest.mark.parametrize("schema", [1, 99])
@pytest.mark.parametrize("alike", [True, False], ids=["laid out as ours", "laid out otherwise"])
def test_a_record_of_another_schema_is_refused_and_both_are_named(space, schema, alike):
    folder, _ = save(space)
    save(space, dataset="ham10000")
    assert results.is_done(folder)
    record = json.loads((folder / "record.json").read_text())
    assert record["schema"] == results.SCHEMA == 3
    record["schema"] = schema
    if not alike:
        del record["metrics"], record["settings"]
    (folder / "record.json").write_text(json.dumps(record))
    said = rf"{folder.name}: .*it has schema {schema}, this version of panderm_utils reads 3\b.*delete the folder"
    with pytest.raises(ValueError, match=said):
        results.read_record(folder)
    assert not results.is_done(folder)  # so that a batch runs it again
    with pytest.warns(records.RecordWarning, match=said):
        table = results.read_records(space.records)
    assert set(table["dataset"]) == {"ham10000"}


def test_a_record_that_names_no_schema_is_refused(space):
    folder, _ = save(space)
    record = json.loads((folder / "record.json").read_text())
    del record["schema"]
    (folder / "record.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"record.json lacks schema"):
        results.read_record(folder)
    assert not results.is_done(folder)


@pytest.mark.parametrize("status", ["running", "failed", None, True])
def test_a_record_of_a_run_that_is_not_done_is_no_record(space, status):
    """Otherwise it is whole, so that nothing but the status tells."""
    folder, _ = save(space)
    other, _ = save(space, dataset="ham10000")
    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "done"
    (folder / "record.json").write_text(json.dumps({**record, "status": status}))
    said = f"{folder.name}: not a complete record .*status {status!r}.*delete the folder"
    with pytest.raises(ValueError, match=said):
        results.read_record(folder)
    assert not results.is_done(folder)
    with pytest.warns(records.RecordWarning, match=said):
        table = results.read_records(space.records)
    assert set(table["run_id"]) == {other.name}
    found = verify_records(space.records, load_protocol, 1)
    (row,) = found[found["run_id"] == folder.name].itertuples()
    assert f"status {status!r}" in row.problem


def test_a_run_is_summarised_before_it_is_saved(space):
    run = results.begin_run(load_protocol("linear_probe"), "demo", "random_tiny", 0, space)
    told = results.summarise(run, scores(), "accuracy")["record"]
    assert told["accuracy"] == "0.7500 [0.5000, 1.0000]"
    assert told[["run", "folder"]].tolist() == [run.run_id, str(run.folder)]
    assert not run.folder.exists()
    assert results.summarise(run, scores(), "auroc")["record"]["auroc"] == "0.9000 [0.8000, undefined]"


def test_a_run_whose_headline_metric_is_undefined_is_summarised_and_saved(space):
    """A test split of one class has no AUROC; the run is done all the same."""
    y, proba = np.zeros(8, dtype=int), np.random.default_rng(0).dirichlet(np.ones(2), size=8)
    run = results.begin_run(load_protocol("linear_probe"), "demo", "random_tiny", 0, space, replicates=20)
    with pytest.warns(MetricWarning):
        numbers = evaluate(y, proba, 20, 0)
    assert numbers.loc["auroc", ["value", "low", "high"]].isna().all()
    told = results.summarise(run, numbers, "auroc")
    assert told.loc["auroc", "record"] == "undefined"
    assert "nan" not in told.loc[["run", "auroc", "seconds", "peak memory", "folder"]].to_string().lower()
    table = results.prediction_table(map(str, range(8)), y, proba)
    folder = results.save_record(run, numbers, table, "auroc")
    assert results.is_done(folder)
    assert "NaN" not in (folder / "record.json").read_text()
    record = results.read_record(folder)
    assert record["headline_metric"] == "auroc"
    assert record["metrics"]["auroc"]["value"] is None
    headline = results.read_records(space.records).query("headline")
    assert headline["metric"].tolist() == ["auroc"]
    assert headline["value"].isna().all()


def test_no_records_is_an_empty_table(tmp_path):
    table = records.read_records(tmp_path / "none")
    assert table.empty
    assert {"run_id", "metric", "value"} <= set(table)
    assert set(table[table["headline"]]) == set(table)  # still a choice of rows


@pytest.mark.parametrize("moment", ["write_bytes", "rename"])
def test_a_kill_while_writing_leaves_no_half_record(space, tmp_path, moment):
    """Halfway through a file, and after the old record was put aside."""
    folder, proba = save(space)
    before = (folder / "record.json").read_bytes()
    code = f"""
import os, pandas as pd
from itertools import product
from pathlib import Path
from panderm_utils import workspace
from panderm_utils.protocols import load_protocol
from panderm_utils.results import records
space = workspace.open_workspace("demo", output_root={str(tmp_path)!r})
run = records.begin_run(load_protocol("linear_probe"), "demo", "random_tiny", 0, space)
table = records.prediction_table(["a"], [0], [[0.5, 0.25, 0.25]])
act, half = Path.{moment}, {moment!r} == "write_bytes"
Path.{moment} = lambda path, what, **k: (act(path, what[:9] if half else what), os.kill(os.getpid(), 9))
records.save_record(run, pd.DataFrame(), table, "accuracy")
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert list(space.records.glob(".*.new"))
    assert leftovers.remove_partial_files(space.root) == (1 if moment == "write_bytes" else 2)
    assert [path.name for path in space.records.iterdir()] == [folder.name]
    assert (folder / "record.json").read_bytes() == before
    assert np.array_equal(records.read_predictions(folder)[1], proba)


def test_warnings_are_shown_and_kept_once(space):
    with pytest.warns(UserWarning, match="class df") as shown:
        records.begin_run(load_protocol("linear_probe"), "demo", "random_tiny", 0, space)
        run = records.begin_run(load_protocol("linear_probe"), "demo", "random_tiny", 0, space)
        for _ in range(2):
            warnings.warn("class df has no test image", UserWarning, stacklevel=1)
    assert len(shown) == 2
    assert run.warnings == ["UserWarning: class df has no test image"]


def test_a_second_run_in_one_kernel_hears_what_the_first_heard(space, tmp_path):
    """In a process of its own, as pytest changes how warnings are shown."""
    code = f"""
import warnings
from panderm_utils import workspace
from panderm_utils.protocols import load_protocol
from panderm_utils.results import records
space = workspace.open_workspace("demo", output_root={str(tmp_path)!r})
for seed in (0, 1):
    run = records.begin_run(load_protocol("linear_probe"), "demo", "random_tiny", seed, space)
    for _ in range(2):
        warnings.warn("class df has no test image")
    print(run.warnings)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.count("UserWarning: class df has no test image") == 2
    assert told.stderr.count("class df has no test image") == 2


def test_notes_of_one_name_are_merged(space):
    run = records.begin_run(load_protocol("linear_probe"), "demo", "random_tiny", 0, space)
    run.note(timings={"a": np.float32(1)}, data={"n": 3})
    run.note(timings={"b": 2.0})
    folder = records.save_record(run, scores(), records.prediction_table(["a"], [0], [[1.0, 0.0]]), "accuracy")
    record = json.loads((folder / "record.json").read_text())
    assert record["timings"].keys() == {"a", "b", "total_seconds"}
    assert record["data"] == {"n": 3}


def test_a_record_that_would_not_be_json_is_refused_and_the_older_one_stays(space):
    folder, _ = save(space)
    before = (folder / "record.json").read_bytes()
    run = records.begin_run(load_protocol("linear_probe"), "demo", "random_tiny", 0, space)
    run.note(timings={"training_seconds": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        records.save_record(run, scores(), records.prediction_table(["a"], [0], [[1.0, 0.0]]), "accuracy")
    assert run.folder == folder
    assert (folder / "record.json").read_bytes() == before
    assert [path.name for path in space.records.iterdir()] == [folder.name]


def test_the_worst_mistakes_are_the_surest():
    proba = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.01, 0.99]])
    table = records.prediction_table(list("abcd"), [1, 0, 0, 1], proba)
    worst = records.worst_mistakes(table, ("nevus", "melanoma"), count=2)
    assert worst["filename"].tolist() == ["a", "b"]
    assert worst["probability"].tolist() == [0.9, 0.8]
    assert worst.loc[0, "caption"] == "true melanoma\npredicted nevus (90%)"
    none = records.worst_mistakes(records.prediction_table(list("abcd"), proba.argmax(axis=1), proba), ("a", "b"))
    assert none.empty
    assert list(none) == list(worst)


def test_data_that_miss_images_stop_a_run_unless_it_may_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(stand_ins, "STAND_IN", stand_ins.Size(train=12, val=4, test=8))
    card = manifests.load_dataset_manifest("ddi")
    stand_ins.make_stand_in(card, tmp_path)
    study = data.load_dataset(card, tmp_path)
    real = workspace.open_workspace("paper", output_root=tmp_path / "out")

    def begin(space):
        return results.begin_run(load_protocol("linear_probe"), "ddi", "random_tiny", 0, space)

    said = r"incomplete data: ddi: \d+ test images of benign, not 108, \d+ test images of malignant, not 29"
    with pytest.raises(data.DataError, match=rf"{said}; .*-p allow_incomplete=True"):
        results.note_data(begin(real), study)
    run = begin(real)
    with pytest.warns(records.IncompleteWarning, match=said):
        results.note_data(run, study, allow_incomplete=True)
    assert (
        run.notes["data"]["class_counts"]["test"] == study.split("test")["label"].value_counts().sort_index().tolist()
    )
    assert run.notes["incomplete"].startswith("incomplete data: ddi: ")
    with pytest.raises(data.DataError, match=r"data: ddi: .*; ddi: \d"):  # a target counts as the source does
        results.note_data(begin(real), study, targets={"ddi": study})
    demo = begin(workspace.open_workspace("demo", output_root=tmp_path))
    results.note_data(demo, study)  # stand-ins are smaller on purpose
    assert "incomplete" not in demo.notes
    sizes = {split: len(study.split(split)) for split in ("train", "val", "test")}
    for known, said in ((sizes, ""), ({**sizes, "train": 427}, f"{sizes['train']} train images, not 427")):
        like = dataclasses.replace(card, split_sizes=known, class_counts=None, unverified=())
        assert data.shortfall(dataclasses.replace(study, manifest=like)) == said
