"""Checkpoints of a training: one file each, written whole or not at all, of tensors and JSON: nothing is unpickled.

    <folder>/last.safetensors   all that is needed to go on: weights, optimizer, scaler, EMA, position, history
    <folder>/best.safetensors   the model that was best, and what it is; for `load_finetuned` and for sharing

There are no states of random generators to keep. Every draw (order of an epoch, augmentation, mixing, drop path) comes
from a generator seeded by the recipe's seed and the position: so the position is their state, on any device and in any
number of processes.
"""

import contextlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from panderm_utils.disk import room_for
from panderm_utils.protocols.fine_tune.model import METADATA, FineTuneModel, read_facts
from panderm_utils.protocols.fine_tune.recipe import FineTuneError

FORMAT = 1  # to be raised when a change of code changes what a checkpoint means
LAST, BEST = "last.safetensors", "best.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what AdamW keeps of each parameter


@dataclass
class Progress:
    """Where a training stands.

    Attributes:
        epoch, step: The next step to do, from 0, within the epoch; `step` = steps of an epoch: it is yet to be scored.
        losses: Of the steps of this epoch that are done; `seconds`: that they took.
        history: A row an epoch that is done.
        best: The monitor's best value so far, of `best_epoch` (from 1).
        micro_batch: What was found to fit.
    """

    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    history: list[dict] = field(default_factory=list)
    best: float | None = None
    best_epoch: int | None = None
    micro_batch: int | None = None


def save_last(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    ema: nn.Module | None,
    progress: Progress,
    identity: dict,
) -> None:
    """Writes all that a training needs to go on."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema/{name}": value for name, value in ema.state_dict().items()}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            kept = optimizer.state.get(parameter, {})
            tensors |= {f"{moment}/{name}": kept[moment] for moment in MOMENTS if moment in kept}
    scaling = scaler.state_dict() if scaler is not None else None
    _write(path, tensors, {"identity": identity, "progress": asdict(progress), "scaler": scaling})


def read_last(path: Path, identity: dict) -> tuple[Progress, dict[str, Tensor], dict]:
    """Returns the progress, the tensors and the scaler's state of a checkpoint of this very training.

    Raises:
        FineTuneError: It is damaged, or of another recipe, dataset or encoder: with the differences.
    """
    facts = check_last(path, identity)
    return Progress(**facts["progress"]), load_file(path), facts["scaler"]


def check_last(path: Path, identity: dict) -> dict:
    """Returns what a checkpoint says of itself; raises as `read_last`."""
    try:
        facts = read_facts(path)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise FineTuneError(f"{path}: damaged ({error}); delete it to begin anew, or bring a copy back") from error
    if facts.get("format") != FORMAT or "progress" not in facts:
        raise FineTuneError(f"{path}: not a checkpoint of this version; {_anew(path)}")
    check_identity(facts["identity"], identity, path)
    return facts


def restore(
    tensors: dict[str, Tensor],
    scaling: dict | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    ema: nn.Module | None,
) -> None:
    """Puts what `read_last` returned back in its place."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, name = key.split("/", 1)
        parts.setdefault(part, {})[name] = value
    model.load_state_dict(parts["model"], strict=True)
    if ema is not None:
        ema.load_state_dict(parts["ema"], strict=True)
    names = [name for group in optimizer.param_groups for name in group["names"]]
    state = {i: {m: parts[m][name] for m in MOMENTS} for i, name in enumerate(names) if name in parts.get("step", {})}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if scaler is not None and scaling:
        scaler.load_state_dict(scaling)


def save_model(path: Path, model: FineTuneModel, facts: dict) -> None:
    """Writes a model that `load_finetuned` reads; `facts` say what it is."""
    about = {"encoder": model.encoder.name, "encoder_digest": model.digest, "num_classes": model.num_classes}
    _write(path, model.state_dict(), {**about, **facts})


def check_identity(found: dict, wanted: dict, path: Path) -> None:
    """Raises FineTuneError naming each fact in which a checkpoint differs from the training that wants to go on."""
    found, wanted = _flat(found), _flat(wanted)
    differences = [
        f"{name} is {found.get(name, 'not there')} in the checkpoint, {wanted.get(name, 'not there')} now"
        for name in {**found, **wanted}
        if found.get(name) != wanted.get(name)
    ]
    if differences:
        raise FineTuneError(
            f"{path}: a checkpoint of another training: {'; '.join(differences)}. Set these back to go on with it;"
            f" {_anew(path)}"
        )


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keeps a second training out of the folder, and removes what a killed one left half written."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            for left in folder.glob(".*.new"):
                left.unlink()
            yield
    except Timeout as error:
        raise FineTuneError(f"{folder}: another process trains in it; wait for it, or choose another folder") from error


def replace_file(path: Path, size: int, write: Callable[[Path], None]) -> None:
    """Has `write` make the file under a temporary name, then renames it: a kill leaves the old file or the new one.

    Raises:
        DiskFullError: There is no room for its `size` in bytes; the old file is as it was.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.new")
    with room_for(path.name, size, path.parent):
        try:
            write(new)
            with new.open("rb") as file:
                os.fsync(file.fileno())  # else a power failure could leave the name without the content
            new.replace(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise


def _write(path: Path, tensors: dict[str, Tensor], facts: dict) -> None:
    metadata = {METADATA: json.dumps({"format": FORMAT, **facts})}
    plain = {key: value.detach().contiguous() for key, value in tensors.items()}

    def save(new: Path) -> None:
        try:
            save_file(plain, new, metadata)
        except SafetensorError as error:  # which tells the system's error number in its text alone
            if number := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(number[1]), str(error)) from error
            raise

    replace_file(path, sum(tensor.nbytes for tensor in plain.values()), save)


def _anew(path: Path) -> str:
    return f"to begin anew choose another folder, or pass resume=False, which writes over {path.parent}"


def _flat(facts: dict, before: str = "") -> dict:
    flat = {}
    for key, value in facts.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat
