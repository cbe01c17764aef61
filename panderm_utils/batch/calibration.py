"""What a run takes on a machine that was measured (`--calibrate`), and the file that keeps the measurements.

    <cache>/calibration.json    machine -> its device, cores, date, versions, and seconds by what was measured

A measurement is a range, from the fastest to the slowest repetition. The ranges of a run's parts add up to its own. At
the lower end, images are read while others are computed, and a training decodes each image once; at the upper end,
reading and computing follow each other, and every image of every epoch is decoded. Imports neither torch nor pandas.
"""

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panderm_utils import protocols
from panderm_utils.batch.jobs import Job, Plan
from panderm_utils.disk import write_file
from panderm_utils.manifests import DatasetManifest, Work, load_dataset_manifest, load_profile
from panderm_utils.workspace import PIXEL_BYTES, pixel_budget

NAME = "calibration.json"
START, READING = "start of a notebook", "reading an image"  # both in seconds
SHARES = {"train": 70, "val": 10, "test": 20}  # percent, of datasets whose splits are unknown
NOTHING = {"train": 0, "val": 0, "test": 0}
GPUS = {  # operations per second of dense products, from NVIDIA's data sheets of the SXM versions
    "A100": {"fp32": 19.5e12, "bf16": 312e12, "fp16": 312e12},
    "H100": {"fp32": 66.9e12, "bf16": 989e12, "fp16": 989e12},
}
# The shares of these that runs may reach, which nobody has measured: the lower one is that of panderm_large's published
# training step (0.85 s for 128 images on an RTX 6000 Ada, of 364e12), the higher one the goal of benchmarks.gpu.
SHARES_OF_PEAK, GPU_CORES = (0.15, 0.6), 16


@dataclass(frozen=True)
class Span:
    """A range of seconds."""

    low: float = 0.0
    high: float = 0.0

    def __add__(self, other: "Span") -> "Span":
        return Span(self.low + other.low, self.high + other.high)

    def times(self, count: float) -> "Span":
        return Span(self.low * count, self.high * count)


@dataclass(frozen=True)
class Row:
    """What is measured for runs: an encoder's features, or a training step if `protocol` is named.

    Attributes:
        precision: As the run has it, so perhaps "auto".
        step: See `manifests.Work.step`.
    """

    encoder: str
    precision: str
    protocol: str = ""
    step: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        what = f"{self.protocol} step" if self.protocol else "features"
        return ", ".join([what, self.encoder, self.precision, *(f"{name} {value}" for name, value in self.step)])


@dataclass(frozen=True)
class Machine:
    """A machine and what was measured on it.

    Attributes:
        name: The host; `device`: the GPU's name, or "CPU".
        measured: START and READING -> {"": (low, high)}; a row's text -> part -> (low, high) seconds: "image" of an
            image's features or its part of a training step, "step" of the optimizer, "prediction" of an image.
        gpu_memory: A row's text -> peak MB on the GPU.
        date: Of the last measurement; "" if it was none.
        flops: A row's text -> part -> floating-point operations, each multiplication and each addition being one.
    """

    name: str
    device: str
    cores: int
    date: str
    versions: Mapping[str, str]
    measured: Mapping[str, Mapping[str, tuple[float, float]]]
    gpu_memory: Mapping[str, int]
    flops: Mapping[str, Mapping[str, float]]

    def __str__(self) -> str:
        measured = f"measured {self.date}" if self.date else "not measured"
        return f"{self.name} ({self.device}, {self.cores} core{'s' * (self.cores != 1)}, {measured})"

    @property
    def gpu(self) -> str | None:
        return None if self.device == "CPU" else self.device

    @property
    def key(self) -> str:
        return f"{self.name}, {self.device}, {self.cores}"

    def span(self, what: str, part: str = "") -> Span:
        return Span(*self.measured[what][part])


def read_machines(cache: Path) -> dict[str, Machine]:
    """Returns key -> machine of all that were measured, the latest last; {} if the file is missing or damaged."""
    try:
        found = json.loads((cache / NAME).read_bytes())
        machines = [Machine(**facts) for facts in found["machines"]]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {machine.key: machine for machine in machines}


def write_machine(cache: Path, machine: Machine) -> Path:
    """Writes a machine's measurements, in place of its older ones, as the latest; returns the file."""
    others = [other for key, other in read_machines(cache).items() if key != machine.key]
    cache.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machines": [vars(each) for each in (*others, machine)]}, indent=2)
    return write_file(cache / NAME, text + "\n")


def choose_machine(machines: Mapping[str, Machine]) -> Machine | None:
    """Returns the latest measurement of this machine, else of any, as a login node is not where runs execute."""
    latest = list(machines.values())[::-1]
    here = [machine for machine in latest if (machine.name, machine.cores) == (platform.node(), os.cpu_count())]
    return next(iter(here or latest), None)


def data_sheet_machines(machine: Machine, rows: Iterable[Row]) -> list[Machine]:
    """Returns, for each of GPUS, an unmeasured machine with it and GPU_CORES cores like those of a measured one."""
    reading = machine.span(READING).times(machine.cores / GPU_CORES)
    known = {START: machine.measured[START], READING: {"": (reading.low, reading.high)}}
    counted = [row for row in rows if str(row) in machine.flops]
    found = []
    for gpu, peaks in GPUS.items():
        seconds = {}
        for row in counted:
            rates = [share * peaks["bf16" if row.precision == "auto" else row.precision] for share in SHARES_OF_PEAK]
            seconds[str(row)] = {
                part: (count / max(rates), count / min(rates)) for part, count in machine.flops[str(row)].items()
            }
        found.append(Machine("a machine", gpu, GPU_CORES, "", {}, known | seconds, {}, {}))
    return found


