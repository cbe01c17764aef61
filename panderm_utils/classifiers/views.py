"""Reads images batch by batch, for predictors of any kind; those that cannot be read are named and left out."""

import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate
from tqdm.auto import tqdm

from panderm_utils.data import ImageError, batch_loader, open_image
from panderm_utils.messages import UserError


class ClassifierError(UserError):
    """A classifier or predictions that cannot be had as requested; the message says why and what to do."""


class Viewer(typing.Protocol):
    """What every predictor has, whatever it predicts."""

    device: torch.device
    batch_size: int
    # Takes an RGB image and its number in its list, returns what goes into a batch. Worker processes get this alone.
    view: Callable[[Image.Image, int], typing.Any]


def stream_views(
    images: Sequence[str | Path | Image.Image],
    rows: Sequence[int],
    predictor: Viewer,
    num_workers: int | None = None,
    bar: tqdm | None = None,
) -> Iterator[tuple[list[int], typing.Any, list[str]]]:
    """Yields for each batch of the images at `rows`: the readable ones, their views, and what is wrong with the others.

    The views are those of the predictor, batched by torch; None if no image of the batch can be read.
    """
    files, size = _Views(images, predictor.view), predictor.batch_size
    batches = [rows[at : at + size] for at in range(0, len(rows), size)]
    with batch_loader(files, batches, predictor.device, num_workers, _collate) as loader:
        for readable, views, unreadable in loader:
            yield readable, views, unreadable
            if bar is not None:
                bar.update(len(readable) + len(unreadable))


class _Views(Dataset):
    """Item i is `(i, view, "")`, or `(i, None, reason)` if image i cannot be read."""

    def __init__(self, images: Sequence[str | Path | Image.Image], view: Callable[[Image.Image, int], typing.Any]):
        self.images, self.view = images, view

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, typing.Any, str]:
        image = self.images[index]
        try:
            picture = image.convert("RGB") if isinstance(image, Image.Image) else open_image(image)
            return index, self.view(picture, index), ""
        except ImageError as error:
            return index, None, str(error)


def _collate(items: list) -> tuple[list[int], typing.Any, list[str]]:
    """Returns the numbers of the readable images, their views, and what is wrong with the others."""
    readable = [(index, view) for index, view, reason in items if not reason]
    views = default_collate([view for _, view in readable]) if readable else None
    return [index for index, _ in readable], views, [reason for *_, reason in items if reason]
