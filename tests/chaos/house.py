"""A place to do harm in: a small dataset, lean notebooks of the real steps, and the command that runs them.

The notebooks do what the canonical ones do (features, probe, fine-tuning, metrics, record), without their pictures and
on few images, so that a batch takes seconds; shards are small, and a record has so many files that it can be hit.
"""

import json
import os
import struct
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import nbformat

from panderm_utils.demo import stand_ins as demo
from panderm_utils.manifests import reading as manifests

REPOSITORY = Path(__file__).parents[2]
DATASET = "ddi"
COMMAND = "import sys, pathlib, run_all; sys.exit(run_all.main(sys.argv[2:], pathlib.Path(sys.argv[1])))"
TOKEN = "CHAOS"  # by which the tests find every process of a batch, whatever the batch itself goes by

PARAMETERS = f"""\
dataset = "{DATASET}"
profile = "paper"
encoder = None
weights = None
data_root = None
weights_root = None
output_root = None
seed = 0
"""
SETUP = """\
from panderm_utils import data, encoders, manifests, results, stats, workspace
from panderm_utils.encoders import features
from panderm_utils.protocols import fine_tune, linear_probe, training

space = workspace.open_workspace(profile, data_root, weights_root, output_root)
card = manifests.load_dataset_manifest(dataset)
study = data.load_dataset(card, space.data_root)
run = results.begin_run(PROTOCOL, dataset, encoder, seed, space)
"""
PROBE = """\
features.SHARD = 8  # images, so that little is lost by a kill, and much is there to be done twice
model = encoders.load_encoder(encoder, weights, "cpu", "fp32", space.weights_root)
train = features.extract_features(model, study, "train", space.cache, batch_size=4, num_workers=1)
test = features.extract_features(model, study, "test", space.cache, batch_size=4, num_workers=1)
probe = linear_probe.fit_linear_probe(train.x, train.y, num_classes=card.num_classes, seed=seed, solver="converged")
proba, tested = probe.predict_proba(test.x), test
run.note(features={"train": train.describe(), "test": test.describe()})
"""
TUNE = """\
few = study.split("train").groupby("label").head(12)
train, val, tested = (fine_tune.labelled_images(study, t) for t in (few, study.split("val"), study.split("test")))
usual = {"batch_size": 8, "lr": 0.003, "warmup_epochs": 1, "drop_path": 0.0, "weighted_sampling": False}
recipe = fine_tune.make_recipe(usual, seed=seed, epochs=3)
model = fine_tune.load_finetune_model(encoder, weights_root=space.weights_root, num_classes=card.num_classes, seed=seed)
how, folder = training.Computing("cpu", "fp32", num_workers=1), space.checkpoints / run.run_id
tuned = fine_tune.finetune(model, train, val, recipe, folder, how, space.cache / "images", not run.folder.exists())
proba = fine_tune.predict(tuned.model, tested, device="cpu", precision="fp32").proba
run.note(training=tuned.describe())
"""
RECORD = """\
scores = stats.evaluate(tested.y, proba, replicates=20, seed=seed)
predictions = results.prediction_table(tested.image_ids, tested.y, proba)
ballast = {f"ballast-{i}.csv": predictions for i in range(200)}
results.save_record(run, scores, predictions, card.headline_metric, ballast)
"""
DRAW = """\
import json
from panderm_utils import disk, workspace
space = workspace.open_workspace(profile, output_root=output_root)
names = sorted(path.name for path in space.records.glob("[!.]*"))
for name in names:
    assert json.loads((space.records / name / "record.json").read_text())["run_id"] == name
space.tables.mkdir(exist_ok=True)
new = disk.temporary(space.tables / "table.txt")
new.write_text(" ".join(names))
new.replace(space.tables / "table.txt")
"""


def write_notebook(path: Path, parameters: str, *sources: str) -> None:
    cells = [nbformat.v4.new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@dataclass
class House:
    """The notebooks and the images below `root`, and a new output folder for each batch."""

    root: Path
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    made: int = 0

    def __post_init__(self) -> None:
        for name in ("ham10000", DATASET):
            parameters = PARAMETERS.replace(DATASET, name)
            for protocol, work in (("linear_probe", PROBE), ("fine_tune", TUNE)):
                setup = SETUP.replace("PROTOCOL", f"{protocol}.PROTOCOL")
                write_notebook(self.root / f"notebooks/{protocol}/{name}.ipynb", parameters, setup, work, RECORD)
        write_notebook(self.root / "notebooks/paper/table.ipynb", 'profile = "paper"\noutput_root = None\n', DRAW)
        with mock.patch.object(demo, "STAND_IN", demo.Size(train=32, val=12, test=12)):
            demo.make_stand_in(manifests.load_dataset_manifest(DATASET), self.data)

    @property
    def data(self) -> Path:
        return self.root / "data"

    def new_outputs(self) -> Path:
        """Returns a folder that no batch has used."""
        self.made += 1
        return self.root / f"outputs-{self.made}"

    def start(self, outputs: Path, *more: str, **options) -> subprocess.Popen:
        """Starts the batch of two runs and a table on an output folder; what it says goes to outputs.txt beside it."""
        command = [sys.executable, "-c", COMMAND, self.root / "notebooks", "--profile", "paper", "--jobs", "2"]
        command += ["--datasets", DATASET, "--protocols", "linear_probe", "fine_tune", "--encoders", "panderm_tiny"]
        command += ["--data-root", self.data, "--output-root", outputs, *more]
        # Warm, even a single run that is left; PANDERM_START=cold tries the other.
        environment = {"PANDERM_START": "warm", **os.environ, TOKEN: self.token}
        environment |= {"PYTHONPATH": str(REPOSITORY), "TQDM_DISABLE": "1"}
        if "stdout" in options:
            return subprocess.Popen(command, cwd=REPOSITORY, env=environment, **options)
        with said(outputs).open("a") as file:
            streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
            return subprocess.Popen(command, cwd=REPOSITORY, env=environment, **streams, **options)


def said(outputs: Path) -> Path:
    return outputs.with_suffix(".txt")


def run_name(protocol: str) -> str:
    return f"{DATASET}-{protocol}-panderm_tiny-seed0"


def answers(outputs: Path) -> dict[str, tuple]:
    """Returns of each record what must not depend on any accident; of one that is not whole, None."""
    found = {}
    for folder in (outputs / "paper/records").glob("[!.]*"):
        try:
            record = json.loads((folder / "record.json").read_text())
            digests = [part["features_sha256"] for part in record.get("features", {}).values()]
            weights = record.get("training", {}).get("weights_sha256")
            found[folder.name] = record["metrics"], digests, weights, (folder / "predictions.csv").read_bytes()
        except (OSError, ValueError, KeyError):
            found[folder.name] = None
    return found


def finished(outputs: Path) -> dict[str, tuple]:
    """Returns what is finished, each record and each shard of features, with what tells it from one made anew."""
    paths = [*outputs.glob("paper/records/[!.]*/record.json"), *outputs.glob("cache/features/*/*.shard")]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def epochs(outputs: Path) -> list[dict]:
    """Returns the epochs that the fine-tuning has done, with the seconds that tell one from another that does the same.

    Read from the head of its checkpoint, without torch.
    """
    path = outputs / "paper/checkpoints" / run_name("fine_tune") / "last.safetensors"
    if not path.exists():
        return []
    with path.open("rb") as file:
        head = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    (facts,) = head["__metadata__"].values()
    return json.loads(facts)["progress"]["history"]
