"""The gradients of a batch, independent of micro-batch size and number of processes.

Symbols: K classes, B images of a batch, over all processes.

A batch is mixed as a whole: image i with image B-1-i. So each process and micro-batch takes such pairs, and all draw
the same mixing weights from (seed, epoch, step). Randomness inside the network comes from (seed, epoch, step, process),
so a step that is repeated, after memory ran out or in a resumed training, is the same step.
"""

import contextlib
import warnings

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from timm.data.mixup import Mixup, mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from panderm_utils.protocols.fine_tune.model import FineTuneModel
from panderm_utils.protocols.fine_tune.prediction import free_memory
from panderm_utils.protocols.fine_tune.recipe import FineTuneError, FineTuneRecipe, parameter_groups

MIX, DROP = 10, 11  # purposes of generators, the first number of their seeds; `augmentation` has others
FEW_CPU = 16  # images at once on a CPU; more only cost memory, 0.2 GB each for a base encoder


class MemoryWarning(UserWarning):
    """Memory ran out; the training continues with fewer images at once."""


class BatchGradients:
    """Accumulates the gradients of this process's images of a batch of B.

    Attributes:
        positions: This process's positions in the batch, pairs of i and B-1-i: all i, then all B-1-i.
        micro_batch: Images at once; an even number.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        recipe: FineTuneRecipe,
        num_classes: int,
        batch: int,
        micro_batch: int | str,
        fitted: int | None = None,
    ):
        """If `micro_batch` is "auto", starts with `fitted` images at once, which fitted in memory before."""
        self.accelerator, self.model, self.recipe = accelerator, model, recipe
        self.num_classes, self.batch, self.auto = num_classes, batch, micro_batch == "auto"
        self.world, self.device = accelerator.num_processes, accelerator.device
        pairs = batch // 2
        if pairs < self.world:
            raise FineTuneError(f"a batch of {batch} has fewer pairs than the {self.world} processes; start fewer")
        own_pairs = np.array_split(np.arange(pairs), self.world)[accelerator.process_index]
        self.positions = [*own_pairs.tolist(), *(batch - 1 - own_pairs[::-1]).tolist()]
        first = FEW_CPU if self.device.type == "cpu" else len(self.positions)
        self.micro_batch = min((fitted or first) if self.auto else micro_batch, len(self.positions))
        self.criterion = SoftTargetCrossEntropy()
        self.mixup = Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            prob=recipe.mix_prob,
            switch_prob=recipe.switch_prob,
            label_smoothing=recipe.smoothing,
            num_classes=num_classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> Tensor:
        """Adds to the model's gradients; returns this process's part of the batch's mean loss, times the processes."""
        while isinstance(loss := self._try(images, labels, epoch, step), str):
            if not self.auto or self.micro_batch <= 2 or self.world > 1:
                raise FineTuneError(
                    f"memory ran out with {self.micro_batch} images at once ({loss}): set checkpointing=True, a lower"
                    " micro_batch, or bf16"
                )
            self.model.zero_grad(set_to_none=True)
            self._halve()
        return loss

    def fit(self, plain: nn.Module) -> None:
        """With several processes, sets `micro_batch` to the number of images that fits in all of them.

        This must be done before training: a process that ran out of memory in a step would leave the others waiting.
        """
        if self.world == 1 or not self.auto or self.device.type == "cpu":
            return
        room = sum(value.numel() for value in plain.parameters())
        # Stands for the optimizer's two moments and the gradient buckets, which are allocated later.
        reserve = torch.empty(3 * room, device=self.device)
        while not self._fits(plain):
            if self.micro_batch <= 2:
                raise FineTuneError("memory ran out with 2 images at once: set checkpointing=True, or bf16")
            self._halve()
        del reserve
        plain.zero_grad(set_to_none=True)
        free_memory(self.device)
        least = self.accelerator.gather(torch.tensor([self.micro_batch], device=self.device)).min()
        self.micro_batch = int(least)

    def _fits(self, plain: nn.Module) -> bool:
        try:
            with self.accelerator.autocast():
                loss = plain(torch.zeros(self.micro_batch, 3, 224, 224, device=self.device)).float().sum()
            (0 * loss).backward()
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            return False
        return True

    def _halve(self) -> None:
        free_memory(self.device)
        self.micro_batch = max(2, self.micro_batch // 4 * 2)
        warnings.warn(
            f"memory ran out: {self.micro_batch} images at once from here on; the step is repeated, nothing is lost",
            MemoryWarning,
            stacklevel=6,
        )

    def _try(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> Tensor | str:
        """Returns the loss, or the text of an out-of-memory error: the error itself would hold memory."""
        try:
            return self._accumulate(images, labels, epoch, step)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            return str(error).splitlines()[0]

    def _accumulate(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> Tensor:
        torch.manual_seed(seed_of(DROP, self.recipe.seed, epoch, step, self.accelerator.process_index))
        pairs, total = len(images) // 2, torch.zeros((), device=self.device)
        for start in range(0, pairs, self.micro_batch // 2):
            stop = min(start + self.micro_batch // 2, pairs)
            both = slice(start, stop), slice(len(images) - stop, len(images) - start)
            # copies, since mixing is in place and a step may be repeated
            x, y = (torch.cat([values[part] for part in both]).to(self.device) for values in (images, labels))
            x, target = self._mix(x, y, epoch, step)
            waits = stop < pairs and self.world > 1
            with self.accelerator.no_sync(self.model) if waits else contextlib.nullcontext():
                # gradients are averaged over processes, so each weights its part of the batch
                loss = self.criterion(self.model(x), target) * (len(x) * self.world / self.batch)
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _mix(self, x: Tensor, y: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        if not self.recipe.mixes:
            return x, mixup_target(y, self.num_classes, 1.0, self.recipe.smoothing)
        before = np.random.get_state()  # timm draws from NumPy's global generator
        np.random.seed(seed_of(MIX, self.recipe.seed, epoch, step) % 2**32)
        try:
            return self.mixup(x, y)
        finally:
            np.random.set_state(before)


def make_optimizer(model: FineTuneModel, recipe: FineTuneRecipe) -> torch.optim.AdamW:
    """Returns AdamW over the recipe's parameter groups, fused if the device supports it."""
    settings = {"lr": 0.0, "betas": (recipe.beta1, recipe.beta2), "eps": recipe.eps}
    try:
        return torch.optim.AdamW(parameter_groups(model, recipe), fused=True, **settings)
    except RuntimeError:
        return torch.optim.AdamW(parameter_groups(model, recipe), **settings)


def seed_of(*numbers: int) -> int:
    """Returns a seed for torch from a purpose and non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)  # torch takes 63 bits
