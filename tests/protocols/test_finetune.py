"""The training loop against plain torch, killed, interrupted, out of memory and in two processes; and prediction."""

import panderm_utils  # noqa: F401  first of all: makes torchvision, and so timm, importable

# isort: split
import contextlib
import copy
import json
import math
import os
import re
import signal
import subprocess
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, log_loss, recall_score, roc_auc_score
from torch.nn import functional

from panderm_utils.data.image_files import ImageError
from panderm_utils.data.transforms import evaluation_transform
from panderm_utils.encoders.checkpoints import EncoderError
from panderm_utils.manifests import load_encoder_manifest
from panderm_utils.protocols.fine_tune import augmentation as augment
from panderm_utils.protocols.fine_tune.mixing import MixedLoss
from panderm_utils.protocols.fine_tune.model import FineTuneModel, load_finetune_model, load_finetuned
from panderm_utils.protocols.fine_tune.prediction import LabelledImages, fine_tune_fraction, labelled_images, predict
from panderm_utils.protocols.fine_tune.recipe import FineTuneRecipe, parameter_groups
from panderm_utils.protocols.fine_tune.training import FineTuning, finetune
from panderm_utils.protocols.linear_probe import fit_linear_probe
from panderm_utils.protocols.training import inference, processes
from panderm_utils.protocols.training import loop as training_loop
from panderm_utils.protocols.training import state as training_state
from panderm_utils.protocols.training.errors import TrainingError
from panderm_utils.protocols.training.gradients import BatchGradients, MemoryWarning, make_optimizer
from panderm_utils.protocols.training.launch import Trained
from panderm_utils.protocols.training.loop import Training
from panderm_utils.protocols.training.processes import Computing, make_accelerator
from panderm_utils.protocols.training.state import read_facts

pytestmark = pytest.mark.usefixtures("one_thread")

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = replace(load_encoder_manifest("random_tiny"), name="tiny", width=48, depth=2, heads=3, num_features=48)
RECIPE = FineTuneRecipe(batch_size=8, epochs=3, warmup_epochs=1, monitor="acc")
CPU = Computing(device="cpu", precision="fp32", num_workers=0)
TIMES = ["seconds", "images_per_second"]


def draw_images(folder: Path, y: list[int], size: tuple[int, int] = (288, 256)) -> LabelledImages:
    """Noise with the colour of its class."""
    folder.mkdir(parents=True)
    rng, paths = np.random.default_rng(len(y)), []
    for i, k in enumerate(y):
        pixels = rng.integers(0, 120, (16, 18, 3), dtype=np.uint8)
        pixels[..., k] += 100
        paths.append(folder / f"{i}.png")
        Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(paths[-1])
    return LabelledImages(paths, np.array(y), [path.name for path in paths], np.arange(len(y)) + 2)


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> LabelledImages:
    """Three classes of 12, 5 and 3 images: two batches of 8, and 4 that are dropped."""
    return draw_images(tmp_path_factory.mktemp("data") / "train", [0] * 12 + [1] * 5 + [2] * 3)


@pytest.fixture(scope="module")
def val(tmp_path_factory) -> LabelledImages:
    return draw_images(tmp_path_factory.mktemp("data") / "val", [0, 0, 1, 2, 1])


