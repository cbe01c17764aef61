"""The correctness rows of `benchmarks.gpu`: the device against float32 on the CPU, and what must survive a mishap."""

import contextlib
import copy
import io
import itertools
import os
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial

from benchmarks.gpu_device import CLASSES, Device, random_weights, unfused
from benchmarks.rows import Result, Row
from benchmarks.steps import has_bf16

# isort: split
import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.probe import draw_features
from panderm_utils.encoders import check_precision
from panderm_utils.protocols.fine_tune import (
    FineTuneModel,
    FineTuneRecipe,
    FineTuning,
    MixedLoss,
    load_finetune_model,
)
from panderm_utils.protocols.fine_tune.prediction import LabelledImages
from panderm_utils.protocols.linear_probe import fit_linear_probe
from panderm_utils.protocols.training import LAST, BatchGradients, Computing, make_accelerator, run_training

FEATURES = {"fp32": 1e-4, "bf16": 0.9999, "fp16": 0.9999}  # largest difference, else the smallest cosine
GRADIENTS = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.1}  # relative
RESUMED = 1e-3  # on a GPU, whose sums have no fixed order; on a CPU the bits are equal
STOPPED_IN = 6  # step of eight
SCALE = 1024.0  # of the loss, in float16


def rows(device: Device) -> list[Row]:
    """Returns the rows, the most important first; on a CPU only those that take seconds."""
    name, batch = device.sizes.step_check
    steps = [
        Row(
            f"fine-tuning step, {name}, batch {batch}, {precision}, against fp32 on the CPU",
            partial(check_step, device, precision),
            15 if precision == "fp32" else 8,
        )
        for precision in _precisions(device)
    ]
    return [
        *_feature_rows(device, device.sizes.encoders[: None if device.cuda else 1]),
        *steps,
        Row("fine-tuning stopped and resumed, against uninterrupted", partial(check_resume, device), 20),
        Row(f"out of memory, {name}, batch {4 * batch}", partial(check_halving, device), 20),
        Row("probe on features of the device", partial(check_probe, device), 20),
    ]


def late_rows(device: Device) -> list[Row]:
    """Returns the rows that take longest on a CPU."""
    return [] if device.cuda else _feature_rows(device, device.sizes.encoders[1:])


def _feature_rows(device: Device, names: Sequence[str]) -> list[Row]:
    """Returns the rows of features; the first of an encoder also makes it and computes what is expected."""
    making = {"panderm_large": 30, "panderm_base": 8}
    return [
        Row(
            f"features, {name}, {precision}, against fp32 on the CPU",
            partial(check_features, device, name, precision),
            making.get(name, 3) if precision == "fp32" else 3,
        )
        for name in names
        for precision in _precisions(device, small=name == "panderm_tiny")
    ]


def _precisions(device: Device, small: bool = True) -> list[str]:
    """Returns what the device can compute in; a CPU emulates what it lacks, in a time that only small models allow."""
    if device.cuda:
        return ["fp32", "bf16", "fp16"]
    return ["fp32", "bf16"] if small or has_bf16() else ["fp32"]


def check_features(device: Device, name: str, precision: str) -> Result:
    """Compares features of random images with those of unfused attention in float32 on the CPU."""
    check_precision(precision, device.device)  # which a GPU may lack
    images, expected = reference(device, name)
    encoder = device.encoder(name)
    encoder.precision = precision
    started = time.perf_counter()
    found = encoder(images).cpu()
    seconds = time.perf_counter() - started
    assert found.dtype == torch.float32 and found.isfinite().all()
    goal = FEATURES[precision]
    if precision == "fp32":
        value = (found - expected).abs().max().item()
        return Result(f"differ by {value:.1e}", remark=_goal(f"at most {goal:g}", value <= goal))
    value = torch.cosine_similarity(found.double(), expected.double()).min().item()
    remark = f"{_goal(f'at least {goal}', value >= goal)}; {seconds:.2f} s"
    return Result(f"smallest cosine {value:.6f}", remark=remark)


