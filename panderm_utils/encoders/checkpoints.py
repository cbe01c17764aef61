"""Reads the tensors of a weights file, with a specific message for every kind of bad file.

Nothing in a file is ever executed: pickles are read with `weights_only=True`, and any that need more are refused.
"""

import argparse
import contextlib
import hashlib
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from panderm_utils.manifests import EncoderManifest
from panderm_utils.messages import UserError

# Names that a pickle of plain tensors refers to.
TENSOR_PARTS = re.compile(r"torch\._utils\._rebuild_\w+$|torch\.\w+Storage$|torch\.storage\.|collections\.OrderedDict$")

# What torch and zipfile may raise on damaged files.
READING_ERRORS = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


class EncoderError(UserError):
    """An encoder cannot be loaded as requested; the message names the file and the remedy."""


def where_to_get(manifest: EncoderManifest | None) -> str:
    """Returns a sentence that names the right file of an encoder, or of a fine-tuned model (None), and its source."""
    if manifest is None:
        return (
            "The right file is best.safetensors of a fine-tuning run here, or checkpoint-best.pth of one by upstream."
        )
    sources = "; ".join(" ".join(part for part in (a.what, a.url, a.note) if part) for a in manifest.access)
    name = manifest.weights_file or "timm's own"
    return f"The right file is {name}, from: {sources or 'see data_manifests/encoders.yaml'}."


@contextlib.contextmanager
def digest_of(path: Path) -> Iterator[str]:
    """Yields the SHA-256 of a file in hexadecimal, guaranteed to be that of the bytes read inside the `with`.

    Raises:
        EncoderError: The file was changed or replaced in the meantime.
    """
    before = _stamp(path)
    yield file_digest(path)
    if _stamp(path) != before:
        raise EncoderError(f"{path}: it was changed or replaced while it was read; start again once it is complete.")


