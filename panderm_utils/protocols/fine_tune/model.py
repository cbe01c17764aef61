"""The model for fine-tuning: PanDerm's blocks with relative position biases, mean pooling of patches, and a head.

timm's `Beit` with the additions of the published fine-tuning: in each block a table of relative position biases
(732 x heads, initially zero), after the last block the mean of the 196 patch tokens, `fc_norm`, and a linear head.
Tensor names are those of upstream's fine-tuned checkpoints.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from timm.models.beit import Beit
from torch import Tensor

from panderm_utils.data import evaluation_transform
from panderm_utils.encoders import (
    LOADING_COLUMNS,
    PREFIXES,
    beit_settings,
    digest_of,
    is_finite,
    kind_mismatch,
    load_encoder,
    read_tensors,
    where_to_get,
)
from panderm_utils.manifests import EncoderManifest, list_encoders, load_encoder_manifest
from panderm_utils.protocols.fine_tune.recipe import FineTuneRecipe
from panderm_utils.protocols.training import TrainingError, read_facts

CLASSES = 10_000  # maximum in a fine-tuned file, so that a corrupt one cannot fill the memory
HEAD_STD = 0.02 * 0.001  # timm's truncation at +-2 is a hundred standard deviations away and never reached


class FineTuneModel(Beit):
    """Maps images [N, 3, 224, 224] to logits [N, K]; made by `load_finetune_model` or `load_finetuned`.

    Attributes:
        encoder: Manifest of the encoder that it was initialised from.
        weights, digest: File that it was read from, if any, and its SHA-256 (without a file, of all tensors).
        loading: One row per group of tensors: `group`, `tensors`, `parameters`, `status`, `why`.
        facts: Training facts in a checkpoint of ours; empty before training and for upstream's checkpoints.
    """

    def __init__(self, encoder: EncoderManifest, num_classes: int, drop_path: float = FineTuneRecipe.drop_path) -> None:
        if encoder.architecture != "beit":
            raise TrainingError(
                f"{encoder.name}: the published fine-tuning is for PanDerm only; choose a PanDerm encoder"
            )
        with torch.random.fork_rng(devices=[]):  # keeps the global random state
            super().__init__(
                **beit_settings(encoder),
                num_classes=num_classes,
                global_pool="avg",  # with fc_norm: the mean of the patch tokens, then the norm
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
    """Returns the initial model for fine-tuning, from an encoder's released weights.

    The encoder's final `norm` becomes `fc_norm`; the relative position tables are zero; the head is initialised from
    `seed`, truncated normal with standard deviation 0.02 * 0.001.

    Args:
        name: An encoder of data_manifests/encoders.yaml or a manifest, with PanDerm's architecture.
        num_classes: K.
        weights, weights_root: As in `load_encoder`.
        drop_path: Rate in the last block, rising linearly from 0 in the first.
        seed: Seed of the head, drawn by NumPy so that it is the same in every process.

    Raises:
        TrainingError: Not PanDerm's architecture. EncoderError: the weights are missing or invalid.
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
    """Returns a fine-tuned model for evaluation or further training; no code in the file is executed.

    Args:
        path: Our `best.safetensors`, or upstream's `checkpoint-best.pth` (a state dict under `model`, beside an
            `argparse.Namespace`).
        encoder: The encoder that it was initialised from; by default the one in the file, or the one of its size.

    Returns:
        The model in eval mode, with as many classes as the file's head.

    Raises:
        TrainingError: The file is missing, or its tensors are not those of a fine-tuned PanDerm. EncoderError: the file
            is damaged or contains code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise TrainingError(f"{path}: there is no such file. {where_to_get(None)}")
    with digest_of(path) as digest:
        model = _read_model(path, encoder)
    model.weights, model.digest = path, digest
    return model.eval()


def _read_model(path: Path, encoder: str | EncoderManifest | None) -> FineTuneModel:
    tensors, facts = read_tensors(path, None), read_facts(path)
    # copies of checkpoints may have a prefix such as `module.`
    prefix = next((prefix for prefix in PREFIXES.values() if f"{prefix}head.weight" in tensors), "")
    tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    if "head.weight" not in tensors or "fc_norm.weight" not in tensors:
        raise TrainingError(
            f"{path}: holds no fine-tuned PanDerm (no `head.weight` or `fc_norm.weight` among {len(tensors)} tensors)."
            f" {where_to_get(None)} For pre-trained weights use load_finetune_model."
        )
    head, norm = (list(tensors[key].shape) for key in ("head.weight", "fc_norm.weight"))
    if len(norm) != 1 or head[1:] != norm or head[0] > CLASSES:
        valid = f"should be [classes, width], up to {CLASSES:,} classes, and [width]"
        raise TrainingError(f"{path}: head.weight is {head}, fc_norm.weight {norm}; {valid}. {where_to_get(None)}")
    if isinstance(encoder, str):
        encoder = load_encoder_manifest(encoder)
    manifest = _manifest_of(tensors, encoder, facts.get("encoder"), path)
    model = FineTuneModel(manifest, len(tensors["head.weight"]), facts.get("drop_path", FineTuneRecipe.drop_path))
    _fill(model, tensors, path)
    model.facts = facts
    return model


def describe(model: FineTuneModel) -> dict:
    """Returns the facts about the model's origin for a record, JSON-serializable."""
    return {
        "title": model.encoder.title,
        "weights": str(model.weights) if model.weights else None,
        "digest": model.digest,
        "num_features": model.num_features,
        "num_classes": model.num_classes,
        "trained_parameters": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "transform": repr(evaluation_transform()),
        "tensors": model.loading.groupby("status", sort=False)["tensors"].sum().to_dict(),
    }


