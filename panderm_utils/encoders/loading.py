"""Loads an encoder by name: a timm model that maps images [N, 3, 224, 224] to features [N, D].

N is the number of images, D the encoder's width. PanDerm's blocks are BEiT blocks, and timm's `Beit` has the same
parameter names as the released files; linear probing uses the class token after the final norm, without relative
position bias. The baselines are timm models. Attention is fused, as timm has it.
"""

import hashlib
import sys
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from timm.models.beit import Beit
from torch import Tensor, nn

from panderm_utils.data import EVALUATION_MEAN, EVALUATION_STD, evaluation_transform
from panderm_utils.encoders.checkpoints import EncoderError, check_digest, digest_of, read_tensors
from panderm_utils.encoders.devices import check_precision, choose_device, precision_context
from panderm_utils.encoders.state_dicts import LOADING_COLUMNS, check_size, match_tensors
from panderm_utils.encoders.weights import find_weights, timm_settings
from panderm_utils.manifests import EncoderManifest, load_encoder_manifest

IMAGE_SIZE = 224
RANDOM_SEED = 0  # for encoders without weights, so that a random encoder is the same everywhere

# Fingerprints of one model agree to about 1e-5 in float32 on any device; other weights differ by about 1.
FINGERPRINT_TOLERANCE = 2e-3


class Encoder(nn.Module):
    """A frozen encoder with its provenance; made by `load_encoder`.

    Attributes:
        manifest: The encoder's manifest; also `name`.
        num_features: D, the width of its features.
        transform: PIL image -> float32 [3, 224, 224], the published evaluation transform.
        weights: The file that was loaded, or None.
        digest: SHA-256 in hexadecimal of that file, or of all tensors if there is no file.
        device, precision: Where and how it computes.
        loading: One row per group of tensors: `group`, `tensors`, `parameters`, `status`, `why`.
    """

    def __init__(
        self,
        manifest: EncoderManifest,
        model: nn.Module,
        device: torch.device,
        precision: str,
        weights: Path | None,
        digest: str,
        loading: pd.DataFrame,
    ) -> None:
        super().__init__()
        self.manifest, self.name = manifest, manifest.name
        self.model = model.requires_grad_(False).to(device)
        self.num_features = getattr(model, "head_hidden_size", model.num_features)
        self.transform = evaluation_transform()
        self.device, self.precision = device, precision
        self.weights, self.digest, self.loading = weights, digest, loading
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Maps images [N, 3, 224, 224] on any device to float32 features [N, D] on the encoder's device."""
        return self._features(images, self.precision)

    @torch.no_grad()  # not inference_mode: a probe may be trained on these features
    def _features(self, images: Tensor, precision: str) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        with precision_context(self.device, precision):
            return self.model(images).float()

    @cached_property
    def fingerprint(self) -> str:
        """Returns a short hash and the first eight features of one fixed drawn image, in float32.

        Two labs with the same model get the same values within FINGERPRINT_TOLERANCE on any device; compare them with
        `same_fingerprint`. The hash, of 16 features rounded to half a standard deviation, is for human readers: noise
        of 1e-4 changes it for about one model in a hundred; then the values decide.
        """
        features = self._features(fingerprint_image()[None], "fp32")[0].cpu().double().numpy()
        spread = features[np.linspace(0, len(features) - 1, 16).astype(int)] / features.std()
        coarse = np.round(2 * spread).astype(int).tolist()
        values = " ".join(f"{value:+.4f}" for value in features[:8])
        return f"{hashlib.sha256(repr(coarse).encode()).hexdigest()[:8]} {values}"

    def __repr__(self) -> str:
        millions = sum(value.numel() for value in self.parameters()) / 1e6
        size = f"{millions:.1f} M parameters, {self.num_features} features"
        return f"Encoder({self.name}: {size}, {self.precision} on {self.device}, digest {self.digest[:12]})"


def load_encoder(
    name: str | EncoderManifest,
    weights: str | Path | None = None,
    device: str = "auto",
    precision: str = "fp32",
    weights_root: str | Path | None = None,
) -> Encoder:
    """Returns a frozen encoder.

    Args:
        name: An encoder of data_manifests/encoders.yaml, "timm:<model name>" for any timm model, or your own manifest.
        weights: The weights file, or its folder; by default the manifest's file below `weights_root`.
        device: "auto" (a GPU if there is one), or a torch device: "cpu", "cuda", "cuda:1", "mps".
        precision: "fp32"; "bf16" or "fp16" compute in autocast, features stay float32.
        weights_root: By default PANDERM_WEIGHTS_ROOT, else the repository's weights folder.

    Raises:
        EncoderError: The weights file is missing or wrong, or the device or precision is not available.
        ManifestError: No encoder has that name.
    """
    manifest = name if isinstance(name, EncoderManifest) else load_encoder_manifest(name)
    torch_device = choose_device(device)
    check_precision(precision, torch_device)
    if manifest.layout == "none":
        if weights is not None:
            raise EncoderError(f"{weights}: {manifest.name} is random by design; omit `weights`.")
        model = build_model(manifest)
        _draw_weights(model)
        tensors = model.state_dict()
        count = sum(value.numel() for value in tensors.values())
        row = ("all", len(tensors), count, "random", f"drawn from seed {RANDOM_SEED}; there is no file")
        loading = pd.DataFrame([row], columns=LOADING_COLUMNS)
        return Encoder(manifest, model, torch_device, precision, None, tensors_digest(tensors), loading)
    path = find_weights(manifest, weights, weights_root)
    with digest_of(path) as digest:
        tensors = read_tensors(path, manifest)
        check_size(tensors, path, manifest)
        model = build_model(manifest)
        family = sys.modules[type(model).__module__]  # timm's, which may translate the original names of tensors
        convert = getattr(family, "checkpoint_filter_fn", None) if manifest.layout == "timm" else None
        state, loading = match_tensors(tensors, model, path, manifest, convert)
        model.load_state_dict(state, strict=True)
    check_digest(digest, path, manifest)
    return Encoder(manifest, model, torch_device, precision, path, digest, loading)


