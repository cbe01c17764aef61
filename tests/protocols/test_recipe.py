"""The recipe's numbers against the published ones, written out anew: no formula of the package is used to test it."""

import panderm_utils  # noqa: F401  first of all: makes torchvision, and so timm, importable

# isort: split
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from panderm_utils.manifests import load_encoder_manifest
from panderm_utils.protocols.fine_tune.model import FineTuneModel
from panderm_utils.protocols.fine_tune.recipe import (
    FineTuneRecipe,
    TrainingError,
    learning_rates,
    make_recipe,
    parameter_groups,
    parameter_table,
    steps_of_epoch,
)


def meta(name: str, classes: int) -> FineTuneModel:
    with torch.device("meta"):
        return FineTuneModel(load_encoder_manifest(name), classes)


def test_the_defaults_are_the_published_recipe() -> None:
    recipe = FineTuneRecipe()
    assert (recipe.batch_size, recipe.epochs, recipe.warmup_epochs) == (128, 50, 10)
    assert (recipe.lr, recipe.min_lr, recipe.layer_decay, recipe.weight_decay) == (5e-4, 1e-6, 0.65, 0.05)
    assert (recipe.beta1, recipe.beta2, recipe.eps, recipe.drop_path) == (0.9, 0.999, 1e-8, 0.2)
    assert (recipe.mixup, recipe.cutmix, recipe.mix_prob, recipe.switch_prob, recipe.smoothing) == (0.8, 1, 1, 0.5, 0.1)
    assert (
        recipe.weighted_sampling
        and recipe.head_init == "random"
        and recipe.augmentation == "published"
        and recipe.ema_decay is None
        and recipe.differences() == {}
    )
    assert replace(recipe, epochs=20, seed=1).differences() == {"epochs": 20, "seed": 1}


def test_the_learning_rate_of_every_step_of_the_published_ham10000_run() -> None:
    """8,207 training images: 64 steps an epoch, of which upstream's log shows 50 epochs."""
    recipe = FineTuneRecipe()
    steps, batch = steps_of_epoch(8207, recipe)
    assert (steps, batch) == (64, 128)
    rates = learning_rates(recipe, steps)
    expected = list(np.linspace(0.0, 5e-4, 640))
    expected += [1e-6 + 0.5 * (5e-4 - 1e-6) * (1 + math.cos(math.pi * t / 2560)) for t in range(2560)]
    assert rates.shape == (3200,) and np.allclose(rates, expected, rtol=0, atol=1e-18)
    assert rates[0] == 0 and rates[639] == rates[640] == 5e-4
    assert rates[640 + 1280] == pytest.approx((5e-4 + 1e-6) / 2)
    assert 1e-6 < rates[-1] < 1.001e-6


def test_learning_rates_without_a_warm_up_and_with_nothing_else() -> None:
    assert learning_rates(FineTuneRecipe(warmup_epochs=0, epochs=2), 1).tolist() == [5e-4, pytest.approx(2.505e-4)]
    assert learning_rates(FineTuneRecipe(warmup_epochs=2, epochs=2), 2)[-1] == 5e-4


@pytest.mark.parametrize(
    ("images", "steps", "batch"), [(8207, 64, 128), (128, 1, 128), (255, 1, 128), (127, 1, 126), (3, 1, 2)]
)
def test_the_last_batch_is_dropped_and_few_images_are_one_batch(images: int, steps: int, batch: int) -> None:
    assert steps_of_epoch(images, FineTuneRecipe()) == (steps, batch)


def test_one_image_is_no_training() -> None:
    with pytest.raises(TrainingError, match="larger fraction"):
        steps_of_epoch(1, FineTuneRecipe())