@cache
def reference(device: Device, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns images and their features in float32 on the CPU; computed once."""
    model = copy.deepcopy(device.encoder(name).model).cpu()
    images = torch.randn(device.sizes.checked, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with unfused(model), torch.no_grad():
        return images, model(images)


def check_step(device: Device, precision: str) -> Result:
    """Compares the gradients of one step with those of plain autograd in float32 on the CPU; no drop path."""
    check_precision(precision, device.device)
    model, images, labels, loss = step_parts(*device.sizes.step_check)
    plain = copy.deepcopy(model)
    with unfused(plain):
        expected = loss(plain, images.clone(), labels, 0, 0)
        expected.backward()
    gradients = make_gradients(device, model, loss, precision, len(images))
    scale = _set_scale(gradients)
    found = gradients(images, labels, 0, 0)
    difference = relative_difference(gradients_of(model, scale), gradients_of(plain))
    goal = GRADIENTS[precision]
    losses = f"losses {found.item():.6f}, {expected.item():.6f}"
    return Result(
        f"gradients differ by {difference:.1e}", remark=f"{_goal(f'at most {goal:g}', difference <= goal)}; {losses}"
    )


def step_parts(name: str, batch: int) -> tuple[FineTuneModel, torch.Tensor, torch.Tensor, MixedLoss]:
    """Returns a model on the CPU, images, labels and loss."""
    model = load_finetune_model(random_weights(name), CLASSES, drop_path=0.0).train()
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    return model, images, torch.arange(batch) % CLASSES, MixedLoss(FineTuneRecipe(), CLASSES)


def make_gradients(device: Device, model: FineTuneModel, loss, precision: str, batch: int) -> BatchGradients:
    """Moves the model to the device; returns what accumulates its gradients."""
    accelerator = make_accelerator(device.device, precision, [], device.folder)
    return BatchGradients(accelerator, accelerator.prepare(model.to(device.device)), loss, 0, batch, "auto", batch)


def _set_scale(gradients: BatchGradients) -> float:
    """Returns the factor of the gradients: 1, or with loss scaling one with which they cannot overflow."""
    scaler = gradients.accelerator.scaler
    if scaler is None:
        return 1.0
    scaler.scale(torch.ones(1, device=gradients.device))  # makes its state
    scaler.update(SCALE)
    return SCALE


def gradients_of(model: FineTuneModel, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Returns the gradients by name, copied to the CPU."""
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return {name: value.grad.to("cpu", copy=True) / scale for name, value in trained.items()}


def relative_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Returns the norm of the difference over the norm of what is expected, over all parameters."""
    difference = sum((found[name] - value).double().square().sum() for name, value in expected.items())
    return (difference / sum(value.double().square().sum() for value in expected.values())).sqrt().item()


@dataclass(frozen=True, eq=False)
class Stopping(FineTuning):
    """A fine-tuning that is told to end in one of its steps, as a scheduler does."""

    @cached_property
    def loss(self):
        loss, calls = MixedLoss(self.recipe, self.model.num_classes), itertools.count(1)

        def stopping(*arguments):
            if next(calls) == STOPPED_IN:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss(*arguments)

        return stopping


def check_resume(device: Device) -> Result:
    """Compares a training that was stopped in a step and resumed with one that was not; four steps in two epochs."""
    paths, model = device.files[:16], load_finetune_model(random_weights("panderm_tiny"), CLASSES)
    images = LabelledImages(paths, np.arange(len(paths)) % CLASSES)
    recipe = FineTuneRecipe(batch_size=4, epochs=2, warmup_epochs=0)
    computing = Computing(device=str(device.device), precision="fp32", num_workers=0)
    make = {"whole": FineTuning, "parts": Stopping}
    tasks = {
        name: kind(model, images, None, recipe, device.folder / name, computing, resume=False)
        for name, kind in make.items()
    }
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        run_training(tasks["whole"])
        with contextlib.suppress(SystemExit):
            run_training(tasks["parts"])
        _, facts = run_training(FineTuning(model, images, None, recipe, device.folder / "parts", computing))
    expected, found = (load_file(device.folder / name / LAST) for name in make)
    assert facts["resumed_at"] == {"epoch": 1, "step": STOPPED_IN - 4}, facts["resumed_at"]
    assert expected.keys() == found.keys()
    difference = max((expected[name] - found[name]).abs().max().item() for name in expected if "model/" in name)
    goal = RESUMED if device.cuda else 0
    return Result(f"weights differ by {difference:.1e}", remark=_goal(f"at most {goal:g}", difference <= goal))


def check_halving(device: Device) -> Result:
    """Compares a step in which memory runs out with one in which it does not, and what is allocated afterwards."""
    name, batch = device.sizes.step_check
    model, images, labels, loss = step_parts(name, 4 * batch)
    gradients = make_gradients(device, model, loss, "fp32", len(images))
    device.free()
    gradients(images, labels, 0, 0)
    expected, peak, after = gradients_of(model), device.peak(), device.allocated()
    model.zero_grad()
    with warnings.catch_warnings(), _little_memory(device, gradients):
        warnings.simplefilter("ignore")
        device.free()
        gradients(images, labels, 0, 0)
    difference = relative_difference(gradients_of(model), expected)
    more = device.allocated() - after
    assert gradients.micro_batch < len(images), "memory did not run out"
    well = difference <= GRADIENTS["fp32"] and more <= after / 100
    remark = f"gradients differ by {difference:.1e}; {more / 2**20:.0f} MiB more allocated afterwards"
    if device.cuda:
        remark += f"; peak {peak:,.0f} MiB before"
    return Result(f"halved to {gradients.micro_batch} images", mib=device.peak(), remark=_goal(remark, well))


@contextlib.contextmanager
def _little_memory(device: Device, gradients: BatchGradients) -> Iterator[None]:
    """Allows three quarters of the memory that the last step reserved; on a CPU a loss that runs out is rehearsed."""
    if device.cuda:
        total = torch.cuda.get_device_properties(device.device).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(_threshold(device) / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    loss, largest = gradients.loss, len(gradients.positions) // 2

    def running_out(model, images, *rest):
        if len(images) > largest:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory (rehearsed)")
        return loss(model, images, *rest)

    gradients.loss = running_out
    try:
        yield
    finally:
        gradients.loss = loss


def _threshold(device: Device) -> float:
    """Returns what the process may reserve, in bytes: what it holds, and three quarters of what the step added."""
    held = torch.cuda.memory_allocated(device.device)
    return held + 0.75 * (torch.cuda.max_memory_allocated(device.device) - held)


def check_probe(device: Device) -> Result:
    """Compares probes fitted on features that are on the device with those fitted on the same on the CPU."""
    x, y = draw_features(*device.sizes.probe)
    there = x.to(device.device), y.to(device.device)
    texts, probes = [], {}
    for solver in ("published", "converged"):
        probes[solver] = fit_linear_probe(x, y, solver=solver)
        found = fit_linear_probe(*there, solver=solver)
        assert np.array_equal(found.weight, probes[solver].weight), f"{solver}: other weights"
        texts.append(f"{solver} {found.seconds:.2f} s")
    gain = probes["published"].objective - probes["converged"].objective
    remark = f"{_goal('same bits', True)}; converged {gain:+.1e} below published"
    return Result(", ".join(texts), probes["published"].seconds / probes["converged"].seconds, remark=remark)


def _goal(text: str, reached: bool) -> str:
    return f"{text}: {'reached' if reached else 'MISSED'}"
