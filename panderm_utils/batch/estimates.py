"""What a plan will cost, from records of like runs: hours, memory, disk. What none tells is unknown, never guessed.

A run is like another if only their seeds differ. Imports neither torch nor pandas.
"""

import json
import re
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from panderm_utils import manifests, protocols
from panderm_utils.batch.plan import Job, Plan
from panderm_utils.results import is_done

FLOAT_BYTES = 4  # of a feature
REGISTRATION = re.compile(r"regist|agreement|on request|form\b", re.IGNORECASE)


@dataclass(frozen=True)
class Cost:
    """What like runs took: mean seconds, the highest peak memory in MB (of a GPU None where none was used)."""

    seconds: float
    memory: int
    gpu_memory: int | None
    gpu: str | None
    runs: int

    def __str__(self) -> str:
        gpu = f", {self.gpu_memory / 1e3:.1f} GB of a {self.gpu}" if self.gpu else ""
        like = "a like run" if self.runs == 1 else f"{self.runs} like runs"
        return f"{duration(self.seconds)}, {self.memory / 1e3:.1f} GB{gpu} (from {like})"


class Costs:
    """The costs of the runs that have a record below a folder."""

    def __init__(self, records: Path):
        found = defaultdict(list)
        for path in records.glob("[!.]*/record.json"):
            try:
                record = json.loads(path.read_bytes())
                memory, gpu = record["peak_memory_mb"], record["environment"]["gpu"]
                cost = (record["timings"]["total_seconds"], memory["process"], memory["gpu"], gpu)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # no whole record, which the batch finds out for itself
            found[_without_seed(path.parent.name)].append(cost)
        self._costs = {name: _merge(costs) for name, costs in found.items()}

    def of(self, job: Job) -> Cost | None:
        return self._costs.get(_without_seed(job.name))

    def longest_first(self, jobs: list[Job]) -> list[Job]:
        """Returns jobs so that no long one starts last; those that nothing is known of come first, in order."""
        return sorted(jobs, key=lambda job: -cost.seconds if (cost := self.of(job)) else -float("inf"))


def describe_plan(plan: Plan) -> str:
    """Returns the runs and their state, what they need and where to get it, and what they will cost."""
    costs = Costs(plan.space.records)
    states = ["done" if is_done(r.record) else "missing" if r.missing else "to run" for r in plan.runs]
    lines = [f"{len(plan.runs)} runs (profile {plan.space.profile}):"]
    for state, run in zip(states, plan.runs, strict=True):
        cost = f"  {costs.of(run) or 'unknown'}" if state != "done" else ""
        lines.append(f"  {state:8} {run.name}{cost}")
    lines += ["", "They need:"]
    for need in sorted(plan.needs, key=lambda need: (need.kind, need.state == "missing")):
        lines.append(f"  {need.kind:8} {need.name}: {need.state}")
        lines += [f"           at      {path}" for path in need.paths]
        lines += [f"           from    {need.source}", f"           licence {need.licence}"]
    undone = [run for state, run in zip(states, plan.runs, strict=True) if state != "done"]
    lines += ["", *_describe_costs(plan, undone, costs)]
    if barriers := [need for need in plan.needs if need.state == "missing" and REGISTRATION.search(_conditions(need))]:
        lines.append("Registration or an agreement stands before: " + ", ".join(need.name for need in barriers))
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "to run", "missing"))
    lines += ["", f"{counts}; then {len(plan.paper)} tables and figures. Outputs: {plan.space.root}"]
    if "missing" in states:
        lines.append("A run whose data or weights are missing is reported and left out; the others run.")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _describe_costs(plan: Plan, undone: list[Job], costs: Costs) -> list[str]:
    known = [cost for run in undone if (cost := costs.of(run))]
    unknown = len(undone) - len(known)
    lines = []
    for kind, some in (("GPU", [c for c in known if c.gpu]), ("CPU", [c for c in known if not c.gpu])):
        if some:
            lines.append(f"{kind} time: {duration(sum(c.seconds for c in some))} for {len(some)} runs, from like runs")
    if unknown:
        lines.append(f"Time and memory of {unknown} runs: unknown, no like run has a record")
    lines.append(
        f"Disk to be taken: {_features(plan, undone)}; {_checkpoints(plan, undone)}; free: {_free(plan.space.root)}"
    )
    return lines


def _features(plan: Plan, undone: list[Job]) -> str:
    """Says what the features of the runs take, as far as the sizes of datasets and vectors are known."""
    size, unknown = 0, set()
    probed = dict.fromkeys((run.notebook.stem, run.parameters["encoder"]) for run in undone if not _trains(run))
    for dataset, encoder in probed:
        sizes = None if plan.space.synthetic else manifests.load_dataset_manifest(dataset).split_sizes
        width = manifests.load_encoder_manifest(encoder).num_features
        if sizes and width:
            size += FLOAT_BYTES * width * sum(sizes.values())
        else:
            unknown.add(dataset if not sizes else encoder)
    return _amount("features", size, ", ".join(sorted(unknown)))


def _checkpoints(plan: Plan, undone: list[Job]) -> str:
    """Says what checkpoints take, from those that like runs have left."""
    there = defaultdict(list)
    for folder in plan.space.checkpoints.glob("*"):
        there[_without_seed(folder.name)].append(sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()))
    training = [_without_seed(run.name) for run in undone if _trains(run)]
    known = [max(there[name]) for name in training if name in there]
    return _amount("checkpoints", sum(known), f"{len(training) - len(known)} runs" * (len(training) > len(known)))


def _amount(what: str, size: int, unknown: str) -> str:
    parts = [f"{what} {_bytes(size)}"] * bool(size or not unknown) + [f"{what} of {unknown} unknown"] * bool(unknown)
    return ", ".join(parts)


def _trains(run: Job) -> bool:
    """Whether a run leaves checkpoints; the others leave features."""
    return protocols.load_protocol(run.protocol).trains


def _conditions(need) -> str:
    return f"{need.licence} {need.source}"


def _free(folder: Path) -> str:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return _bytes(shutil.disk_usage(there).free)


def _bytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.0f} MB"


def _without_seed(name: str) -> str:
    return re.sub(r"-seed\d+", "", name, count=1)


def _merge(costs: list[tuple]) -> Cost:
    seconds, memory, gpu_memory, gpus = zip(*costs, strict=True)
    on_gpu = [mb for mb, gpu in zip(gpu_memory, gpus, strict=True) if gpu]
    gpu = next((gpu for gpu in gpus if gpu), None)
    return Cost(mean(seconds), max(memory), max(on_gpu) if on_gpu else None, gpu, len(costs))