@pytest.mark.parametrize(
    ("name", "classes", "trainable"),
    [
        ("panderm_large", 7, 303_412_743),
        ("panderm_large", 6, 303_411_718),
        ("panderm_base", 7, 85_767_367),
        ("panderm_base", 6, 85_766_598),
    ],
)
def test_trained_parameters_are_those_of_upstreams_logs(name: str, classes: int, trainable: int) -> None:
    table = parameter_table(meta(name, classes), FineTuneRecipe())
    assert table["values"].sum() == trainable
    assert "pos_embed" not in table["parameter"].tolist() and "cls_token" in table["parameter"].tolist()


@pytest.mark.parametrize(("name", "depth"), [("panderm_large", 24), ("panderm_base", 12)])
def test_scale_and_decay_of_every_parameter(name: str, depth: int) -> None:
    """Written out by name, from the facts."""
    table = parameter_table(meta(name, 7), FineTuneRecipe()).set_index("parameter")
    expected = {"cls_token": (0, 0.0), "patch_embed.proj.weight": (0, 0.05), "patch_embed.proj.bias": (0, 0.0)}
    for b in range(depth):
        decayed = ("attn.relative_position_bias_table", "attn.qkv.weight", "attn.proj.weight")
        decayed += ("mlp.fc1.weight", "mlp.fc2.weight")
        free = ("gamma_1", "gamma_2", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")
        free += ("attn.q_bias", "attn.v_bias", "attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias")
        expected |= {f"blocks.{b}.{part}": (b + 1, 0.05) for part in decayed}
        expected |= {f"blocks.{b}.{part}": (b + 1, 0.0) for part in free}
    expected |= {"fc_norm.weight": (depth + 1, 0.0), "fc_norm.bias": (depth + 1, 0.0)}
    expected |= {"head.weight": (depth + 1, 0.05), "head.bias": (depth + 1, 0.0)}
    assert set(table.index) == set(expected)
    for parameter, (layer, decay) in expected.items():
        row = table.loc[parameter]
        power = 1.0
        for _ in range(depth + 1 - layer):
            power *= 0.65
        assert (row["layer"], row["decay"]) == (layer, decay), parameter
        assert row["scale"] == pytest.approx(power, rel=1e-12), parameter
    assert table.loc["head.weight", "scale"] == 1
    assert table.loc[f"blocks.{depth - 1}.gamma_1", "scale"] == pytest.approx(0.65)


def test_groups_hold_each_trained_parameter_once_with_what_the_table_says() -> None:
    recipe = FineTuneRecipe()
    model = meta("panderm_base", 7)
    table, groups = parameter_table(model, recipe).set_index("parameter"), parameter_groups(model, recipe)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(table.index) and len(groups) == 2 * 14
    parameters = dict(model.named_parameters())
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert parameter is parameters[name]
            assert (group["scale"], group["weight_decay"]) == tuple(table.loc[name, ["scale", "decay"]])


def test_all_that_is_wrong_with_a_recipe_is_told_at_once() -> None:
    with pytest.raises(TrainingError) as error:
        FineTuneRecipe(batch_size=7, epochs=5, monitor="f1", mixup=-1.0, ema_decay=1.0)
    message = str(error.value)
    for part in ("batch_size 7: write an even number", "warmup_epochs 10 is not in 0..5", "write one of recall, acc"):
        assert part in message
    assert "mixup -1.0: write a number, 0 or more" in message and "ema_decay 1.0" in message


def test_a_shorter_training_has_a_shorter_warm_up_unless_one_is_named() -> None:
    """A fifth of the epochs, at most the published ten."""
    for epochs, warmup in ((5, 1), (20, 4), (50, 10), (100, 10)):
        assert make_recipe({"epochs": epochs}).warmup_epochs == warmup
        assert make_recipe({"epochs": 3}, epochs=epochs).warmup_epochs == warmup
        assert make_recipe({}, epochs=epochs, warmup_epochs=None).warmup_epochs == warmup  # as the notebook asks
    assert make_recipe({"lr": 1e-3}).warmup_epochs == 10
    assert make_recipe({"epochs": 20, "warmup_epochs": 7}).warmup_epochs == 7
    assert make_recipe({"epochs": 20}, warmup_epochs=0).warmup_epochs == 0
