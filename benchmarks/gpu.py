"""Checks and times this package on a GPU in a few minutes, and prints one table.

    python -m benchmarks.gpu                             within six minutes
    python -m benchmarks.gpu --device cpu --minutes 3    the same rows, smaller, to try the script

First whether the numbers are right, then how fast they come: each row beside the naive way and the limits of the device
(a large matrix product, a copy, reading without an encoder), all measured in the same run. The most important rows come
first; what the time does not allow is left out and listed. A row that fails, or runs out of memory, says so, and the
others go on. Weights are drawn, images are random or drawn: nothing is downloaded.
"""

import argparse
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_device import CPU, CUDA, Device, Sizes
from benchmarks.measuring import STARTED, describe_machine
from benchmarks.rows import Row, Table

# isort: split
import torch

from benchmarks import gpu_checks, gpu_speed, gpu_steps


def plan(device: Device) -> list[Row]:
    """Returns all rows, the most important first; on a CPU, where compiling takes longest, that is last."""
    compiled, others = [gpu_speed.compiled_row(device), gpu_steps.compiled_row(device)], gpu_speed.other_rows(device)
    rows = [
        *gpu_checks.rows(device),
        *gpu_speed.main_rows(device),
        *gpu_steps.main_rows(device),
        *gpu_speed.further_rows(device),
        *([*compiled, *others] if device.cuda else [*gpu_checks.late_rows(device), *others, *compiled]),
    ]
    return list({row.title: row for row in rows}.values())  # without bf16, some would come twice


def measure(device: torch.device, sizes: Sizes, seconds: float, only: Sequence[str] = ()) -> Table:
    """Returns the table after printing it, at the end as Markdown.

    Args:
        seconds: From now on.
        only: Measure the rows whose title contains one of these; none: all.
    """
    table = Table(seconds)
    print(describe_device(device), flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        rows = plan(Device(device, sizes, Path(folder)))
        table.run([row for row in rows if not only or any(part in row.title for part in only)])
    print(f"\n{describe_device(device)}\n\n{table.markdown()}", flush=True)
    return table


def describe_device(device: torch.device) -> str:
    """Returns a line on the device, the machine and the versions."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        name = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return f"{device.type}: {name}; {describe_machine()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=6, help="time within which the script ends (default: 6)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--only", nargs="+", default=(), metavar="TEXT", help="rows whose title contains one of these")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU that torch can use: add --device cpu to try the script without one", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    sizes = CUDA if options.device == "cuda" else CPU
    left = 60 * options.minutes - (time.perf_counter() - STARTED)
    measure(torch.device(options.device), sizes, left, options.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
