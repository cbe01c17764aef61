"""Outputs of a trained model for many images, with fewer at once when memory runs out.

Symbols: V views of an image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from tqdm.auto import tqdm

from panderm_utils.data import ImageFiles, batch_loader
from panderm_utils.encoders import precision_context

BATCH = {"cpu": 16, "cuda": 128, "mps": 32}  # initial images at once; halved when memory runs out


@torch.no_grad()
def score(
    model: nn.Module,
    files: ImageFiles,
    rows: Sequence[int],
    device: torch.device,
    precision: str,
    batch_size: int,
    num_workers: int | None = None,
    bar: tqdm | None = None,
) -> np.ndarray:
    """Returns logits [len(rows), V, ...] float32 of rows of `files`, whose items are `(i, views [V, 3, 224, 224])`.

    Items `(i, image [3, 224, 224])` count as one view. `batch_size` is in images.
    """
    batches = [list(rows[at : at + batch_size]) for at in range(0, len(rows), batch_size)]
    outputs, portion = [], None
    with batch_loader(files, batches, device, num_workers) as loader:
        for _, views in loader:
            views = views[:, None] if views.ndim == 4 else views
            flat = views.flatten(0, 1)
            portion = min(portion or len(flat), len(flat))
            logits, portion = _forward(model, flat, device, precision, portion)
            # A GPU is not waited for: it gets its next batch while it computes this one.
            outputs.append(logits.unflatten(0, views.shape[:2]).to("cpu", non_blocking=device.type == "cuda"))
            if bar is not None:
                bar.update(len(views))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return torch.cat(outputs).numpy() if outputs else np.zeros((0, 1, 0), dtype=np.float32)


def forward(model: nn.Module, x: Tensor, device: torch.device, precision: str, portion: int) -> tuple[Tensor, int]:
    """Returns logits on the CPU and the number of images at once, halved if memory ran out."""
    logits, portion = _forward(model, x, device, precision, portion)
    return logits.cpu(), portion


def _forward(model: nn.Module, x: Tensor, device: torch.device, precision: str, portion: int) -> tuple[Tensor, int]:
    """Returns what `forward` does, with the logits on the device."""
    while True:
        try:
            with precision_context(device, precision):
                parts = [model(part.to(device, non_blocking=True)).float() for part in x.split(portion)]
            return torch.cat(parts), portion
        except RuntimeError as error:
            if portion == 1 or not should_reduce_batch_size(error):
                raise
        # outside the handler, so that the memory of the failed attempt can be freed
        portion //= 2
        free_memory(device)


def free_memory(device: torch.device) -> None:
    """Releases the cached memory of a GPU after it ran out."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).empty_cache()
