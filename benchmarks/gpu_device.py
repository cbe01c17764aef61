"""What the rows of `benchmarks.gpu` share: the device, random encoders, timings, limits and rates measured so far."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from statistics import median

from benchmarks.measuring import draw_images, unfuse_attention
from benchmarks.steps import has_bf16

# isort: split
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from panderm_utils.encoders import build_model, load_encoder
from panderm_utils.manifests import EncoderManifest, load_encoder_manifest
from panderm_utils.protocols.fine_tune import FineTuneModel

CLASSES = 7
GROUPS, GROUP_SECONDS, MOST = 3, 0.4, 50  # of a timing: groups of calls, seconds of each, calls in one at most
SLOW = 2  # seconds of a call that is timed only once


@dataclass(frozen=True)
class Sizes:
    """How much the rows measure; smaller on a CPU, tiny in tests.

    Attributes:
        encoders: Of correctness and extraction, the most important first.
        checked: Images of the check of features.
        batches: Of extraction from memory; `naive_batch` that of the naive way.
        files: JPEGs to draw; `reads`: how often each is extracted from, naively and by us.
        step: Encoder and images of a step of fine-tuning; `step_check` those of its check against float32 on the CPU.
        masks: Encoder, decoder channels and batches of segmentation.
        views: JPEGs that five views are drawn of, naively and by us.
        probe: Rows, features and classes.
        product, copy: Side of the square matrices, and bytes, of the limits.
    """

    encoders: tuple[str, ...]
    checked: int
    batches: tuple[int, ...]
    naive_batch: int
    files: int
    reads: tuple[int, int]
    step: tuple[str, int]
    step_check: tuple[str, int]
    masks: tuple[str, int, tuple[int, ...]]
    views: tuple[int, int]
    probe: tuple[int, int, int]
    product: int
    copy: int


CUDA = Sizes(
    encoders=("panderm_large", "panderm_base"),
    checked=16,
    batches=(64, 256, 1024, 128, 512),
    naive_batch=64,
    files=256,
    reads=(6, 24),
    step=("panderm_large", 128),
    step_check=("panderm_base", 16),
    masks=("panderm_large", 1024, (16, 2)),
    views=(256, 1024),
    probe=(1_493, 1_024, 6),
    product=8192,
    copy=4 * 2**30,
)
CPU = Sizes(
    encoders=("panderm_tiny", "panderm_base", "panderm_large"),
    checked=2,
    batches=(4, 8),
    naive_batch=4,
    files=16,
    reads=(1, 1),
    step=("panderm_tiny", 8),
    step_check=("panderm_tiny", 4),
    masks=("panderm_tiny", 64, (2,)),
    views=(8, 8),
    probe=(400, 192, 4),
    product=1536,
    copy=2**27,
)


class Device:
    """The device under test.

    Attributes:
        rates: Images a second, by what was measured.
        limits: FLOP a second of a large matrix product, by precision.
        encoder: Returns an encoder with drawn weights, by name; each is made once.
    """

    def __init__(self, device: torch.device, sizes: Sizes, folder: Path):
        self.device, self.sizes, self.folder = device, sizes, folder
        self.cuda = device.type == "cuda"
        self.rates: dict[str, float] = {}
        self.limits: dict[str, float] = {}
        self.encoder = cache(lambda name: load_encoder(random_weights(name), device=str(device)))

    @cached_property
    def files(self) -> list[Path]:
        """Drawn JPEGs of 600 x 450."""
        return draw_images(self.folder, self.sizes.files)

    def synchronise(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def allocated(self) -> int:
        """Returns the bytes that tensors take on a GPU."""
        self.synchronise()
        return torch.cuda.memory_allocated(self.device) if self.cuda else 0

    def free(self) -> int:
        """Releases cached memory and resets the peak; returns the bytes that are still allocated."""
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        return self.allocated()

    def peak(self, others: int = 0) -> float | None:
        """Returns the peak memory since `free`, without `others`, in MiB; None on a CPU, whose peak cannot be reset."""
        return (torch.cuda.max_memory_allocated(self.device) - others) / 2**20 if self.cuda else None

    def time(self, call: Callable[[], object], warmups: int = 2) -> float:
        """Returns the median seconds of a call; the device is awaited only after each group of calls, as in use."""
        for _ in range(warmups if self.cuda else 1):
            call()
        self.synchronise()
        started = time.perf_counter()
        call()
        self.synchronise()
        one = time.perf_counter() - started
        calls, groups = min(max(1, int(GROUP_SECONDS / one)), MOST), []
        for _ in range(GROUPS if one < SLOW else 1):
            started = time.perf_counter()
            for _ in range(calls):
                call()
            self.synchronise()
            groups.append((time.perf_counter() - started) / calls)
        return median(groups)

    def host_images(self, count: int) -> torch.Tensor:
        """Returns random images in this machine's memory, pinned for a GPU, as a loader returns them."""
        images = torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        return images.pin_memory() if self.cuda else images

    def share(self, flops: float, precision: str) -> float | None:
        """Returns FLOP a second as a fraction of the measured product's in this precision."""
        return flops / self.limits[precision] if precision in self.limits else None

    def ratio(self, title: str, value: float) -> float | None:
        """Returns a rate over the one named `title`, if that was measured."""
        return value / self.rates[title] if title in self.rates else None


def precisions(device: Device) -> list[str]:
    """Returns the precisions in which the device computes fast."""
    if device.cuda:
        return ["bf16", "TF32", "fp32"]
    return ["bf16", "fp32"] if has_bf16() else ["fp32"]


def reading_processes(device: Device) -> int:
    """Returns how many worker processes the package starts here for many batches."""
    from panderm_utils.data.loading import _choose_workers

    return _choose_workers(device.device.type, 1000)


def random_weights(name: str) -> EncoderManifest:
    """Returns an encoder's manifest with weights that are drawn, so that no file is needed."""
    return replace(load_encoder_manifest(name), layout="none")


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """Lets float32 products and convolutions round their inputs to TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextlib.contextmanager
def unfused(model: nn.Module) -> Iterator[nn.Module]:
    """Yields a model that computes its attention step by step, as published."""
    unfuse_attention(model)
    try:
        yield model
    finally:
        for block in model.blocks:
            block.attn.fused_attn = True


@contextlib.contextmanager
def compiled(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Compiles each block, which takes seconds where a whole model takes minutes: all blocks share their code.

    Their drop path, whose rate differs, stays outside, or each would be compiled anew.
    """
    for block in blocks:
        for path in (getattr(block, name, None) for name in ("drop_path1", "drop_path2")):
            if getattr(path, "drop_prob", None):
                path.forward = torch.compiler.disable(path.forward)
        block.compile(dynamic=False)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        torch.compiler.reset()


@cache
def forward_flops(kind: str, name: str, channels: int = 0) -> float:
    """Returns the FLOP of a forward pass for one image, counted without computing any.

    Args:
        kind: "encoder", "fine-tuning" or "segmentation": the model made from the encoder of this name.
        channels: Of the decoder.
    """
    manifest = random_weights(name)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        if kind == "segmentation":
            from panderm_utils.protocols.segmentation import SegmentationModel  # needs one more package

            model = SegmentationModel(manifest, channels)
        else:
            model = build_model(manifest) if kind == "encoder" else FineTuneModel(manifest, CLASSES)
        model.eval()(torch.zeros(1, 3, 224, 224))
    return counter.get_total_flops()
