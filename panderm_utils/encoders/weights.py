"""Finds an encoder's weights file: as specified, in the weights folder, in the repository, or from timm."""

import contextlib
import os
import socket
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import timm
from timm.models import PretrainedCfg

from panderm_utils.encoders.checkpoints import EncoderError, where_to_get
from panderm_utils.manifests import EncoderManifest, weights_places
from panderm_utils.workspace import settle_folder


def find_weights(manifest: EncoderManifest, weights: str | Path | None, weights_root: str | Path | None) -> Path:
    """Returns the weights file: `weights` if given, else from the weights root, the repository, or timm, in this order.

    Raises:
        EncoderError: It was not found; the message says which file to get and where to put it.
    """
    root = settle_folder("weights_root", weights_root)
    if weights is not None:
        path = Path(weights).expanduser()
        path = weights_places(manifest, path)[0] if path.is_dir() else path
        if path.is_file():
            return path
        raise EncoderError(f"{path}: no such weights file for {manifest.name}. {where_to_get(manifest)}")
    places = weights_places(manifest, root)
    if there := [path for path in places if path.is_file()]:
        return there[0]
    if manifest.layout == "timm":
        return _download(manifest, places[0])
    raise EncoderError(
        f"{manifest.name}: its weights file is missing. {where_to_get(manifest)} Put it here:"
        f" {places[0]} (or name its folder with --weights-root or PANDERM_WEIGHTS_ROOT)."
    )


def timm_settings(manifest: EncoderManifest) -> PretrainedCfg | None:
    """Returns timm's configuration of a model's published weights.

    Raises:
        EncoderError: timm has no model, or no weights, with that name.
    """
    base = manifest.timm_name.split(".")[0]
    if not timm.is_model(base):
        near = ", ".join(f"timm:{found}" for found in get_close_matches(base, timm.list_models(), 3, 0.5))
        raise EncoderError(f"{manifest.name}: timm {timm.__version__} has no model {base!r}; near: {near or '-'}.")
    try:
        return timm.get_pretrained_cfg(manifest.timm_name)
    except RuntimeError as error:
        near = ", ".join(f"timm:{found}" for found in timm.list_pretrained(f"{base}.*"))
        raise EncoderError(f"{manifest.name}: timm has no such weights; available: {near or 'none'}.") from error


def _download(manifest: EncoderManifest, place: Path) -> Path:
    """Returns timm's file from the Hugging Face cache, downloading it if needed."""
    settings = timm_settings(manifest)
    if settings is None or not settings.hf_hub_id:
        raise EncoderError(f"{manifest.name}: timm has no weights for it; give a file as `weights`.")
    repository, names = settings.hf_hub_id, ["model.safetensors", "pytorch_model.bin"]
    for name in names:
        with contextlib.suppress(OSError):
            return Path(huggingface_hub.hf_hub_download(repository, name, local_files_only=True))
    reason = _unreachable()
    if not reason:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, names[0]))
        except OSError as error:
            reason = str(error).splitlines()[0]
    address = f"{huggingface_hub.constants.ENDPOINT}/{repository}/resolve/main/{names[0]}"
    raise EncoderError(
        f"{manifest.name}: its weights are not on this machine and cannot be downloaded ({reason}). On a machine with"
        f" a network, download {address} and put it here: {place} (or give it as `weights`)."
    )


def _unreachable() -> str:
    """Returns why the model hub cannot be reached, "" if it can; saves the minute of the hub's own retries."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return ""  # a proxy resolves names for us
    address = urlsplit(huggingface_hub.constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=5).close()
    except OSError as error:
        return f"no connection to {address.hostname}: {error}"
    return ""
