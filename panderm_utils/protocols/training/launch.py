"""Runs a training in this process or in several, keeps others out of its folder, and resumes it.

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m <this module> FOLDER

is what `run_training` runs if `computing.processes` is 2, after writing the task to FOLDER/task. The folder holds
`last.safetensors` (to resume), `best.safetensors` (the result), `history.csv` and `facts.json`.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from panderm_utils.protocols.training.errors import TrainingError
from panderm_utils.protocols.training.loop import Training
from panderm_utils.protocols.training.processes import run_processes
from panderm_utils.protocols.training.state import LAST, check_last, claimed, read_facts, save_text
from panderm_utils.protocols.training.task import TrainingTask

MODULE = "panderm_utils.protocols.training.launch"  # also when it runs as __main__
TASK = "task.pt"


@dataclass(frozen=True, eq=False)
class Trained:
    """The result of a training.

    Attributes:
        model: The model of the best epoch on val, or of the last epoch without val; on the CPU, in eval mode. Its
            attributes `weights` and `digest` are its file and the file's SHA-256.
        history: One row per epoch: epoch, loss, lr (of its last step), scores on val (`val_...`), best (so far),
            seconds, images_per_second.
        facts: How it was trained, for a record.
    """

    model: nn.Module
    history: pd.DataFrame = field(repr=False)
    facts: dict

    def describe(self) -> dict:
        """Returns the facts for a record, JSON-serializable."""
        return {**self.facts, "weights": str(self.model.weights), "weights_sha256": self.model.digest}


def run_training(
    task: TrainingTask, on_epoch: Callable[[pd.DataFrame], None] | None = None
) -> tuple[pd.DataFrame, dict]:
    """Trains by a task, or resumes an interrupted call with the same task; returns history and facts of `Trained`.

    Args:
        task: Its `computing` may have "auto" precision.
        on_epoch: Called with the history after each epoch, for example to draw live curves.

    Raises:
        TrainingError: The folder's checkpoint is of another training (the message names the differences), the loss is
            not finite, memory ran out, or a setting is invalid. KeyboardInterrupt, SystemExit: after saving the state.
            LoadingError: An image-reading process was killed. DiskFullError: No room for a checkpoint.
    """
    computing, device = task.computing.settle()
    task = replace(task, computing=computing)
    task.check()
    if computing.processes > 1:
        _train_in_processes(task, on_epoch)
    else:
        with claimed(task.folder):
            _train(task, device, on_epoch)
    facts = json.loads((task.folder / "facts.json").read_bytes())
    return pd.DataFrame(read_facts(task.folder / LAST)["progress"]["history"]), facts


def _train(task: TrainingTask, device: torch.device, on_epoch: Callable | None = None) -> None:
    training = Training(task, device, _plain(task.identity()), on_epoch)
    facts = training.run()
    if training.main:
        save_text(task.folder / "facts.json", json.dumps(facts, indent=2) + "\n")
    training.accelerator.wait_for_everyone()


def _train_in_processes(task: TrainingTask, on_epoch: Callable | None) -> None:
    """Writes the task to its folder, runs it with torchrun, and reports its epochs."""
    folder = task.folder
    seen = _modified(folder / "history.csv")
    with claimed(folder):  # afterwards the first of the processes claims it, since they may outlive this one
        if not task.resume:
            (folder / LAST).unlink(missing_ok=True)
        elif (folder / LAST).exists():
            check_last(folder / LAST, _plain(task.identity()))  # so that an error appears here and not only in a log
        task_folder = folder / "task"
        shutil.rmtree(task_folder, ignore_errors=True)
        task_folder.mkdir()
    torch.save(replace(task, resume=True), task_folder / TASK)

    def report_epoch() -> None:
        nonlocal seen
        if on_epoch is not None and (now := _modified(folder / "history.csv")) != seen:
            seen = now
            on_epoch(pd.read_csv(folder / "history.csv"))

    try:
        run_processes(MODULE, [str(folder.absolute())], task.computing.processes, folder / "log.txt", report_epoch)
    except TrainingError as error:
        if (task_folder / "error.txt").exists():
            raise TrainingError((task_folder / "error.txt").read_text(encoding="utf-8")) from error
        raise
    shutil.rmtree(task_folder)


def main(folder: Path) -> None:
    """Runs the task in a folder, as one of several processes started by torchrun."""
    task = torch.load(folder / "task" / TASK, weights_only=False)  # pickled by `_train_in_processes`
    _, device = task.computing.settle()
    with claimed(folder) if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
        _train(task, device)


def _modified(file: Path) -> int | None:
    """Returns the time at which a file was last modified, in nanoseconds; None if it does not exist."""
    return file.stat().st_mtime_ns if file.exists() else None


def _plain(facts: dict) -> dict:
    """Returns facts as JSON restores them, so that they equal facts read from a file."""
    return json.loads(json.dumps(facts))


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "task" / TASK).is_file():
        sys.exit(f"usage: python -m torch.distributed.run ... -m {MODULE} FOLDER (see `run_training`)")
    try:
        main(Path(sys.argv[1]))
        # All is written, by all processes. Exit at once: shutting down the process group sometimes hangs.
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(0)
    except ValueError as error:  # for the parent process to raise, without the log of torchrun
        (Path(sys.argv[1]) / "task" / "error.txt").write_text(str(error), encoding="utf-8")
        raise
