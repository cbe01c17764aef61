"""Matches the tensors of a weights file to a model, strictly, with a table of what was used, left aside, and why."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from panderm_utils.encoders.checkpoints import EncoderError, finetuned_message, where_to_get
from panderm_utils.manifests import EncoderManifest, list_encoders, load_encoder_manifest

LOADING_COLUMNS = ["group", "tensors", "parameters", "status", "why"]

# Prefix of tensor names in each layout (see EncoderManifest.layout).
PREFIXES = {"encoder_prefix": "encoder.", "module_prefix": "module."}

# Tensors of released files that do not belong to the encoder, by the first part of their name.
LEFT_ASIDE = {
    "mask_token": "replaces hidden patches during pre-training; unused afterwards",
    "rd_pos_embed": "positions of the pre-training head",
    "regresser": "pre-training head that predicts hidden patches; features are taken before it",
    "regressor": "pre-training head that predicts hidden patches; features are taken before it",
    "projection_head": "clustering head of SwAV's pre-training; features are taken before it",
    "prototypes": "clustering head of SwAV's pre-training; features are taken before it",
    "head": "classifier of the pre-training classes; features are taken before it",
    "fc": "classifier of the pre-training classes; features are taken before it",
    "classifier": "classifier of the pre-training classes; features are taken before it",
}

# The parts of PanDerm's encoder.
USED = {
    "cls_token": "the class token: its output after the final norm is the feature",
    "pos_embed": "fixed sine-cosine position embedding, loaded, never trained",
    "patch_embed": "turns each patch of 16 x 16 pixels into a token",
    "blocks": "the transformer blocks",
    "norm": "the final norm",
}

# Tensor names that occur only in fine-tuned PanDerm models.
FINE_TUNED = re.compile(r"(^|\.)(fc_norm|head)\.|relative_position_bias_table")


def check_size(tensors: dict[str, Tensor], path: Path, manifest: EncoderManifest) -> None:
    """Checks the size class of a file by its width and depth, before a model is built for it.

    Raises:
        EncoderError: The file is a vision transformer of another width or depth than the manifest's.
    """
    token = next((key for key in tensors if key.endswith("cls_token")), None)
    if token is None or manifest.architecture != "beit":
        return
    width = next(iter(tensors[token].shape[::-1]), 0)
    blocks = token.removesuffix("cls_token") + "blocks."
    depth = len({key.removeprefix(blocks).split(".")[0] for key in tensors if key.startswith(blocks)})
    if (width, depth) == (manifest.width, manifest.depth):
        return
    encoders = [load_encoder_manifest(name) for name in list_encoders()]
    names = [m.name for m in encoders if m.architecture == "beit" and (m.width, m.depth) == (width, depth)]
    hint = f' It has the size of {names[0]}: load it with load_encoder("{names[0]}").' if names else ""
    raise EncoderError(
        f"{path}: wrong size: the file is {width} wide with {depth} blocks, {manifest.name} is {manifest.width} wide"
        f" with {manifest.depth} blocks.{hint} {where_to_get(manifest)}"
    )


def match_tensors(
    tensors: dict[str, Tensor],
    model: torch.nn.Module,
    path: Path,
    manifest: EncoderManifest,
    convert: Callable[[dict[str, Tensor], torch.nn.Module], dict[str, Tensor]] | None = None,
) -> tuple[dict[str, Tensor], pd.DataFrame]:
    """Returns a state dict for a model from a file's tensors, strictly, and a table of what was used.

    Args:
        tensors: What `read_tensors` returned.
        model: The encoder to load them into.
        path: The file, for messages.
        manifest: The expected encoder.
        convert: Translates other names into the model's; only called if the names do not match.

    Returns:
        The state dict, and a table with one row per group of names: `group`, `tensors`, `parameters`, `status` ("used"
        or "left aside"), `why`. Every tensor of the file is in one row.

    Raises:
        EncoderError: A fine-tuned state dict, or tensors that are missing, unknown, of another shape or not finite; the
            message lists all of these.
    """
    expected = model.state_dict()
    declared = PREFIXES.get(manifest.layout, "")
    # The declared layout comes first, so it wins a tie; a converted copy without the prefix is accepted too.
    prefixes = dict.fromkeys([declared, "", *PREFIXES.values()])
    prefix = max(prefixes, key=lambda text: sum(text + key in tensors for key in expected))
    inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if manifest.architecture == "beit" and (found := [key for key in inside if FINE_TUNED.search(key)]):
        raise EncoderError(finetuned_message(path, manifest, set(found[:3])))
    if convert is not None and not expected.keys() <= inside.keys():
        inside = convert(inside, model)

    problems = []
    missing = [key for key in expected if key not in inside and not key.endswith("num_batches_tracked")]
    if len(missing) == len(expected):
        raise EncoderError(
            f"{path}: contains none of the {len(expected)} tensors of {manifest.name} (it has"
            f" {_first(list(tensors)) or 'none'}): a file of another architecture. {where_to_get(manifest)}"
        )
    if missing:
        problems.append(f"{len(missing)} of {len(expected)} tensors are missing: {_first(missing)}")
    surplus = [key for key in inside if key not in expected and key.split(".")[0] not in LEFT_ASIDE]
    if surplus:
        problems.append(f"{len(surplus)} tensors are unknown to the encoder: {_first(surplus)}")
    shapes = [
        f"{key} is {list(inside[key].shape)}, should be {list(value.shape)}"
        for key, value in expected.items()
        if key in inside and inside[key].shape != value.shape
    ]
    if shapes:
        problems.append(f"{len(shapes)} tensors have another shape: {_first(shapes, '; ')}")
    used = {key: inside[key] for key in expected if key in inside}
    fit = {key: value for key, value in used.items() if value.shape == expected[key].shape}
    if misfits := [f"{key} ({kind})" for key, value in fit.items() if (kind := kind_mismatch(value, expected[key]))]:
        problems.append(f"{len(misfits)} tensors are not dense or have the wrong type: {_first(misfits)}")
    elif broken := [key for key, value in fit.items() if not is_finite(value)]:
        problems.append(f"{len(broken)} tensors have NaN or infinite values (damaged or diverged): {_first(broken)}")
    if problems:
        raise EncoderError(f"{path}: does not fit {manifest.name}: {'. '.join(problems)}. {where_to_get(manifest)}")

    rows = [(prefix + key, value, "used", "") for key, value in used.items()]
    for key, value in tensors.items():
        if key.removeprefix(prefix) not in used or not key.startswith(prefix):
            rows.append((key, value, "left aside", _why_aside(key.removeprefix(prefix), prefix)))
    return expected | used, _loading_table(rows, prefix, USED if manifest.architecture == "beit" else {})


def kind_mismatch(value: Tensor, expected: Tensor) -> str:
    """Returns why a tensor has the wrong kind, "" if it is dense and floating-point exactly if `expected` is."""
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        return "sparse, quantised or empty"
    return "" if value.is_floating_point() == expected.is_floating_point() else str(value.dtype)


def is_finite(value: Tensor) -> bool:
    """Returns whether all values are finite in float32, the model's type."""
    return bool(value.float().isfinite().all())


def _first(items: list[str], separator: str = ", ") -> str:
    named = [item if item.isprintable() else repr(item) for item in items[:3]]  # no control characters in a terminal
    return separator.join(named) + (f"{separator}and {len(items) - 3} more" if len(items) > 3 else "")


def _why_aside(key: str, prefix: str) -> str:
    if key.split(".")[0] in LEFT_ASIDE:
        return LEFT_ASIDE[key.split(".")[0]]
    return f"not under `{prefix}`, so not part of the encoder" if prefix else "not part of the encoder"


def _loading_table(rows: list[tuple[str, Tensor, str, str]], prefix: str, parts: dict[str, str]) -> pd.DataFrame:
    """Returns tensor and parameter counts, grouped by the first part of the names."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for key, value, status, why in rows:
        first = key.removeprefix(prefix).split(".")[0]
        group = prefix + first if key.startswith(prefix) else first
        why = why or parts.get(first, "the encoder")
        count = groups.setdefault((group, status, why), [0, 0])
        count[0] += 1
        count[1] += value.numel()
    return pd.DataFrame(
        [(group, *count, status, why) for (group, status, why), count in groups.items()],
        columns=LOADING_COLUMNS,
    )
