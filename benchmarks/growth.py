"""Times what reads all records at 100, 1,000 and 10,000 of them: read_records, --plan, --report and --verify.

    python -m benchmarks.growth                      all (ten minutes on 2 cores, most of it --verify)
    python -m benchmarks.growth --counts 100 1000    indicative only

The records are real, of 70 test images in 7 classes, one for each seed, copied under the names of the paper's datasets
and encoders; they keep no model, and two pictures name them all. The cost of each further record must not grow.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks.measuring import conclude, describe_machine, timed
from panderm_utils import batch, results, stats, workspace
from panderm_utils.protocols import linear_probe
from panderm_utils.results import peak_memory_mb

COUNTS, CLASSES, IMAGES = (100, 1_000, 10_000), 7, 70
ALIKE = 50  # runs of a seed: datasets x encoders
SECONDS, MEMORY = 60, 1.0  # of --report with the most records; GB
GROWTH = 1.3  # at most: cost of a further record among many, over that among few; 1 is linear, the rest is noise


def write_records(planned: batch.Plan) -> None:
    """Writes the record of the first run of each seed, and copies of it as those of the others."""
    written = {}
    for run in planned.runs:
        dataset, encoder, seed = run.notebook.stem, run.parameters["encoder"], run.parameters["seed"]
        if seed not in written:
            study = results.begin_run(linear_probe.PROTOCOL, dataset, encoder, seed, planned.space)
            rng = np.random.default_rng(seed)
            y, proba = np.arange(IMAGES) % CLASSES, rng.dirichlet(np.ones(CLASSES), size=IMAGES)
            table = results.prediction_table([f"ISIC_{i:07}.jpg" for i in range(IMAGES)], y, proba)
            folder = results.save_record(study, stats.evaluate(y, proba, seed=seed), table, "weighted_f1")
            text = (folder / "record.json").read_text(encoding="utf-8")
            written[seed] = folder, text, dataset, encoder
            continue
        folder, text, *replaced = written[seed]
        for old, new in zip((folder.name, *replaced), (run.name, dataset, encoder), strict=True):
            text = text.replace(f'"{old}"', f'"{new}"')
        shutil.copytree(folder, run.record)
        (run.record / "record.json").write_text(text, encoding="utf-8")


def draw_pictures(space: workspace.Workspace, names: list[str]) -> None:
    """Writes pictures whose metadata name the records that they are of, as figures do."""
    space.figures.mkdir(parents=True)
    metadata = PngInfo()
    metadata.add_text("Records", " ".join(names))
    for name in ("figure_2a", "figure_2d"):
        Image.new("RGB", (60, 40)).save(space.figures / f"{name}.png", pnginfo=metadata)


def command(flag: str, planned: batch.Plan, seeds: int) -> tuple[float, float, float]:
    """Runs `run_all.py` as a user would; returns seconds, CPU seconds, and GB of its largest process."""
    line = [sys.executable, "run_all.py", "--profile", "paper", "--protocols", "linear_probe", "--seeds"]
    line += [*map(str, range(seeds)), flag, "--output-root", str(planned.space.root.parent)]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(line, cwd=workspace.REPOSITORY, env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status):
            output.seek(0)
            raise SystemExit(f"{flag} failed:\n{output.read().decode()[-2000:]}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def measure(count: int, folder: Path) -> dict[str, tuple[float, float, float]]:
    """Returns seconds, CPU seconds and GB of all commands with `count` records."""
    space, seeds = workspace.open_workspace("paper", folder, folder, folder), count // ALIKE
    planned = batch.make_plan(space, protocols=["linear_probe"], seeds=range(seeds))
    assert len(planned.runs) == count
    write_records(planned)
    draw_pictures(space, [run.name for run in planned.runs])

    def read() -> tuple[float, float, float]:
        before = time.process_time()
        _, seconds = timed(results.read_records, space.records)
        return seconds, time.process_time() - before, peak_memory_mb()["process"] / 1e3

    def report() -> tuple[float, float, float]:
        shutil.rmtree(space.root / "report", ignore_errors=True)  # a second one would find nothing to do
        return command("--report", planned, seeds)

    found = {"read_records": median(read), "--plan": median(lambda: command("--plan", planned, seeds))}
    found |= {"--report": median(report, 3), "--verify": command("--verify", planned, seeds)}
    for what, (seconds, cpu, memory) in found.items():
        print(f"  {count:6,} records, {what}: {seconds:.1f} s ({cpu:.1f} s of CPU), {memory:.2f} GB", flush=True)
    return found


def median(run: Callable[[], tuple[float, float, float]], times: int = 5) -> tuple[float, float, float]:
    """Returns, of several runs, that with the median CPU seconds."""
    return sorted((run() for _ in range(times)), key=lambda result: result[1])[times // 2]


def conclude_growth(what: str, seconds: dict[int, float]) -> None:
    """Prints the CPU seconds of a further record between the two largest numbers over those between the two before."""
    *_, few, more, most = sorted(seconds)
    early = (seconds[more] - seconds[few]) / (more - few)
    late = (seconds[most] - seconds[more]) / (most - more)
    if early <= 0:
        print(f"{what}: {few:,} and {more:,} records are too few to tell them apart", flush=True)
        return
    detail = f"{1e3 * early:.2f} -> {1e3 * late:.2f} ms of CPU a record"
    conclude(f"{what}: a further record of {most:,} over one of {more:,}", late / early, GROWTH, "", True, detail)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS, help=f"multiples of {ALIKE}")
    options = parser.parse_args()
    print(describe_machine(), flush=True)
    measured = {}
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            measured[count] = measure(count, Path(folder).resolve())
    most = max(measured)
    for what in measured[most]:
        if len(measured) > 2:
            conclude_growth(what, {count: found[what][1] for count, found in measured.items()})
    seconds, _, memory = measured[most]["--report"]
    conclude(f"--report of {most:,} records", seconds, SECONDS, "s", at_most=True)
    conclude(f"memory of --report of {most:,} records", memory, MEMORY, "GB", at_most=True)
