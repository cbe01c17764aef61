"""Measures peak memory of a batch with 10,000 planned runs, and of extractions of 10,000 and 100,000 images.

    python -m benchmarks.memory    (Linux; minutes)

Each is a separate process. The batch is `run_all.py`, where every run has a record and every figure is up to date. The
images are many names of the same few files, and the encoder only averages, so that it takes minutes; reading, decoding,
transforming, worker processes and caching are as usual.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import run_all
from panderm_utils.workspace import REPOSITORY

SEEDS = range(200)  # times 10 datasets and 5 encoders
COUNTS = 10_000, 100_000
GOAL = 150  # MB, of the batch


def run_batch(folder: str) -> None:
    """Runs `run_all.py` on runs that are all done."""
    arguments = ["--profile", "paper", "--protocols", "linear_probe", "--seeds", *map(str, SEEDS)]
    for name in ("data", "weights", "output"):
        arguments += [f"--{name}-root", folder]
    assert run_all.main(arguments) == 0


def extract(folder: str, count: str) -> None:
    """Extracts features of `count` images."""
    from benchmarks.measuring import draw_images

    # isort: split
    import torch

    from panderm_utils.encoders import extract_files, load_encoder

    paths = draw_images(Path(folder), 16, 256, 256)
    encoder = load_encoder("random_tiny", device="cpu")
    encoder.forward = lambda images: torch.nn.functional.adaptive_avg_pool2d(images, (8, 4)).flatten(1)  # [N, 96]
    torch.set_num_threads(1)
    features = extract_files(encoder, [paths[i % len(paths)] for i in range(int(count))], cache=folder, num_workers=1)
    assert features.computed == len(features.x) == int(count)
    print(f"of which features: {features.x.nbytes / 1e6:.0f} MB, names: {2 * features.image_ids.nbytes / 1e6:.0f} MB")


def peak_of(what: str, *arguments: str) -> tuple[float, str]:
    """Returns the peak memory in MB of a process that runs one of the functions above, and its last line before it."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", what, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    *_, line, peak = done.stdout.splitlines()
    return float(peak), line


def main() -> None:
    from benchmarks.batch import mark_drawn, write_records
    from benchmarks.measuring import conclude
    from panderm_utils import batch, workspace

    with tempfile.TemporaryDirectory() as folder:
        space = workspace.open_workspace("paper", folder, folder, folder)
        planned = batch.make_plan(space, protocols=["linear_probe"], seeds=SEEDS)
        write_records(planned, images=20)
        mark_drawn(planned)
        peak, _ = peak_of("run_batch", folder)
    conclude(f"peak memory of a batch with {len(planned.runs):,} planned runs", peak, GOAL, "MB", at_most=True)
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            peak, line = peak_of("extract", folder, str(count))
        print(f"extraction of {count:,} images: {peak:.0f} MB, {line}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        {"run_batch": run_batch, "extract": extract}[sys.argv[1]](*sys.argv[2:])
        # `resource` would include the parent's peak in a child's.
        print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3)
