"""Encoders: both released layouts load and equal plain timm. Bad files are in test_hostile_inputs."""

import panderm_utils  # noqa: F401  first of all: makes torchvision, and so timm, importable

# isort: split
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.beit import Beit

from panderm_utils.encoders.checkpoints import file_digest
from panderm_utils.encoders.devices import precision_context
from panderm_utils.encoders.loading import (
    EncoderError,
    build_model,
    describe,
    fingerprint_image,
    load_encoder,
    same_fingerprint,
    tensors_digest,
)
from panderm_utils.encoders.state_dicts import match_tensors
from panderm_utils.manifests import load_encoder_manifest

pytestmark = pytest.mark.usefixtures("one_thread")

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTH, DEPTH, HEADS = 48, 2, 3
LARGE = replace(load_encoder_manifest("panderm_large"), width=WIDTH, depth=DEPTH, heads=HEADS, num_features=WIDTH)
BASE = replace(
    load_encoder_manifest("panderm_base"), width=WIDTH, depth=DEPTH, heads=HEADS, num_features=WIDTH, sha256=None
)


def released_shapes(width: int, depth: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a released base file, written out from the published description of the blocks."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 197, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 16, 16), "patch_embed.proj.bias": (width,)}
    for i in range(depth):
        block = {f"norm{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")}
        block |= {"gamma_1": (width,), "gamma_2": (width,), "attn.q_bias": (width,), "attn.v_bias": (width,)}
        block |= {"attn.qkv.weight": (3 * width, width)}
        block |= {"attn.proj.weight": (width, width), "attn.proj.bias": (width,)}
        block |= {"mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,)}
        block |= {"mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,)}
        shapes |= {f"blocks.{i}.{key}": shape for key, shape in block.items()}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def pretraining_shapes(width: int, blocks: int, tensors: int) -> dict[str, tuple[int, ...]]:
    """What the released large file holds beside its encoder; below a regressor block only the count is known."""
    shapes = {"mask_token": (1, 1, width), "rd_pos_embed": (1, 197, width)}
    shapes |= {"regresser.norm.weight": (width,), "regresser.norm.bias": (width,)}
    names = [f"regresser.regressor_blocks.{i}.tensor_{j}" for i in range(blocks) for j in range(tensors)]
    return shapes | dict.fromkeys(names, (width, width))


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.2 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def large_file(width: int = WIDTH, depth: int = DEPTH) -> dict[str, torch.Tensor]:
    encoder = {f"encoder.{key}": value for key, value in drawn(released_shapes(width, depth)).items()}
    return encoder | drawn(pretraining_shapes(width, blocks=2, tensors=3), seed=2)


def base_file(width: int = WIDTH, depth: int = DEPTH) -> dict[str, torch.Tensor]:
    return drawn(released_shapes(width, depth))


def plain_beit(tensors: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The features as timm alone computes them: all tokens after the final norm, the first of each image."""
    model = Beit(embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, init_values=1.0, num_classes=0, use_fc_norm=False)
    model.load_state_dict(tensors, strict=True)
    with torch.no_grad():
        return model.eval().forward_features(images)[:, 0]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(5, 3, 224, 224, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(("manifest", "tensors"), [(LARGE, large_file()), (BASE, base_file())], ids=["large", "base"])
def test_both_layouts_load_and_equal_plain_timm(manifest, tensors, suffix, images, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    save_file(tensors, path) if suffix == "safetensors" else torch.save(tensors, path)
    encoder = load_encoder(manifest, weights=path, device="cpu")
    features = encoder(images)
    assert features.shape == (5, WIDTH) and features.dtype == torch.float32 and encoder.num_features == WIDTH
    expected = plain_beit(base_file(), images)
    assert (features - expected).abs().max() < 1e-5 and expected.std() > 0.1
    one_by_one = torch.cat([encoder(image[None]) for image in images])
    assert (one_by_one - expected).abs().max() < 1e-5
    assert encoder.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_class_token_is_taken_not_a_mean_and_attention_is_fused(tmp_path: Path, images) -> None:
    torch.save(base_file(), tmp_path / "base.pth")
    encoder = load_encoder(BASE, weights=tmp_path / "base.pth", device="cpu")
    tokens = encoder.model.forward_features(images)
    assert torch.equal(encoder(images), tokens[:, 0])
    assert (encoder(images) - tokens[:, 1:].mean(1)).abs().max() > 0.1
    for block in encoder.model.blocks:
        assert block.attn.fused_attn and block.attn.relative_position_bias_table is None
    assert not encoder.training and not any(parameter.requires_grad for parameter in encoder.parameters())


def test_the_loading_table_accounts_for_every_tensor_of_the_file(tmp_path: Path) -> None:
    tensors = large_file()
    torch.save(tensors, tmp_path / "large.pth")
    table = load_encoder(LARGE, weights=tmp_path / "large.pth", device="cpu").loading
    assert table["tensors"].sum() == len(tensors)
    assert table["parameters"].sum() == sum(value.numel() for value in tensors.values())
    used = table[table["status"] == "used"].set_index("group")
    assert used.loc["encoder.blocks", "tensors"] == 15 * DEPTH
    aside = table[table["status"] == "left aside"].set_index("group")
    assert set(aside.index) == {"mask_token", "rd_pos_embed", "regresser"}
    assert aside["why"].str.len().min() > 10


@pytest.mark.parametrize(
    ("name", "tensors_in_file", "trainable"), [("panderm_large", 454, 303_412_743), ("panderm_base", 186, 85_767_367)]
)
def test_the_full_files_are_counted(name: str, tensors_in_file: int, trainable: int) -> None:
    """Key count of the released file; parameters against upstream's own fine-tuning logs with seven classes."""
    manifest = load_encoder_manifest(name)
    shapes = released_shapes(manifest.width, manifest.depth)
    if name == "panderm_large":
        shapes = {f"encoder.{key}": shape for key, shape in shapes.items()}
        shapes |= pretraining_shapes(manifest.width, blocks=4, tensors=21)
    assert len(shapes) == tensors_in_file
    with torch.device("meta"):
        model = build_model(manifest)
    tensors = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}  # no memory
    state, table = match_tensors(tensors, model, Path(manifest.weights_file), manifest)
    assert len(state) == 15 * manifest.depth + 6 and table["tensors"].sum() == tensors_in_file
    used = table.loc[(table["status"] == "used") & ~table["group"].str.endswith("pos_embed"), "parameters"].sum()
    assert used + manifest.depth * 732 * manifest.heads + 7 * (manifest.width + 1) == trainable


def test_half_precision_files_and_copies_without_the_prefix_load_too(tmp_path: Path, images) -> None:
    halves = {key: value.half() for key, value in base_file().items()}
    torch.save(halves, tmp_path / "halves.pth")
    encoder = load_encoder(LARGE, weights=tmp_path / "halves.pth", device="cpu")
    expected = plain_beit({key: value.float() for key, value in halves.items()}, images)
    assert (encoder(images) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("width", "depth", "prefix", "asked", "is_really"),
    [(768, 12, "", "panderm_large", "panderm_base"), (1024, 24, "encoder.", "panderm_base", "panderm_large")],
)
def test_the_wrong_size_class_is_named_with_the_name_to_type(width, depth, prefix, asked, is_really, tmp_path) -> None:
    shapes, path = released_shapes(width, depth), tmp_path / "weights.pth"
    torch.save({prefix + key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}, path)
    with pytest.raises(EncoderError, match="wrong size") as error:
        load_encoder(asked, weights=path, device="cpu")
    assert f'load_encoder("{is_really}")' in str(error.value)
    assert load_encoder_manifest(asked).weights_file in str(error.value)


def test_a_missing_file_is_asked_for_by_name_folder_and_source(tmp_path: Path) -> None:
    manifest = load_encoder_manifest("panderm_large")
    with pytest.raises(EncoderError) as error:
        load_encoder("panderm_large", weights_root=tmp_path)
    message = str(error.value)
    assert str(tmp_path / "panderm_ll_data6_checkpoint-499.pth") in message and "PANDERM_WEIGHTS_ROOT" in message
    assert manifest.access[0].url in message
    with pytest.raises(EncoderError, match="no such weights file"):
        load_encoder("panderm_large", weights=tmp_path / "elsewhere.pth")


def test_a_known_digest_is_compared_and_another_one_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / BASE.weights_file
    torch.save(base_file(), path)
    with pytest.warns(UserWarning, match="on trust"):
        load_encoder(replace(BASE, sha256="00" * 32), weights_root=tmp_path, device="cpu")
    known = replace(BASE, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert load_encoder(known, weights=tmp_path, device="cpu").digest == known.sha256
    released = "be1e0fb108b3bc58721cb5195f136c948160799438f222ac1ffd142230ac1ff1"
    assert load_encoder_manifest("panderm_base").sha256 == released


def test_what_a_record_keeps_of_an_encoder(tmp_path: Path) -> None:
    path = tmp_path / LARGE.weights_file
    torch.save(large_file(), path)
    encoder = load_encoder(LARGE, weights=path, device="cpu", precision="bf16")
    facts = describe(encoder)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["digest"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["fingerprint"] == encoder.fingerprint and facts["weights"] == str(path)
    assert (facts["device"], facts["precision"], facts["num_features"]) == ("cpu", "bf16", WIDTH)
    assert facts["tensors"] == {"used": 15 * DEPTH + 6, "left aside": 10}
    assert describe(load_encoder("random_tiny", device="cpu"))["weights"] is None


def test_the_digest_of_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = file_digest(path)
    path.write_bytes(b"three")
    assert first == hashlib.sha256(b"one").hexdigest() and file_digest(path) == hashlib.sha256(b"three").hexdigest()


ELSEWHERE = """
import json, sys
from panderm_utils.encoders.loading import EncoderError, load_encoder
import huggingface_hub
said = {"digest": load_encoder("random_tiny", device="cpu").digest}
for offline in (True, False):
    assert huggingface_hub.constants.HF_HUB_OFFLINE or not offline  # as the environment has it
    huggingface_hub.constants.HF_HUB_OFFLINE = offline
    try:
        load_encoder("dinov2_large", weights_root=sys.argv[1])
    except EncoderError as error:
        said["offline" if offline else "unconnected"] = str(error)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder without weights and what another process says, which is offline by the hub's own switch.

    Without the switch it would ask an address where nothing listens.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    ours = {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    inherited = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    command = [sys.executable, "-c", ELSEWHERE, folder]
    result = subprocess.run(command, cwd=REPOSITORY, env=inherited | ours, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return folder, json.loads(result.stdout)


def test_the_random_encoder_is_the_same_in_another_process_and_leaves_the_random_state_alone(elsewhere) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    encoder = load_encoder("random_tiny", device="cpu")
    assert torch.equal(torch.rand(3), expected)
    assert elsewhere[1]["digest"] == encoder.digest
    changed = dict(encoder.model.state_dict())
    changed["norm.bias"] = changed["norm.bias"] + 1e-6
    assert tensors_digest(changed) != encoder.digest
    with pytest.raises(EncoderError, match="random by design"):
        load_encoder("random_tiny", weights="some.pth")


def test_the_fingerprint_tells_models_apart_and_tolerates_noise(tmp_path: Path) -> None:
    tensors = base_file()
    noisy = {key: value * (1 + 1e-6 * torch.randn_like(value)) for key, value in tensors.items()}
    other = drawn(released_shapes(WIDTH, DEPTH), seed=9)
    prints = []
    for content, precision in ((tensors, "fp32"), (tensors, "bf16"), (noisy, "fp32"), (other, "fp32")):
        torch.save(content, tmp_path / "base.pth")
        encoder = load_encoder(BASE, weights=tmp_path / "base.pth", device="cpu", precision=precision)
        prints.append(encoder.fingerprint)
    assert prints[0] == prints[1]  # computed in float32 whatever the precision
    assert same_fingerprint(prints[0], prints[2]) and prints[0].split()[0] == prints[2].split()[0]
    assert not same_fingerprint(prints[0], prints[3]) and prints[0].split()[0] != prints[3].split()[0]
    expected = plain_beit(tensors, fingerprint_image()[None])[0, :8].numpy()
    assert np.abs(np.array(prints[0].split()[1:], dtype=float) - expected).max() < 1e-4


def test_the_fingerprint_image_is_fixed_to_the_bit() -> None:
    pixels = fingerprint_image() * torch.tensor([0.228, 0.224, 0.225])[:, None, None]
    pixels = pixels + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    levels = (pixels * 255).round().to(torch.uint8).numpy()
    assert hashlib.sha256(levels.tobytes()).hexdigest()[:16] == "8f0bc57ae4558f2a"


def test_reduced_precision_returns_float32_close_to_full_precision(images) -> None:
    full = load_encoder("random_tiny", device="cpu")(images)
    reduced = load_encoder("random_tiny", device="cpu", precision="bf16")(images)
    assert reduced.dtype == torch.float32 and not torch.equal(full, reduced)
    assert torch.nn.functional.cosine_similarity(full, reduced).min() > 0.9999


def test_devices_and_precisions_that_cannot_be_had_are_refused() -> None:
    with pytest.raises(EncoderError, match="use bf16 or fp32"):
        load_encoder("random_tiny", device="cpu", precision="fp16")
    with pytest.raises(EncoderError, match="valid are fp32, bf16, fp16"):
        load_encoder("random_tiny", device="cpu", precision="half")
    with pytest.raises(EncoderError, match='device "abacus" cannot be used'):
        load_encoder("random_tiny", device="abacus")


def test_swavderm_loads_its_layout_and_averages_the_last_stage(tmp_path: Path, images) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet50", num_classes=0)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    state |= {"module.projection_head.0.weight": torch.zeros(8, 2048), "module.prototypes.weight": torch.zeros(4, 8)}
    torch.save({"epoch": 1, "arch": "resnet50", "state_dict": state}, tmp_path / "swav.pth")
    encoder = load_encoder("swavderm_resnet50", weights=tmp_path / "swav.pth", device="cpu")
    with torch.no_grad():
        expected = model.eval().forward_features(images[:2]).mean((2, 3))
    assert encoder.num_features == 2048 and (encoder(images[:2]) - expected).abs().max() < 1e-5
    aside = encoder.loading.query("status == 'left aside'")
    assert set(aside["group"]) == {"module.projection_head", "module.prototypes"}


def test_timm_models_load_timms_own_file_from_the_weights_folder(tmp_path: Path, images) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    save_file(model.state_dict(), tmp_path / "vit_tiny_patch16_224.augreg_in21k.safetensors")
    encoder = load_encoder("timm:vit_tiny_patch16_224.augreg_in21k", weights_root=tmp_path, device="cpu")
    with torch.no_grad():
        expected = model.eval().forward_features(images)[:, 0]
    assert (encoder(images) - expected).abs().max() < 1e-5
    assert set(encoder.loading.query("status == 'left aside'")["group"]) == {"head"}


def test_timm_models_of_another_image_size_take_ours_and_dinov2_does() -> None:
    manifest = load_encoder_manifest("dinov2_large")
    assert manifest.timm_name == "vit_large_patch14_dinov2.lvd142m"
    small = replace(manifest, name="small", timm_name="vit_small_patch14_dinov2.lvd142m")
    model = build_model(small).eval()
    with torch.no_grad():
        tokens = model.forward_features(torch.ones(1, 3, 224, 224))
        assert tokens.shape == (1, 1 + 16 * 16, 384)  # 224 / 14 patches a side, resampled from 518 / 14
        assert torch.equal(model(torch.ones(1, 3, 224, 224)), tokens[:, 0])
    with pytest.raises(EncoderError, match="takes only images of 384 x 384"):
        build_model(replace(manifest, timm_name="beit_base_patch16_384"))


def test_full_float32_on_a_gpu_leaves_the_other_switches_of_cudnn(monkeypatch) -> None:
    """The switches exist without a GPU too."""
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "deterministic", True)
    monkeypatch.setattr(cudnn, "benchmark", True)
    with precision_context(torch.device("cuda"), "fp32"):
        assert (cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, cudnn.enabled) == (False, True, True, True)
    assert cudnn.allow_tf32 and cudnn.deterministic and cudnn.benchmark


def test_a_misspelt_timm_model_is_answered_with_near_names(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"near: .*timm:resnet50"):
        load_encoder("timm:resnet5o", weights_root=tmp_path)
    with pytest.raises(EncoderError, match=r"timm:resnet50\.a1_in1k"):
        load_encoder("timm:resnet50.nosuch", weights_root=tmp_path)


@pytest.mark.parametrize(
    ("case", "why"), [("offline", "HF_HUB_OFFLINE is set"), ("unconnected", "no connection to 127.0.0.1")]
)
def test_without_a_network_the_message_says_which_file_goes_where(case: str, why: str, elsewhere) -> None:
    folder, said = elsewhere
    assert f"put it here: {folder / load_encoder_manifest('dinov2_large').weights_file}" in said[case]
    assert "timm/vit_large_patch14_dinov2.lvd142m/resolve/main/model.safetensors" in said[case]
    assert why in said[case]