@pytest.fixture(scope="module")
def start() -> FineTuneModel:
    """With a head and relative position tables that are not nearly nothing, so that all tensors have gradients."""
    model = load_finetune_model(TINY, 3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "table" in name or name.startswith("head"):
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return model


def run(model, train, val, folder: Path, recipe: FineTuneRecipe = RECIPE, **options) -> Trained:
    return finetune(model, train, val, recipe, folder, **{"computing": CPU, **options})


@pytest.fixture(scope="module")
def whole(start, train, val, tmp_path_factory) -> Trained:
    """An uninterrupted training, in the folder that `whole.model.weights` lies in."""
    return run(start, train, val, tmp_path_factory.mktemp("whole"))


def assert_equal_bits(folder: Path, whole: Trained) -> None:
    """Weights, optimizer, history and the best model."""
    for name in ("last.safetensors", "best.safetensors"):
        found, expected = load_file(folder / name), load_file(whole.model.weights.parent / name)
        assert found.keys() == expected.keys()
        assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    history = pd.read_csv(folder / "history.csv")
    pd.testing.assert_frame_equal(history.drop(columns=TIMES), whole.history.drop(columns=TIMES), check_exact=True)


def distance(one: Trained, other: Trained) -> float:
    return max((one.model.state_dict()[k] - v).abs().max().item() for k, v in other.model.state_dict().items())


def test_training_equals_plain_torch_written_from_the_facts(start, train, tmp_path) -> None:
    """Layer decay, decay of matrices only, the learning rate of each step, smoothing, order and the dropped rest."""
    recipe = replace(RECIPE, mixup=0.0, cutmix=0.0, drop_path=0.0, seed=3)
    tuned = run(start, train, None, tmp_path, recipe, computing=replace(CPU, micro_batch=4))
    model = FineTuneModel(TINY, 3, drop_path=0.0)
    model.load_state_dict(start.state_dict())
    model.train()
    groups, scales = [], []
    for name, value in model.named_parameters():
        if name == "pos_embed":
            continue
        layer = 0 if name.startswith(("cls_token", "patch_embed")) else 3
        layer = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else layer
        groups.append({"params": [value], "weight_decay": 0.05 if value.ndim > 1 and name != "cls_token" else 0.0})
        scales.append(0.65 ** (3 - layer))
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8, foreach=False)
    rates = [0.0, 5e-4] + [1e-6 + (5e-4 - 1e-6) * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]
    images, losses = augment.TrainingImages(train.paths, train.y, seed=3), []
    for epoch in range(3):
        images.set_epoch(epoch)
        items = augment.draws(augment.epoch_order(train.y, 3, True, 3, epoch))
        for step in range(2):
            batch = [images[item] for item in items[8 * step : 8 * step + 8]]
            x, y = torch.stack([image for _, image, _ in batch]), torch.tensor([label for *_, label in batch])
            loss = functional.cross_entropy(model(x), y, label_smoothing=0.1)
            for group, scale in zip(optimizer.param_groups, scales, strict=True):
                group["lr"] = rates[2 * epoch + step] * scale
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert np.allclose(tuned.history["loss"], np.reshape(losses, (3, 2)).mean(1), atol=1e-6)
    assert np.allclose(tuned.history["lr"], rates[1::2], rtol=1e-12)
    changed = {key: (value - start.state_dict()[key]).abs().max() for key, value in model.state_dict().items()}
    for key, value in model.state_dict().items():
        assert (tuned.model.state_dict()[key] - value).abs().max() < 0.02 * changed[key] + 1e-9, key
        assert changed[key] > 0 or key == "pos_embed", key


def test_a_run_leaves_what_it_says_and_nothing_else_changed(start, train, val, whole, tmp_path) -> None:
    before = {key: value.clone() for key, value in start.state_dict().items()}
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    seen = []
    tuned = run(start, train, val, tmp_path, on_epoch=seen.append)
    assert all(torch.equal(before[key], value) for key, value in start.state_dict().items())
    assert torch.equal(states[0], torch.random.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert [len(history) for history in seen] == [1, 2, 3]
    assert_equal_bits(tmp_path, whole)
    assert tuned.history["epoch"].tolist() == [1, 2, 3] and tuned.history["best"].any()
    facts = tuned.describe()
    json.dumps(facts)
    assert (facts["batch"], facts["steps_of_epoch"], facts["processes"], facts["resumed_at"]) == (8, 2, 1, None)
    assert facts["peak_memory_mb"]["process"] > 100
    assert facts["chosen"] == "best acc on val" and facts["differs_from_published"]["epochs"] == 3
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != ".lock") == [
        "best.safetensors",
        "facts.json",
        "history.csv",
        "last.safetensors",
    ]


def test_val_scores_are_scikit_learns_and_the_best_model_has_them(val, whole) -> None:
    best = whole.history[whole.history["best"]].iloc[-1]
    found = predict(whole.model, val, device="cpu", num_workers=0)
    assert best["val_acc"] == pytest.approx(accuracy_score(val.y, found.proba.argmax(1)))
    assert best["val_recall"] == pytest.approx(recall_score(val.y, found.proba.argmax(1), average="macro"))
    assert best["val_loss"] == pytest.approx(log_loss(val.y, found.proba), abs=1e-6)
    assert best["epoch"] == whole.facts["best_epoch"] and best["val_acc"] == whole.facts["best_value"]
    again = load_finetuned(whole.model.weights)
    assert again.encoder.name == "tiny" and again.facts["scores"]["epoch"] == best["epoch"]
    assert np.array_equal(predict(again, val, device="cpu", num_workers=0).logits, found.logits)
    assert again.facts["recipe"]["layer_decay"] == 0.65 and len(again.digest) == 64


@pytest.mark.parametrize("micro_batch", [2, 6])
def test_micro_batches_change_nothing_but_last_digits(start, train, val, tmp_path, micro_batch) -> None:
    """With mixing: a batch is mixed as one, however it is cut; 6 does not divide 8."""
    recipe = replace(RECIPE, drop_path=0.0, epochs=1)
    expected = run(start, train, None, tmp_path / "whole", recipe, computing=replace(CPU, micro_batch=8))
    found = run(start, train, None, tmp_path / "cut", recipe, computing=replace(CPU, micro_batch=micro_batch))
    assert distance(found, expected) < 2e-6 and found.facts["micro_batch"] == micro_batch
    assert found.history["loss"][0] == pytest.approx(expected.history["loss"][0], abs=1e-6)


