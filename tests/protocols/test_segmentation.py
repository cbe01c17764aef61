"""The segmentation model against a computation from the facts, and its training: killed, out of memory, frozen."""

import panderm_utils  # noqa: F401  first of all: makes torchvision, and so timm, importable

# isort: split
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

from panderm_utils.manifests import load_encoder_manifest
from panderm_utils.protocols import segmentation
from panderm_utils.protocols.segmentation import images as seg_images
from panderm_utils.protocols.segmentation.model import SegmentationModel, pyramid_blocks
from panderm_utils.protocols.segmentation.training import scores_of_batch
from panderm_utils.protocols.training import Computing, TrainingError
from panderm_utils.protocols.training.gradients import MemoryWarning
from panderm_utils.protocols.training.loop import Training

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = replace(load_encoder_manifest("random_tiny"), name="tiny", width=48, depth=4, heads=3, num_features=48)
RECIPE = segmentation.make_recipe({}, epochs=2, batch_size=4, channels=8, lr=1e-3)
CPU = Computing(device="cpu", precision="fp32", num_workers=0)


def draw(folder: Path, count: int) -> segmentation.MaskedImages:
    """Dark squares on light noise, of several sizes."""
    folder.mkdir(parents=True)
    rng, paths, masks = np.random.default_rng(count), [], []
    for i in range(count):
        pixels = rng.integers(150, 256, (40, 60, 3), dtype=np.uint8)
        mask = np.zeros((40, 60), dtype=bool)
        mask[5 + i : 25 + i, 10 : 30 + 2 * i] = True
        pixels[mask] //= 3
        paths.append(folder / f"{i}.png")
        masks.append(folder / f"{i}_mask.png")
        Image.fromarray(pixels).save(paths[-1])
        Image.fromarray(mask).save(masks[-1])
    texts = [np.array([str(path) for path in group], np.str_) for group in (paths, masks)]
    return segmentation.MaskedImages(*texts, np.array([path.name for path in paths], np.str_), np.arange(count) + 2)


@pytest.fixture(scope="module")
def train(tmp_path_factory) -> segmentation.MaskedImages:
    return draw(tmp_path_factory.mktemp("data") / "train", 8)


@pytest.fixture(scope="module")
def val(tmp_path_factory) -> segmentation.MaskedImages:
    return draw(tmp_path_factory.mktemp("data") / "val", 3)


@pytest.fixture(scope="module")
def start() -> SegmentationModel:
    return segmentation.load_segmentation_model(TINY, RECIPE)


def run(start, train, val, folder, recipe=RECIPE, computing=CPU, **options):
    return segmentation.train(start, train, val, recipe, folder, computing, **options)


@pytest.fixture(scope="module")
def whole(start, train, val, tmp_path_factory):
    return run(start, train, val, tmp_path_factory.mktemp("whole") / "run")


def changed_tensors(one: Path, other: Path) -> list[str]:
    found, expected = (load_file(folder / "last.safetensors") for folder in (one, other))
    assert found.keys() == expected.keys()
    return [key for key in expected if not torch.equal(found[key], expected[key])]


def test_the_blocks_that_feed_the_pyramid() -> None:
    assert pyramid_blocks(24) == [7, 11, 15, 23]
    assert pyramid_blocks(12) == [3, 5, 7, 11]
    assert pyramid_blocks(4) == [0, 1, 2, 3]
    with pytest.raises(TrainingError, match="3 blocks is too shallow"):
        pyramid_blocks(3)


