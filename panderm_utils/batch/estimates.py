"""Estimates the hours, memory and disk space of a plan from the records of similar runs; never guesses.

Similar runs differ in nothing but their seed; without one the cost is "unknown". Imports neither torch nor pandas.
"""

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from panderm_utils import manifests, protocols
from panderm_utils.batch.jobs import Job, Plan
from panderm_utils.batch.needs import Need, find_encoder, weights_need
from panderm_utils.disk import free
from panderm_utils.results import is_done
from panderm_utils.workspace import pixel_budget

FLOAT_BYTES = 4  # of a feature
PIXEL_BYTES = 3 * 224 * 224  # of a decoded image
REGISTRATION = re.compile(r"regist|agreement|on request|form\b", re.IGNORECASE)


@dataclass(frozen=True)
class Cost:
    """The cost of similar runs: mean seconds and highest peak memory in MB; `gpu_memory` is None without a GPU."""

    seconds: float
    memory: int
    gpu_memory: int | None
    gpu: str | None
    runs: int

    def __str__(self) -> str:
        gpu = f", {self.gpu_memory / 1e3:.1f} GB of a {self.gpu}" if self.gpu else ""
        similar = "a similar run" if self.runs == 1 else f"{self.runs} similar runs"
        return f"{format_duration(self.seconds)}, {self.memory / 1e3:.1f} GB{gpu} (from {similar})"


class Costs:
    """The costs of the runs that have a record below a folder."""

    def __init__(self, records: Path):
        costs = defaultdict(list)
        for path in records.glob("[!.]*/record.json"):
            try:
                record = json.loads(path.read_bytes())
                memory, gpu = record["peak_memory_mb"], record["environment"]["gpu"]
                cost = (record["timings"]["total_seconds"], memory["process"], memory["gpu"], gpu)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # incomplete: such a run is executed again
            costs[_without_seed(path.parent.name)].append(cost)
        self._costs = {name: _merge(similar) for name, similar in costs.items()}

    def of(self, job: Job) -> Cost | None:
        return self._costs.get(_without_seed(job.name))

    def longest_first(self, jobs: list[Job]) -> list[Job]:
        """Returns the jobs sorted by expected duration, longest first; unknown ones lead, trainings before others."""

        def key(job: Job) -> tuple[float, bool]:
            cost = self.of(job)
            return -cost.seconds if cost else -float("inf"), not _trains(job)

        return sorted(jobs, key=key)


def describe_plan(plan: Plan, verbose: bool = False) -> str:
    """Returns the text of `--plan`: the runs that can start now, what is nearly there, what is missing, and the costs.

    Args:
        verbose: Also list every run with its cost, and everything that they need with paths and licences.
    """
    costs = Costs(plan.space.records)
    states = ["done" if is_done(r.record) else "missing" if r.missing else "to run" for r in plan.runs]
    undone = [run for state, run in zip(states, plan.runs, strict=True) if state != "done"]
    ready = [run for run in undone if not run.missing]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "to run", "missing"))
    drawings = f"{len(plan.paper)} tables and figures" if plan.paper else "the report"
    lines = [f"{len(plan.runs)} runs (profile {plan.space.profile}): {counts}; then {drawings}"]
    lines += [note] if (note := toy_note(plan)) else []
    lines += ["", "Can run now:" if ready else "Nothing can run now.", *_describe_ready(ready)]
    waiting = Counter(need for run in undone for need in run.needs if need.state.startswith(("missing", "incomplete")))
    nearly = {need: count for need, count in waiting.items() if need.remedy or need.state == "incomplete"}
    lines += ["", "Nearly there:", *_describe_nearly(nearly)] if nearly else []
    if absent := {need: count for need, count in waiting.items() if need not in nearly}:
        lines += ["", "Missing:"]
        for need, count in sorted(absent.items(), key=lambda pair: (pair[0].kind, pair[0].state, pair[0].name)):
            lines.append(f"  {need.kind:8}{_waiting(need, count)}: {need.source}")
        get = "" if plan.space.profile == "own" else " To get them: python run_all.py --fetch"
        lines.append(f"  Runs that lack data or weights are left out; the others run.{get}")
    lines += _list_all(plan, states, costs) if verbose else []
    lines += ["", *_describe_costs(plan, undone, costs)]
    if barriers := [need.name for need in waiting if REGISTRATION.search(_conditions(need)) and need not in nearly]:
        lines.append("Registration or a signed agreement is needed for: " + ", ".join(barriers))
    lines.append(f"Outputs: {plan.space.root}")
    return "\n".join(lines if verbose else [*lines, "Each run, and each path and licence: --plan --verbose"])


def toy_note(plan: Plan) -> str:
    """Returns a line if your data are studied with an encoder that is a toy, and where to get a real one; else ""."""
    names = dict.fromkeys(run.parameters["encoder"] for run in plan.runs)
    toys = [name for name in names if manifests.load_encoder_manifest(name).toy]
    if plan.space.profile != "own" or not toys:
        return ""
    real = find_encoder("panderm_large")
    place = weights_need(real, plan.space, None).paths[0]
    source = "; or ".join(access.url for access in real.access)
    return (
        f"NOTE: {', '.join(toys)} is a toy, not PanDerm: it shows how a study works, and its numbers say nothing about "
        f"real skin. For a real study put the weights at {place} ({source})"
    )


