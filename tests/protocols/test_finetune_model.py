"""The fine-tuning model against an attention written out here, and its loaders against good and bad files."""

import panderm_utils  # noqa: F401  first of all: makes torchvision, and so timm, importable

# isort: split
import argparse
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from panderm_utils.encoders.checkpoints import EncoderError
from panderm_utils.encoders.loading import load_encoder
from panderm_utils.manifests import load_encoder_manifest
from panderm_utils.protocols.fine_tune.model import FineTuneModel, describe, load_finetune_model, load_finetuned
from panderm_utils.protocols.fine_tune.recipe import TrainingError

WIDTH, DEPTH, HEADS, CLASSES = 48, 2, 3, 5
RANDOM = replace(load_encoder_manifest("random_tiny"), width=WIDTH, depth=DEPTH, heads=HEADS, num_features=WIDTH)


def randomised(classes: int = CLASSES, seed: int = 0) -> FineTuneModel:
    """All weights drawn, the relative position tables too."""
    model = FineTuneModel(RANDOM, classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(3))


def relative_bias(table: torch.Tensor) -> torch.Tensor:
    """[heads, 197, 197] of a table [732, heads]: 27 x 27 offsets of rows and columns, then the class token's three."""
    row, column = np.divmod(np.arange(196), 14)
    number = np.empty((197, 197), dtype=np.int64)
    number[1:, 1:] = 27 * (row[:, None] - row[None] + 13) + (column[:, None] - column[None] + 13)
    number[0, :], number[:, 0], number[0, 0] = 729, 730, 731
    return table[torch.from_numpy(number)].permute(2, 0, 1)


