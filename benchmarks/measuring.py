"""Shared by the benchmarks: paired timings, results beside their goals, drawn images, unfused attention.

Import it before torch and the package: it disables progress bars, which tqdm checks only once.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

os.environ["TQDM_DISABLE"] = "1"
import panderm_utils  # noqa: F401  (must be first)

# isort: split
import tqdm.auto  # noqa: F401

del os.environ["TQDM_DISABLE"]  # tests import this too, and what they start has bars

# isort: split
from PIL import Image

from panderm_utils.results import describe_environment

STARTED = time.perf_counter()  # before torch is imported, which takes seconds
RESULTS = "PANDERM_BENCHMARK_RESULTS"  # environment variable: the file to which results are added


def timed(call: Callable, *arguments, **options) -> tuple:
    """Returns the call's result and its seconds."""
    started = time.perf_counter()
    result = call(*arguments, **options)
    return result, time.perf_counter() - started


def conclude(
    title: str,
    value: float,
    goal: float,
    unit: str = "times as fast as the naive way",
    at_most: bool = False,
    detail: str = "",
) -> None:
    """Prints a result beside its goal, which is a lower bound, or with `at_most` an upper one.

    It is also added to the table of `python -m benchmarks`, if that runs the benchmark.
    """
    reached = value <= goal if at_most else value >= goal
    goal_text = f"{'at most' if at_most else 'at least'} {goal:,g}: {'reached' if reached else 'MISSED'}"
    measured = f"{value:,.4g} {unit}".rstrip()
    print(f"{title}: {measured} (goal {goal_text}){'; ' if detail else ''}{detail}", flush=True)
    if RESULTS in os.environ:
        facts = {"title": title, "value": measured, "goal": goal_text, "detail": detail}
        with Path(os.environ[RESULTS]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")


@dataclass
class Pairs:
    """Seconds of the naive way and of ours, measured in turn."""

    naive: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)

    def add(self, naive: float, ours: float) -> str:
        """Adds a pair and returns a line that shows it."""
        self.naive.append(naive)
        self.ours.append(ours)
        return f"  pair {len(self.ours)}: {naive:7.2f} s / {ours:6.3f} s = {naive / ours:5.2f}"

    @property
    def ratios(self) -> list[float]:
        return [naive / ours for naive, ours in zip(self.naive, self.ours, strict=True)]

    def conclude(self, title: str, goal: float, detail: str = "") -> None:
        """Prints the median ratio beside its goal; single pairs vary, as the host may stall."""
        pairs = f"pairs {' '.join(f'{ratio:.2f}' for ratio in self.ratios)}"
        conclude(title, median(self.ratios), goal, detail="; ".join(filter(None, [pairs, detail])))

    def per_image(self, count: int) -> str:
        """Returns the median times of both ways per image, for pairs of `count` images."""
        naive, ours = (1000 * median(seconds) / count for seconds in (self.naive, self.ours))
        return f"{naive:.1f} -> {ours:.2f} ms per image"


def describe_machine() -> str:
    """Returns one line on the machine and the versions that the ratios depend on."""
    found = describe_environment()
    threads = "" if found["threads"] is None else f", torch threads: {found['threads']}"
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("torch", "numpy", "pillow", "scikit-learn"))
    return f"{found['platform']}, {found['cores']} cores{threads}; {versions}"


def draw_images(folder: Path, count: int, width: int = 600, height: int = 450, suffix: str = "jpg") -> list[Path]:
    """Returns files of skin-like images: smooth colour and fine noise (JPEGs of 100 kB at 600 x 450)."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{width}x{height}-{i:04d}.{suffix}" for i in range(count)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(90, 230, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = smooth + rng.integers(-12, 13, (height, width, 1), dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def unfuse_attention(model) -> None:
    """Makes a timm transformer compute its attention as published, step by step."""
    for block in model.blocks:
        block.attn.fused_attn = False
