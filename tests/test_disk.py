"""Full and read-only disks, for real: small ones in memory, mounted for a test; skipped where that is not allowed."""

import panderm_utils  # noqa: F401  first of all: makes torchvision, and so timm, importable
from panderm_utils.protocols import load_protocol
from panderm_utils.results import is_done

# isort: split
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import run_all
from panderm_utils import disk, workspace
from panderm_utils.batch import running as batch
from panderm_utils.encoders import feature_cache, features, load_encoder
from panderm_utils.protocols.fine_tune.model import load_finetune_model
from panderm_utils.protocols.fine_tune.prediction import LabelledImages
from panderm_utils.protocols.fine_tune.recipe import FineTuneRecipe
from panderm_utils.protocols.fine_tune.training import finetune
from panderm_utils.protocols.training import Computing, read_facts
from panderm_utils.results import records
from tests.batch.test_batch import PARAMETERS, make, write_notebook

# Twice, leaves 40 kB free: the first time prints more than that, the second writes a record that needs more.
ACT = """\
import pathlib, shutil
from panderm_utils import results, workspace
from panderm_utils.protocols import linear_probe
space = workspace.open_workspace(profile, weights_root=weights_root, output_root=output_root)
tries = pathlib.Path(weights_root) / "tries"
tries.write_text((tries.read_text() if tries.exists() else "") + "x")
if tries.read_text() != "xxx":
    (space.root.parent / "filler").write_bytes(bytes(shutil.disk_usage(space.root).free - 40_000))
if tries.read_text() == "x":
    print("x" * 300_000)
"""
RECORD = """\
import pandas as pd
from panderm_utils import results as records
from panderm_utils.protocols import linear_probe
settings = {"train_fraction": train_fraction, "solver": solver}
run = records.begin_run(linear_probe.PROTOCOL, dataset, encoder, seed, space, **settings)
scores = pd.DataFrame({"value": [0.5], "low": [0.4], "high": [0.6]}, index=["auroc"])
predictions = records.prediction_table([f"{i:08}.jpg" for i in range(5_000)], [0] * 5_000, [[0.5, 0.5]] * 5_000)
records.save_record(run, scores, predictions, "auroc")
"""


@pytest.fixture
def mount(tmp_path):
    """Mounts disks in memory; `again` changes one, such as to read-only."""
    mounted = []

    def mount(name: str, options: str, again: bool = False) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        options = f"remount,{options}" if again else options
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a test may not mount a disk here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in set(mounted):
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, leaving: int = 0) -> Path:
    """Leaves so many bytes free on the disk of a folder; returns the file to delete."""
    filler = folder / "filler"
    filler.write_bytes(bytes(disk.free(folder) - leaving))
    return filler


def draw_images(folder: Path, count: int) -> LabelledImages:
    folder.mkdir()
    paths, rng = [folder / f"{i}.png" for i in range(count)], np.random.default_rng(0)
    for i, path in enumerate(paths):
        pixels = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
        pixels[..., i % 2] += 120
        Image.fromarray(pixels).save(path)
    return LabelledImages(paths, np.arange(count) % 2, [path.name for path in paths], np.arange(count) + 2)


def test_features_without_room_are_right_and_say_what_they_need(tmp_path, mount):
    folder, encoder = mount("disk", "size=256k"), load_encoder("random_tiny", device="cpu")
    paths = draw_images(tmp_path / "images", 12).paths
    expected = features.extract_files(encoder, paths, num_workers=0).x
    filler = fill(folder, 12_000)
    with pytest.warns(feature_cache.FeatureCacheWarning, match="No space left on device") as told:
        found = features.extract_files(encoder, paths, cache=folder, num_workers=0)
    assert f"they need {12 * 4 * encoder.num_features:,} bytes" in str(told[0].message)
    assert re.search(r"[\d,]+ are free", str(told[0].message))
    assert np.array_equal(found.x, expected)
    assert not list(folder.rglob("*.shard")) and not list(folder.rglob("*.new"))
    filler.unlink()
    assert features.extract_files(encoder, paths, cache=folder, num_workers=0).computed == 12
    again = features.extract_files(encoder, paths, cache=folder, num_workers=0)
    assert again.computed == 0 and np.array_equal(again.x, expected)