def plain_forward(p: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The logits as the published description has them, operation by operation, in float64."""
    p = {key: value.double() for key, value in p.items()}
    x = functional.conv2d(images.double(), p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], stride=16)
    x = torch.cat([p["cls_token"].expand(len(images), -1, -1), x.flatten(2).transpose(1, 2)], dim=1) + p["pos_embed"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, (WIDTH,), p[f"{name}.weight"], p[f"{name}.bias"], eps=1e-6)

    for b in range(DEPTH):
        w = {key.removeprefix(f"blocks.{b}."): value for key, value in p.items() if key.startswith(f"blocks.{b}.")}
        bias = torch.cat([w["attn.q_bias"], torch.zeros(WIDTH), w["attn.v_bias"]])
        qkv = functional.linear(norm(x, f"blocks.{b}.norm1"), w["attn.qkv.weight"], bias)
        q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
        scores = q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5
        scores = scores + relative_bias(w["attn.relative_position_bias_table"])
        attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + w["gamma_1"] * functional.linear(attended, w["attn.proj.weight"], w["attn.proj.bias"])
        hidden = functional.linear(norm(x, f"blocks.{b}.norm2"), w["mlp.fc1.weight"], w["mlp.fc1.bias"])
        x = x + w["gamma_2"] * functional.linear(functional.gelu(hidden), w["mlp.fc2.weight"], w["mlp.fc2.bias"])
    return functional.linear(norm(x[:, 1:].mean(dim=1), "fc_norm"), p["head.weight"], p["head.bias"])


def test_a_forward_equals_the_description_written_out(images) -> None:
    model = randomised()
    with torch.no_grad():
        logits, expected = model(images), plain_forward(model.state_dict(), images)
    assert logits.shape == (3, CLASSES) and expected.std() > 0.1
    assert (logits - expected).abs().max() < 1e-5
    for block in model.blocks:
        assert block.attn.relative_position_bias_table.shape == (732, HEADS) and block.attn.fused_attn


def test_the_start_is_the_encoder_with_zero_tables_and_a_head_of_almost_nothing() -> None:
    before = torch.random.get_rng_state()
    model = load_finetune_model(RANDOM, 7, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    start, encoder = model.state_dict(), load_encoder(RANDOM, device="cpu").model.state_dict()
    for key, value in encoder.items():
        assert torch.equal(start[re.sub("^norm", "fc_norm", key)], value), key
    new = set(start) - {re.sub("^norm", "fc_norm", key) for key in encoder}
    tables = {f"blocks.{b}.attn.relative_position_bias_table" for b in range(DEPTH)}
    assert new == tables | {"head.weight", "head.bias"}
    assert all(not start[key].any() for key in tables) and not start["head.bias"].any()
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["pos_embed"]
    wide = load_finetune_model(RANDOM, 1000, seed=3).head.weight
    assert wide.std().item() == pytest.approx(2e-5, rel=0.02) and abs(wide.mean().item()) < 3e-7
    assert not torch.equal(start["head.weight"], load_finetune_model(RANDOM, 7, seed=4).head.weight)
    assert torch.equal(start["head.weight"], load_finetune_model(RANDOM, 7, seed=3).head.weight)


def test_a_released_file_gives_its_norm_to_fc_norm_and_every_tensor_is_accounted_for(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        key: torch.randn(v.shape, generator=generator) for key, v in load_encoder(RANDOM).model.state_dict().items()
    }
    torch.save({f"encoder.{k}": v for k, v in tensors.items()} | {"mask_token": torch.zeros(1)}, tmp_path / "file.pth")
    manifest = replace(RANDOM, layout="encoder_prefix", weights_file="file.pth")
    model = load_finetune_model(manifest, CLASSES, weights_root=tmp_path)
    assert torch.equal(model.fc_norm.weight, tensors["norm.weight"])
    assert torch.equal(model.fc_norm.bias, tensors["norm.bias"])
    assert torch.equal(model.blocks[1].mlp.fc2.weight, tensors["blocks.1.mlp.fc2.weight"])
    table = model.loading.set_index("group")
    assert table.loc["encoder.norm", "why"] == "the final norm, now fc_norm"
    assert table.loc["mask_token", "status"] == "left aside"
    assert table.loc["relative_position_bias_table", "parameters"] == DEPTH * 732 * HEADS
    assert describe(model)["tensors"] == {"used": 15 * DEPTH + 6, "left aside": 1, "new": DEPTH + 2}
    with pytest.raises(EncoderError, match="no such weights file"):
        load_finetune_model(manifest, CLASSES, weights=tmp_path / "other.pth")


@pytest.mark.parametrize("depth", [12, 24])
def test_drop_path_rises_linearly_to_its_rate(depth: int) -> None:
    model = FineTuneModel(replace(RANDOM, depth=depth), CLASSES)
    for b, block in enumerate(model.blocks):
        for drop in (block.drop_path1, block.drop_path2):
            assert getattr(drop, "drop_prob", 0.0) == pytest.approx(0.2 * b / (depth - 1), abs=1e-6)


def test_only_panderms_architecture_is_fine_tuned() -> None:
    with pytest.raises(TrainingError, match=r"dinov2_large.*choose a PanDerm encoder"):
        load_finetune_model("dinov2_large", 7)


def upstream_file(model: FineTuneModel, path: Path, /, **beside) -> Path:
    """A checkpoint as upstream leaves it, the index of the tables among its tensors."""
    tensors = dict(model.state_dict())
    tensors |= {
        f"blocks.{b}.attn.relative_position_index": block.attn.relative_position_index
        for b, block in enumerate(model.blocks)
    }
    optimizer = torch.optim.AdamW(model.parameters())
    arguments = argparse.Namespace(lr=5e-4, model="PanDerm_Large_FT", device="cuda", distributed=False)
    content = {"model": tensors, "optimizer": optimizer.state_dict(), "epoch": 31, "scaler": {"scale": 65536.0}}
    torch.save(content | {"args": arguments} | beside, path)
    return path


def test_upstreams_checkpoint_is_loaded_with_its_namespace_beside_it(tmp_path: Path, images) -> None:
    model = randomised()
    found = load_finetuned(upstream_file(model, tmp_path / "checkpoint-best.pth"), RANDOM)
    with torch.no_grad():
        assert torch.equal(found(images), model(images))
    assert found.num_classes == CLASSES and not found.training and found.facts == {}
    assert found.weights == tmp_path / "checkpoint-best.pth" and len(found.digest) == 64


def test_prefixed_copies_and_bare_state_dicts_load_too(tmp_path: Path) -> None:
    model = randomised()
    torch.save({f"module.{key}": value for key, value in model.state_dict().items()}, tmp_path / "copy.pth")
    save_file(model.state_dict(), tmp_path / "copy.safetensors")
    for name in ("copy.pth", "copy.safetensors"):
        found = load_finetuned(tmp_path / name, RANDOM).state_dict()
        assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


def test_the_encoder_is_recognised_by_its_size(tmp_path: Path) -> None:
    model = FineTuneModel(load_encoder_manifest("panderm_tiny"), 2)
    path = upstream_file(model, tmp_path / "tiny.pth")
    assert load_finetuned(path).encoder.name == "panderm_tiny"
    assert load_finetuned(path, "random_tiny").encoder.name == "random_tiny"
    with pytest.raises(TrainingError, match=r'96 wide.*write encoder="panderm_tiny"'):
        load_finetuned(path, "panderm_large")
    with pytest.raises(TrainingError, match="no encoder is 48 wide with 2 blocks of 3 heads"):
        load_finetuned(upstream_file(randomised(), tmp_path / "other.pth"))


class Code:
    """Writes a file if it is ever unpickled by the ordinary loader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("place", ["beside", "in the namespace", "among the tensors"])
def test_a_checkpoint_that_wants_code_is_refused_and_its_code_does_not_run(place: str, tmp_path: Path) -> None:
    mark, path, model = tmp_path / "mark", tmp_path / "checkpoint-best.pth", randomised()
    if place == "beside":
        upstream_file(model, path, surprise=Code(mark))
    elif place == "in the namespace":
        upstream_file(model, path, args=argparse.Namespace(lr=Code(mark)))
    else:
        upstream_file(model, path, model=model.state_dict() | {"surprise": Code(mark)})
    with pytest.raises(EncoderError, match=r"refused.*posix\.system.*None of it was run") as error:
        load_finetuned(path, RANDOM)
    assert "Namespace" not in str(error.value) and not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # so the file was armed


def test_what_does_not_fit_is_told_in_one_message(tmp_path: Path) -> None:
    tensors = randomised().state_dict()
    del tensors["cls_token"], tensors["blocks.0.attn.q_bias"]
    tensors |= {"surprise": torch.zeros(1), "pos_embed": torch.zeros(1, 577, WIDTH)}
    tensors["head.bias"] = torch.full((CLASSES,), torch.nan)
    tensors["blocks.1.attn.relative_position_index"] = torch.zeros(197, 197, dtype=torch.long)
    torch.save(tensors, tmp_path / "bad.pth")
    with pytest.raises(TrainingError) as error:
        load_finetuned(tmp_path / "bad.pth", RANDOM)
    message = str(error.value)
    for part in (
        "2 tensors are missing: cls_token, blocks.0.attn.q_bias",
        "1 tensors are unknown: surprise",
        "1 tensors are of another shape: pos_embed",
        "1 tensors are not finite (damaged or diverged): head.bias",
        "blocks.1.attn.relative_position_index orders relative positions differently",
        "best.safetensors",
    ):
        assert part in message


def test_pre_trained_weights_and_missing_files_are_sent_elsewhere(tmp_path: Path) -> None:
    torch.save(load_encoder(RANDOM).model.state_dict(), tmp_path / "encoder.pth")
    with pytest.raises(TrainingError, match=r"holds no fine-tuned PanDerm.*load_finetune_model"):
        load_finetuned(tmp_path / "encoder.pth")
    with pytest.raises(TrainingError, match="there is no such file"):
        load_finetuned(tmp_path / "nothing.pth")
    (tmp_path / "page.pth").write_text("<html>quota</html>")
    with pytest.raises(EncoderError, match=r"HTML page.*checkpoint-best\.pth"):
        load_finetuned(tmp_path / "page.pth")
