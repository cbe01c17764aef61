"""The model that fine-tuning trains: PanDerm's blocks with relative positions, the mean of the patches, and a head.

timm's `Beit` again, with what the published fine-tuning adds: in each block a table of relative position biases
(732 x heads, from zero), after the last block the mean of the 196 patch tokens, `fc_norm`, and a linear head. Its
tensors have the very names of upstream's fine-tuned checkpoints.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from timm.models.beit import Beit
from torch import Tensor

from panderm_utils.data import evaluation_transform
from panderm_utils.encoders import (
    IMAGE_SIZE,
    LOADING_COLUMNS,
    PREFIXES,
    digest_of,
    is_finite,
    kind_mismatch,
    load_encoder,
    read_tensors,
    where_to_get,
)
from panderm_utils.manifests import EncoderManifest, list_encoders, load_encoder_manifest
from panderm_utils.protocols.fine_tune.recipe import FineTuneError, FineTuneRecipe

CLASSES = 10_000  # that a fine-tuned file may have: one that claims more would fill the memory
HEAD_STD = 0.02 * 0.001  # timm's truncation at +-2 is a hundred standard deviations away: no draw ever meets it
METADATA = "panderm_utils"  # the entry of a safetensors header under which ours is


class FineTuneModel(Beit):
    """Maps images [N, 3, 224, 224] to logits [N, K]; made by `load_finetune_model` or `load_finetuned`.

    Attributes:
        encoder: the manifest of the encoder that it began as.
        weights, digest: the file that it was read from, if any, and its SHA-256 (of all tensors where there is none).
        loading: one row per group of tensors: `group`, `tensors`, `parameters`, `status`, `why`.
        facts: what a checkpoint of ours says of its training; empty before training and for upstream's.
    """

    def __init__(self, encoder: EncoderManifest, num_classes: int, drop_path: float = FineTuneRecipe.drop_path) -> None:
        if encoder.architecture != "beit":
            raise FineTuneError(f"{encoder.name}: the published fine-tuning is PanDerm's; choose a PanDerm encoder")
        with torch.random.fork_rng(devices=[]):  # the caller's random state is left as it was
            super().__init__(
                img_size=IMAGE_SIZE,
                patch_size=16,
                embed_dim=encoder.width,
                depth=encoder.depth,
                num_heads=encoder.heads,
                num_classes=num_classes,
                global_pool="avg",  # with fc_norm: the mean of the patch tokens, then the norm
                qkv_bias=True,
                init_values=0.1,
                use_rel_pos_bias=True,
                drop_path_rate=drop_path,
            )
        self.pos_embed.requires_grad_(False)  # a fixed sine-cosine table
        self.encoder, self.weights, self.digest = encoder, None, None
        self.loading, self.facts = pd.DataFrame(columns=LOADING_COLUMNS), {}

    def __repr__(self) -> str:
        trained = sum(value.numel() for value in self.parameters() if value.requires_grad)
        return f"FineTuneModel({self.encoder.name}: {trained:,} trained parameters, {self.num_classes} classes)"


def load_finetune_model(
    name: str | EncoderManifest,
    num_classes: int,
    weights: str | Path | None = None,
    weights_root: str | Path | None = None,
    drop_path: float = FineTuneRecipe.drop_path,
    seed: int = 0,
) -> FineTuneModel:
    """Makes the model that fine-tuning begins with, from an encoder's released weights.

    The encoder's final `norm` becomes `fc_norm`; the relative position tables are zero; the head is drawn from `seed`,
    truncated normal 0.02 * 0.001.

    Args:
        name: an encoder of data_manifests/encoders.yaml or a manifest of your own, of PanDerm's architecture.
        num_classes: K.
        weights, weights_root: as in `load_encoder`.
        drop_path: of the last block, rising linearly from 0 in the first.
        seed: of the head; drawn by NumPy, so that it is the same in every process.

    Raises:
        FineTuneError: Not PanDerm's architecture. EncoderError: the weights are missing or not what they should be.
    """
    manifest = name if isinstance(name, EncoderManifest) else load_encoder_manifest(name)
    model = FineTuneModel(manifest, num_classes, drop_path)
    encoder = load_encoder(manifest, weights, "cpu", weights_root=weights_root)
    state = {
        key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key: value
        for key, value in encoder.model.state_dict().items()
    }
    drawn = np.random.default_rng(seed).standard_normal((num_classes, manifest.width), dtype=np.float32)
    state["head.weight"] = torch.from_numpy(drawn * np.float32(HEAD_STD))
    state["head.bias"] = torch.zeros(num_classes)
    tables = {key: torch.zeros_like(value) for key, value in model.state_dict().items() if _is_table(key)}
    model.load_state_dict(state | tables, strict=True)
    model.weights, model.digest = encoder.weights, encoder.digest
    loading = encoder.loading.copy()
    loading.loc[loading["why"] == "the final norm", "why"] = "the final norm, now fc_norm"
    new = [
        ("relative_position_bias_table", len(tables), _count(tables.values()), "new", "starts at zero"),
        ("head", 2, _count([state["head.weight"], state["head.bias"]]), "new", f"drawn from seed {seed}, nearly zero"),
    ]
    model.loading = pd.concat([loading, pd.DataFrame(new, columns=LOADING_COLUMNS)], ignore_index=True)
    return model


def load_finetuned(path: str | Path, encoder: str | EncoderManifest | None = None) -> FineTuneModel:
    """Reads a fine-tuned model, to be scored or trained on; nothing in the file is executed.

    Args:
        path: `best.safetensors` of ours, or `checkpoint-best.pth` of upstream's (a state dict under `model`, an
            `argparse.Namespace` beside it).
        encoder: what it began as; by default what the file says, or the encoder of its size.

    Returns:
        The model in eval mode, with as many classes as the file's head.

    Raises:
        FineTuneError: The tensors are not those of a fine-tuned PanDerm. EncoderError: the file is missing, damaged, or
            wants to run code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FineTuneError(f"{path}: there is no such file. {where_to_get(None)}")
    with digest_of(path) as digest:
        model = _read_model(path, encoder)
    model.weights, model.digest = path, digest
    return model.eval()


