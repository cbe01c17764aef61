"""Fine-tuning as in the paper: train, stop and resume, keep the best epoch, predict with several views.

    model = load_finetune_model("panderm_base", num_classes=7, seed=recipe.seed)
    train, val, test = (labelled_images(study, study.split(name)) for name in ("train", "val", "test"))
    tuned = finetune(model, train, val, recipe, folder)
    predict(tuned.model, test, tta=5).proba

An interrupted training resumes when the same call is made again. The folder holds `last.safetensors` (to resume),
`best.safetensors` (the result), `history.csv` and `facts.json`.

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m <this module> FOLDER

is what `finetune` runs if `computing.processes` is 2, after writing the task to FOLDER/task.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from panderm_utils.protocols.fine_tune.loop import Training, TrainingTask
from panderm_utils.protocols.fine_tune.model import (
    FineTuneModel,
    load_finetuned,
    read_facts,
)
from panderm_utils.protocols.fine_tune.prediction import LabelledImages
from panderm_utils.protocols.fine_tune.processes import Computing, run_processes
from panderm_utils.protocols.fine_tune.recipe import (
    FineTuneError,
    FineTuneRecipe,
)
from panderm_utils.protocols.fine_tune.state import BEST, LAST, check_last, claimed, save_text

MODULE = "panderm_utils.protocols.fine_tune.training"  # also when it runs as __main__
TASK = "task.pt"


@dataclass(frozen=True, eq=False)
class FineTuned:
    """The result of fine-tuning.

    Attributes:
        model: The model of the best epoch on val, or of the last epoch without val; on the CPU, in eval mode.
        history: One row per epoch: epoch, loss, lr (of its last step), val_loss, val_acc, val_recall, val_auroc (two
            classes), best (so far), seconds, images_per_second.
        facts: How it was trained, for a record.
    """

    model: FineTuneModel
    history: pd.DataFrame = field(repr=False)
    facts: dict

    def describe(self) -> dict:
        """Returns the facts for a record, JSON-serializable."""
        return {**self.facts, "weights": str(self.model.weights), "weights_sha256": self.model.digest}


def finetune(
    model: FineTuneModel,
    train: LabelledImages,
    val: LabelledImages | None,
    recipe: FineTuneRecipe,
    folder: str | Path,
    computing: Computing | None = None,
    cache: str | Path | None = None,
    resume: bool = True,
    on_epoch: Callable[[pd.DataFrame], None] | None = None,
    trackers: Sequence[str] = (),
) -> FineTuned:
    """Returns a model fine-tuned by the recipe; resumes an interrupted call with the same arguments.

    Args:
        model: The initial model; not changed.
        train: The training images, those of the label fraction if there is one.
        val: Images on which the monitor chooses the best epoch, of ties the first; None or empty: the last epoch.
        recipe: The settings of the training.
        folder: The folder for checkpoints, of this training only.
        computing: How to compute; by default chosen for this machine.
        cache: The folder for 8-bit copies of training images; None decodes every file in every epoch.
        resume: False starts over and overwrites the folder's checkpoints.
        on_epoch: Called with the history after each epoch, for example to draw live curves.
        trackers: Trackers of accelerate, such as "tensorboard" or "wandb"; none by default.

    Raises:
        FineTuneError: The folder's checkpoint is of another training (the message names the differences), the loss is
            not finite, memory ran out, or a setting is invalid. KeyboardInterrupt, SystemExit: after saving the state.
            LoadingError: An image-reading process was killed. DiskFullError: No room for a checkpoint.
    """
    val = None if val is None or not len(val) else val
    computing, device = (computing or Computing()).settle()
    folder, cache = Path(folder), None if cache is None else Path(cache)
    task = TrainingTask(model, train, val, recipe, folder, computing, cache, resume, tuple(trackers))
    _check(task)
    if computing.processes > 1:
        _in_processes(task, on_epoch)
    else:
        with claimed(folder):
            _train(task, device, on_epoch)
    facts = json.loads((folder / "facts.json").read_text())
    history = pd.DataFrame(read_facts(folder / LAST)["progress"]["history"])
    return FineTuned(load_finetuned(folder / BEST, model.encoder), history, facts)


def evaluate_only(checkpoint: str | Path, encoder: str | None = None, num_classes: int | None = None) -> FineTuned:
    """Returns a fine-tuned checkpoint, ours or upstream's, like the result of `finetune`.

    Raises:
        FineTuneError, EncoderError: As `load_finetuned`; or the model does not have `num_classes` classes.
    """
    model = load_finetuned(checkpoint, encoder)
    if num_classes not in (None, model.num_classes):
        raise FineTuneError(
            f"{checkpoint}: has {model.num_classes} classes, the dataset has {num_classes}: it was fine-tuned"
            " on another dataset; choose that dataset, or another checkpoint"
        )
    return FineTuned(model, pd.DataFrame(columns=["epoch", "loss", "lr"]), {"evaluated_only": True, **model.facts})


def recipe_table(recipe: FineTuneRecipe) -> pd.DataFrame:
    """Returns one row per setting: the recipe, the published one, and a note if they differ."""
    table = pd.DataFrame({"here": asdict(recipe), "published": asdict(FineTuneRecipe())}, dtype=object)
    note = np.where([name in recipe.differences() for name in table.index], "differs", "")
    return table.map(str).assign(note=note).rename_axis("setting")


def _train(task: TrainingTask, device: torch.device, on_epoch: Callable | None = None) -> None:
    training = Training(task, device, _plain(task.identity()), on_epoch)
    facts = training.run()
    if training.main:
        save_text(task.folder / "facts.json", json.dumps(facts, indent=2) + "\n")
    training.accelerator.wait_for_everyone()


def _check(task: TrainingTask) -> None:
    for name, images in (("train", task.train), ("val", task.val)):
        if images is None:
            continue
        outside = np.setdiff1d(images.y, np.arange(task.model.num_classes))
        if len(outside):
            raise FineTuneError(
                f"{name}: labels {outside[:5].tolist()} are outside 0..{task.model.num_classes - 1}: make the model "
                "with the manifest's number of classes"
            )
    if len(np.unique(task.train.y)) < 2:
        raise FineTuneError("all training images are of one class; use a larger fraction")
    if task.val is not None and task.monitor == "auroc" and len(np.unique(task.val.y)) < 2:
        raise FineTuneError(
            "all val images are of one class, so AUROC cannot choose the best epoch; pass val=None to keep the last"
        )


def _in_processes(task: TrainingTask, on_epoch: Callable | None) -> None:
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
    except FineTuneError as error:
        if (task_folder / "error.txt").exists():
            raise FineTuneError((task_folder / "error.txt").read_text()) from error
        raise
    shutil.rmtree(task_folder)


def main(folder: Path) -> None:
    """Runs the task in a folder, as one of several processes started by torchrun."""
    task = torch.load(folder / "task" / TASK, weights_only=False)  # pickled by `_in_processes`
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
        sys.exit(f"usage: python -m torch.distributed.run ... -m {MODULE} FOLDER (see `finetune`)")
    try:
        main(Path(sys.argv[1]))
        # All is written, by all processes. Exit at once: shutting down the process group sometimes hangs.
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(0)
    except ValueError as error:  # for the parent process to raise, without the log of torchrun
        (Path(sys.argv[1]) / "task" / "error.txt").write_text(str(error))
        raise
