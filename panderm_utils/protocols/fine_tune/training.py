"""Fine-tuning as the paper does it: train, stop and resume, keep the best epoch, predict with several views.

    model = load_finetune_model("panderm_base", num_classes=7, seed=recipe.seed)
    train, val, test = (labelled_images(study, study.split(name)) for name in ("train", "val", "test"))
    tuned = finetune(model, train, val, recipe, folder)
    predict(tuned.model, test, tta=5).proba

What was left half done goes on when the same call is made again. The folder holds `last.safetensors` (to go on),
`best.safetensors` (the result), `history.csv` and `facts.json`.

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m <this module> FOLDER

is what `finetune` runs where `computing.processes` is 2, after it has described the task in FOLDER/task.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
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
from panderm_utils.protocols.fine_tune.state import BEST, LAST, check_last, claimed, replace_file, save_model

MODULE = "panderm_utils.protocols.fine_tune.training"  # also when it runs as __main__


@dataclass(frozen=True, eq=False)
class FineTuned:
    """What fine-tuning leaves.

    Attributes:
        model: Of the best epoch on val, or of the last where there is no val split; on the CPU, in eval mode.
        history: A row an epoch: epoch, loss, lr (of its last step), val_loss, val_acc, val_recall, val_auroc (two
            classes), best (whether it was the best so far), seconds, images_per_second.
        facts: How it was trained, for a record.
    """

    model: FineTuneModel
    history: pd.DataFrame = field(repr=False)
    facts: dict

    def describe(self) -> dict:
        """The facts that a record keeps, JSON-able."""
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
    """Fine-tunes a model by the recipe, or goes on with what an earlier call with the same arguments left undone.

    Args:
        model: Where to begin; left as it was.
        train: The images that are trained on, those of the fraction where there is one.
        val: Chooses the best epoch by the monitor, strictly better wins; None or empty: the last epoch is the result.
        recipe: What to do.
        folder: Holds the checkpoints of this training and of no other.
        computing: How to compute; by default as it suits this machine.
        cache: The folder of 8-bit copies of training images; None decodes every file in every epoch.
        resume: False begins anew and writes over the folder's checkpoints.
        on_epoch: Called with the history after each epoch, such as to draw live curves.
        trackers: Of accelerate, such as "tensorboard" or "wandb"; none is needed, none is contacted unasked.

    Raises:
        FineTuneError: The folder's checkpoint is of another training (the differences are named), the loss is not
            finite, memory ran out, or a setting cannot be. KeyboardInterrupt, SystemExit: after the state was saved.
            LoadingError: A process that reads images was killed. DiskFullError: No room for a checkpoint.
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
    """Returns what a fine-tuned checkpoint holds, ours or upstream's, as if it had just been trained.

    Raises:
        FineTuneError, EncoderError: As `load_finetuned`; or the model has not `num_classes` classes.
    """
    model = load_finetuned(checkpoint, encoder)
    if num_classes not in (None, model.num_classes):
        raise FineTuneError(
            f"{checkpoint}: tells {model.num_classes} classes apart, the dataset has {num_classes}: it was fine-tuned"
            " on another dataset; choose that one, or another checkpoint"
        )
    return FineTuned(model, pd.DataFrame(columns=["epoch", "loss", "lr"]), {"evaluated_only": True, **model.facts})


def recipe_table(recipe: FineTuneRecipe) -> pd.DataFrame:
    """Returns the recipe beside the published one: a row a setting; `note` says where they differ."""
    published, rows = asdict(FineTuneRecipe()), {}
    for name, value in asdict(recipe).items():
        note = "" if value == published[name] else "differs"
        rows[name] = {"here": str(value), "published": str(published[name]), "note": note}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")


def _train(task: TrainingTask, device: torch.device, on_epoch: Callable | None = None) -> None:
    training = Training(task, device, _plain(task.identity()), on_epoch)
    facts = training.run()
    if training.main:
        _write_json(task.folder / "facts.json", facts)
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
        raise FineTuneError("all training images are of one class; take a larger fraction")
    if task.val is not None and task.monitor == "auroc" and len(np.unique(task.val.y)) < 2:
        raise FineTuneError(
            "all val images are of one class, so AUROC cannot choose the best epoch; pass val=None to keep the last"
        )


def _in_processes(task: TrainingTask, on_epoch: Callable | None) -> None:
    """Describes the task in its folder, starts torchrun on it, and reports its epochs."""
    folder = task.folder
    seen = _written(folder / "history.csv")
    with claimed(folder):  # from then on by the first of the processes, since they may outlive this one
        if not task.resume:
            (folder / LAST).unlink(missing_ok=True)
        elif (folder / LAST).exists():
            check_last(folder / LAST, _plain(task.identity()))  # what is wrong is better said here than in a log
        where = folder / "task"
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir()
    save_model(where / "start.safetensors", task.model, {"drop_path": task.recipe.drop_path})
    for name, images in (("train", task.train), ("val", task.val)):
        if images is not None:
            np.savez(where / f"{name}.npz", **{k: v for k, v in vars(images).items() if v is not None})
    settings = {"recipe": asdict(task.recipe), "computing": asdict(task.computing), "trackers": list(task.trackers)}
    cache = None if task.cache is None else str(task.cache.absolute())
    _write_json(where / "task.json", {**settings, "cache": cache, "val": task.val is not None})

    def look() -> None:
        nonlocal seen
        if on_epoch is not None and (now := _written(folder / "history.csv")) != seen:
            seen = now
            on_epoch(pd.read_csv(folder / "history.csv"))

    try:
        run_processes(
            MODULE,
            [str(folder.absolute())],
            task.computing.processes,
            folder / "log.txt",
            look,
        )
    except FineTuneError as error:
        if (where / "error.txt").exists():
            raise FineTuneError((where / "error.txt").read_text()) from error
        raise
    shutil.rmtree(where)


def main(folder: Path) -> None:
    """Does the task that is described in a folder; one of several processes that torchrun started."""
    where = folder / "task"
    settings = json.loads((where / "task.json").read_text())
    model = load_finetuned(where / "start.safetensors")
    model.digest = model.facts["encoder_digest"]
    with np.load(where / "train.npz") as arrays:
        train = LabelledImages(**arrays)
    val = None
    if settings["val"]:
        with np.load(where / "val.npz") as arrays:
            val = LabelledImages(**arrays)
    recipe, computing = FineTuneRecipe(**settings["recipe"]), Computing(**settings["computing"])
    cache = None if settings["cache"] is None else Path(settings["cache"])
    task = TrainingTask(model, train, val, recipe, folder, computing, cache, trackers=settings["trackers"])
    computing, device = computing.settle()
    with claimed(folder) if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
        _train(task, device)


def _written(file: Path) -> int | None:
    """Returns what tells a file from a later one of the same name."""
    return file.stat().st_mtime_ns if file.exists() else None


def _plain(facts: dict) -> dict:
    """As JSON gives it back, so that it equals what was read from a file."""
    return json.loads(json.dumps(facts))


def _write_json(path: Path, content: dict) -> None:
    text = json.dumps(content, indent=2) + "\n"
    replace_file(path, len(text), lambda new: new.write_text(text))


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "task" / "task.json").is_file():
        sys.exit(f"usage: python -m torch.distributed.run ... -m {MODULE} FOLDER (see `finetune`)")
    try:
        main(Path(sys.argv[1]))
        # All is written and all have come this far. Taking down a group of processes was seen to hang once in a while.
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(0)
    except ValueError as error:  # ours: the one that started us says it again, without the log of torchrun
        (Path(sys.argv[1]) / "task" / "error.txt").write_text(str(error))
        raise