def _read_model(path: Path, encoder: str | EncoderManifest | None) -> FineTuneModel:
    tensors, facts = read_tensors(path, None), read_facts(path)
    tensors = _without_prefix(tensors)
    if "head.weight" not in tensors or "fc_norm.weight" not in tensors:
        raise FineTuneError(
            f"{path}: holds no fine-tuned PanDerm (no `head.weight` or `fc_norm.weight` among {len(tensors)} tensors)."
            f" {where_to_get(None)} Pre-trained weights are for load_finetune_model."
        )
    head, norm = (list(tensors[key].shape) for key in ("head.weight", "fc_norm.weight"))
    if len(norm) != 1 or head[1:] != norm or head[0] > CLASSES:
        wanted = f"should be [classes, width], up to {CLASSES:,} classes, and [width]"
        raise FineTuneError(f"{path}: head.weight is {head}, fc_norm.weight {norm}; {wanted}. {where_to_get(None)}")
    if isinstance(encoder, str):
        encoder = load_encoder_manifest(encoder)
    manifest = _manifest_of(tensors, encoder, facts.get("encoder"), path)
    model = FineTuneModel(manifest, len(tensors["head.weight"]), facts.get("drop_path", FineTuneRecipe.drop_path))
    _fill(model, tensors, path)
    model.facts = facts
    return model


def read_facts(path: Path) -> dict:
    """Returns what a safetensors file of ours says of itself; empty for any other file."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get(METADATA, "{}"))


def describe(model: FineTuneModel) -> dict:
    """Returns the facts that a record keeps of the model's origin, JSON-able."""
    counts = model.loading.groupby("status", sort=False)["tensors"].sum()
    return {
        "title": model.encoder.title,
        "weights": str(model.weights) if model.weights else None,
        "digest": model.digest,
        "num_features": model.num_features,
        "num_classes": model.num_classes,
        "trained_parameters": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "transform": repr(evaluation_transform()),
        "tensors": {status: int(count) for status, count in counts.items()},
    }


