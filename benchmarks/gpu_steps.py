"""The rows of `benchmarks.gpu` for the speed of training steps and of predictions from five views."""

import contextlib
import time
from collections.abc import Callable
from functools import cache, partial

from benchmarks.finetune import Step, published_view
from benchmarks.gpu_device import (
    CLASSES,
    Device,
    compiled,
    forward_flops,
    precisions,
    random_weights,
    reading_processes,
    unfused,
)
from benchmarks.rows import Result, Row
from benchmarks.steps import KINDS

# isort: split
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional

from panderm_utils.protocols.fine_tune import FineTuneModel, load_finetune_model, predict
from panderm_utils.protocols.fine_tune.prediction import LabelledImages
from panderm_utils.protocols.training import BATCH

VIEWS, PASSES = 5, 3  # a training step is three times the arithmetic of a forward pass
PUBLISHED = "published: 0.85 s, 39,406 MiB on an RTX 6000 Ada; aim: a third of that memory"


def main_rows(device: Device) -> list[Row]:
    """Returns the rows of fine-tuning, five views and segmentation, the most important first."""
    low, training = precisions(device)[0], _fine_tuning(device)
    return [
        training("naive"),
        training(low),
        training(f"{low} checkpointed"),
        *_view_rows(device),
        *_mask_rows(device, low),
        training(low, optimizer="foreach"),
        training("fp32"),
    ]


def compiled_row(device: Device) -> Row:
    """Returns the row of a compiled step of fine-tuning."""
    return _fine_tuning(device)(precisions(device)[0], compiling=True)


def _fine_tuning(device: Device) -> Callable[..., Row]:
    return partial(_training_row, device, "fine-tuning", *device.sizes.step)


def _training_row(
    device: Device,
    what: str,
    encoder: str,
    batch: int,
    kind: str,
    compiling: bool = False,
    optimizer: str = "fused",
    channels_last: bool = False,
) -> Row:
    words = [kind, "compiled" if compiling else "", "optimizer not fused" if optimizer != "fused" else ""]
    words.append("channels last" if channels_last else "")
    title = ", ".join([f"{what} step, {encoder}, batch {batch}", *filter(None, words)])
    call = partial(train, device, what, encoder, batch, kind, compiling, optimizer, channels_last)
    return Row(title, call, (60 if compiling else 15) if device.cuda else (60 if compiling else 12))


def train(
    device: Device,
    what: str,
    encoder: str,
    batch: int,
    kind: str,
    compiling: bool,
    optimizer: str,
    channels_last: bool,
) -> Result:
    """Measures a training step on random images; `kind` is one of KINDS."""
    held = device.free()
    with torch.device(device.device):  # weights drawn on the CPU would take seconds
        step = _make_step(what, device, encoder, batch, kind)
    if optimizer != "fused":
        groups = [{key: group[key] for key in ("params", "weight_decay")} for group in step.optimizer.param_groups]
        step.optimizer = torch.optim.AdamW(groups, lr=1e-6, fused=False)
    if channels_last:
        step.model.to(memory_format=torch.channels_last)
    blocks = getattr(step.model, "backbone", step.model).blocks
    with compiled(blocks) if compiling else contextlib.nullcontext():
        seconds = device.time(step, warmups=3)
    key = f"{what}, {encoder}, {batch}, naive"
    if kind == "naive":
        device.rates[key] = batch / seconds
    rate = batch / seconds
    flops = PASSES * rate * forward_flops(what, encoder, device.sizes.masks[1] if what == "segmentation" else 0)
    remark = PUBLISHED if what == "fine-tuning" and (encoder, batch) == ("panderm_large", 128) else ""
    return Result(
        f"{seconds:.3f} s, {rate:,.1f} images/s",
        device.ratio(key, rate),
        device.share(flops, KINDS[kind]),
        device.peak(held),
        remark,
    )


def _make_step(what: str, device: Device, encoder: str, batch: int, kind: str) -> Callable:
    if what == "fine-tuning":
        return Step(kind, encoder, batch, str(device.device))
    from benchmarks import segmentation  # needs one more package

    return segmentation.Step(kind, encoder, batch, str(device.device), device.sizes.masks[1])


def _mask_rows(device: Device, low: str) -> list[Row]:
    encoder, _, batches = device.sizes.masks
    kinds = [("naive", {}), (low, {}), (low, {"channels_last": True})]
    what = "segmentation"
    return [_training_row(device, what, encoder, batch, kind, **how) for batch in batches for kind, how in kinds]


class NaiveViews(Dataset):
    """A dataset of image files, each resized anew for every view, as published."""

    def __init__(self, paths: list):
        self.paths, self.view = paths, published_view()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = functional.to_tensor(Image.open(self.paths[index]).convert("RGB"))
        return torch.stack([self.view(image) for _ in range(VIEWS)])


def _view_rows(device: Device) -> list[Row]:
    name, low = device.sizes.step[0], precisions(device)[0]
    return [
        Row(f"five views of JPEGs, {name}, {kind}", partial(predict_views, device, name, kind), seconds)
        for kind, seconds in (("naive", 30), (low, 15))
    ]


def predict_views(device: Device, name: str, kind: str) -> Result:
    """Measures predictions from five random views of each file."""
    count, key = device.sizes.views[kind != "naive"], f"views, {name}, naive"
    paths = (device.files * -(-count // len(device.files)))[:count]
    model, batch = _view_model(device, name), max(1, BATCH[device.device.type] // VIEWS)
    device.free()
    started = time.perf_counter()
    if kind == "naive":
        with unfused(model), torch.no_grad():
            for views in DataLoader(NaiveViews(paths), batch_size=batch, num_workers=reading_processes(device)):
                model(views.flatten(0, 1).to(device.device)).unflatten(0, views.shape[:2]).mean(1).cpu()
    else:
        images = LabelledImages(paths, np.zeros(len(paths), int))
        predict(model, images, tta=VIEWS, device=str(device.device), precision=kind)
    rate = len(paths) / (time.perf_counter() - started)
    if kind == "naive":
        device.rates[key] = rate
    flops = VIEWS * rate * forward_flops("fine-tuning", name)
    limit = device.share(flops, "fp32" if kind == "naive" else kind)
    return Result(f"{rate:,.1f} images/s", device.ratio(key, rate), limit, device.peak())


@cache
def _view_model(device: Device, name: str) -> FineTuneModel:
    return load_finetune_model(random_weights(name), CLASSES).to(device.device).eval()
