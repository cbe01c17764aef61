"""The gradients of a batch, independent of micro-batch size and number of processes.

Symbols: B images of a batch, over all processes.

A batch may be mixed as a whole: image i with image B-1-i. So each process and micro-batch takes such pairs. Randomness
inside the network comes from (seed, epoch, step, process), so a step that is repeated, after memory ran out or in a
resumed training, is the same step.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from panderm_utils.encoders import precision_context
from panderm_utils.protocols.training.errors import TrainingError
from panderm_utils.protocols.training.inference import free_memory
from panderm_utils.protocols.training.seeds import DROP, seed_of

# Takes the model, images and targets of a micro-batch, epoch and step; returns the mean loss of these images.
Loss = Callable[[nn.Module, Tensor, Tensor, int, int], Tensor]
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
        loss: Loss,
        seed: int,
        batch: int,
        micro_batch: int | str,
        fitted: int | None = None,
    ):
        """If `micro_batch` is "auto", starts with `fitted` images at once, which fitted in memory before."""
        self.accelerator, self.model, self.loss, self.seed = accelerator, model, loss, seed
        self.batch, self.auto = batch, micro_batch == "auto"
        self.world, self.device = accelerator.num_processes, accelerator.device
        pairs = batch // 2
        if pairs < self.world:
            raise TrainingError(f"a batch of {batch} has fewer pairs than the {self.world} processes; start fewer")
        own_pairs = np.array_split(np.arange(pairs), self.world)[accelerator.process_index]
        self.positions = [*own_pairs.tolist(), *(batch - 1 - own_pairs[::-1]).tolist()]
        first = FEW_CPU if self.device.type == "cpu" else len(self.positions)
        self.micro_batch = min((fitted or first) if self.auto else micro_batch, len(self.positions))

    def __call__(self, images: Tensor, targets: Tensor, epoch: int, step: int) -> Tensor:
        """Adds to the model's gradients; returns this process's part of the batch's mean loss, times the processes."""
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        while isinstance(loss := self._try(images, targets, epoch, step), str):
            if not self.auto or self.micro_batch <= 2 or self.world > 1:
                raise TrainingError(
                    f"memory ran out with {self.micro_batch} images at once ({loss}): set checkpointing=True, a lower"
                    " micro_batch, or bf16"
                )
            self.model.zero_grad(set_to_none=True)
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):  # statistics of batch norms
                buffer.copy_(before)
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
                raise TrainingError("memory ran out with 2 images at once: set checkpointing=True, or bf16")
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

    def _try(self, images: Tensor, targets: Tensor, epoch: int, step: int) -> Tensor | str:
        """Returns the loss, or the text of an out-of-memory error: the error itself would hold memory."""
        try:
            # inside autocast, the precision changes nothing
            with precision_context(self.device, "fp32"), _fixed_order(self.device):
                return self._accumulate(images, targets, epoch, step)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            return str(error).splitlines()[0]

    def _accumulate(self, images: Tensor, targets: Tensor, epoch: int, step: int) -> Tensor:
        torch.manual_seed(seed_of(DROP, self.seed, epoch, step, self.accelerator.process_index))
        pairs, total = len(images) // 2, torch.zeros((), device=self.device)
        for start in range(0, pairs, self.micro_batch // 2):
            stop = min(start + self.micro_batch // 2, pairs)
            both = slice(start, stop), slice(len(images) - stop, len(images) - start)
            # Copies, since mixing is in place and a step may be repeated. Made on the device: from pinned memory a GPU
            # copies while it computes, but a concatenation on the CPU would not be pinned, and waited for.
            x, y = (
                torch.cat([values[part].to(self.device, non_blocking=True) for part in both])
                for values in (images, targets)
            )
            waits = stop < pairs and self.world > 1
            with self.accelerator.no_sync(self.model) if waits else contextlib.nullcontext():
                # gradients are averaged over processes, so each weights its part of the batch
                loss = self.loss(self.model, x, y, epoch, step) * (len(x) * self.world / self.batch)
                self.accelerator.backward(loss)
            total += loss.detach()
        return total


@contextlib.contextmanager
def _fixed_order(device: torch.device) -> Iterator[None]:
    """Sums gradients in a fixed order on a CPU, where threads would add to relative positions as they come.

    A GPU sorts them anyway, and elsewhere would lose time.
    """
    if device.type != "cpu":
        yield
        return
    switches = torch.utils.deterministic
    kept, filled = torch.get_deterministic_debug_mode(), switches.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    switches.fill_uninitialized_memory = False  # it would only cost time
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(kept)
        switches.fill_uninitialized_memory = filled


def make_optimizer(groups: list[dict], recipe) -> torch.optim.AdamW:
    """Returns AdamW over parameter groups, with the recipe's betas and eps; fused if the device supports it."""
    settings = {"lr": 0.0, "betas": (recipe.beta1, recipe.beta2), "eps": recipe.eps}
    try:
        return torch.optim.AdamW([dict(group) for group in groups], fused=True, **settings)
    except RuntimeError:
        return torch.optim.AdamW(groups, **settings)
