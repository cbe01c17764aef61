"""What runs cost: from the records of similar runs, else from a measured machine, else unknown.

Similar runs differ in nothing but their seed. Next come runs that differ in their dataset too, scaled by the images;
then what `--calibrate` measured. Imports neither torch nor pandas.
"""

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from panderm_utils import protocols
from panderm_utils.batch.calibration import (
    Machine,
    Span,
    assumed_splits,
    choose_machine,
    data_sheet_machines,
    estimate,
    gpu_memory,
    read_machines,
    rows_of,
    sizes_of,
)
from panderm_utils.batch.jobs import Job, Plan
from panderm_utils.manifests import load_dataset_manifest

SIMILAR, SCALED, MEASURED = "similar runs", "similar runs on other datasets, scaled by their images", "measurements"


@dataclass(frozen=True)
class Cost:
    """The expected cost of a run.

    Attributes:
        span: Seconds; of similar runs their mean, so that both ends are the same.
        memory: Highest peak in MB, None if it was not measured; `gpu_memory`: on the GPU, None without one.
        gpu: Its name.
        origin: SIMILAR, SCALED or MEASURED; `runs`: how many similar ones.
    """

    span: Span
    memory: int | None
    gpu_memory: int | None
    gpu: str | None
    origin: str
    runs: int = 0

    @property
    def seconds(self) -> float:
        return (self.span.low + self.span.high) / 2

    def __str__(self) -> str:
        memory = f", {self.memory / 1e3:.1f} GB" if self.memory else ""
        gpu = f", {self.gpu_memory / 1e3:.1f} GB of a {self.gpu}" if self.gpu and self.gpu_memory else ""
        similar = "a similar run" if self.runs == 1 else f"{self.runs} similar runs"
        scaled = " on other datasets, scaled by images" if self.origin == SCALED else ""
        origin = f"{similar}{scaled}" if self.runs else self.origin
        return f"{format_span(self.span)}{memory}{gpu} (from {origin})"


@dataclass(frozen=True)
class _Seen:
    """What a record says of its run: seconds, those that grow with the images, memory in MB, and the device."""

    seconds: float
    growing: float
    memory: int
    gpu_memory: int | None
    gpu: str | None
    images: int
    written: str


