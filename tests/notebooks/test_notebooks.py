"""Every notebook runs for real: its own kernel, synthetic stand-ins, the tiny encoders, through the front door."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
from jupyter_client.manager import KernelManager
from sklearn.metrics import f1_score, roc_auc_score

from panderm_utils import batch, results, workspace
from panderm_utils.data import dataset as data
from panderm_utils.demo import stand_ins
from panderm_utils.manifests import reading as manifests
from panderm_utils.protocols import load_protocol
from panderm_utils.protocols.external_validation import study as external_validation
from panderm_utils.protocols.fine_tune.metrics import evaluate_fine_tuning
from panderm_utils.protocols.label_efficiency import data_needed
from panderm_utils.protocols.label_efficiency import sweep as label_efficiency
from panderm_utils.results import paper_scores, records
from panderm_utils.stats import metrics

pytestmark = pytest.mark.notebooks
ROOT = Path(__file__).parents[2]
SHIPPED = [name for name in manifests.list_datasets() if not manifests.load_dataset_manifest(name).own]
DATASETS = load_protocol("linear_probe").supported(SHIPPED)
# The siblings differ in two cells, which the stamper proves: one dataset of each kind (2, 7 and 23 classes, the source
# of external validation) is studied for real, and the data cells of all others run.
STUDIED = ("demo", "ddi", "dermnet", "ham10000")
PAPER = sorted(p.stem for p in (ROOT / "notebooks/paper").glob("*.ipynb"))
SHORT = {"epochs": 1, "tta": 1, "replicates": 50}  # of a training: that it runs and what it leaves
LEARNT = {"tta": 0, "replicates": 50}  # of one whose score is asserted
TUNED = {"demo": LEARNT, "ham10000": LEARNT, "ddi": {}, "dermnet": SHORT}  # the longest first
ALONE = {"draws": 2, "replicates": 20, "rival": "panderm_tiny"}  # the encoder itself: no comparison
MASKS = {"epochs": 1, "replicates": 50}
SMALLER = ("ddi", "dermnet", "isic2018_task1")  # than a stand-in whose scores are asserted
SMALL, FEWER = stand_ins.Size(train=48, val=8, test=36), stand_ins.Size(train=24, val=4, test=12)


def run_all(*arguments, output, root=ROOT):
    """Runs without drawings, unless the arguments say what is wanted instead."""
    only = () if {"--only", "--verify", "--report", "--new-dataset"} & set(arguments) else ("--only", "*")
    command = [sys.executable, root / "run_all.py", "--output-root", output, "--jobs", "2", *arguments, *only]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, "CI": "true"})


def record_of(space, protocol, dataset, encoder="panderm_tiny", seed=0, **settings):
    """Returns the folder of a run's record."""
    return space.records / results.run_id(load_protocol(protocol), "demo", dataset, encoder, seed, **settings)