def test_the_pyramid_and_its_norm(start) -> None:
    """Each map is the patch tokens after a block, through the one final norm; then 4, 2, 1 and 1/2 times the grid."""
    model, images = start.eval(), torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    backbone, maps = model.backbone, []
    with torch.no_grad():
        x = backbone.patch_embed(images)
        x = torch.cat([backbone.cls_token.expand(2, -1, -1), x], dim=1) + backbone.pos_embed
        for block in backbone.blocks:
            x = block(x)
            maps.append(backbone.norm(x)[:, 1:].transpose(1, 2).reshape(2, 48, 14, 14))
        levels = model.levels(images)
        up, norm, _, further = model.pyramid[0]
        double = {"stride": 2}
        finest = functional.conv_transpose2d(maps[0], up.weight, up.bias, **double)
        finest = functional.gelu((finest - norm.running_mean[:, None, None]) / (1 + 1e-5) ** 0.5)
        finest = functional.conv_transpose2d(finest, further.weight, further.bias, **double)
        second = functional.conv_transpose2d(maps[1], model.pyramid[1].weight, model.pyramid[1].bias, **double)
    expected = [finest, second, maps[2], functional.max_pool2d(maps[3], 2)]
    for level, own, size in zip(levels, expected, (56, 28, 14, 7), strict=True):
        assert level.shape == (2, 48, size, size)
        assert torch.allclose(level, own, atol=1e-5)
    assert segmentation.pyramid_table(model)["size"].tolist() == ["56 x 56", "28 x 28", "14 x 14", "7 x 7"]


