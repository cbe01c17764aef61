"""Compares training steps of several kinds against the naive one: time in interleaved turns, memory in new processes.

A benchmark makes a step of a kind: "naive", or our own in a precision of KINDS, "checkpointed" if its activations are
recomputed. The naive step is what one writes at first: float32, unfused attention, AdamW's for-loop.
"""

import resource
import subprocess
import sys
from collections.abc import Callable
from statistics import median

from benchmarks.measuring import Pairs, conclude, timed

# isort: split
import torch

KINDS = {  # kind of step: precision
    "naive": "fp32",
    "fp32": "fp32",
    "fp32 checkpointed": "fp32",
    "bf16": "bf16",
    "bf16 checkpointed": "bf16",
}


def print_peak(step: Callable) -> None:
    """Prints the peak memory in GB of this process after two steps; what `peak_memory` reads."""
    step()
    step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)


def peak_memory(benchmark: str, kind: str) -> float:
    """Returns the peak memory in GB of a new process that takes two steps, torch included."""
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{benchmark}", "--peak", kind]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def has_bf16() -> bool:
    """Returns whether this processor computes in bfloat16; elsewhere it is emulated, ten times slower than float32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def without_emulation(kinds: dict[str, float]) -> dict[str, float]:
    """Returns the kinds, whose names say the precision, that this processor need not emulate; says what is left out."""
    if has_bf16():
        return kinds
    print("  this processor has no bfloat16 arithmetic: bf16 is left out", flush=True)
    return {kind: goal for kind, goal in kinds.items() if "bf16" not in kind}


def compare_steps(
    benchmark: str, title: str, make: Callable[[str], Callable], goals: dict[str, float], memory_goal: float, pairs: int
) -> None:
    """Prints the ratios of all kinds of step, in turn.

    Args:
        benchmark: The module whose `--peak KIND` prints the memory of a kind.
        goals: Kind of step: how many times as fast as the naive one it should be.
        memory_goal: The largest share of the naive step's memory that a checkpointed one should take.
    """
    goals = without_emulation(goals)
    kinds = ["naive", *goals]
    memory = {kind: peak_memory(benchmark, kind) for kind in kinds}
    steps, spent = {kind: make(kind) for kind in kinds}, {kind: [] for kind in kinds}
    for turn in range(pairs + 1):
        for kind, step in steps.items():
            _, seconds = timed(step)
            if turn:  # the first creates the optimizer's state
                spent[kind].append(seconds)
        if turn:
            times = ", ".join(f"{kind} {seconds[-1]:.1f} s" for kind, seconds in spent.items())
            print(f"  pair {turn}: {times}", flush=True)
    for kind, goal in goals.items():
        measured, ratio = Pairs(spent["naive"], spent[kind]), memory[kind] / memory["naive"]
        peaks = f"peak memory {memory['naive']:.1f} -> {memory[kind]:.1f} GB"
        seconds = f"{median(spent['naive']):.2f} -> {median(spent[kind]):.2f} s"
        measured.conclude(f"training step, {title}, {kind}", goal, f"{seconds}; {peaks}")
        if "checkpointed" in kind:
            conclude(
                f"memory of a training step, {title}, {kind}", ratio, memory_goal, "of the naive way's", True, peaks
            )
