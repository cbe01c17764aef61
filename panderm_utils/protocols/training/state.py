"""Training checkpoints: one file each, written atomically, of tensors and JSON; nothing is pickled.

    <folder>/last.safetensors   everything needed to resume: weights, optimizer, scaler, EMA, position, history
    <folder>/best.safetensors   the best model and its facts; for evaluation and for sharing

States of random generators are not needed. Every draw (order of an epoch, augmentation, mixing, drop path) comes from a
generator seeded by the recipe's seed and the position, on any device and in any number of processes.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from panderm_utils.disk import replacing, room_for
from panderm_utils.protocols.training.errors import TrainingError

METADATA = "panderm_utils"  # our entry in a safetensors header
FORMAT = 1  # increase it when the meaning of a checkpoint changes
LAST, BEST = "last.safetensors", "best.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # AdamW's state of each parameter


@dataclass
class Progress:
    """The position and history of a training.

    Attributes:
        epoch, step: The next step, from 0, within the epoch; `step` = steps per epoch: val is not yet scored.
        losses: Of the finished steps of this epoch; `seconds`: their total time.
        history: One row per finished epoch.
        best: The monitor's best value so far, of `best_epoch` (from 1).
        micro_batch: The size that was found to fit in memory.
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
    """Writes everything that a training needs to resume."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema/{name}": value for name, value in ema.state_dict().items()}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            state = optimizer.state.get(parameter, {})
            tensors |= {f"{moment}/{name}": state[moment] for moment in MOMENTS if moment in state}
    scaling = scaler.state_dict() if scaler is not None else None
    _write(path, tensors, {"identity": identity, "progress": asdict(progress), "scaler": scaling})


def read_last(path: Path, identity: dict) -> tuple[Progress, dict[str, Tensor], dict]:
    """Returns the progress, the tensors and the scaler's state of a checkpoint of this training.

    Raises:
        TrainingError: It is damaged, or of another recipe, dataset or encoder; the message names the differences.
    """
    facts = check_last(path, identity)
    return Progress(**facts["progress"]), load_file(path), facts["scaler"]


def check_last(path: Path, identity: dict) -> dict:
    """Returns the facts of a checkpoint; raises like `read_last`."""
    try:
        facts = read_facts(path)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise TrainingError(f"{path}: damaged ({error}); delete it to start over, or restore a copy") from error
    if facts.get("format") != FORMAT or "progress" not in facts:
        raise TrainingError(f"{path}: not a checkpoint of this version; {_start_over(path)}")
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
    """Loads the tensors that `read_last` returned into the model, optimizer, scaler and EMA."""
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


def save_model(path: Path, model: nn.Module, facts: dict) -> None:
    """Writes a model, with the facts that are needed to make it again."""
    _write(path, model.state_dict(), facts)


def read_facts(path: Path) -> dict:
    """Returns the facts that our safetensors files contain; empty for any other file."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get(METADATA, "{}"))


def check_identity(found: dict, expected: dict, path: Path) -> None:
    """Raises TrainingError naming each fact in which a checkpoint differs from the training to be resumed."""
    found, expected = (pd.json_normalize(facts).to_dict("records")[0] for facts in (found, expected))
    differences = [
        f"{name} is {found.get(name, 'missing')} in the checkpoint, {expected.get(name, 'missing')} now"
        for name in {**found, **expected}
        if found.get(name) != expected.get(name)
    ]
    if differences:
        raise TrainingError(
            f"{path}: a checkpoint of another training: {'; '.join(differences)}. Restore these settings to resume it;"
            f" {_start_over(path)}"
        )


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keeps a second training out of the folder, and removes partial files of a killed one."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            for partial in folder.glob(".*.new"):
                partial.unlink()
            yield
    except Timeout as error:
        raise TrainingError(f"{folder}: another process trains in it; wait for it, or choose another folder") from error


@contextlib.contextmanager
def _saving(path: Path, size: int) -> Iterator[Path]:
    """Yields the name to write a file of `size` bytes under, as `disk.replacing`; safe from power failures too.

    Raises:
        DiskFullError: There is no room; the old file is unchanged.
    """
    with room_for(path.name, size, path.parent), replacing(path) as new:
        yield new
        with new.open("r+b") as file:  # Windows syncs only files open for writing
            os.fsync(file.fileno())  # else a power failure could leave the name without the content


def save_text(path: Path, text: str) -> None:
    with _saving(path, len(text)) as new:
        new.write_text(text, encoding="utf-8")


def _write(path: Path, tensors: dict[str, Tensor], facts: dict) -> None:
    metadata = {METADATA: json.dumps({"format": FORMAT, **facts})}
    plain = {key: value.detach().contiguous() for key, value in tensors.items()}

    with _saving(path, sum(tensor.nbytes for tensor in plain.values())) as new:
        try:
            save_file(plain, new, metadata)
        except SafetensorError as error:  # has the system's error number only in its text
            if number := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(number[1]), str(error)) from error
            raise


def _start_over(path: Path) -> str:
    return f"to start over, choose another folder or pass resume=False, which overwrites {path.parent}"
