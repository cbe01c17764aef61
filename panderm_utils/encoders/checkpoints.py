"""Reads a weights file and says what it is: tensors and nothing else, and a message of its own for every bad file.

Nothing in a file is ever executed: pickles are read with `weights_only=True`, and one that asks for more is refused.
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

# What a pickle of plain tensors names.
TENSOR_PARTS = re.compile(r"torch\._utils\._rebuild_\w+$|torch\.\w+Storage$|torch\.storage\.|collections\.OrderedDict$")


# What torch and zipfile are known to raise on damaged bytes.
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


class EncoderError(ValueError):
    """An encoder cannot be made as asked; the message names the file and the remedy."""


def where_to_get(manifest: EncoderManifest | None) -> str:
    """Returns one sentence that names the right file of an encoder, or of a fine-tuned model (None), and its source."""
    if manifest is None:
        return (
            "The right file is best.safetensors of a fine-tuning run here, or checkpoint-best.pth of one of upstream's."
        )
    sources = "; ".join(" ".join(part for part in (a.what, a.url, a.note) if part) for a in manifest.access)
    name = manifest.weights_file or "timm's own"
    return f"The right file is {name}, from: {sources or 'see data_manifests/encoders.yaml'}."


@contextlib.contextmanager
def digest_of(path: Path) -> Iterator[str]:
    """Yields the SHA-256 of a file in hexadecimal: that of the very bytes that are read within the `with`.

    Raises:
        EncoderError: The file was changed or replaced meanwhile.
    """
    before = _stamp(path)
    yield file_digest(path)
    if _stamp(path) != before:
        raise EncoderError(f"{path}: it was changed or replaced while it was read; start again once it is whole.")


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
    """Warns if the manifest knows another SHA-256 of a file (a digest taken on trust at first use)."""
    if manifest.sha256 and digest != manifest.sha256:
        warnings.warn(
            f"{path}: SHA-256 {digest} differs from {manifest.sha256}, the one known for {manifest.name}"
            f" ({manifest.sha256_note or 'on trust at first use'}). The tensors fit, so this is another release, a"
            " converted copy or an altered file: compare the fingerprint with another lab's before you publish.",
            stacklevel=3,
        )


def read_tensors(path: Path, manifest: EncoderManifest | None) -> dict[str, Tensor]:
    """Reads the state dict of a .pth, .pt, .bin or .safetensors file, on the CPU, executing nothing in it.

    Args:
        path: the file.
        manifest: the encoder that it should hold; None: a fine-tuned model, which may lie beside an
            `argparse.Namespace`, as upstream leaves it.

    Returns:
        The tensors by the names they have in the file (those under `state_dict` where there is such an entry).

    Raises:
        EncoderError: The file is empty, an HTML page, truncated, damaged, packed, no file of tensors, a pickle that
            wants to run code, or a fine-tuned checkpoint.
    """
    with path.open("rb") as file:
        start = file.read(512)
    remedy = f"Delete it and fetch it again. {where_to_get(manifest)}"
    if not start:
        raise EncoderError(f"{path}: the file is empty (0 bytes), as a broken download leaves it. {remedy}")
    safe, zipped = start[8:9] == b"{", start.startswith(b"PK")  # safetensors begin with a length, then JSON
    if not safe and start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise EncoderError(
            f"{path}: this is an HTML page saved under the name of a weights file, as a download that asked for a"
            f" log-in, a confirmation or more quota leaves it. Open the link in a browser. {remedy}"
        )
    if start.startswith(b"version https://git-lfs"):
        raise EncoderError(f"{path}: this is a Git LFS pointer, not the file itself. Run `git lfs pull`. {remedy}")
    if safe or path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise EncoderError(f"{path}: truncated or damaged safetensors file ({error}). {remedy}") from error
    if not zipped and not start.startswith(b"\x80"):
        raise EncoderError(f"{path}: not a PyTorch or safetensors file (it begins with {start[:16]!r}). {remedy}")
    if zipped and (problem := _archive_problem(path)):
        raise EncoderError(f"{path}: {problem}. {remedy}")
    try:
        # A Namespace is a bare holder of values: restoring one runs no code of the file's.
        known = [argparse.Namespace] if manifest is None else []
        with warnings.catch_warnings(), torch.serialization.safe_globals(known):
            warnings.simplefilter("ignore")  # torch's doubts about a foreign pickle: the messages below say more
            content = torch.load(path, map_location="cpu", weights_only=True)
    except READING_ERRORS as error:
        raise EncoderError(_explain_refusal(path, manifest, remedy, error)) from error
    return _unwrap(content, path, manifest)


def _archive_problem(path: Path) -> str:
    """Says what is wrong with a zip file of tensors, "" if nothing; torch itself would unpack it as it is."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            if (unfolded := sum(part.file_size for part in archive.infolist())) > size:
                return f"packed: it would unfold to {unfolded:,} bytes, and PyTorch packs no weights"
            record = archive.testzip()
            return f"damaged: the checksum of {record} in it is wrong" if record is not None else ""
    except READING_ERRORS as error:
        return f"truncated after {size:,} bytes, or damaged: its index, which comes last, cannot be read ({error})"


def _explain_refusal(path: Path, manifest: EncoderManifest | None, remedy: str, error: Exception) -> str:
    """Says why torch refused a pickle, by disassembling it; disassembling executes nothing."""
    wanted, strings = _disassemble(path)
    if manifest is None:
        wanted.discard("argparse.Namespace")
    elif "argparse.Namespace" in wanted and "model" in strings:
        return finetuned_message(path, manifest, strings & {"args", "epoch", "model", "optimizer", "scaler"})
    if isinstance(error, pickle.UnpicklingError) and wanted:
        calls = ", ".join(sorted(wanted))
        return (
            f"{path}: refused. A file of weights holds tensors; loading this one would call {calls},"
            f" code of its author's choosing. Nothing of it was run. Do not use it. {where_to_get(manifest)}"
        )
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return f"{path}: truncated, damaged, or not a file of tensors ({reason}). {remedy}"


def _disassemble(path: Path) -> tuple[set[str], set[str]]:
    """Returns the functions and classes that a pickle names, but for those of tensors; and its strings."""
    wanted, strings, recent = set(), set(), []
    for operation, argument, _ in _operations(path):
        if operation.name == "GLOBAL":
            wanted.add(argument.replace(" ", "."))
        elif operation.name == "STACK_GLOBAL":
            wanted.add(".".join(recent[-2:]))
        elif isinstance(argument, str):
            strings.add(argument)
            recent.append(argument)
    return {name for name in wanted if not TENSOR_PARTS.match(name)}, strings


def _operations(path: Path) -> Iterator[tuple]:
    """Yields a pickle's instructions up to where it ends or breaks off."""
    with contextlib.suppress(*READING_ERRORS):  # of a pickle that is cut off: what was seen so far decides
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
    """Returns the message for a fine-tuned checkpoint, recognised by these entries."""
    return (
        f"{path}: this is a fine-tuned checkpoint (it holds {', '.join(sorted(entries))}), not the pre-trained weights"
        f" of {manifest.name}: it has learned one dataset's labels already, so frozen features from it do not"
        f" measure the foundation model. {where_to_get(manifest)}"
    )


def _unwrap(content: object, path: Path, manifest: EncoderManifest | None) -> dict[str, Tensor]:
    """Returns the state dict within what a file held; refuses anything but tensors in it."""
    pretrained = manifest is not None and manifest.architecture == "beit"
    if pretrained and isinstance(content, dict) and isinstance(content.get("model"), dict):
        raise EncoderError(finetuned_message(path, manifest, {str(key) for key in content}))
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise EncoderError(f"{path}: holds {type(content).__name__}, not named tensors. {where_to_get(manifest)}")
    strange = [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if strange:
        raise EncoderError(
            f"{path}: beside tensors it holds {', '.join(map(str, strange[:5]))}: not a plain state dict."
            f" {where_to_get(manifest)}"
        )
    return content