def test_workers_and_copies_change_no_bit(start, train, val, whole, tmp_path) -> None:
    run(start, train, val, tmp_path / "run", computing=replace(CPU, num_workers=2), cache=tmp_path / "copies")
    assert_equal_bits(tmp_path / "run", whole)
    assert any((tmp_path / "copies").rglob("pixels.bin"))


def test_mixing_is_that_of_the_whole_batch_in_every_process_and_micro_batch() -> None:
    """Image i with image B-1-i, in one share for all, whichever process and micro-batch has them."""
    images = torch.arange(1.0, 13).view(12, 1, 1, 1).repeat(1, 3, 8, 8)
    labels, seen = torch.arange(12) % 3, {}

    class Recorder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.setdefault(case, []).extend(value.clone() for value in x)
            return x.mean((2, 3)) + self.bias

    def criterion(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        targets.setdefault(case, []).extend(target)
        return logits.mean()

    targets: dict = {}
    for case in [(1, 12, 0), (1, 4, 0), (2, 4, 0), (2, 4, 1), (3, 2, 0), (3, 2, 1), (3, 2, 2)]:
        world, micro_batch, rank = case
        fake = SimpleNamespace(num_processes=world, process_index=rank, device=torch.device("cpu"))
        fake.backward, fake.no_sync = torch.Tensor.backward, lambda model: warnings.catch_warnings()
        loss = MixedLoss(RECIPE, 3)
        loss.criterion = criterion
        gradients = BatchGradients(fake, Recorder(), loss, RECIPE.seed, 12, micro_batch)
        for step in range(6):
            gradients(images[gradients.positions], labels[gradients.positions], 0, step)
    everything = torch.stack(seen[1, 12, 0]).view(6, 12, -1), torch.stack(targets[1, 12, 0]).view(6, 12, -1)
    for step in range(6):
        mixed, target = everything[0][step], everything[1][step]
        own, other = images.flatten(1), images.flip(0).flatten(1)
        share = ((mixed - other) / (own - other)).mean(1)  # of the image itself
        assert torch.allclose(share, share[:1].expand(12), atol=1e-5)
        smooth = [functional.one_hot(part, 3) * 0.9 + 0.1 / 3 for part in (labels, labels.flip(0))]
        assert torch.allclose(target, share[0] * smooth[0] + (1 - share[0]) * smooth[1], atol=1e-5)
    shares = [everything[1][step][0].tolist() for step in range(6)]
    assert len({str(share) for share in shares}) == 6  # each step draws anew
    assert {len(everything[0][step][0].unique()) for step in range(6)} == {1, 2}  # mixup, and boxes of CutMix
    for cases in ([(1, 4, 0)], [(2, 4, 0), (2, 4, 1)], [(3, 2, 0), (3, 2, 1), (3, 2, 2)]):
        for part, all_of_it in ((seen, everything[0]), (targets, everything[1])):
            rows = torch.cat([torch.stack(part[c]).view(6, len(part[c]) // 6, -1) for c in cases], dim=1)
            assert torch.equal(rows.sort(1).values, all_of_it.sort(1).values)


def out_of_memory_beyond(limit: int, monkeypatch) -> None:
    forward = FineTuneModel.forward

    def limited(self, x):
        if len(x) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, x)

    monkeypatch.setattr(FineTuneModel, "forward", limited)


def test_threads_sum_gradients_in_a_fixed_order(start, tmp_path) -> None:
    model, images, labels = copy.deepcopy(start), torch.randn(8, 3, 224, 224), torch.arange(8) % 3
    accelerator = make_accelerator(torch.device("cpu"), "fp32", [], tmp_path)
    gradients = BatchGradients(accelerator, model, MixedLoss(RECIPE, 3), RECIPE.seed, 8, "auto")
    found = []
    torch.set_num_threads(4)
    try:
        for _ in range(12):
            model.zero_grad()
            gradients(images, labels, 0, 0)
            found.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
    finally:
        torch.set_num_threads(1)
    assert [name for name in found[0] if any(not torch.equal(one[name], found[0][name]) for one in found)] == []
    assert not torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory


def test_out_of_memory_halves_the_micro_batch_says_so_and_loses_nothing(start, train, val, tmp_path, monkeypatch):
    """Bit-equal to a run that was told the size from the start, drop path included."""
    expected = run(start, train, val, tmp_path / "told", computing=replace(CPU, micro_batch=4))
    out_of_memory_beyond(4, monkeypatch)
    with pytest.warns(MemoryWarning, match="4 images at once from here on; the step is repeated"):
        found = run(start, train, val, tmp_path / "found")
    assert found.facts["micro_batch"] == 4 and found.facts["batch"] == 8
    assert_equal_bits_of_weights(tmp_path / "found", tmp_path / "told")
    assert found.history["loss"].tolist() == expected.history["loss"].tolist()
    with pytest.raises(TrainingError, match=r"ran out with 8 images at once.*checkpointing=True"):
        run(start, train, val, tmp_path / "fixed", computing=replace(CPU, micro_batch=8))
    out_of_memory_beyond(1, monkeypatch)
    with pytest.warns(MemoryWarning), pytest.raises(TrainingError, match="ran out with 2 images"):
        run(start, train, val, tmp_path / "hopeless")
    assert np.allclose(predict(found.model, val, device="cpu", num_workers=0).logits[0].shape, (3,))


def assert_equal_bits_of_weights(one: Path, other: Path) -> None:
    found, expected = load_file(one / "last.safetensors"), load_file(other / "last.safetensors")
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


def train_and_be_killed(training) -> None:
    """By fork, so that it is quick."""
    child = os.fork()
    if child == 0:
        try:
            training()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FRESH = """
import json, sys
from pathlib import Path
import numpy as np
import panderm_utils
import torch
from panderm_utils.protocols.fine_tune import FineTuneRecipe, finetune, load_finetuned
from panderm_utils.protocols.fine_tune.prediction import LabelledImages
from panderm_utils.protocols.training import Computing
torch.set_num_threads(1)
folder, recipe, computing = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
start = load_finetuned(folder.parent / "start.safetensors")
start.digest = start.facts["encoder_digest"]
splits = [LabelledImages(**np.load(folder.parent / f"{name}.npz")) for name in ("train", "val")]
finetune(start, *splits, FineTuneRecipe(**recipe), folder, Computing(**computing))
print("sklearn" in sys.modules)
"""


def test_killed_in_mid_epoch_and_started_again_it_ends_bit_equal(start, train, val, whole, tmp_path) -> None:
    """Killed in the second step of the second epoch, then run to the end in a fresh process, without scikit-learn."""
    training_state.save_model(
        tmp_path / "start.safetensors", start, {"encoder": "tiny", "encoder_digest": start.digest, "drop_path": 0.2}
    )
    for name, images in (("train", train), ("val", val)):
        np.savez(tmp_path / f"{name}.npz", **vars(images))
    step = Training._step

    def mortal(self, *batch):
        return die() if (self.progress.epoch, self.progress.step) == (1, 1) else step(self, *batch)

    def training() -> None:
        Training._step = mortal
        run(start, train, val, tmp_path / "run")

    train_and_be_killed(training)
    path = tmp_path / "run" / "last.safetensors"
    last = training_state.read_last(path, read_facts(path)["identity"])[0]
    assert (last.epoch, last.step, len(last.history)) == (1, 0, 1)
    command = [sys.executable, "-c", FRESH, str(tmp_path / "run"), *(json.dumps(asdict(x)) for x in (RECIPE, CPU))]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    assert_equal_bits(tmp_path / "run", whole)
    facts = json.loads((tmp_path / "run" / "facts.json").read_text())
    assert facts["resumed_at"] == {"epoch": 1, "step": 0}


@pytest.mark.parametrize("where", ["first step", "writing last", "writing best", "between best and last"])
def test_killed_anywhere_else_it_goes_on_too(start, train, val, whole, tmp_path, where) -> None:
    """SIGKILL before any checkpoint, and in the midst of writing."""

    def half_written(name: str, original=training_state.save_file):
        def save(tensors, path, metadata):
            original(tensors, path, metadata)
            if name in path.name and (name == "best" or (tmp_path / "last.safetensors").exists()):
                with path.open("r+b") as file:
                    file.truncate(path.stat().st_size // 2)
                die()

        return save

    def training() -> None:
        if where == "first step":
            Training._step = die
        elif where == "between best and last":
            Training._save_last = die
        else:
            training_state.save_file = half_written(where.split()[-1])
        run(start, train, val, tmp_path)

    train_and_be_killed(training)
    if where.startswith("writing"):
        assert list(tmp_path.glob(".*.new"))
    run(start, train, val, tmp_path)
    assert_equal_bits(tmp_path, whole)
    assert not list(tmp_path.glob(".*.new"))


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("moment", ["step", "scoring"])
def test_a_signal_saves_the_state_and_the_rest_is_bit_equal(
    start, train, val, whole, tmp_path, monkeypatch, number, raised, moment
) -> None:
    original = inference.score if moment == "scoring" else Training._step
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == (2 if moment == "scoring" else 3):
            os.kill(os.getpid(), number)
        return original(*arguments)

    place = (training_loop, "score") if moment == "scoring" else (Training, "_step")
    with monkeypatch.context() as patch:
        patch.setattr(*place, interrupted)
        with pytest.raises(raised):
            run(start, train, val, tmp_path)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    assert handlers == [signal.SIG_DFL, signal.default_int_handler]
    tuned = run(start, train, val, tmp_path)
    assert tuned.facts["resumed_at"] == {"epoch": 1, "step": 2 if moment == "scoring" else 1}
    assert_equal_bits(tmp_path, whole)


def test_a_finished_training_is_not_done_again(start, train, val, whole, monkeypatch) -> None:
    monkeypatch.setattr(Training, "_step", None)
    again = run(start, train, val, whole.model.weights.parent)
    pd.testing.assert_frame_equal(again.history, whole.history)
    assert distance(again, whole) == 0


def test_a_checkpoint_of_another_training_is_refused_with_the_differences(start, train, val, whole, tmp_path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "last.safetensors").write_bytes((whole.model.weights.parent / "last.safetensors").read_bytes())
    other_start = load_finetune_model(TINY, 3, seed=9)
    fewer = LabelledImages(train.paths[:-1], train.y[:-1], train.image_ids[:-1])
    cases = {
        "recipe.epochs is 3 in the checkpoint, 4 now; recipe.layer_decay is 0.65 in the checkpoint, 0.7 now": (
            (start, train, val, folder, replace(RECIPE, epochs=4, layer_decay=0.7)),
            {},
        ),
        "data.train.images is 20 in the checkpoint, 19 now; data.train.sha256": ((start, fewer, val, folder), {}),
        "data.val.images is 5 in the checkpoint, missing now": ((start, train, None, folder), {}),
        "encoder.start_sha256": ((other_start, train, val, folder), {}),
        "precision is fp32 in the checkpoint, bf16 now": (
            (start, train, val, folder),
            {"computing": replace(CPU, precision="bf16")},
        ),
    }
    for message, (arguments, options) in cases.items():
        with pytest.raises(TrainingError, match=re.escape(message)) as error:
            run(*arguments, **options)
        assert "resume=False" in str(error.value) and str(folder / "last.safetensors") in str(error.value)
    anew = run(start, fewer, val, folder, replace(RECIPE, epochs=1), resume=False)
    assert anew.facts["resumed_at"] is None and len(anew.history) == 1
    (folder / "last.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(TrainingError, match="damaged"):
        run(start, train, val, folder)


def test_moved_images_are_the_same_data(start, train, val, whole, tmp_path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("last.safetensors", "best.safetensors", "history.csv"):
        (folder / name).write_bytes((whole.model.weights.parent / name).read_bytes())
    elsewhere = replace(train, paths=np.array(["/elsewhere/" + name for name in train.image_ids]))
    assert len(run(start, elsewhere, val, folder).history) == 3


def test_a_folder_is_for_one_training_at_a_time(start, train, val, tmp_path) -> None:
    with training_state.claimed(tmp_path), pytest.raises(TrainingError, match="another process trains in it"):
        run(start, train, val, tmp_path)


def test_a_loss_that_is_not_finite_stops_and_the_last_whole_epoch_stays(start, train, val, tmp_path, monkeypatch):
    original = BatchGradients._accumulate

    def poisoned(self, images, labels, epoch, step):
        loss = original(self, images, labels, epoch, step)
        return loss * float("nan") if (epoch, step) == (1, 1) else loss

    monkeypatch.setattr(BatchGradients, "_accumulate", poisoned)
    with pytest.raises(
        TrainingError, match=r"loss is nan in epoch 2, step 2 of 2, at learning rate 0\.000\d+"
    ) as error:
        run(start, train, val, tmp_path)
    assert re.search(r"last losses were \d\.\d+", str(error.value)) and str(tmp_path) in str(error.value)
    path = tmp_path / "last.safetensors"
    assert training_state.read_last(path, read_facts(path)["identity"])[0].epoch == 1
    assert all(value.isfinite().all() for value in load_file(path).values())


@pytest.mark.parametrize(
    ("monitor", "scores", "best"),
    [("acc", [0.5, 0.7, 0.7], 2), ("recall", [0.9, 0.7, 0.8], 1), ("recall", [0.1, 0.2, 0.3], 3)],
)
def test_only_strictly_better_scores_win(start, train, val, tmp_path, monkeypatch, monitor, scores, best) -> None:
    def scripted(self) -> dict:
        now = scores[self.progress.epoch]
        return {"val_loss": 1.0, "val_acc": 0.0, "val_recall": 0.0, f"val_{monitor}": now}

    monkeypatch.setattr(Training, "_scores", scripted)
    weights = []
    original = Training._save_last

    def watched(self) -> None:
        weights.append(self.plain.head.weight.clone())
        original(self)

    monkeypatch.setattr(Training, "_save_last", watched)
    tuned = run(start, train, val, tmp_path, replace(RECIPE, monitor=monitor))
    assert tuned.facts["best_epoch"] == best and tuned.facts["best_value"] == scores[best - 1]
    assert torch.equal(tuned.model.head.weight, weights[best - 1])


def test_without_a_val_split_the_last_epoch_is_kept_and_said(start, train, tmp_path) -> None:
    empty = LabelledImages([], np.array([], dtype=np.int64))
    tuned = run(start, train, empty, tmp_path)
    last = load_file(tmp_path / "last.safetensors")
    assert all(torch.equal(last[f"model/{key}"], value) for key, value in tuned.model.state_dict().items())
    assert tuned.facts["chosen"] == "last epoch (no val split)" and tuned.facts["best_epoch"] == 3
    assert "val_acc" not in tuned.history


def test_two_classes_are_monitored_by_auroc(train, tmp_path) -> None:
    model = load_finetune_model(TINY, 2)
    two = draw_images(tmp_path / "two", [0] * 6 + [1] * 4)
    tuned = run(model, two, two, tmp_path / "run", replace(RECIPE, epochs=2))
    found = predict(tuned.model, two, device="cpu", num_workers=0).proba[:, 1]
    assert tuned.facts["chosen"] == "best auroc on val"
    assert tuned.history["val_auroc"].max() == pytest.approx(roc_auc_score(two.y, found)) == tuned.facts["best_value"]
    one_class = LabelledImages(two.paths[:6], two.y[:6])
    with pytest.raises(TrainingError, match=r"of one class, so AUROC cannot choose.*val=None"):
        run(model, two, one_class, tmp_path / "run2")
    with pytest.raises(TrainingError, match="all training images are of one class"):
        run(model, one_class, None, tmp_path / "run2")
    with pytest.raises(TrainingError, match=r"train: labels \[2\] are outside 0\.\.1"):
        run(model, train, None, tmp_path / "run2")


def test_few_images_are_one_batch_and_the_record_says_so(start, train, tmp_path) -> None:
    tuned = run(start, train, None, tmp_path, FineTuneRecipe(epochs=1, warmup_epochs=0))
    assert (tuned.facts["batch"], tuned.facts["steps_of_epoch"]) == (20, 1)
    assert tuned.facts["recipe"]["batch_size"] == 128


def test_the_head_may_begin_as_a_linear_probe_of_the_training_images(start, train, tmp_path) -> None:
    transform = evaluation_transform()
    with torch.no_grad():
        images = torch.stack([transform(Image.open(path)) for path in train.paths])
        features = start.eval().fc_norm(start.forward_features(images)[:, 1:].mean(dim=1)).numpy()
    proba = fit_linear_probe(features, train.y, 3).predict_proba(features)
    still = replace(RECIPE, epochs=1, head_init="probe", lr=1e-12, min_lr=0.0)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    tuned = run(start, train, None, tmp_path / "still", still)
    np.testing.assert_allclose(predict(tuned.model, train, device="cpu").proba, proba, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    assert tuned.facts["differs_from_published"]["head_init"] == "probe"


def test_a_resumed_training_does_not_fit_its_head_again(start, train, val, tmp_path, monkeypatch) -> None:
    recipe, fits, fit = replace(RECIPE, head_init="probe"), [], FineTuning.fitted_tensors
    monkeypatch.setattr(FineTuning, "fitted_tensors", lambda *task: fits.append(1) or fit(*task))
    whole = run(start, train, val, tmp_path / "whole", recipe)

    def interrupt(history):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(start, train, val, tmp_path / "parts", recipe, on_epoch=interrupt)
    tuned = run(start, train, val, tmp_path / "parts", recipe)
    assert tuned.facts["resumed_at"] == {"epoch": 1, "step": 0}
    assert_equal_bits(tmp_path / "parts", whole)
    assert len(fits) == 2


def test_the_moving_average_is_scored_and_kept_instead(start, train, tmp_path, monkeypatch) -> None:
    weights = []
    original = Training._step

    def watched(self, *batch):
        result = original(self, *batch)
        weights.append(self.plain.head.weight.detach().double())
        return result

    monkeypatch.setattr(Training, "_step", watched)
    tuned = run(start, train, None, tmp_path, replace(RECIPE, ema_decay=0.8))
    average = start.head.weight.detach().double()
    for value in weights:
        average = 0.8 * average + 0.2 * value
    assert len(weights) == 6 and (tuned.model.head.weight - average).abs().max() < 1e-7
    assert "ema/head.weight" in load_file(tmp_path / "last.safetensors")


def test_checkpointing_changes_no_bit_and_bf16_little(start, train, val, whole, tmp_path) -> None:
    run(start, train, val, tmp_path / "run", computing=replace(CPU, checkpointing=True))
    assert_equal_bits(tmp_path / "run", whole)
    reduced = run(start, train, val, tmp_path / "bf16", computing=replace(CPU, precision="bf16"))
    assert reduced.facts["precision"] == "bf16" and 0 < distance(reduced, whole) < 5e-3
    assert np.allclose(reduced.history["loss"], whole.history["loss"], atol=0.02)
    assert all(value.dtype == torch.float32 for value in load_file(tmp_path / "bf16" / "last.safetensors").values())


def test_what_a_device_cannot_do_is_refused_with_what_it_can(start, train, val, tmp_path) -> None:
    for computing, message, error in [
        (Computing(device="cpu", precision="fp16"), "use bf16 or fp32", EncoderError),
        (Computing(device="abacus"), "abacus", EncoderError),
    ]:
        with pytest.raises(error, match=message):
            run(start, train, val, tmp_path, computing=computing)
    with pytest.raises(TrainingError, match='not an even number of images; write "auto"'):
        Computing(micro_batch=3)
    with pytest.raises(TrainingError, match=r"tracker 'wandb' is not available.*pip install wandb"):
        run(start, train, val, tmp_path, trackers=["wandb"])


def test_precision_auto_is_what_the_device_can_do(monkeypatch) -> None:
    for units, precision in (({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units)
        assert Computing(device="cpu").settle() == (Computing("cpu", precision), torch.device("cpu"))
    device = torch.device("cuda")
    monkeypatch.setattr(processes, "choose_device", lambda name: device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for able, precision in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able, **_: able)
        assert Computing().settle()[0].precision == precision
    with pytest.raises(TrainingError, match="3 on 2 GPUs: one process per GPU; write 2"):
        Computing(processes=3).settle()
    device = torch.device("mps")
    with pytest.raises(TrainingError, match=r"fp16 needs loss scaling.*use bf16 or fp32"):
        Computing(precision="fp16").settle()


def test_several_processes_agree_on_the_least_that_fits(monkeypatch) -> None:
    """Tried before the first step, on the meta device, where 4 images are made to be too many for this process."""
    with torch.device("meta"):
        model = FineTuneModel(TINY, 3)
    for others, least in ((16, 4), (2, 2)):
        fake = SimpleNamespace(num_processes=2, process_index=0, device=torch.device("meta"))
        fake.autocast = contextlib.nullcontext
        gradients = BatchGradients(fake, model, MixedLoss(RECIPE, 3), RECIPE.seed, 64, "auto")
        assert gradients.micro_batch == 32
        fake.gather = lambda _, others=others, ours=gradients: torch.tensor([others, ours.micro_batch])
        with monkeypatch.context() as patch, pytest.warns(MemoryWarning, match="images at once"):
            out_of_memory_beyond(4, patch)
            gradients.fit(model)
        assert gradients.micro_batch == least


def test_the_state_of_loss_scaling_is_kept(start, tmp_path) -> None:
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale) for scale in (1024.0, 65536.0)]
    optimizers = [make_optimizer(parameter_groups(start, RECIPE), RECIPE) for _ in range(2)]
    for scaler in scalers:
        scaler.scale(torch.ones(1))  # makes its state
    scalers[0].update(512.0)
    path, progress = tmp_path / "last.safetensors", training_state.Progress(epoch=4, losses=[0.1, 1 / 3])
    training_state.save_last(path, start, optimizers[0], scalers[0], None, progress, {"a": {"b": 1}})
    found, tensors, scaling = training_state.read_last(path, {"a": {"b": 1}})
    training_state.restore(tensors, scaling, start, optimizers[1], scalers[1], None)
    assert scalers[1].get_scale() == 512.0 and found == progress


def test_a_fraction_without_a_class_is_trained_with_weighted_sampling(start, train, val, tmp_path, monkeypatch) -> None:
    """Where upstream's sampler still spans all training rows and fails."""
    table = pd.DataFrame({"split": "train", "label": train.y, "image": train.image_ids, "row": train.rows})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = fine_tune_fraction(table[table["label"] < 2].reset_index(drop=True), 0.6)
    part = LabelledImages([train.paths[i - 2] for i in chosen["row"]], chosen["label"], chosen["image"], chosen["row"])
    drawn = []
    original = augment.TrainingImages.__getitem__

    def watched(self, item):
        drawn.append((self._epoch.item(), *item))
        return original(self, item)

    monkeypatch.setattr(augment.TrainingImages, "__getitem__", watched)
    tuned = run(start, part, val, tmp_path)
    assert tuned.facts["batch"] == 8 and tuned.facts["steps_of_epoch"] == 1 and tuned.history["val_acc"].notna().all()
    assert len(drawn) == len(set(drawn)) == 3 * 8  # each draw of an image is augmented on its own
    expected = [augment.draws(augment.epoch_order(part.y, 3, True, 0, epoch))[:8] for epoch in range(3)]
    assert [[item[1:] for item in drawn if item[0] == epoch] for epoch in range(3)] == [
        [items[i] for i in range(8)] for items in expected
    ]


def test_a_failing_process_is_reported_with_its_reason(tmp_path) -> None:
    log = tmp_path / "log.txt"
    with pytest.raises(TrainingError, match=r"(?s)1 processes ended with \d+; the end of .*log\.txt:.*usage: "):
        processes.run_processes("calendar", ["--nonsense"], 1, log, lambda: None)


def test_several_processes_share_pairs_of_a_batch_without_rest(tmp_path) -> None:
    accelerator = make_accelerator(torch.device("cpu"), "fp32", (), tmp_path)
    for world in (1, 2, 3):
        taken = []
        for rank in range(world):
            part = SimpleNamespace(num_processes=world, process_index=rank, device=accelerator.device)
            places = BatchGradients(part, torch.nn.Identity(), MixedLoss(RECIPE, 3), 0, 10, "auto").positions
            assert [9 - place for place in places[::-1]] == places
            taken += places
        assert sorted(taken) == list(range(10))
    part = SimpleNamespace(num_processes=3, process_index=0, device=accelerator.device)
    with pytest.raises(TrainingError, match="fewer pairs than the 3 processes"):
        BatchGradients(part, torch.nn.Identity(), MixedLoss(RECIPE, 3), 0, 4, "auto")


def test_two_processes_do_what_one_does(start, train, val, tmp_path) -> None:
    """By torchrun: the same draws of the weighted sampler, each image once, and val scored over both."""
    recipe = replace(RECIPE, drop_path=0.0, epochs=2)
    one = run(start, train, val, tmp_path / "one", recipe)
    seen = []
    two = run(start, train, val, tmp_path / "two", recipe, computing=replace(CPU, processes=2), on_epoch=seen.append)
    assert two.facts["processes"] == 2 and two.facts["micro_batch"] == 4
    assert distance(two, one) < 5e-6 and len(seen[-1]) == 2
    numbers = [name for name in one.history if name not in TIMES]
    assert np.allclose(two.history[numbers].astype(float), one.history[numbers].astype(float), atol=1e-5)
    assert two.facts["best_epoch"] == one.facts["best_epoch"]
    assert not (tmp_path / "two" / "task").exists()
    with pytest.raises(TrainingError, match=r"recipe\.seed is 0 in the checkpoint, 1 now"):
        run(start, train, val, tmp_path / "two", replace(recipe, seed=1), computing=replace(CPU, processes=2))


def test_predictions_are_the_models_on_the_evaluation_transform(whole, val) -> None:
    images = torch.stack([evaluation_transform()(Image.open(path)) for path in val.paths])
    with torch.no_grad():
        expected = whole.model(images)
    for batch_size in (1, 2, 64):
        found = predict(whole.model, val, device="cpu", batch_size=batch_size, num_workers=0)
        assert np.abs(found.logits - expected.numpy()).max() < 1e-5
    assert found.proba.dtype == np.float64 and np.allclose(found.proba.sum(1), 1)
    assert np.allclose(found.proba, expected.double().softmax(1).numpy(), atol=1e-6)
    assert found.image_ids.tolist() == val.image_ids.tolist() and (found.y == val.y).all() and found.views == 0


def test_several_views_are_averaged_as_logits_on_images_of_any_size(whole, val, tmp_path, monkeypatch) -> None:
    large = draw_images(tmp_path / "large", [0, 1], size=(300, 500))
    mixed = LabelledImages([*val.paths, *large.paths], np.append(val.y, large.y))
    found = predict(whole.model, mixed, tta=5, device="cpu", batch_size=8, seed=4, num_workers=0)
    for i, path in enumerate(mixed.paths):
        views = augment.tta_views(Image.open(path).convert("RGB"), 5, 4, i)
        with torch.no_grad():
            expected = whole.model(views).mean(0)
        assert np.abs(found.logits[i] - expected.numpy()).max() < 1e-5
    assert found.views == 5
    plain = predict(whole.model, mixed, device="cpu", num_workers=0)
    assert np.abs(found.logits - plain.logits).max() > 1e-3
    out_of_memory_beyond(3, monkeypatch)
    halved = predict(whole.model, mixed, tta=5, device="cpu", batch_size=100, seed=4, num_workers=2)
    assert np.abs(halved.logits - found.logits).max() < 1e-5
    with pytest.raises(TrainingError, match="5 for the published number"):
        predict(whole.model, mixed, tta=-1, device="cpu")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_names_its_row(start, whole, train, val, tmp_path, workers) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    images = LabelledImages([*val.paths, tmp_path / "bad.png"], np.append(val.y, 0), rows=[2, 3, 4, 5, 6, 7])
    for tta in (0, 2):
        with pytest.raises(ImageError, match=r"CSV row 7: .*bad\.png") as error:
            predict(whole.model, images, tta=tta, device="cpu", num_workers=workers)
        assert "Traceback" not in str(error.value)
    with pytest.raises(ImageError, match=r"CSV row 7: .*bad\.png"):
        run(start, train, images, tmp_path / "run", computing=replace(CPU, num_workers=workers))


def test_labelled_images_come_from_a_datasets_table_and_are_checked() -> None:
    table = pd.DataFrame({"row": [3, 2], "image": ["b", "a"], "label": [1, 0]})
    dataset = SimpleNamespace(path=lambda image: Path("/data") / f"{image}.jpg")
    found = labelled_images(dataset, table)
    assert found.paths.tolist() == ["/data/b.jpg", "/data/a.jpg"] and found.y.tolist() == [1, 0]
    assert found.image_ids.tolist() == ["b", "a"] and found.rows.tolist() == [3, 2] and len(found) == 2
    for paths, y in ((["a"], [0, 1]), (["a"], [0.5])):
        with pytest.raises(TrainingError, match="one path, one integer label"):
            LabelledImages(paths, y)
