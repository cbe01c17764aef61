"""The rows of `benchmarks.gpu` for the limits of the device and for the speed of extraction."""

import contextlib
import time
from collections.abc import Callable
from functools import partial

from benchmarks.features import extract_naively
from benchmarks.gpu_device import Device, compiled, forward_flops, precisions, reading_processes, tf32, unfused
from benchmarks.rows import Result, Row

# isort: split
import torch

from panderm_utils.data import ImageFiles, batch_loader
from panderm_utils.encoders import extract_files

AIM, FILES_AIM = "aim: 60%, at the best batch", "aim: 80% of the rate from memory"
DTYPES = {"fp32": torch.float32, "TF32": torch.float32, "bf16": torch.bfloat16}


def main_rows(device: Device) -> list[Row]:
    """Returns the rows of the limits and of extraction by the first encoder, the most important first."""
    sizes, low = device.sizes, precisions(device)[0]
    name, batch = sizes.encoders[0], sizes.batches[0]
    memory = partial(_memory_row, device, name)
    return [
        *(Row(f"limit: {p} product of {sizes.product:,}", partial(product, device, p), 4) for p in precisions(device)),
        Row("limit: copy on the device", partial(copy_limit, device), 3),
        *([Row("limit: copy from pinned memory", partial(upload_limit, device), 3)] if device.cuda else []),
        memory(sizes.naive_batch, "naive"),
        memory(batch, low),
        *_file_rows(device, name, low),
        *(memory(n, low) for n in sizes.batches[1:]),
    ]


def further_rows(device: Device) -> list[Row]:
    """Returns rows of extraction by the first encoder that compare ways of computing."""
    sizes, low = device.sizes, precisions(device)[0]
    memory = partial(_memory_row, device, sizes.encoders[0])
    batch = sizes.batches[0]
    return [
        *(memory(n, p) for p in precisions(device)[1:] for n in (batch, sizes.batches[-1])),
        *([memory(batch, low, graph=True), memory(batch, low, there=True)] if device.cuda else []),
    ]


def compiled_row(device: Device) -> Row:
    """Returns the row of a compiled extraction by the first encoder."""
    return _memory_row(device, device.sizes.encoders[0], device.sizes.batches[0], precisions(device)[0], compiling=True)


def other_rows(device: Device) -> list[Row]:
    """Returns the rows of extraction by the other encoders."""
    return [row for name in device.sizes.encoders[1:] for row in _other_encoder(device, name)]


def _other_encoder(device: Device, name: str) -> list[Row]:
    sizes, low = device.sizes, precisions(device)[0]
    memory = partial(_memory_row, device, name)
    if name == "panderm_large" and not device.cuda:  # a single batch
        return [memory(sizes.checked, low, seconds=40)]
    return [
        memory(sizes.naive_batch, "naive"),
        *(memory(n, p) for p in precisions(device) for n in (sizes.batches if p == low else sizes.batches[:2])),
        *_file_rows(device, name, low),
        *([memory(sizes.batches[0], low, compiling=True)] if device.cuda else []),
    ]


# limits


def product(device: Device, precision: str) -> Result:
    """Measures a large matrix product in a precision."""
    side = device.sizes.product
    a, b = (torch.randn(side, side, device=device.device).to(DTYPES[precision]) for _ in range(2))
    with tf32() if precision == "TF32" else contextlib.nullcontext():
        seconds = device.time(lambda: a @ b)
    device.limits[precision] = 2 * side**3 / seconds
    return Result(f"{device.limits[precision] / 1e12:,.2f} TFLOP/s")


def copy_limit(device: Device) -> Result:
    """Measures a copy on the device; bytes read and written count."""
    source = torch.empty(device.sizes.copy, dtype=torch.uint8, device=device.device).zero_()
    target = torch.empty_like(source)
    seconds = device.time(lambda: target.copy_(source))
    return Result(f"{2 * len(source) / seconds / 1e9:,.0f} GB/s", remark="read and written")


def upload_limit(device: Device) -> Result:
    """Measures a copy of images from pinned memory to the GPU."""
    images = device.host_images(256)
    rate = len(images) / device.time(lambda: images.to(device.device, non_blocking=True))
    return Result(f"{rate:,.0f} images/s", remark=f"{rate * images[0].nbytes / 1e9:.1f} GB/s, float32")


# extraction


def _memory_row(device: Device, name: str, batch: int, kind: str, seconds: float | None = None, **how: bool) -> Row:
    words = {"compiling": "compiled", "graph": "CUDA graph", "there": "images already on the GPU"}
    title = ", ".join([f"extraction from memory, {name}, {kind}, batch {batch}", *(words[word] for word in how)])
    costs = (45 if "compiling" in how else 4) if device.cuda else (40 if "compiling" in how else 8)
    return Row(title, partial(extract_memory, device, name, batch, kind, **how), seconds or costs)