def test_the_decoder_is_the_upernet_of_the_facts() -> None:
    """Pooled context of 1, 2, 3, 6; top-down sums; all levels fused at the finest; two channels."""
    model = SegmentationModel(TINY, channels=6, seed=3).eval()
    rng = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 48, size, size, generator=rng) for size in (12, 6, 4, 3)]
    for module in model.decoder.modules():  # statistics that a mistake in the norms would show
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(generator=rng)
            module.running_var.uniform_(0.5, 2, generator=rng)
    weights = dict(model.decoder.state_dict())

    def unit(name: str, x: torch.Tensor) -> torch.Tensor:
        """A convolution without bias, batch norm, ReLU."""
        kernel = weights[f"{name}.0.weight"]
        x = functional.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        mean, var, scale, shift = (
            weights[f"{name}.1.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return torch.relu((x - mean) / torch.sqrt(var + 1e-5) * scale + shift)

    def resized(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)

    deepest = maps[3]
    pooled = [
        resized(unit(f"psp.blocks.{k}.1", functional.adaptive_avg_pool2d(deepest, size)), deepest)
        for k, size in enumerate((1, 2, 3, 6))
    ]
    tops = [unit("psp.out_conv", torch.cat([deepest, *pooled], dim=1))]
    for k, level in enumerate((maps[2], maps[1], maps[0])):
        lateral = unit(f"fpn_lateral_blocks.{k}.conv_norm_relu", level)
        tops.append(lateral + resized(tops[-1], lateral))
    outs = [tops[0], *[unit(f"fpn_conv_blocks.{k}", top) for k, top in enumerate(tops[1:])]]
    fused = unit("fusion_block", torch.cat([resized(out, outs[-1]) for out in reversed(outs)], dim=1))
    expected = functional.conv2d(fused, model.classifier.weight, model.classifier.bias)
    with torch.no_grad():
        found = model.classifier(model.decoder([None, None, *maps]))
    assert found.shape == (2, 2, 12, 12)
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_learning_rate_falls_epoch_by_epoch_to_zero() -> None:
    rates = segmentation.learning_rates(segmentation.make_recipe({}, epochs=4, lr=0.1), steps=3)
    assert np.allclose(rates, np.repeat([0.1, 0.1 * (1 + 0.5**0.5) / 2, 0.05, 0.1 * (1 - 0.5**0.5) / 2], 3))
    paper = segmentation.make_recipe({}, variant="paper")
    assert (paper.lr, paper.weight_decay, paper.epochs) == (5e-4, 0.01, 100)
    with pytest.raises(TrainingError, match="write 'script' or 'paper'"):
        segmentation.make_recipe({}, variant="tables")


def test_images_are_resized_cubic_without_antialiasing_and_normalised_by_a_half() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    found = np.asarray(seg_images.resize_image(Image.fromarray(pixels)), dtype=int)

    def weight(distance: float, a: float = -0.75) -> float:
        x = abs(distance)
        return ((a + 2) * x - (a + 3)) * x * x + 1 if x <= 1 else a * (((x - 5) * x + 8) * x - 4) if x < 2 else 0.0

    def taps(place: int, size: int) -> list[tuple[int, float]]:
        at = (place + 0.5) * size / 224 - 0.5
        first = int(np.floor(at)) - 1
        return [(min(max(k, 0), size - 1), weight(at - k)) for k in range(first, first + 4)]

    for row, column in ((0, 0), (5, 17), (111, 112), (223, 223)):
        value = sum(u * v * pixels[y, x].astype(float) for y, u in taps(row, 90) for x, v in taps(column, 130))
        assert np.abs(found[row, column] - np.clip(value, 0, 255)).max() <= 0.51
    image = seg_images.evaluation_transform(Image.new("RGB", (10, 7), (255, 0, 51)))
    assert image.shape == (3, 224, 224) and torch.allclose(image[:, 3, 3], torch.tensor([1, -1, -0.6]))


def test_augmentation_changes_colours_only_and_is_drawn_from_seed_epoch_and_image(train) -> None:
    images = segmentation.TrainingImages(train, seed=1)
    first, again = images[0, 0], segmentation.TrainingImages(train, seed=1)[0]
    assert torch.equal(first[1], again[1]) and torch.equal(first[2].bool(), torch.from_numpy(train.mask(0)).bool())
    views = [images[0, repeat][1] for repeat in range(4)]
    images.set_epoch(1)
    views.append(images[0, 0][1])
    assert len({view.numpy().tobytes() for view in views}) == 5


def test_cached_copies_give_the_same_images(train, tmp_path) -> None:
    past = 1_600_000_000
    for path in train.paths:
        os.utime(path, (past, past))
    plain = segmentation.TrainingImages(train, 0)
    cached = [segmentation.TrainingImages(train, 0, tmp_path) for _ in range(2)]
    for images in cached:
        images.set_epoch(0)
        assert all(torch.equal(images[i][1], plain[i][1]) for i in range(3))


def test_scores_of_a_batch_by_hand() -> None:
    logits, masks = torch.zeros(3, 2, 224, 224), torch.zeros(3, 224, 224, dtype=torch.int64)
    logits[0, 1, :, :112], masks[0, :112] = 9, 1  # left half predicted, upper half true
    logits[1, 0], logits[2, 0] = 9, 9
    masks[2, 0, 0] = 1
    logits[0, 0, :, 112:] = 9
    _, dice, jaccard = scores_of_batch(logits, masks).T
    assert dice.tolist() == [0.5, 1, 0] and jaccard[0] == pytest.approx(1 / 3)


def test_killed_and_started_again_it_ends_bit_equal(start, train, val, whole, tmp_path, monkeypatch) -> None:
    """By fork, so that it is quick: SIGKILL in the first step of the second epoch."""
    step = Training._step

    def mortal(self, *batch):
        if self.progress.epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *batch)

    child = os.fork()
    if child == 0:
        Training._step = mortal
        run(start, train, val, tmp_path / "run")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    resumed = run(start, train, val, tmp_path / "run")
    assert resumed.facts["resumed_at"] == {"epoch": 1, "step": 0}
    assert changed_tensors(tmp_path / "run", whole.model.weights.parent) == []
    assert whole.history["loss"].tolist() == resumed.history["loss"].tolist()
    assert whole.facts["chosen"] == "best jaccard on val"


@pytest.mark.slow
def test_a_step_that_ran_out_of_memory_leaves_no_trace_in_the_batch_norms(start, train, val, tmp_path, monkeypatch):
    """The failed attempt has already updated running statistics: they are put back before the step is repeated."""
    told = run(start, train, val, tmp_path / "told", computing=replace(CPU, micro_batch=2))
    forward = SegmentationModel.forward

    def limited(self, images):
        found = forward(self, images)
        if self.training and len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return found

    monkeypatch.setattr(SegmentationModel, "forward", limited)
    with pytest.warns(MemoryWarning, match="2 images at once from here on"):
        found = run(start, train, val, tmp_path / "found")
    assert changed_tensors(tmp_path / "found", tmp_path / "told") == []
    assert found.facts["micro_batch"] == told.facts["micro_batch"] == 2


def test_a_frozen_encoder_stays_as_it_is_and_the_rest_learns(train, val, tmp_path) -> None:
    recipe = replace(RECIPE, frozen=True, epochs=1)
    start = segmentation.load_segmentation_model(TINY, recipe)
    assert not start.train().backbone.training
    trained = run(start, train, val, tmp_path / "run", recipe)
    before, after = start.state_dict(), trained.model.state_dict()
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"pyramid", "decoder", "classifier"}
    open_start = segmentation.load_segmentation_model(TINY, RECIPE)
    still = [name for name, value in open_start.named_parameters() if not value.requires_grad]
    assert still == ["backbone.pos_embed"]