def _is_table(key: str) -> bool:
    return key.endswith("relative_position_bias_table")


def _count(tensors) -> int:
    return sum(value.numel() for value in tensors)


def _manifest_of(
    tensors: dict[str, Tensor], encoder: EncoderManifest | None, name: str | None, path: Path
) -> EncoderManifest:
    """Returns the manifest of a fine-tuned model: the one passed, the one the file names, or one of its size."""
    width = tensors["fc_norm.weight"].shape[-1]
    depth = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
    heads = next((value.shape[-1] for key, value in tensors.items() if _is_table(key) and value.ndim), 0)
    encoders = [load_encoder_manifest(other) for other in list_encoders()]
    alike = {m.name: m for m in encoders if (m.width, m.depth, m.heads) == (width, depth, heads)}
    size = f"{width} wide with {depth} blocks of {heads} heads"
    if encoder is not None and (encoder.width, encoder.depth, encoder.heads) != (width, depth, heads):
        hint = f'; it has the size of {next(iter(alike))}: write encoder="{next(iter(alike))}"' if alike else ""
        expected = f"{encoder.width} wide with {encoder.depth} blocks of {encoder.heads} heads"
        raise TrainingError(f"{path}: {size}, {encoder.name} is {expected}{hint}")
    if encoder is not None or name in alike:
        return encoder or alike[name]
    if name is not None:  # the user's own manifest: the model needs only its name and sizes
        facts = {"width": width, "depth": depth, "heads": heads, "num_features": width}
        return EncoderManifest(name, name, architecture="beit", layout="plain", licence="", **facts)
    if not alike:
        raise TrainingError(f"{path}: no encoder is {size}: name one with `encoder`")
    return next(iter(alike.values()))


def _fill(model: FineTuneModel, tensors: dict[str, Tensor], path: Path) -> None:
    """Loads strictly; one message lists everything that does not fit."""
    expected, problems = model.state_dict(), []
    # Upstream stores the index of the tables as a buffer; timm computes it.
    index = {f"blocks.{b}.attn.relative_position_index": block.attn for b, block in enumerate(model.blocks)}
    for key in [key for key in tensors if key in index]:
        if not torch.equal(tensors[key].long(), index[key].relative_position_index):
            problems.append(f"{key} orders relative positions differently")
    fit = {k: tensors[k] for k, value in expected.items() if k in tensors and tensors[k].shape == value.shape}
    not_float = [k for k, value in fit.items() if kind_mismatch(value, expected[k])]
    wrong = {
        "missing": [key for key in expected if key not in tensors],
        "unknown": [key for key in tensors if key not in expected and key not in index],
        "of another shape": [k for k, value in expected.items() if k in tensors and tensors[k].shape != value.shape],
        "not plain floating-point numbers": not_float,
        "not finite (damaged or diverged)": [k for k, v in fit.items() if k not in not_float and not is_finite(v)],
    }
    for what, keys in wrong.items():
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            problems.append(f"{len(keys)} tensors are {what}: {', '.join(keys[:3])}{more}")
    if problems:
        raise TrainingError(f"{path}: does not fit {model.encoder.name}: {'. '.join(problems)}. {where_to_get(None)}")
    model.load_state_dict({key: tensors[key] for key in expected}, strict=True)
    row = ("all", len(expected), _count(expected.values()), "used", "fine-tuned")
    model.loading = pd.DataFrame([row], columns=LOADING_COLUMNS)