def describe(encoder: Encoder) -> dict:
    """Returns what a record keeps of its encoder, JSON-serialisable: file, digest, fingerprint, device and precision.

    Compare the fingerprints of two labs with `same_fingerprint`.
    """
    gpu = torch.cuda.get_device_name(encoder.device) if encoder.device.type == "cuda" else None
    return {
        "title": encoder.manifest.title,
        "weights": str(encoder.weights) if encoder.weights else None,
        "digest": encoder.digest,
        "fingerprint": encoder.fingerprint,
        "num_features": encoder.num_features,
        "transform": repr(encoder.transform),
        "device": str(encoder.device),
        "device_name": gpu,
        "precision": encoder.precision,
        "tensors": encoder.loading.groupby("status", sort=False)["tensors"].sum().to_dict(),
    }


def beit_settings(manifest: EncoderManifest) -> dict:
    """Returns timm's settings of PanDerm's blocks."""
    return {
        "img_size": IMAGE_SIZE,
        "patch_size": 16,
        "embed_dim": manifest.width,
        "depth": manifest.depth,
        "num_heads": manifest.heads,
        "qkv_bias": True,
        "init_values": 0.1,
    }


def build_model(manifest: EncoderManifest, drop_path: float = 0.0) -> nn.Module:
    """Returns timm's model without its head, with random weights; keeps the caller's random state.

    Args:
        drop_path: Rate of stochastic depth in the last block, rising linearly from 0 in the first.

    Raises:
        EncoderError: timm has no model of that name, or it does not accept images of 224 x 224 pixels.
    """
    with torch.random.fork_rng(devices=[]):
        if manifest.architecture == "beit":
            # without fc_norm: the class token after the final norm
            return Beit(**beit_settings(manifest), num_classes=0, global_pool="token", drop_path_rate=drop_path)
        published = timm_settings(manifest)
        resample = published is not None and published.fixed_input_size and published.input_size[-1] != IMAGE_SIZE
        try:
            # Positions of another image size are resampled at each forward pass, as the DINOv2 baseline does.
            options = {"dynamic_img_size": True} if resample else {}
            options |= {"drop_path_rate": drop_path} if drop_path else {}
            return timm.create_model(manifest.timm_name, num_classes=0, **options)
        except TypeError as error:
            raise EncoderError(
                f"{manifest.name}: this timm model takes only images of {published.input_size[-1]} x"
                f" {published.input_size[-1]} pixels, not of {IMAGE_SIZE} x {IMAGE_SIZE}; choose a variant that does:"
                f' timm.list_models("*{IMAGE_SIZE}*").'
            ) from error


def _draw_weights(model: Beit) -> None:
    """Draws the weights of a random encoder: normal, scaled so that each layer preserves its input's variance.

    With timm's own 0.02 features would be nearly constant: too weak a baseline. Drawn by NumPy: torch's truncated
    normal differed in the last digits in about one process start of 25, which would change the encoder's digest and
    the last digits of a repeated run.
    """
    generator = np.random.default_rng(RANDOM_SEED)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                drawn = generator.standard_normal(tuple(parameter.shape), dtype=np.float32)
                scale = 0.02 if name in ("cls_token", "pos_embed") else parameter[0].numel() ** -0.5
                parameter.copy_(torch.from_numpy(drawn * np.float32(scale)))
        model.patch_embed.proj.bias.zero_()  # the one bias that timm draws


def arbitrary_weights(model: nn.Module, device: torch.device) -> nn.Module:
    """Returns a model of the device "meta" on another one, for timing alone.

    Its random values keep activations of ordinary size, as processors are slow where these nearly vanish.
    """
    model.to_empty(device=device)
    for value in (*model.parameters(), *model.buffers()):
        if value.ndim > 1 and value.is_floating_point():
            value.data.normal_(std=value[0].numel() ** -0.5)
        else:
            value.data.fill_(1)
    return model


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """Returns the SHA-256 of names, shapes and values, in name order."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(f"{key} {tuple(tensors[key].shape)} {tensors[key].dtype}".encode())
        digest.update(tensors[key].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def fingerprint_image() -> Tensor:
    """Returns the fingerprint's fixed image, a mole on skin: float32 [3, 224, 224], normalised as for evaluation.

    Drawn in whole numbers, so it is bit-identical on every machine.
    """
    y, x = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE]
    distance = (x - 118) ** 2 + 2 * (y - 104) ** 2
    mole = np.clip(12000 - distance - 60 * ((3 * x + 5 * y) % 31), 0, 6000)
    skin = 200 + (x + y) // 16
    pixels = np.stack([skin - mole // 50, skin - 40 - mole // 60, skin - 70 - mole // 90])
    scaled = torch.from_numpy(pixels.astype(np.uint8)).float() / 255
    mean, std = torch.tensor(EVALUATION_MEAN), torch.tensor(EVALUATION_STD)
    return (scaled - mean[:, None, None]) / std[:, None, None]


def same_fingerprint(first: str, second: str) -> bool:
    """Returns whether two fingerprints are of one model: all values agree within FINGERPRINT_TOLERANCE."""
    values = [np.array(text.split()[1:], dtype=float) for text in (first, second)]
    return len(values[0]) == len(values[1]) and bool(np.abs(values[0] - values[1]).max() < FINGERPRINT_TOLERANCE)