def plan(space, datasets, protocol, encoders=("panderm_tiny",), seeds=(), **settings):
    overrides = [f"{name}={value}" for name, value in settings.items()]
    return batch.make_plan(space, datasets, encoders, [protocol], seeds, overrides=overrides)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The records, tables and figures of one demo batch, which nearly every test here reads."""
    space = workspace.open_workspace("demo", output_root=tmp_path_factory.mktemp("outputs"))
    with mock.patch.multiple(stand_ins, STAND_IN=SMALL, MASKS_ONLY=FEWER):
        for name in SMALLER:
            stand_ins.make_stand_in(manifests.load_dataset_manifest(name), space.data_root)
    plans = [
        plan(space, STUDIED, "linear_probe"),
        plan(space, ["demo"], "linear_probe", ["random_tiny"]),
        plan(space, ["ddi"], "linear_probe", seeds=[1]),
        plan(space, ["demo"], "label_efficiency", []),
        plan(space, ["dermnet"], "label_efficiency", **ALONE),
        plan(space, [], "external_validation", []),
        *(plan(space, [dataset], "fine_tune", **settings) for dataset, settings in TUNED.items()),
        plan(space, ["ddi"], "fine_tune", seeds=[1]),
        plan(space, ["isic2018_task1"], "segmentation", **MASKS),
    ]
    runs = {run.name: run for some in plans for run in some.runs}
    outcomes = batch.run_batch(batch.Plan(space, tuple(runs.values()), plans[0].paper), batch.BatchOptions(jobs=2))
    assert {outcome.status for outcome in outcomes} == {"done"}, batch.describe_outcomes(outcomes)
    return space


@pytest.mark.parametrize("dataset", STUDIED)
def test_a_study_runs_and_leaves_its_record(demo, dataset):
    record = results.read_record(demo.records / f"{dataset}-linear_probe-panderm_tiny-seed0")
    card = manifests.load_dataset_manifest(dataset)
    assert record["synthetic"]
    assert record["headline_metric"] == card.headline_metric
    y, proba, names = records.read_predictions(demo.records / record["run_id"])
    assert proba.shape == (len(names), card.num_classes)
    metadata = pd.read_csv(demo.records / record["run_id"] / "metadata.csv", dtype=str)
    assert metadata["filename"].tolist() == names
    assert metadata.columns.tolist() == ["filename", *card.metadata]
    again = metrics.evaluate(y, proba, replicates=record["settings"]["replicates"], seed=0)
    for metric, numbers in record["metrics"].items():
        assert numbers["value"] == pytest.approx(again.loc[metric, "value"], abs=1e-12)
        assert numbers["low"] == pytest.approx(again.loc[metric, "low"], abs=1e-12)


@pytest.mark.parametrize("dataset", STUDIED)
def test_an_executed_study_shows_something_in_every_cell(demo, dataset):
    path = demo.root / "executed/linear_probe" / f"{dataset}-linear_probe-panderm_tiny-seed0.ipynb"
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    silent = [c.id for c in cells if not c.outputs and not set(c.metadata.tags) & {"parameters", "injected-parameters"}]
    assert silent == []
    pictures = [o for c in cells for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 7
    errors = [o for c in cells for o in c.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert [e for e in errors if "Error" in str(e) or "Traceback" in str(e)] == []


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_notebook_leaves_its_files(demo, name):
    assert (demo.root / "executed/paper" / f"{name}.ipynb").is_file()
    folder, kinds = (
        (demo.tables, ("csv", "tex", "md")) if name.startswith("table") else (demo.figures, ("pdf", "png", "csv"))
    )
    for kind in kinds:
        assert (folder / f"{name}.{kind}").stat().st_size > 100  # the columns at least, as the demo lacks some records


def test_a_figure_carries_the_ids_of_its_records(demo):
    from PIL import Image

    ids = Image.open(demo.figures / "figure_2a.png").text["Records"].split()
    assert "demo-linear_probe-random_tiny-seed0" in ids
    assert set(ids) <= {p.name for p in demo.records.iterdir()}
    assert b"demo-linear_probe-panderm_tiny-seed0" in (demo.figures / "figure_2a.pdf").read_bytes()


def test_the_report_shows_every_run_and_every_number_is_verified(demo):
    assert run_all("--report", output=demo.root.parent).returncode == 0
    index = (demo.root / "report/index.html").read_text()
    for folder in demo.records.iterdir():
        assert f'href="runs/{folder.name}.html"' in index
        protocol = results.read_record(folder)["protocol"]
        notebook = demo.root / "report/notebooks" / protocol / f"{folder.name}.html"
        assert notebook.read_text().count('src="data:image/png') >= 3
    done = run_all("--verify", output=demo.root.parent)
    assert done.returncode == 0, done.stdout
    assert "all equal" in done.stdout


def test_pretraining_helps_and_nothing_saturates(demo):
    table = records.read_records(demo.records, "linear_probe")
    headline = table.query("headline and dataset == 'demo' and seed == 0").set_index("encoder")
    assert headline.loc["panderm_tiny", "low"] > headline.loc["random_tiny", "high"]
    assert headline.loc["random_tiny", "value"] > 0.3  # 0.14 by chance
    assert headline.loc["panderm_tiny", "value"] < 0.95


@pytest.mark.parametrize("dataset", ["demo", "ham10000"])
def test_every_class_can_be_learnt(demo, dataset):
    y, proba, _ = records.read_predictions(demo.records / f"{dataset}-linear_probe-panderm_tiny-seed0")
    areas = [roc_auc_score(y == label, proba[:, label]) for label in np.unique(y)]
    assert min(areas) > 0.6
    assert np.mean(areas) > 0.8


def test_a_second_batch_does_nothing_and_a_forced_one_repeats_to_the_last_digit(demo):
    folder = demo.records / "ddi-linear_probe-panderm_tiny-seed0"
    before, written = records.read_predictions(folder)[1], (folder / "record.json").stat().st_mtime_ns
    selection = ("--protocols", "linear_probe", "--datasets", "ddi", "--encoders", "panderm_tiny")
    again = run_all(*selection, output=demo.root.parent)
    assert again.returncode == 0, again.stdout
    assert (folder / "record.json").stat().st_mtime_ns == written
    forced = run_all(*selection, "--force", output=demo.root.parent)
    assert forced.returncode == 0, forced.stdout
    assert (folder / "record.json").stat().st_mtime_ns != written
    np.testing.assert_array_equal(records.read_predictions(folder)[1], before)


def test_curves_rise_and_separate_and_the_dashed_line_is_drawn(demo):
    runs = records.read_records(demo.records, "label_efficiency")
    scores = paper_scores(runs, "demo", load_protocol("label_efficiency"))
    draws = label_efficiency.read_curves(scores, "draws.csv").query("headline and dataset == 'demo'")
    mean = draws.groupby(["encoder", "fraction"])["value"].mean().unstack("encoder")
    assert mean.loc[1.0, "panderm_tiny"] > mean.loc[0.2, "panderm_tiny"] + 0.04 > mean.loc[0.05, "panderm_tiny"] + 0.08
    assert (mean["panderm_tiny"] > mean["random_tiny"] + 0.02).all()
    needed, *_ = data_needed.find_match(draws)
    assert needed.state != data_needed.NOT_REACHED
    assert needed.fraction < 0.3


@pytest.mark.parametrize("encoder", ["panderm_tiny", "random_tiny"])
def test_all_labels_give_the_linear_probe_s_own_scores_and_every_draw_can_be_scored_anew(demo, encoder):
    folder = record_of(demo, "label_efficiency", "demo", encoder)
    record = results.read_record(folder)
    probe = results.read_record(demo.records / f"demo-linear_probe-{encoder}-seed0")
    assert record["features"] == probe["features"]
    for metric, numbers in probe["metrics"].items():  # of another solver, which stops a little before the optimum
        assert record["metrics"][metric]["value"] == pytest.approx(numbers["value"], abs=0.03)
    kept = pd.read_csv(folder / "draws.csv").set_index(["fraction", "draw", "metric"])["value"]
    read, trained = label_efficiency.read_draw_predictions(folder), label_efficiency.read_subsets(folder)
    assert set(read) == set(trained)
    assert len(read) == 6 * 5 + 1
    for (fraction, draw), (y, proba, _) in list(read.items())[::7]:
        value = metrics.evaluate(y, proba, 2)["value"]["weighted_f1"]
        assert kept[fraction, draw, "weighted_f1"] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("dataset", "settings"), [("dermnet", ALONE), ("demo", {})])
def test_label_efficiency_leaves_its_record(demo, dataset, settings):
    """Small fractions cannot hold every one of 23 classes."""
    folder = record_of(demo, "label_efficiency", dataset, **settings)
    dropped = "cannot hold every class" in str(results.read_record(folder)["warnings"])
    assert dropped == (pd.read_csv(folder / "curve.csv")["fraction"].min() > 0.05) == (dataset == "dermnet")
    assert pd.read_csv(folder / "curve.csv")["fraction"].max() == 1
    assert {path.name for path in folder.iterdir()} >= set(label_efficiency.FILES)


@pytest.mark.parametrize("encoder", ["panderm_tiny", "random_tiny"])
def test_external_validation_scores_the_source_and_every_target_and_all_of_it_can_be_computed_anew(demo, encoder):
    folder = record_of(demo, "external_validation", "ham10000", encoder)
    record = results.read_record(folder)
    read = external_validation.read_external_predictions(folder)
    assert list(read) == ["demo", "pad_ufes", "ph2", "med_node"]
    assert record["left_out"] == {}
    for name, (y, proba, images) in read.items():
        card = manifests.load_dataset_manifest(name)
        table = data.load_dataset(card, demo.data_root).table.set_index("image")["label"]
        assert sorted(images) == sorted(table.index)
        assert [int(card.class_names[table[image]] in card.melanoma) for image in images] == y.tolist()
        value = record["metrics"][f"auroc_{name}"]["value"]
        assert value == pytest.approx(roc_auc_score(y, proba[:, 1]), abs=1e-12)
        assert 0.6 < value < 0.99
    y, proba, _ = records.read_predictions(folder)
    again = metrics.evaluate(y, proba, replicates=1000, seed=0)
    for metric, numbers in again.iterrows():
        assert record["metrics"][metric] == pytest.approx(numbers.to_dict(), abs=1e-12)
    if encoder == "panderm_tiny":  # linear probing had extracted the same features of the source
        probe = results.read_record(demo.records / "ham10000-linear_probe-panderm_tiny-seed0")
        assert {split: record["features"][split] for split in ("train", "test")} == probe["features"]


def test_figure_2c_draws_every_record_of_external_validation(demo):
    table = pd.read_csv(demo.figures / "figure_2c.csv")
    assert len(table) == 2 * (1 + 4)
    assert table[table["internal"]]["dataset"].tolist() == ["ham10000"] * 2
    home, abroad = (table[table["internal"] == at_home].groupby("encoder")["value"].mean() for at_home in (True, False))
    assert abroad["panderm_tiny"] > abroad["random_tiny"] + 0.03
    assert home["panderm_tiny"] > max(0.85, home["random_tiny"])
    assert 0.04 < home["panderm_tiny"] - abroad["panderm_tiny"] < 0.2  # as a probe falls when it goes abroad


@pytest.mark.parametrize(("dataset", "settings"), TUNED.items())
def test_fine_tuning_leaves_its_record(demo, dataset, settings):
    folder = record_of(demo, "fine_tune", dataset, **settings)
    record, card = results.read_record(folder), manifests.load_dataset_manifest(dataset)
    epochs = settings.get("epochs", 2)
    assert record["training"]["recipe"]["epochs"] == epochs
    views = [("predictions_tta.csv", "_tta")] if settings.get("tta") != 0 else []
    for file, suffix in (("predictions.csv", ""), *views):
        y, proba, _ = records.read_predictions(folder, file)
        assert proba.shape[1] == card.num_classes
        again = evaluate_fine_tuning(y, proba, replicates=2, seed=0)
        for metric, numbers in again.iterrows():
            assert record["metrics"][f"{metric}{suffix}"]["value"] == pytest.approx(numbers["value"], abs=1e-12)
    assert len(pd.read_csv(folder / "history.csv")) == epochs
    assert (demo.checkpoints / folder.name / "best.safetensors").is_file()
    assert 0 < record["prediction_sets"]["coverage"] <= 1
    assert "classifier.safetensors" in record["files"]


def test_fine_tuning_is_compared_with_linear_probing_over_the_seeds(demo):
    pairs = pd.read_csv(demo.figures / "table_fine_tuning.csv")
    assert {*zip(pairs["dataset"], pairs["seed"], strict=True)} == {("ddi", 0), ("ddi", 1)}
    assert pairs[pairs["headline"]]["metric"].tolist() == ["auroc"] * 2
    for pair in pairs[pairs["metric"].isin(["auroc", "weighted_f1"])].itertuples():
        y, proba, names = records.read_predictions(demo.records / pair.fine_tune_run)
        weighted_f1 = f1_score(y, proba.argmax(1), average="weighted")
        expected = {"auroc": roc_auc_score(y, proba[:, 1]), "weighted_f1": weighted_f1}
        assert pair.fine_tune == pytest.approx(expected[pair.metric], abs=1e-12)
        assert sorted(names) == sorted(records.read_predictions(demo.records / pair.linear_probe_run)[2])
    over_seeds = pd.read_csv(demo.tables / "fine_tuning_seeds.csv")
    assert len(over_seeds) == 1


@pytest.mark.parametrize("dataset", ["demo", "ham10000"])
def test_on_drawn_images_fine_tuning_is_better_than_linear_probing(demo, dataset):
    folders = (
        demo.records / f"{dataset}-linear_probe-panderm_tiny-seed0",
        record_of(demo, "fine_tune", dataset, **TUNED[dataset]),
    )
    probed, tuned = (results.read_record(folder)["metrics"]["weighted_f1"]["value"] for folder in folders)
    assert tuned > probed + 0.01


def test_the_curves_of_the_demo_go_the_right_way(demo):
    history = pd.read_csv(record_of(demo, "fine_tune", "demo", **LEARNT) / "history.csv")
    for column, way in (("loss", -1), ("val_loss", -1), ("val_acc", 1), ("val_recall", 1)):
        assert way * (history[column].iloc[-1] - history[column].iloc[0]) > 0, column


def test_a_checkpoint_is_evaluated_without_pretrained_weights_or_training(demo, tmp_path):
    checkpoint = demo.checkpoints / record_of(demo, "fine_tune", "ddi").name / "best.safetensors"
    selection = ("--protocols", "fine_tune", "--encoders", "panderm_tiny", "--datasets", "ddi")
    given = ("-p", "replicates=50", "-p", "tta=0", "-p", f"checkpoint={checkpoint}", "--weights-root", tmp_path)
    done = run_all(*selection, *given, output=demo.root.parent)
    assert done.returncode == 0, done.stdout[-4000:]
    evaluated = record_of(demo, "fine_tune", "ddi", checkpoint=checkpoint, replicates=50, tta=0)
    there, again = (records.read_predictions(f) for f in (demo.records / checkpoint.parent.name, evaluated))
    np.testing.assert_array_equal(again[1], there[1])
    assert results.read_record(evaluated)["training"]["evaluated_only"]


def run_all_cells(path, output, monkeypatch, changes="", kernel=None):
    """What JupyterLab's Run All does: in the notebook's folder, with the environment's kernel.

    `changes` are lines that follow the parameters; without them the notebook is run as it is. `kernel` is one that is
    there already; by default a new one is started, and ended.
    """
    monkeypatch.setenv("PANDERM_OUTPUT_ROOT", str(output))
    notebook = nbformat.read(path, as_version=4)
    next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])).source += f"\n{changes}"
    options = {"kernel_name": "python3", "resources": {"metadata": {"path": str(path.parent)}}}
    if kernel:  # as if it were new, but for the imports, which take longest
        fresh = f"%reset -f\nimport os\nos.chdir({str(path.parent)!r})\nos.environ.update({dict(os.environ)!r})"
        cells = [nbformat.v4.new_code_cell(fresh)]
        nbclient.NotebookClient(nbformat.v4.new_notebook(cells=cells), km=kernel, **options).execute()
    return nbclient.NotebookClient(notebook, km=kernel, **options).execute()


@pytest.fixture(scope="module")
def kernel():
    """A kernel that tests share, one notebook after the other."""
    manager = KernelManager()
    yield manager
    manager.shutdown_kernel(now=True)


def test_run_all_in_jupyterlab_needs_no_preparation_and_gives_the_batch_s_numbers(demo, monkeypatch):
    folder = demo.records / "ddi-linear_probe-panderm_tiny-seed0"
    before = results.read_record(folder)
    done = run_all_cells(ROOT / "notebooks/linear_probe/ddi.ipynb", demo.root.parent, monkeypatch)
    (summary,) = [cell for cell in done.cells if "results.summarise(" in cell.source]
    assert summary.outputs[0].data["text/html"].count("ddi-linear_probe-panderm_tiny-seed0") == 2
    after = results.read_record(folder)
    assert after["written"] != before["written"]
    assert after["metrics"] == before["metrics"]
    assert after["features"] == before["features"]


def test_a_classifier_of_the_demo_is_used_step_by_step_and_gives_the_study_s_numbers(demo, monkeypatch, kernel):
    done = run_all_cells(ROOT / "notebooks/use/predict.ipynb", demo.root.parent, monkeypatch, kernel=kernel)
    code = [cell for cell in done.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if not cell.outputs and "parameters" not in cell.metadata.get("tags", [])] == []
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs) == 2
    (shown,) = [cell.outputs[-1].data["text/html"] for cell in code if cell.id == "predict"]
    _, proba, names = records.read_predictions(demo.records / "demo-linear_probe-panderm_tiny-seed0")
    for name, row in zip(names[:18], proba, strict=False):
        assert name.split("/")[-1] in shown
        assert f">{row.max():.4f}<" in shown


def test_a_checkpoint_of_another_dataset_is_refused(demo, monkeypatch, kernel):
    checkpoint = demo.checkpoints / record_of(demo, "fine_tune", "ddi").name / "best.safetensors"
    changes = f'encoder = "panderm_tiny"; checkpoint = {str(checkpoint)!r}'
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="has 2 classes, the dataset has 7"):
        run_all_cells(
            ROOT / "notebooks/fine_tune/ham10000.ipynb", demo.root.parent, monkeypatch, changes, kernel=kernel
        )


def test_predicting_without_a_record_says_what_to_run(tmp_path, monkeypatch, kernel):
    with pytest.raises(nbclient.exceptions.CellExecutionError, match=r"python run_all\.py --profile demo"):
        run_all_cells(ROOT / "notebooks/use/predict.ipynb", tmp_path, monkeypatch, kernel=kernel)


def test_a_figure_without_a_record_says_what_to_run(tmp_path, monkeypatch, kernel):
    done = run_all_cells(ROOT / "notebooks/paper/figure_2a.ipynb", tmp_path, monkeypatch, kernel=kernel)
    shown = str([cell.get("outputs") for cell in done.cells])
    assert (
        "python run_all.py --profile demo --protocols linear_probe --datasets ham10000 --encoders panderm_tiny" in shown
    )


def shown(done, cell_id):
    """Returns the text that a cell of an executed notebook shows."""
    (cell,) = [cell for cell in done.cells if cell.id == cell_id]
    return "".join(o.data.get("text/html", o.data["text/plain"]) for o in cell.outputs if "data" in o)


def test_the_features_that_are_taken_away_are_those_of_the_study(demo, monkeypatch, kernel):
    done = run_all_cells(ROOT / "notebooks/use/features.ipynb", demo.root.parent, monkeypatch, kernel=kernel)
    saved = np.load(demo.root / "features/ham10000-panderm_tiny.npz")
    record = results.read_record(demo.records / "ham10000-linear_probe-panderm_tiny-seed0")
    for split, facts in record["features"].items():
        x = np.ascontiguousarray(saved["features"][saved["split"] == split])
        assert hashlib.sha256(x).hexdigest() == facts["features_sha256"]
    assert saved["weights_sha256"] == record["encoder_facts"]["digest"]
    assert shown(done, "classifier").count("<tr>") == 1 + 7 + 3


def test_the_features_of_a_folder_need_no_labels_and_leave_out_what_cannot_be_read(demo, monkeypatch, tmp_path, kernel):
    (tmp_path / "mine").mkdir()
    card = manifests.load_dataset_manifest("ham10000")
    for name, file in list(data.load_dataset(card, demo.data_root).files.items())[:5]:
        shutil.copy(demo.data_root / card.image_root / file, tmp_path / "mine" / f"{Path(name).stem}.jpg")
    (tmp_path / "mine/broken.jpg").write_bytes(b"<html>")
    changes = f"images, file = {str(tmp_path / 'mine')!r}, {str(tmp_path / 'mine.npz')!r}"
    done = run_all_cells(ROOT / "notebooks/use/features.ipynb", demo.root.parent, monkeypatch, changes, kernel=kernel)
    assert "'broken.jpg': 'the file is a web page" in shown(done, "write")
    assert len(np.load(tmp_path / "mine.npz")["image"]) == 5


@pytest.mark.parametrize("tuned", [False, True])
def test_the_notebook_of_attention_runs_and_compares_with_a_random_network(demo, monkeypatch, tuned, kernel):
    changes = "count = 6"
    if tuned:
        checkpoint = demo.checkpoints / record_of(demo, "fine_tune", "ddi").name / "best.safetensors"
        changes += f"; dataset = 'ddi'; checkpoint = {str(checkpoint)!r}"
    done = run_all_cells(ROOT / "notebooks/use/attention.ipynb", demo.root.parent, monkeypatch, changes, kernel=kernel)
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    numbers = [float(text) for text in re.findall(r">\s*(-?[01]\.\d+)\s*<", shown(done, "numbers"))]
    assert len(numbers) == 2 * 3
    assert max(map(abs, numbers)) < 0.8
    assert ("malignant" in shown(done, "judge")) == tuned