def test_a_checkpoint_returns_the_same_model_and_another_file_is_refused(whole, val, start, tmp_path) -> None:
    again = segmentation.evaluate_only(whole.model.weights)
    found, expected = (segmentation.predict(model, val, device="cpu").logits for model in (again.model, whole.model))
    assert np.array_equal(found, expected)
    assert again.model.facts["scores"]["val_jaccard"] == whole.history["val_jaccard"].max()
    torch.save({"head.weight": torch.zeros(2, 3)}, tmp_path / "other.pth")
    with pytest.raises(TrainingError, match="not a segmentation model"):
        segmentation.evaluate_only(tmp_path / "other.pth")
    with pytest.raises(TrainingError, match=r"swavderm_resnet50.*choose a vision transformer"):
        SegmentationModel(load_encoder_manifest("swavderm_resnet50"))


def test_another_mask_is_another_training(start, train, val, whole, tmp_path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "last.safetensors").write_bytes((whole.model.weights.parent / "last.safetensors").read_bytes())
    other = replace(train, mask_paths=train.mask_paths[::-1].copy())
    with pytest.raises(TrainingError, match=r"data\.train\.sha256 is"):
        run(start, other, val, folder)


def test_predictions_at_any_size(whole, val) -> None:
    found = segmentation.predict(whole.model, val, device="cpu")
    assert found.logits.shape == (3, 2, 56, 56)
    names = []
    for name, masks in found.masks():
        names.append(name)
        assert masks.true.shape == masks.predicted.shape == (40, 60) and masks.predicted_224.shape == (224, 224)
    assert names == val.image_ids.tolist()


def test_a_label_fraction_is_nested_keeps_lesions_whole_and_depends_on_the_seed() -> None:
    table = pd.DataFrame({"image": [f"{i}.jpg" for i in range(60)], "row": range(2, 62), "lesion": np.arange(60) // 2})
    table["split"] = ["train"] * 48 + ["val"] * 6 + ["test"] * 6
    manifest = SimpleNamespace(groups={"lesion": "lesion"})
    study = SimpleNamespace(table=table, manifest=manifest, split=lambda name: table[table["split"] == name])
    parts = {(f, s): set(segmentation.training_rows(study, f, s)["image"]) for f in (0.25, 0.5) for s in (0, 1)}
    assert [len(part) for part in parts.values()] == [12, 12, 24, 24]
    assert parts[0.25, 0] < parts[0.5, 0] and parts[0.25, 0] != parts[0.25, 1]
    for part in parts.values():
        assert table[table["image"].isin(part)].groupby("lesion").size().eq(2).all()
    assert len(segmentation.training_rows(study, 1.0, 0)) == 48
