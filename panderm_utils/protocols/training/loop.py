"""The training loop, in one process or in each of several; started by `run_training`.

Symbols: B images of an optimizer step, S steps of an epoch.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from accelerate.utils import gather_object
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm.auto import tqdm

from panderm_utils.data import batch_loader
from panderm_utils.protocols.training.errors import TrainingError
from panderm_utils.protocols.training.gradients import BatchGradients, make_optimizer
from panderm_utils.protocols.training.inference import score
from panderm_utils.protocols.training.processes import Signals, make_accelerator
from panderm_utils.protocols.training.state import (
    BEST,
    LAST,
    Progress,
    read_last,
    restore,
    save_last,
    save_model,
    save_text,
)
from panderm_utils.protocols.training.task import TrainingTask
from panderm_utils.results import peak_memory_mb


class Training:
    """One training in this process, which may be one of several."""

    def __init__(self, task: TrainingTask, device: torch.device, identity: dict, on_epoch: Callable | None = None):
        self.task, self.recipe, self.identity, self.on_epoch = task, task.recipe, identity, on_epoch
        self.steps, self.batch = task.steps_of_epoch()
        self.rates = task.learning_rates(self.steps)
        self.accelerator = make_accelerator(device, task.computing.precision, task.trackers, task.folder)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.accelerator.device)
        self.device, self.world = self.accelerator.device, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.images = task.training_images()

        # a new model, so that the task's model is not changed
        self.plain = task.new_model()
        self.plain.load_state_dict(task.model.state_dict(), strict=True)
        self.plain.set_grad_checkpointing(task.computing.checkpointing)
        if self.world > 1 and self.device.type == "cuda":  # on a CPU, statistics of batch norms are of each process
            self.plain = nn.SyncBatchNorm.convert_sync_batchnorm(self.plain)
        self.plain.to(self.device)
        resumes = task.resume and (task.folder / LAST).exists()
        if not resumes:
            self.plain.load_state_dict(task.fitted_tensors(self.plain, self.device), strict=False)
        decay = getattr(self.recipe, "ema_decay", None)
        self.ema = None if decay is None else ModelEmaV3(self.plain, decay=decay)
        self.averaged = None if self.ema is None else self.ema.module
        optimizer = make_optimizer(task.parameter_groups(self.plain), self.recipe)
        self.model, self.optimizer = self.accelerator.prepare(self.plain, optimizer)
        self.progress, self.resumed_at = Progress(), None
        if resumes:
            self.progress, tensors, scaling = read_last(task.folder / LAST, identity)
            restore(tensors, scaling, self.plain, self.optimizer, self.accelerator.scaler, self.averaged)
            self.resumed_at = {"epoch": self.progress.epoch, "step": self.progress.step}
        settings = (task.loss, self.recipe.seed, self.batch, task.computing.micro_batch, self.progress.micro_batch)
        self.gradients = BatchGradients(self.accelerator, self.model, *settings)
        self.gradients.fit(self.plain)

    def run(self) -> dict:
        """Trains to the end, writing checkpoints and history; returns the facts for a record."""
        done = self.progress.epoch * self.steps + self.progress.step
        if self.task.trackers:
            self.accelerator.init_trackers("panderm_utils", config=asdict(self.recipe))
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=devices),
            Signals() as self.signals,
            tqdm(
                desc=self.task.name,
                total=self.recipe.epochs * self.steps * self.batch,
                initial=done * self.batch,
                unit="image",
                disable=not self.main,
            ) as self.bar,
        ):
            if self.main and self.progress.history:
                history = self._write_history()  # may be missing after a kill, or deleted since
                if self.on_epoch is not None:
                    self.on_epoch(history)
            try:
                while self.progress.epoch < self.recipe.epochs:
                    self._train_epoch()
                    self._end_epoch()
            finally:
                for tracker in self.accelerator.trackers:
                    tracker.finish()
        return self.facts()

    def facts(self) -> dict:
        """Returns the facts about the training for a record, JSON-serializable."""
        progress = self.progress
        chosen = "last epoch (no val split)" if self.task.val is None else f"best {self.task.monitor} on val"
        images = len(progress.history) * self.steps * self.batch
        seconds = sum(row["seconds"] for row in progress.history)
        return {
            "recipe": asdict(self.recipe),
            "differs_from_published": self.recipe.differences(),
            "chosen": chosen,
            "best_epoch": progress.best_epoch,
            "best_value": progress.best,
            "batch": self.batch,
            "steps_of_epoch": self.steps,
            "micro_batch": self.gradients.micro_batch,
            "checkpointing": self.task.computing.checkpointing,
            "processes": self.world,
            "device": str(self.device),
            "device_name": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None,
            "precision": self.task.computing.precision,
            "fused_optimizer": bool(self.optimizer.defaults.get("fused")),
            "training_seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 2) if seconds else None,
            "peak_memory_mb": peak_memory_mb(),
            "resumed_at": self.resumed_at,
        }

    def _train_epoch(self) -> None:
        progress = self.progress
        items = self.task.draw_epoch(progress.epoch)
        starts = [step * self.batch for step in range(progress.step, self.steps)]
        self.images.set_epoch(progress.epoch)
        self.model.train()
        batches = [[items[start + position] for position in self.gradients.positions] for start in starts]
        with batch_loader(self.images, batches, self.device, self.task.computing.num_workers) as loader:
            started = time.perf_counter()
            for _, images, targets in loader:
                loss, stop = self._step(images, targets)
                progress.losses.append(loss)
                progress.step += 1
                now = time.perf_counter()
                progress.seconds, started = progress.seconds + now - started, now
                self.bar.update(self.batch)
                self.bar.set_postfix({"epoch": progress.epoch + 1, "loss": f"{loss:.3f}"}, refresh=False)
                if stop:
                    self._save_last()
                    self.signals.stop()

    def _step(self, images: Tensor, targets: Tensor) -> tuple[float, bool]:
        """Takes one optimizer step; returns the mean loss of its B images, and whether a signal requests a stop."""
        step = self.progress.epoch * self.steps + self.progress.step
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[step] * group["scale"]
        loss = self.gradients(images, targets, self.progress.epoch, self.progress.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.plain)
        loss, stop = self._agree(loss)  # waits for a GPU, so it comes last; after an error nothing is saved
        if not math.isfinite(loss):
            before = ", ".join(f"{value:.4g}" for value in self.progress.losses[-5:]) or "none in this epoch"
            raise TrainingError(
                f"the loss is {loss} in epoch {self.progress.epoch + 1}, step {self.progress.step + 1} of {self.steps},"
                f" at learning rate {self.rates[step]:.3g}; the last losses were {before}. Lower lr, lengthen the"
                f' warm-up, or use precision="fp32"; {self.task.folder} has the last complete epoch'
            )
        return loss, stop

    def _agree(self, loss: Tensor) -> tuple[float, bool]:
        """Returns the loss over all processes, and whether any of them must stop."""
        if self.world == 1:
            return loss.item(), self.signals.received is not None
        stop = torch.tensor(float(self.signals.received is not None), device=self.device)
        loss, stop = self.accelerator.reduce(torch.stack([loss, stop]), "mean").tolist()
        return loss, stop > 0

    def _end_epoch(self) -> None:
        progress = self.progress
        last = progress.epoch * self.steps + self.steps - 1
        row = {"epoch": progress.epoch + 1, "loss": float(np.mean(progress.losses)), "lr": float(self.rates[last])}
        if self.task.val is not None:
            try:
                with self.signals.at_once() if self.world == 1 else contextlib.nullcontext():
                    row |= self._scores()
            except (KeyboardInterrupt, SystemExit):
                self._save_last()
                raise
            value = row[f"val_{self.task.monitor}"]
            better = progress.best is None or value > progress.best
        else:
            value, better = None, progress.epoch + 1 == self.recipe.epochs
        if better:
            progress.best, progress.best_epoch = value, progress.epoch + 1
            self._save_best(row)
        speed = self.steps * self.batch / progress.seconds if progress.seconds else None
        row |= {"best": better, "seconds": progress.seconds, "images_per_second": speed}
        progress.history.append(row)
        progress.epoch, progress.step, progress.losses, progress.seconds = progress.epoch + 1, 0, [], 0.0
        self._save_last()
        if self.task.trackers:
            numbers = {name: number for name, number in row.items() if isinstance(number, float)}
            self.accelerator.log(numbers, step=row["epoch"])
        if self.main:
            history = self._write_history()
            if self.on_epoch is not None:
                self.on_epoch(history)
        if self.signals.received is not None and self.world == 1:
            self.signals.stop()

    def _write_history(self) -> pd.DataFrame:
        history = pd.DataFrame(self.progress.history)
        save_text(self.task.folder / "history.csv", history.to_csv(index=False))
        return history

    def _scores(self) -> dict[str, float]:
        """Returns the scores on val; each process predicts a part of it, each image once."""
        files, size = self.task.val_images(), len(self.task.val)
        own_rows = range(self.accelerator.process_index, size, self.world)
        precision, workers = self.task.computing.precision, self.task.computing.num_workers
        options = (self.device, precision, self.gradients.micro_batch, workers)
        outputs = score(self._scored().eval(), files, own_rows, *options)[:, 0]
        parts = gather_object([(list(own_rows), outputs)])
        everything = np.empty((size, *outputs.shape[1:]), dtype=np.float32)
        for rows, part in parts:
            everything[rows] = part
        return self.task.val_scores(everything)

    def _scored(self) -> nn.Module:
        """The model that is evaluated and saved: the moving average, if enabled."""
        return self.plain if self.averaged is None else self.averaged

    def _save_last(self) -> None:
        self.progress.micro_batch = self.gradients.micro_batch if self.gradients.auto else None
        if self.main:
            path, scaler = self.task.folder / LAST, self.accelerator.scaler
            parts = (self.plain, self.optimizer, scaler, self.averaged)
            save_last(path, *parts, self.progress, self.identity)
        self.accelerator.wait_for_everyone()

    def _save_best(self, row: dict) -> None:
        origin = self.task.origin()
        facts = {**origin, "monitor": self.task.monitor, "scores": row, **self.identity, **origin}
        if self.main:
            save_model(self.task.folder / BEST, self._scored(), facts)
