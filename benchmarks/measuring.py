"""What the benchmarks share: pairs of timings, their median ratio beside its goal, drawn images, the naive attention.

Import it before torch and the package: it switches progress bars off, which tqdm looks up once.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

os.environ["TQDM_DISABLE"] = "1"
import panderm_utils  # noqa: F401  (first, as everywhere)

# isort: split
from PIL import Image

from panderm_utils.results import describe_environment


def timed(call: Callable, *arguments, **options) -> tuple:
    """Returns what the call returns, and its seconds."""
    started = time.perf_counter()
    result = call(*arguments, **options)
    return result, time.perf_counter() - started


@dataclass
class Pairs:
    """Seconds of the naive way and of ours, taken in turn in one run."""

    naive: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)

    def add(self, naive: float, ours: float) -> str:
        """Keeps a pair and returns a line that tells it."""
        self.naive.append(naive)
        self.ours.append(ours)
        return f"  pair {len(self.ours)}: {naive:7.2f} s / {ours:6.3f} s = {naive / ours:5.2f}"

    @property
    def ratios(self) -> list[float]:
        return [naive / ours for naive, ours in zip(self.naive, self.ours, strict=True)]

    def verdict(self, goal: float) -> str:
        """The median ratio, as single pairs swing: the host may stall for seconds."""
        middle, told = median(self.ratios), " ".join(f"{ratio:.2f}" for ratio in self.ratios)
        return f"median ratio {middle:.2f} (goal {goal}: {'reached' if middle >= goal else 'missed'}; pairs {told})"

    def per_image(self, count: int) -> str:
        """The median times of both ways, of which each pair took `count` images."""
        naive, ours = (1000 * median(seconds) / count for seconds in (self.naive, self.ours))
        return f"{naive:.1f} -> {ours:.2f} ms an image"


def describe_machine() -> str:
    """What the ratios of a run depend on, in a line."""
    found = describe_environment()
    threads = "" if found["threads"] is None else f", threads of torch: {found['threads']}"
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("torch", "numpy", "pillow", "scikit-learn"))
    return f"{found['platform']}, {found['cores']} cores{threads}; {versions}"


def draw_images(folder: Path, count: int, width: int = 600, height: int = 450, suffix: str = "jpg") -> list[Path]:
    """Draws skin-like images: smooth colour and fine noise (JPEGs of 100 kB at 600 x 450)."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{width}x{height}-{i:04d}.{suffix}" for i in range(count)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(90, 230, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = smooth + rng.integers(-12, 13, (height, width, 1), dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def write_attention_out(model) -> None:
    """Makes a timm transformer compute its attention as published, step by step."""
    for block in model.blocks:
        block.attn.fused_attn = False