def rows_of(plan: Plan) -> list[Row]:
    """Returns what must be measured to estimate the runs of a plan."""
    found = {}
    for run in plan.runs:
        settings = _settings(run, plan)
        if "precision" not in settings:
            continue
        if run.features:
            found |= dict.fromkeys(Row(encoder, settings["precision"]) for _, encoder in run.features)
        elif protocols.load_protocol(run.protocol).work:
            found[_step_row(run, settings)] = None
    return list(found)


def sizes_of(card: DatasetManifest, synthetic: bool) -> dict[str, int] | None:
    """Returns the images of each split before they were counted, by SHARES if only their sum is known, or None."""
    if synthetic:  # a small stand-in of the dataset
        return None
    images = card.images or (card.draw and card.draw.images)
    if card.split_sizes or not images:
        return card.split_sizes
    shares = card.draw.percent if card.draw else SHARES
    others = {name: images * percent // 100 for name, percent in shares.items() if name != "train"}
    return {"train": images - sum(others.values()), **others}


def estimate(plan: Plan, machine: Machine, sizes: Mapping[str, Mapping[str, int]], done: set[str]) -> dict[Job, Span]:
    """Returns the seconds of each run on a machine, of those for which all is known and measured.

    Features are extracted by the first run that reads them, and images decoded by the first that extracts.

    Args:
        sizes: Dataset -> images of each split, where they were counted.
        done: Run ids that have a record: their features are there.
    """
    names = dict.fromkeys(name for run in plan.runs for name in _datasets(run))
    known = {name: sizes.get(name) or sizes_of(load_dataset_manifest(name), plan.space.synthetic) for name in names}
    kept = sum(PIXEL_BYTES * sum(counts.values()) for counts in known.values() if counts) <= pixel_budget()
    extracted, decoded, found = set(), set(), {}
    for run in sorted(plan.runs, key=lambda run: run.name not in done):
        settings = _settings(run, plan)
        try:
            if not run.features:
                span = _training(run, settings, machine, NOTHING | known[run.notebook.stem])
            else:
                span = Span()
                for dataset, encoder in run.features:
                    row, images = Row(encoder, settings["precision"]), sum(known[dataset].values())
                    computing = machine.span(str(row), "image").times(images)
                    reading = machine.span(READING).times(images if dataset not in decoded or not kept else 0)
                    if (dataset, row) not in extracted:
                        extracted.add((dataset, row))
                        decoded.add(dataset)
                        span += _together(computing, reading)
            found[run] = span + machine.span(START)
        except (KeyError, TypeError, AttributeError):  # not measured, or sizes or the protocol's work are unknown
            continue
    return {run: span for run, span in found.items() if run.name not in done}


def assumed_splits(plan: Plan, runs: set[Job], sizes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Returns the datasets of trainings among `runs` whose splits are those of SHARES."""
    names = dict.fromkeys(run.notebook.stem for run in plan.runs if run in runs and not run.features)
    cards = [load_dataset_manifest(name) for name in names if name not in sizes]
    return [card.name for card in cards if not card.split_sizes and not card.draw]


def gpu_memory(run: Job, plan: Plan, machine: Machine) -> int | None:
    """Returns the peak MB on the GPU that was measured for a run's largest part, None without a GPU."""
    settings = _settings(run, plan)
    rows = [Row(encoder, settings["precision"]) for _, encoder in run.features] or [_step_row(run, settings)]
    return max((machine.gpu_memory[str(row)] for row in rows if str(row) in machine.gpu_memory), default=None)


def _training(run: Job, settings: Mapping, machine: Machine, images: Mapping[str, int]) -> Span:
    work, row = _work(run, images, settings), str(_step_row(run, settings))
    computing = machine.span(row, "image").times(work.trained) + machine.span(row, "step").times(work.steps)
    computing += machine.span(row, "prediction").times(work.predicted)
    once, each_time = sum(images.values()), work.trained + work.predicted
    reading = machine.span(READING)
    return _together(computing, Span(reading.low * once, reading.high * each_time))


def _together(computing: Span, reading: Span) -> Span:
    return Span(max(computing.low, reading.low), computing.high + reading.high)


def _step_row(run: Job, settings: Mapping) -> Row:
    step = _work(run, NOTHING, settings).step
    return Row(run.parameters["encoder"], settings["precision"], run.protocol, tuple(step.items()))


def _work(run: Job, images: Mapping[str, int], settings: Mapping) -> Work:
    return protocols.load_protocol(run.protocol).work(images, settings)


def _settings(run: Job, plan: Plan) -> dict[str, Any]:
    """Returns a run's settings; those that are None are the published ones."""
    defaults = protocols.load_protocol(run.protocol).settings
    return {**defaults, **load_profile(plan.space.profile).choice(run.protocol).settings, **run.parameters}


def _datasets(run: Job) -> Iterator[str]:
    yield from [dataset for dataset, _ in run.features] or [run.notebook.stem]
