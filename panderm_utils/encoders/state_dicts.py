"""Fits the tensors of a weights file to a model: strictly, and with a table of what was used, left aside, and why."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from panderm_utils.encoders.checkpoints import EncoderError, finetuned_message, where_to_get
from panderm_utils.manifests import EncoderManifest, list_encoders, load_encoder_manifest

LOADING_COLUMNS = ["group", "tensors", "parameters", "status", "why"]

# What the names of a layout begin with in its file (see EncoderManifest.layout).
PREFIXES = {"encoder_prefix": "encoder.", "module_prefix": "module."}

# Tensors that released files hold beside the encoder, by the first part of their name.
LEFT_ASIDE = {
    "mask_token": "stands in for hidden patches during pre-training; no image has any",
    "rd_pos_embed": "positions of the pre-training head",
    "regresser": "pre-training head that predicts hidden patches; features are taken before it",
    "regressor": "pre-training head that predicts hidden patches; features are taken before it",
    "projection_head": "clustering head of SwAV's pre-training; features are taken before it",
    "prototypes": "clustering head of SwAV's pre-training; features are taken before it",
    "head": "classifier of the pre-training classes; features are taken before it",
    "fc": "classifier of the pre-training classes; features are taken before it",
    "classifier": "classifier of the pre-training classes; features are taken before it",
}

# What the parts of PanDerm's encoder are for.
USED = {
    "cls_token": "the class token: its output after the final norm is the feature",
    "pos_embed": "fixed sine-cosine table of positions, loaded, never trained",
    "patch_embed": "turns each patch of 16 x 16 pixels into a token",
    "blocks": "the transformer blocks",
    "norm": "the final norm",
}

# Names that only fine-tuning gives to PanDerm's tensors.
FINE_TUNED = re.compile(r"(^|\.)(fc_norm|head)\.|relative_position_bias_table")


def check_size(tensors: dict[str, Tensor], path: Path, manifest: EncoderManifest) -> None:
    """Recognises a file of another size class by its width and depth, before a model is built for it.

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
    known = [load_encoder_manifest(name) for name in list_encoders()]
    names = [m.name for m in known if m.architecture == "beit" and (m.width, m.depth) == (width, depth)]
    hint = f' It has the size of {names[0]}: use load_encoder("{names[0]}") for it.' if names else ""
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
    """Fits a file's tensors to a model, strictly.

    Args:
        tensors: what `read_tensors` returned.
        model: the encoder that is to be filled.
        path: the file, for messages.
        manifest: what the file should be.
        convert: translates other names into the model's; only called if the names do not fit as they are.

    Returns:
        The state dict for the model, and a table with one row per group of names: `group`, `tensors`, `parameters`,
        `status` ("used" or "left aside"), `why`. Every tensor of the file is in one row.

    Raises:
        EncoderError: Another size class, a fine-tuned state dict, tensors that are missing, unknown or of another
            shape, or values that are not finite. All that is wrong of one kind is in one message.
    """
    expected = model.state_dict()
    declared = PREFIXES.get(manifest.layout, "")
    # The declared layout comes first: on a tie it wins. A converted copy without the prefix is as good.
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
            f"{path}: none of the {len(expected)} tensors of {manifest.name} is in it (it has"
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
    if strange := [f"{key} ({kind})" for key, value in fit.items() if (kind := strange_kind(value, expected[key]))]:
        problems.append(f"{len(strange)} tensors hold no plain numbers of the model's kind: {_first(strange)}")
    elif broken := [key for key, value in fit.items() if not is_finite(value)]:
        problems.append(f"{len(broken)} tensors hold NaN or infinite values (damaged or diverged): {_first(broken)}")
    if problems:
        raise EncoderError(f"{path}: does not fit {manifest.name}: {'. '.join(problems)}. {where_to_get(manifest)}")

    rows = [(prefix + key, value, "used", "") for key, value in used.items()]
    for key, value in tensors.items():
        if key.removeprefix(prefix) not in used or not key.startswith(prefix):
            rows.append((key, value, "left aside", _why_aside(key.removeprefix(prefix), prefix)))
    return expected | used, _loading_table(rows, prefix, USED if manifest.architecture == "beit" else {})


def strange_kind(value: Tensor, wanted: Tensor) -> str:
    """Names the kind of a tensor that cannot take another's place, "" if it can: dense, and floating-point for such."""
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        return "sparse, quantised or empty"
    return "" if value.is_floating_point() == wanted.is_floating_point() else str(value.dtype)


def is_finite(value: Tensor) -> bool:
    """Whether all values are finite as float32, in which the model holds them."""
    return bool(value.float().isfinite().all())


def _first(items: list[str], separator: str = ", ") -> str:
    named = [item if item.isprintable() else repr(item) for item in items[:3]]  # a terminal obeys some characters
    return separator.join(named) + (f"{separator}and {len(items) - 3} more" if len(items) > 3 else "")


def _why_aside(key: str, prefix: str) -> str:
    if key.split(".")[0] in LEFT_ASIDE:
        return LEFT_ASIDE[key.split(".")[0]]
    return f"not under `{prefix}`, so no part of the encoder" if prefix else "no part of the encoder"


def _loading_table(rows: list[tuple[str, Tensor, str, str]], prefix: str, parts: dict[str, str]) -> pd.DataFrame:
    """Sums tensors up by the first part of their names."""
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