def extract_memory(
    device: Device,
    name: str,
    batch: int,
    kind: str,
    compiling: bool = False,
    graph: bool = False,
    there: bool = False,
) -> Result:
    """Measures features of images in memory; `kind` is a precision or "naive"."""
    encoder, images = device.encoder(name), device.host_images(batch)
    encoder.precision = "fp32" if kind in ("naive", "TF32") else kind
    images = images.to(device.device) if there or graph else images

    @torch.no_grad()
    def plainly() -> torch.Tensor:
        features = encoder.model(images.to(device.device, non_blocking=kind == "TF32")).float()
        return features.cpu() if kind == "naive" else features

    call: Callable = plainly if kind in ("naive", "TF32") else partial(encoder, images)
    with contextlib.ExitStack() as stack:
        if kind == "naive":
            stack.enter_context(unfused(encoder.model))
        if kind == "TF32":
            stack.enter_context(tf32())
        if compiling:
            stack.enter_context(compiled(encoder.model.blocks))
        device.free()
        seconds = device.time(_captured(call) if graph else call)
    rate = batch / seconds
    key = f"memory, {name}, naive"
    if kind == "naive":
        device.rates[key] = rate
    elif not (compiling or graph or there):
        best = f"memory, {name}, {kind}"
        device.rates[best] = max(rate, device.rates.get(best, 0))
    flops = rate * forward_flops("encoder", name)
    limit = device.share(flops, "fp32" if kind == "naive" else kind)
    remark = AIM if (name, kind) == ("panderm_large", "bf16") and device.cuda else ""
    return Result(f"{rate:,.1f} images/s", device.ratio(key, rate), limit, device.peak(), remark)


def _captured(call: Callable) -> Callable:
    """Returns the call as a CUDA graph, which starts all its kernels at once."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _file_rows(device: Device, name: str, low: str) -> list[Row]:
    naive, ours = (20, 20) if device.cuda else (15, 10)
    batch = device.sizes.batches[0]
    start = f"extraction from 600x450 JPEGs, {name}"
    rows = [
        Row(f"{start}, naive", partial(extract_paths, device, name, "naive", device.sizes.naive_batch), naive),
        Row(f"{start}, {low}, batch {batch}", partial(extract_paths, device, name, low, batch), ours),
    ]
    if name == device.sizes.encoders[0]:
        rows.insert(0, Row("reading 600x450 JPEGs, no encoder", partial(read_paths, device), ours))
    if device.cuda:
        larger = sorted(device.sizes.batches)[len(device.sizes.batches) // 2]
        rows.append(Row(f"{start}, {low}, batch {larger}", partial(extract_paths, device, name, low, larger), ours))
    return rows


def read_paths(device: Device) -> Result:
    """Measures decoding and transforming by the worker processes that an extraction has."""
    paths = device.files * device.sizes.reads[1]
    chunks = [range(at, min(at + 8, len(paths))) for at in range(0, len(paths), 8)]
    started = time.perf_counter()
    with batch_loader(ImageFiles(paths), chunks, device.device, ahead=8) as loader:
        count = sum(len(images) for _, images in loader)
    device.rates["reading"] = count / (time.perf_counter() - started)
    return Result(f"{device.rates['reading']:,.1f} images/s", remark=f"processes: {reading_processes(device)}")


def extract_paths(device: Device, name: str, kind: str, batch: int) -> Result:
    """Measures an extraction from files, starting its worker processes included."""
    encoder, key = device.encoder(name), f"files, {name}, naive"
    naive, ours = device.sizes.reads
    if kind == "naive":
        paths, started = device.files * naive, time.perf_counter()
        with unfused(encoder.model):
            extract_naively(encoder.model, paths, batch, reading_processes(device), device.device)
        device.rates[key] = len(paths) / (time.perf_counter() - started)
        return Result(f"{device.rates[key]:,.1f} images/s", 1.0)
    encoder.precision, paths = kind, device.files * ours
    device.free()
    found = extract_files(encoder, paths, batch_size=batch)
    rate = len(paths) / found.seconds
    bounds = {"reading": device.rates.get("reading"), "from memory": device.rates.get(f"memory, {name}, {kind}")}
    known = {bound: value for bound, value in bounds.items() if value}
    lowest = min(known, key=known.get, default=None)
    limit = rate / known[lowest] if lowest else None
    remark = f"the limit: {lowest}" if lowest else ""
    remark += f"; {FILES_AIM}" if device.cuda else ""
    return Result(f"{rate:,.1f} images/s", device.ratio(key, rate), limit, device.peak(), remark)