class Costs:
    """The expected costs of the runs of a plan.

    Attributes:
        machine: The measured machine that estimates are of, or None.
    """

    def __init__(self, plan: Plan):
        self._plan, self._similar, self._others = plan, defaultdict(list), defaultdict(list)
        self._sizes, self._images_of, self._names = {}, {}, set()
        for path in plan.space.records.glob("[!.]*/record.json"):
            self._read(path)
        self._machines = read_machines(plan.space.cache)
        self.machine = choose_machine(self._machines)
        self._measured = self._estimate(self.machine) if self.machine else {}

    def of(self, job: Job) -> Cost | None:
        if seen := self._similar.get(without_seed(job.name)):
            seconds = mean(one.seconds for one in seen)
            return _cost(Span(seconds, seconds), seen, SIMILAR)
        return self._scaled(job) or self._on_machine(job)

    def longest_first(self, jobs: list[Job]) -> list[Job]:
        """Returns the jobs sorted by expected duration, longest first; unknown ones lead, trainings before others."""

        def key(job: Job) -> tuple[float, bool]:
            cost = self.of(job)
            return -cost.seconds if cost else -float("inf"), not trains(job)

        return sorted(jobs, key=key)

    def by_machine(self, jobs: list[Job]) -> list[tuple[Machine, Span, int]]:
        """Returns machines, the seconds of these jobs on each, and how many of them are known.

        First come the measured ones, then those with a GPU of which only the data sheet is known.
        """
        totals, wanted, machines = [], set(jobs), [*self._machines.values()]
        unmeasured = data_sheet_machines(self.machine, rows_of(self._plan)) if self.machine else []
        machines += [other for other in unmeasured if not any(other.device in one.device for one in machines)]
        for machine in machines:
            known = [span for job, span in self._estimate(machine).items() if job in wanted]
            totals.append((machine, sum(known, Span()), len(known)))
        return totals

    def assumed_splits(self, jobs: list[Job]) -> list[str]:
        """Returns the datasets whose splits are guessed in the estimates of these jobs."""
        measured = {job for job in jobs if (cost := self.of(job)) and cost.origin == MEASURED}
        return assumed_splits(self._plan, measured, self._sizes)

    def _estimate(self, machine: Machine) -> dict[Job, Span]:
        return estimate(self._plan, machine, self._sizes, self._names)

    def _read(self, path: Path) -> None:
        try:
            record = json.loads(path.read_bytes())
            memory, gpu = record["peak_memory_mb"], record["environment"]["gpu"]
            timings, sizes = record["timings"], record.get("data", {}).get("split_sizes", {})
            growing = timings.get("features_seconds") or record.get("training", {}).get("training_seconds") or 0
            seconds, images = timings["total_seconds"], sum(sizes.values())
            written = record.get("written", "")
            seen = _Seen(seconds, min(growing, seconds), memory["process"], memory["gpu"], gpu, images, written)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # incomplete: such a run is executed again
        name = path.parent.name
        self._names.add(name)
        self._similar[without_seed(name)].append(seen)
        if images:
            self._sizes[record["dataset"]] = sizes
            self._others[_without_dataset(name)].append(seen)

    def _scaled(self, job: Job) -> Cost | None:
        """Returns the cost by runs on other datasets, on the device that was used last.

        One end scales all their seconds by the images, the other those of features or training steps alone.
        """
        seen = self._others.get(_without_dataset(job.name))
        sizes = seen and self._images(job)
        if not sizes:
            return None
        latest = max(seen, key=lambda one: one.written)
        seen = [one for one in seen if one.gpu == latest.gpu]
        ends = []
        for one in seen:
            ratio = sizes / one.images
            ends += [one.seconds * ratio, one.seconds + one.growing * (ratio - 1)]
        return _cost(Span(min(ends), max(ends)), seen, SCALED)

    def _images(self, job: Job) -> int:
        dataset = job.notebook.stem
        if dataset not in self._images_of:
            counted = self._sizes.get(dataset) or sizes_of(load_dataset_manifest(dataset), self._plan.space.synthetic)
            self._images_of[dataset] = sum(counted.values()) if counted else 0
        return self._images_of[dataset]

    def _on_machine(self, job: Job) -> Cost | None:
        if job not in self._measured:
            return None
        memory = gpu_memory(job, self._plan, self.machine)
        return Cost(self._measured[job], None, memory, self.machine.gpu, MEASURED)


def trains(run: Job) -> bool:
    """Whether a run writes checkpoints; the others write features."""
    return run.record is not None and protocols.load_protocol(run.protocol).trains


def format_duration(seconds: float) -> str:
    hours = seconds / 3600
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours / 24:,.0f} days"


def format_span(span: Span) -> str:
    """Returns a range as "3 to 5 min", "50 s to 2 min", or "3 min"."""
    low, high = format_duration(span.low), format_duration(span.high)
    unit = high.partition(" ")[1] + high.partition(" ")[2]
    return high if low == high else f"{low.removesuffix(unit)} to {high}"


def without_seed(name: str) -> str:
    """Returns what the ids of similar runs have in common."""
    return re.sub(r"-seed\d+", "", name, count=1)


def _without_dataset(name: str) -> str:
    return without_seed(name).partition("-")[2]


def _cost(span: Span, seen: list[_Seen], origin: str) -> Cost:
    on_gpu = [one.gpu_memory for one in seen if one.gpu]
    gpu = next((one.gpu for one in seen if one.gpu), None)
    memory = max(one.memory for one in seen)
    return Cost(span, memory, max(on_gpu) if on_gpu else None, gpu, origin, len(seen))
