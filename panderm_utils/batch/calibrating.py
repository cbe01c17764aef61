"""Measures this machine for the estimates of `--plan`. Imports torch: load it only to measure.

Models have the encoders' architectures and arbitrary weights, on which time does not depend; images are drawn JPEGs of
600 x 450 pixels, or random. What was measured before is not measured again.
"""

import dataclasses
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from tqdm import tqdm

from panderm_utils import data, encoders, protocols
from panderm_utils.batch.calibration import (
    READING,
    START,
    Machine,
    Row,
    read_machines,
    rows_of,
    write_machine,
)
from panderm_utils.batch.jobs import Plan
from panderm_utils.manifests import load_encoder_manifest
from panderm_utils.results import describe_environment

GROUPS, GROUP_SECONDS = 3, 0.4  # of a timing: groups of calls, and about how long each takes
SLOW, SLOWEST = 2.0, 10.0  # seconds of a call that is timed twice at most, or once
FILES, CHUNK = 48, 8  # drawn JPEGs; images that a worker process reads at once
IMPORTS = "from panderm_utils.batch import warm_server; warm_server._import_all()"  # what a notebook imports
NOT_HERE = (RuntimeError, ValueError, ImportError)  # too little memory; no such precision or package
Measured = dict[str, tuple[float, float]]
Counted = dict[str, float]
ATTENTION = {  # from the shapes of its arguments; torch itself counts that of GPUs
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *qkv, **_: sdpa_flop_count(*qkv[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *gradient_qkv, **_: (
        sdpa_backward_flop_count(*gradient_qkv[:4])
    ),
}


def calibrate(plan: Plan, again: bool = False, say: Callable[[str], None] = print) -> Path:
    """Measures what the estimates of a plan need, keeping each result at once; returns the file.

    Args:
        again: Whether to repeat what was measured before.
        say: Prints a line of text.
    """
    cache, device = plan.space.cache, encoders.choose_device("auto")
    machine = _this_machine(device)
    if not again and (known := read_machines(cache).get(machine.key)) and known.versions == machine.versions:
        machine = known
    todo = [what for what in (START, READING, *rows_of(plan)) if str(what) not in machine.measured]
    with tqdm(todo, unit="", bar_format="{desc} {bar} {n_fmt}/{total_fmt}", leave=False, disable=None) as bar:
        for what in bar:
            bar.set_description_str(str(what))
            try:
                found, flops, memory = _measure(what, device)
            except NOT_HERE as error:
                with tqdm.external_write_mode():
                    say(f"{what}: not measured: {str(error).splitlines()[0]}")
                continue
            machine = dataclasses.replace(
                machine,
                date=date.today().isoformat(),
                measured={**machine.measured, str(what): found},
                gpu_memory={**machine.gpu_memory, **({str(what): memory} if memory else {})},
                flops={**machine.flops, **({str(what): flops} if flops else {})},
            )
            write_machine(cache, machine)
            with tqdm.external_write_mode():
                say(f"{what}: {_describe(what, found)}{f', {memory:,} MB' if memory else ''}")
    say(f"{machine}: {len(machine.measured)} measurements, {len(todo)} of them new")
    return write_machine(cache, machine)


def _this_machine(device: torch.device) -> Machine:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    versions = describe_environment()["versions"]
    return Machine(platform.node(), name, os.cpu_count() or 1, "", versions, {}, {}, {})


def _measure(what: str | Row, device: torch.device) -> tuple[Measured, Counted, int | None]:
    """Returns the range of seconds and the floating-point operations by part, and the peak memory in MB on a GPU."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    if what == START:
        command = [sys.executable, "-c", IMPORTS]
        return {"": _range([lambda: subprocess.run(command, check=True, capture_output=True)])}, {}, None
    if what == READING:
        return {"": _measure_reading(device)}, {}, None
    parts = _measure_step(what, device) if what.protocol else _measure_encoder(what, device)
    memory = round(torch.cuda.max_memory_allocated(device) / 1e6) if cuda else None
    seconds = {part: (low, high) for part, (low, high, _) in parts.items()}
    return seconds, {part: flops for part, (_, _, flops) in parts.items()}, memory


def _measure_reading(device: torch.device) -> tuple[float, float]:
    """Returns the seconds an image, read by as many processes as an extraction has."""
    with tempfile.TemporaryDirectory() as folder:
        files, rounds = list(_draw_files(Path(folder), FILES)), 1

        def read() -> None:
            chunks = [range(at, at + CHUNK) for at in range(0, FILES * rounds, CHUNK)]
            with data.batch_loader(data.ImageFiles(files * rounds), chunks, device, ahead=CHUNK) as loader:
                for _ in loader:
                    pass

        started = time.perf_counter()
        read()
        rounds = max(1, round(GROUP_SECONDS / (time.perf_counter() - started)))
        low, high = _range(GROUPS * [read])
        return low / (FILES * rounds), high / (FILES * rounds)


def _measure_encoder(row: Row, device: torch.device) -> dict[str, tuple[float, float, float]]:
    manifest = load_encoder_manifest(row.encoder)
    encoders.check_precision(row.precision, device)
    with torch.device("meta"):
        model = encoders.build_model(manifest)
    encoder = encoders.Encoder(
        manifest, encoders.arbitrary_weights(model, device), device, row.precision, None, "", None
    )
    batch = _batch(lambda count: encoder(torch.randn(count, 3, 224, 224)), encoders.BATCH[device.type], 1, device)
    images = torch.randn(batch, 3, 224, 224)
    return {"image": _per(_time(lambda: encoder(images), device), batch)}


def _measure_step(row: Row, device: torch.device) -> dict[str, tuple[float, float, float]]:
    make = protocols.load_protocol(row.protocol).trial
    step = make(load_encoder_manifest(row.encoder), dict(row.step), str(device), row.precision)
    parts = {
        "image": (step.gradients, step.count),
        "step": (step.optimize, 1),
        "prediction": (step.predict, step.count),
    }
    return {part: _per(_time(call, device), count) for part, (call, count) in parts.items()}


def _batch(call: Callable[[int], object], most: int, least: int, device: torch.device) -> int:
    """Returns how many images a call of about GROUP_SECONDS has; a GPU, where that matters, computes `most` of them."""
    if device.type != "cpu":
        return most
    call(least)
    started = time.perf_counter()
    call(least)
    return max(least, min(most, int(least * GROUP_SECONDS / (time.perf_counter() - started))))


def _time(call: Callable[[], object], device: torch.device) -> tuple[float, float, float]:
    """Returns the range of a call's seconds, and its floating-point operations.

    A GPU is awaited only after each group of calls, as in use.
    """

    def wait(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            call()
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()
        return (time.perf_counter() - started) / calls

    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        first = wait(1)
    if first > SLOW:
        found = [first] if first > SLOWEST else [first, wait(1)]
    else:
        wait(1)
        found = [wait(max(1, int(GROUP_SECONDS / first))) for _ in range(GROUPS)]
    return min(found), max(found), counter.get_total_flops()


def _range(calls: list[Callable[[], object]]) -> tuple[float, float]:
    found = []
    for call in calls:
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found), max(found)


def _per(found: tuple[float, float, float], count: int) -> tuple[float, float, float]:
    low, high, flops = found
    return low / count, high / count, flops / count


def _describe(what: str | Row, found: Measured) -> str:
    """Returns measured times, and as rates those of images."""
    words = {"": "", "image": "", "prediction": " predicted", "step": " for the optimizer"}
    return ", ".join(
        f"{_ends(low, high)} s{words[part]}"
        if what == START or part == "step"
        else f"{_ends(1 / high, 1 / low)} images/s{words[part]}"
        for part, (low, high) in found.items()
    )


def _ends(low: float, high: float) -> str:
    return " to ".join(dict.fromkeys(f"{end:,.0f}" if end >= 100 else f"{end:.2g}" for end in (low, high)))


def _draw_files(folder: Path, count: int) -> Iterator[Path]:
    """Yields JPEGs of 600 x 450 with smooth colours and fine noise, of 100 kB each."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(90, 230, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((600, 450), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = smooth + rng.integers(-12, 13, (450, 600, 1), dtype=np.int16)
        path = folder / f"{i}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        yield path