def test_a_checkpoint_without_room_says_so_and_training_goes_on_once_there_is(tmp_path, mount):
    train = draw_images(tmp_path / "images", 8)
    recipe = FineTuneRecipe(batch_size=4, epochs=2, warmup_epochs=0)
    model = load_finetune_model("random_tiny", num_classes=2, seed=0)
    how = {"computing": Computing(device="cpu", precision="fp32", num_workers=0)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = finetune(model, train, None, recipe, tmp_path / "whole", **how)
    size = (tmp_path / "whole/last.safetensors").stat().st_size
    folder = mount("disk", f"size={4 * size}")
    with pytest.raises(disk.DiskFullError) as told:
        finetune(model, train, None, recipe, folder, on_epoch=lambda history: fill(folder, size // 4), **how)
    needed = int(
        re.search(r"best.safetensors needs ([\d,]+) bytes, [\d,]+ are free", str(told.value))[1].replace(",", "")
    )
    best = (tmp_path / "whole/best.safetensors").stat().st_size
    assert best - 20_000 < needed <= best
    assert read_facts(folder / "last.safetensors")["progress"]["epoch"] == 1
    assert not list(folder.glob(".*.new"))
    (folder / "filler").unlink()
    again = finetune(model, train, None, recipe, folder, **how)
    torch.set_num_threads(threads)
    assert again.facts["resumed_at"] == {"epoch": 1, "step": 0}
    assert again.model.digest == whole.model.digest


def test_records_and_executed_notebooks_without_room_say_so_and_the_same_batch_goes_on_once_there_is(tmp_path, mount):
    for dataset in ("ham10000", "demo"):
        parameters = PARAMETERS.replace("demo", dataset, 1)
        write_notebook(tmp_path / f"notebooks/linear_probe/{dataset}.ipynb", parameters, ACT, RECORD)
    folder = mount("disk", "size=4m")
    space = workspace.open_workspace("demo", weights_root=tmp_path, output_root=folder)
    planned = make(space, tmp_path / "notebooks", seeds=[0])
    for what in ("the executed notebook", "the record"):
        (outcome,) = batch.run_batch(planned, say=lambda line: None)
        assert outcome.status == "failed"
        assert re.search(rf"the disk is full: {what} needs [\d,]+ bytes, [\d,]+ are free", outcome.error), outcome.error
        assert not is_done(planned.runs[0].record)
        assert not list(space.root.glob("records/*"))
        (folder / "filler").unlink()
    (outcome,) = batch.run_batch(planned, say=lambda line: None)
    assert outcome.status == "done", outcome.error
    assert json.loads(outcome.job.output.read_text())["cells"][-1]["execution_count"]
    assert len(records.read_predictions(planned.runs[0].record)[0]) == 5_000


def test_a_record_without_room_leaves_the_old_one_as_it_was(mount):
    folder = mount("disk", "size=1m")
    space = workspace.open_workspace("demo", output_root=folder)

    def save(rows: int) -> Path:
        run = records.begin_run(load_protocol("linear_probe"), "demo", "random_tiny", 0, space)
        table = records.prediction_table([f"{i:08}.jpg" for i in range(rows)], [0] * rows, [[0.5, 0.5]] * rows)
        return records.save_record(run, pd.DataFrame({"value": [0.5]}, index=["auroc"]), table, "auroc")

    record = save(100)
    before = (record / "record.json").read_bytes()
    filler = fill(folder, 50_000)
    with pytest.raises(disk.DiskFullError, match=r"the record needs 2\d\d,\d\d\d bytes, \d\d,\d\d\d are free"):
        save(10_000)
    assert (record / "record.json").read_bytes() == before
    assert [path.name for path in space.records.iterdir()] == [record.name]
    filler.unlink()
    assert len(records.read_predictions(save(10_000))[0]) == 10_000


@pytest.mark.parametrize("options", ["ro", "size=4k"])
def test_an_output_root_that_cannot_be_written_is_told_before_the_first_run(mount, capsys, options):
    folder = mount("disk", options)
    if options != "ro":
        (folder / "demo").mkdir()
        (folder / "filler").write_bytes(bytes(4096))
    assert run_all.main(["--datasets", "demo", "--output-root", str(folder)]) == 2
    told = capsys.readouterr()
    assert f"{folder}/demo: cannot write outputs there" in told.err
    assert ("Read-only file system" if options == "ro" else "No space left on device") in told.err
    assert told.out == ""