def _is_table(key: str) -> bool:
    return key.endswith("relative_position_bias_table")


def _count(tensors) -> int:
    return sum(value.numel() for value in tensors)


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes a prefix such as `module.`, which copies of checkpoints may have, off the names."""
    prefix = next((prefix for prefix in PREFIXES.values() if f"{prefix}head.weight" in tensors), "")
    return {key.removeprefix(prefix): value for key, value in tensors.items()}


def _manifest_of(
    tensors: dict[str, Tensor], given: EncoderManifest | None, name: str | None, path: Path
) -> EncoderManifest:
    """Returns what a fine-tuned model began as: the manifest given, the one the file names, or one of its size."""
    width = tensors["fc_norm.weight"].shape[-1]
    depth = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
    heads = next((value.shape[-1] for key, value in tensors.items() if _is_table(key) and value.ndim), 0)
    known = [load_encoder_manifest(other) for other in list_encoders()]
    alike = {m.name: m for m in known if (m.width, m.depth, m.heads) == (width, depth, heads)}
    size = f"{width} wide with {depth} blocks of {heads} heads"
    if given is not None and (given.width, given.depth, given.heads) != (width, depth, heads):
        hint = f'; it has the size of {next(iter(alike))}: write encoder="{next(iter(alike))}"' if alike else ""
        theirs = f"{given.width} wide with {given.depth} blocks of {given.heads} heads"
        raise FineTuneError(f"{path}: {size}, {given.name} is {theirs}{hint}")
    if given is not None or name in alike:
        return given or alike[name]
    if name is not None:  # a manifest of one's own: name and sizes are all that the model needs
        facts = {"width": width, "depth": depth, "heads": heads, "num_features": width}
        return EncoderManifest(name, name, architecture="beit", layout="plain", licence="", **facts)
    if not alike:
        raise FineTuneError(f"{path}: no encoder is {size}: name one with `encoder`")
    return next(iter(alike.values()))


def _fill(model: FineTuneModel, tensors: dict[str, Tensor], path: Path) -> None:
    """Loads strictly; all that does not fit is in one message."""
    expected, problems = model.state_dict(), []
    # Upstream keeps the index of the tables as a buffer; timm computes the same.
    index = {f"blocks.{b}.attn.relative_position_index": block.attn for b, block in enumerate(model.blocks)}
    for key in [key for key in tensors if key in index]:
        if not torch.equal(tensors[key].long(), index[key].relative_position_index):
            problems.append(f"{key} orders relative positions in another way")
    fit = {k: tensors[k] for k, value in expected.items() if k in tensors and tensors[k].shape == value.shape}
    strange = [k for k, value in fit.items() if kind_mismatch(value, expected[k])]
    wrong = {
        "missing": [key for key in expected if key not in tensors],
        "unknown": [key for key in tensors if key not in expected and key not in index],
        "of another shape": [k for k, value in expected.items() if k in tensors and tensors[k].shape != value.shape],
        "no plain floating-point numbers": strange,
        "not finite (damaged or diverged)": [k for k, v in fit.items() if k not in strange and not is_finite(v)],
    }
    for what, keys in wrong.items():
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            problems.append(f"{len(keys)} tensors are {what}: {', '.join(keys[:3])}{more}")
    if problems:
        raise FineTuneError(f"{path}: does not fit {model.encoder.name}: {'. '.join(problems)}. {where_to_get(None)}")
    model.load_state_dict({key: tensors[key] for key in expected}, strict=True)
    row = ("all", len(expected), _count(expected.values()), "used", "fine-tuned")
    model.loading = pd.DataFrame([row], columns=LOADING_COLUMNS)
