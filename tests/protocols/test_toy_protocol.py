"""A protocol is one place: a module, a canonical notebook and a line in a profile are all that a new one takes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]

MODULE = '''\
"""A toy: every test image gets the class frequencies of the training images."""

from panderm_utils import results, stats
from panderm_utils.manifests import Protocol


def recompute(record, folder):
    return results.recompute_predictions(stats.evaluate, record, folder)


PROTOCOL = Protocol(
    name="class_frequencies",
    title="guessing by frequency",
    question="How far does one get without looking at an image?",
    reproduces="a floor for Fig. 2a",
    teaches="why accuracy flatters",
    seconds_an_image=0.0,
    demo_time="ten seconds",
    settings={"smoothing": 0.0, "replicates": 1000},
    recompute=recompute,
)
'''
CELLS = (
    "# Title\n\nThe stamper writes it.",
    """\
dataset = "ham10000"
profile = "demo"
encoder = None
data_root = None
weights_root = None
output_root = None
seed = 0
smoothing = 0.0  # added to the count of each class
replicates = 20
""",
    """\
import numpy as np
from panderm_utils import data, demo, manifests, results, stats, workspace
from panderm_utils.protocols import class_frequencies

space = workspace.open_workspace(profile, data_root, weights_root, output_root)
card = manifests.load_dataset_manifest(dataset)
settings = {"smoothing": smoothing, "replicates": replicates}
run = results.begin_run(class_frequencies.PROTOCOL, dataset, encoder, seed, space, **settings)
""",
    """\
demo.make_stand_in(card, space.data_root)
study = data.load_dataset(card, space.data_root)
train, test = study.split("train"), study.split("test")
counts = np.bincount(train["label"], minlength=card.num_classes) + smoothing
proba = np.tile(counts / counts.sum(), (len(test), 1))
scores = stats.evaluate(test["label"], proba, replicates, seed)
predictions = results.prediction_table(test["image"], test["label"], proba)
results.save_record(run, scores, predictions, card.headline_metric)
""",
)


def command(root: Path, *arguments) -> subprocess.CompletedProcess:
    line = [sys.executable, "run_all.py", *map(str, arguments)]
    return subprocess.run(line, cwd=root, capture_output=True, text=True, timeout=300)


@pytest.mark.notebooks
def test_a_protocol_is_a_module_a_notebook_and_a_line(tmp_path, monkeypatch):
    for folder in ("DATA", "WEIGHTS", "OUTPUT"):  # the clone's own
        monkeypatch.delenv(f"PANDERM_{folder}_ROOT")
    root = tmp_path / "clone"
    for name in ("data_manifests", "notebooks", "panderm_utils"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copy(ROOT / "run_all.py", root)
    # All that is added:
    (root / "panderm_utils/protocols/class_frequencies.py").write_text(MODULE)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(CELLS[0])])
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in CELLS[1:]]
    notebook.cells[1].metadata["tags"] = ["parameters"]
    (root / "notebooks/class_frequencies").mkdir()
    nbformat.write(notebook, root / "notebooks/class_frequencies/ham10000.ipynb")
    profiles = root / "data_manifests/profiles.yaml"
    profiles.write_text(
        profiles.read_text().replace("    linear_probe: {}", "    linear_probe: {}\n    class_frequencies: {}")
    )

    stamped = command(root, "--sync")
    assert stamped.returncode == 0, stamped.stderr
    title = nbformat.read(root / "notebooks/class_frequencies/ddi.ipynb", as_version=4).cells[0].source
    assert "guessing by frequency" in title
    assert "You learn** why accuracy flatters" in title
    assert command(root, "--check").returncode == 0

    planned = command(root, "--plan", "--verbose")
    assert "to run   ddi-class_frequencies-panderm_tiny-seed0" in planned.stdout
    chosen = (
        "--datasets",
        "ddi",
        "--encoders",
        "panderm_tiny",
        "--protocols",
        "class_frequencies",
        "-p",
        "smoothing=1",
    )
    done = command(root, *chosen, "-p", "replicates=20", "--only", "*")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = root / "outputs/demo/records/ddi-class_frequencies-panderm_tiny-seed0-replicates_20-smoothing_1.0"
    record = json.loads((folder / "record.json").read_text())
    assert record["metrics"]["auroc"]["value"] == 0.5

    verified = command(root, "--verify")
    assert verified.returncode == 0, verified.stdout
    assert "1 records" in verified.stdout
    record["metrics"]["accuracy"]["value"] += 0.01
    (folder / "record.json").write_text(json.dumps(record))
    assert command(root, "--verify").returncode == 1

    assert command(root, "--report").returncode == 0
    page = (root / f"outputs/demo/report/runs/{folder.name}.html").read_text()
    assert "guessing by frequency" in page