def _describe_ready(ready: list[Job]) -> list[str]:
    """Returns a line for each protocol and set of encoders that study the same datasets."""
    datasets, encoders = defaultdict(dict), defaultdict(list)
    for run in ready:
        datasets[run.protocol, run.parameters["encoder"]][run.notebook.stem] = True
    for (protocol, encoder), names in datasets.items():
        encoders[protocol, tuple(names)].append(encoder)
    return [
        f"  {protocol}: {', '.join(models)} on {', '.join(names)}" for (protocol, names), models in encoders.items()
    ]


def _describe_nearly(needs: dict[Need, int]) -> list[str]:
    """Returns what is wrong with data that are nearly there, and on a line of its own what puts that right."""
    groups = defaultdict(list)
    for need, count in needs.items():
        groups[need.problem, need.remedy].append(_waiting(need, count))
    return [
        line
        for (problem, remedy), names in groups.items()
        for line in (f"  {', '.join(names)}: {problem}", f"      {remedy}" if remedy else "")
        if line
    ]


def _list_all(plan: Plan, states: list[str], costs: Costs) -> list[str]:
    lines = ["", "Runs:"]
    for state, run in zip(states, plan.runs, strict=True):
        cost = f"  {costs.of(run) or 'unknown'}" if state != "done" else ""
        lines.append(f"  {state:8} {run.name}{cost}")
    lines += ["", "They need:"]
    for need in sorted(plan.needs, key=lambda need: (need.kind, need.state == "missing")):
        lines.append(f"  {need.kind:8} {need.name}: {need.state}")
        lines += [f"           at      {path}" for path in need.paths]
        lines += [f"           from    {need.source}", f"           licence {need.licence}"]
    return lines


def _waiting(need: Need, count: int) -> str:
    optional = "optional for " if need.state not in ("missing", "incomplete") else ""
    return f"{need.name} ({optional}{count} run{'s' * (count != 1)})"


def format_duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _describe_costs(plan: Plan, undone: list[Job], costs: Costs) -> list[str]:
    known = [cost for run in undone if (cost := costs.of(run))]
    unknown = len(undone) - len(known)
    lines = []
    for kind, costs in (("GPU", [c for c in known if c.gpu]), ("CPU", [c for c in known if not c.gpu])):
        if costs:
            total = format_duration(sum(cost.seconds for cost in costs))
            lines.append(f"{kind} time: {total} for {len(costs)} runs, estimated from similar runs")
    if unknown:
        lines.append(f"Time and memory of {unknown} runs: unknown, no similar run has a record")
    needed = "; ".join((_features(plan, undone), _pixels(plan, undone), _checkpoints(plan, undone)))
    lines.append(f"Disk space needed: {needed}; free: {_free(plan.space.root)}")
    return lines


def _features(plan: Plan, undone: list[Job]) -> str:
    """Returns the disk space of the runs' features, and for which datasets or encoders it is unknown."""
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


def _pixels(plan: Plan, undone: list[Job]) -> str:
    """Returns the disk space of the images that are decoded for the runs, once for all encoders, within the budget."""
    budget, sizes = pixel_budget(), []
    for dataset in dict.fromkeys(run.notebook.stem for run in undone if not _trains(run)):
        sizes.append(None if plan.space.synthetic else manifests.load_dataset_manifest(dataset).split_sizes)
    size = sum(PIXEL_BYTES * sum(splits.values()) for splits in sizes if splits)
    if not budget or (all(sizes) and size <= budget):
        return _amount("decoded images", min(size, budget), "")
    return f"decoded images at most {_bytes(budget)} (--pixels GB)"


def _checkpoints(plan: Plan, undone: list[Job]) -> str:
    """Returns the disk space of the runs' checkpoints, estimated from those of similar runs."""
    sizes = defaultdict(list)
    for folder in plan.space.checkpoints.glob("*"):
        sizes[_without_seed(folder.name)].append(sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()))
    training = [_without_seed(run.name) for run in undone if _trains(run)]
    known = [max(sizes[name]) for name in training if name in sizes]
    return _amount("checkpoints", sum(known), f"{len(training) - len(known)} runs" * (len(training) > len(known)))


def _amount(what: str, size: int, unknown: str) -> str:
    parts = [f"{what} {_bytes(size)}"] * bool(size or not unknown) + [f"{what} of {unknown} unknown"] * bool(unknown)
    return ", ".join(parts)


def _trains(run: Job) -> bool:
    """Whether a run writes checkpoints; the others write features."""
    return run.record is not None and protocols.load_protocol(run.protocol).trains


def _conditions(need) -> str:
    return f"{need.licence} {need.source}"


def _free(folder: Path) -> str:
    return _bytes(free(folder))


def _bytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.0f} MB"


def _without_seed(name: str) -> str:
    return re.sub(r"-seed\d+", "", name, count=1)


def _merge(costs: list[tuple]) -> Cost:
    seconds, memory, gpu_memory, gpus = zip(*costs, strict=True)
    on_gpu = [mb for mb, gpu in zip(gpu_memory, gpus, strict=True) if gpu]
    gpu = next((gpu for gpu in gpus if gpu), None)
    return Cost(mean(seconds), max(memory), max(on_gpu) if on_gpu else None, gpu, len(costs))