def _stamp(path: Path) -> tuple[int, int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def check_digest(digest: str, path: Path, manifest: EncoderManifest) -> None:
    """Warns if the digest differs from the manifest's, which may be one trusted on first use."""
    if manifest.sha256 and digest != manifest.sha256:
        warnings.warn(
            f"{path}: SHA-256 {digest} differs from {manifest.sha256}, the one on file for {manifest.name}"
            f" ({manifest.sha256_note or 'on trust at first use'}). The tensors fit, so this is another release, a"
            " converted copy or an altered file: compare the fingerprint with another lab's before you publish.",
            stacklevel=3,
        )


def read_tensors(path: Path, manifest: EncoderManifest | None) -> dict[str, Tensor]:
    """Returns the tensors of a .pth, .pt, .bin or .safetensors file, on the CPU, without executing anything in it.

    Their names are those in the file; if it has an entry `state_dict`, they are taken from there.

    Args:
        path: The file.
        manifest: The expected encoder; None for a fine-tuned model, whose file may also contain an
            `argparse.Namespace`, as upstream's does.

    Raises:
        EncoderError: The file is empty, an HTML page, truncated, damaged, compressed, not a file of tensors, a pickle
            that would run code, or a fine-tuned checkpoint.
    """
    with path.open("rb") as file:
        start = file.read(512)
    remedy = f"Delete it and download it again. {where_to_get(manifest)}"
    if not start:
        raise EncoderError(f"{path}: the file is empty (0 bytes), probably after a failed download. {remedy}")
    safe, zipped = start[8:9] == b"{", start.startswith(b"PK")  # a safetensors file starts with a length, then JSON
    if not safe and start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise EncoderError(
            f"{path}: this is an HTML page saved under the name of a weights file; the download probably asked for a"
            f" login or a confirmation, or hit a quota. Open the link in a browser. {remedy}"
        )
    if start.startswith(b"version https://git-lfs"):
        raise EncoderError(f"{path}: this is a Git LFS pointer, not the file itself. Run `git lfs pull`. {remedy}")
    if safe or path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise EncoderError(f"{path}: truncated or damaged safetensors file ({error}). {remedy}") from error
    if not zipped and not start.startswith(b"\x80"):
        raise EncoderError(f"{path}: not a PyTorch or safetensors file (it starts with {start[:16]!r}). {remedy}")
    if zipped and (problem := _archive_problem(path)):
        raise EncoderError(f"{path}: {problem}. {remedy}")
    try:
        # A Namespace only holds values: restoring one runs no code from the file.
        allowed = [argparse.Namespace] if manifest is None else []
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")  # torch warns about foreign pickles; the messages below say more
            content = torch.load(path, map_location="cpu", weights_only=True)
    except READING_ERRORS as error:
        raise EncoderError(_explain_refusal(path, manifest, remedy, error)) from error
    return _unwrap(content, path, manifest)


def _archive_problem(path: Path) -> str:
    """Returns what is wrong with a zip file of tensors, "" if nothing; torch would unpack it unchecked."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            if (unpacked := sum(part.file_size for part in archive.infolist())) > size:
                return f"compressed: it would unpack to {unpacked:,} bytes, but PyTorch never compresses weights"
            part = archive.testzip()
            return f"damaged: the checksum of {part} in it is wrong" if part is not None else ""
    except READING_ERRORS as error:
        return f"truncated after {size:,} bytes, or damaged: its index, at the end, cannot be read ({error})"


def _explain_refusal(path: Path, manifest: EncoderManifest | None, remedy: str, error: Exception) -> str:
    """Returns why torch refused a pickle, by disassembling it, which executes nothing."""
    calls, strings = _disassemble(path)
    if manifest is None:
        calls.discard("argparse.Namespace")
    elif "argparse.Namespace" in calls and "model" in strings:
        return finetuned_message(path, manifest, strings & {"args", "epoch", "model", "optimizer", "scaler"})
    if isinstance(error, pickle.UnpicklingError) and calls:
        return (
            f"{path}: refused. A weights file contains tensors; loading this one would call {', '.join(sorted(calls))},"
            f" code of its author's choosing. None of it was run. Do not use this file. {where_to_get(manifest)}"
        )
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return f"{path}: truncated, damaged, or not a file of tensors ({reason}). {remedy}"


def _disassemble(path: Path) -> tuple[set[str], set[str]]:
    """Returns the functions and classes that a pickle refers to, except those of tensors, and its strings."""
    calls, strings, recent = set(), set(), []
    for operation, argument, _ in _operations(path):
        if operation.name == "GLOBAL":
            calls.add(argument.replace(" ", "."))
        elif operation.name == "STACK_GLOBAL":
            calls.add(".".join(recent[-2:]))
        elif isinstance(argument, str):
            strings.add(argument)
            recent.append(argument)
    return {name for name in calls if not TENSOR_PARTS.match(name)}, strings


def _operations(path: Path) -> Iterator[tuple]:
    """Yields a pickle's instructions until it ends or is cut off."""
    with contextlib.suppress(*READING_ERRORS):  # a truncated pickle is judged by what was read so far
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith("data.pkl"):
                        yield from pickletools.genops(archive.read(name))
        else:
            with path.open("rb") as file:
                for _ in range(4):  # torch's old format: magic number, version, system, then the object
                    yield from pickletools.genops(file)


def finetuned_message(path: Path, manifest: EncoderManifest, entries: set[str]) -> str:
    """Returns the error message for a fine-tuned checkpoint, recognised by these entries."""
    return (
        f"{path}: this is a fine-tuned checkpoint (it contains {', '.join(sorted(entries))}), not the pre-trained"
        f" weights of {manifest.name}: it was trained on one dataset's labels, so frozen features from it do not"
        f" measure the foundation model. {where_to_get(manifest)}"
    )


def _unwrap(content: object, path: Path, manifest: EncoderManifest | None) -> dict[str, Tensor]:
    """Returns the state dict in a file's content; EncoderError if it contains anything but tensors."""
    pretrained = manifest is not None and manifest.architecture == "beit"
    if pretrained and isinstance(content, dict) and isinstance(content.get("model"), dict):
        raise EncoderError(finetuned_message(path, manifest, {str(key) for key in content}))
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise EncoderError(f"{path}: contains a {type(content).__name__}, not named tensors. {where_to_get(manifest)}")
    invalid = [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if invalid:
        raise EncoderError(
            f"{path}: besides tensors it contains {', '.join(map(str, invalid[:5]))}: not a plain state dict."
            f" {where_to_get(manifest)}"
        )
    return content
