"""Describes a plan and its expected hours, memory and disk space; what is unknown it calls unknown.

Imports neither torch nor pandas.
"""

import re
from collections import Counter, defaultdict
from pathlib import Path

from panderm_utils import manifests
from panderm_utils.batch.calibration import SHARES, SHARES_OF_PEAK, Span, sizes_of
from panderm_utils.batch.costs import MEASURED, SCALED, SIMILAR, Costs, format_span, trains, without_seed
from panderm_utils.batch.jobs import Job, Plan, count_runs
from panderm_utils.batch.needs import Need, find_encoder, weights_need
from panderm_utils.disk import free
from panderm_utils.results import is_done
from panderm_utils.workspace import PIXEL_BYTES, pixel_budget

FLOAT_BYTES = 4  # of a feature
RANGE = """\
  From: the fastest speed measured, images read while others are computed. To: the slowest, one after the other.
  Not included: fits of probes, intervals and figures."""
REGISTRATION = re.compile(r"regist|agreement|on request|form\b", re.IGNORECASE)


def describe_plan(plan: Plan, verbose: bool = False) -> str:
    """Returns the text of `--plan`: the runs that can start now, what is nearly there, what is missing, and the costs.

    Args:
        verbose: Also list every run with its cost, and everything that they need with paths and licences.
    """
    costs = Costs(plan)
    states = ["done" if is_done(r.record) else "missing" if r.missing else "to run" for r in plan.runs]
    undone = [run for state, run in zip(states, plan.runs, strict=True) if state != "done"]
    ready = [run for run in undone if not run.missing]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "to run", "missing"))
    drawings = f"{len(plan.paper)} tables and figures" if plan.paper else "the report"
    lines = [f"{count_runs(len(plan.runs))} (profile {plan.space.profile}): {counts}; then {drawings}"]
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
    return f"{need.name} ({optional}{count_runs(count)})"


def _describe_costs(plan: Plan, undone: list[Job], costs: Costs) -> list[str]:
    known = [cost for run in undone if (cost := costs.of(run))]
    lines = []
    for kind in ("GPU", "CPU"):
        for origin in (SIMILAR, SCALED, MEASURED):
            alike = [cost for cost in known if cost.origin == origin and bool(cost.gpu) == (kind == "GPU")]
            if alike:
                total = sum((cost.span for cost in alike), Span())
                source = f"measurements on {costs.machine}" if origin == MEASURED else origin
                lines.append(f"{kind} time: {format_span(total)} for {count_runs(len(alike))}, estimated from {source}")
    if any(cost.origin == MEASURED for cost in known):
        lines.append(RANGE)
    if guessed := costs.assumed_splits(undone):
        shares = ":".join(map(str, SHARES.values()))
        lines.append(f"  Split {shares} there, as the splits are unknown: {', '.join(guessed)}.")
    if unknown := len(undone) - len(known):
        reason = "some of it is not measured, or images are not counted yet" if costs.machine else "nothing is measured"
        subject = f"Time and memory of {count_runs(unknown)}: unknown, no similar run has a record and {reason}"
        lines.append(f"{subject}; to measure, write --calibrate for --plan")
    lines += _other_machines(undone, costs)
    needed = "; ".join((_features(plan, undone), _pixels(plan, undone), _checkpoints(plan, undone)))
    lines.append(f"Disk space needed: {needed}; free: {_free(plan.space.root)}")
    return lines


def _other_machines(undone: list[Job], costs: Costs) -> list[str]:
    low, high = SHARES_OF_PEAK
    data_sheet = f"its GPU's data sheet, at {low:.0%} to {high:.0%} of its peak"
    return [
        f"On {machine}: {format_span(total)} for {count_runs(count)}, estimated from "
        + ("measurements" if machine.date else data_sheet)
        for machine, total, count in costs.by_machine(undone)
        if count and machine is not costs.machine
    ]


def _features(plan: Plan, undone: list[Job]) -> str:
    """Returns the disk space of the runs' features, and for which datasets or encoders it is unknown."""
    size, unknown = 0, set()
    probed = dict.fromkeys((run.notebook.stem, run.parameters["encoder"]) for run in undone if not trains(run))
    for dataset, encoder in probed:
        sizes = sizes_of(manifests.load_dataset_manifest(dataset), plan.space.synthetic)
        width = manifests.load_encoder_manifest(encoder).num_features
        if sizes and width:
            size += FLOAT_BYTES * width * sum(sizes.values())
        else:
            unknown.add(dataset if not sizes else encoder)
    return _amount("features", size, ", ".join(sorted(unknown)))


def _pixels(plan: Plan, undone: list[Job]) -> str:
    """Returns the disk space of the images that are decoded for the runs, once for all encoders, within the budget."""
    budget, sizes = pixel_budget(), []
    for dataset in dict.fromkeys(run.notebook.stem for run in undone if not trains(run)):
        sizes.append(sizes_of(manifests.load_dataset_manifest(dataset), plan.space.synthetic))
    size = sum(PIXEL_BYTES * sum(splits.values()) for splits in sizes if splits)
    if not budget or (all(sizes) and size <= budget):
        return _amount("decoded images", min(size, budget), "")
    return f"decoded images at most {_bytes(budget)} (--pixels GB)"


def _checkpoints(plan: Plan, undone: list[Job]) -> str:
    """Returns the disk space of the runs' checkpoints, estimated from those of similar runs."""
    sizes = defaultdict(list)
    for folder in plan.space.checkpoints.glob("*"):
        sizes[without_seed(folder.name)].append(sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()))
    training = [without_seed(run.name) for run in undone if trains(run)]
    known = [max(sizes[name]) for name in training if name in sizes]
    return _amount("checkpoints", sum(known), count_runs(unknown) if (unknown := len(training) - len(known)) else "")


def _amount(what: str, size: int, unknown: str) -> str:
    parts = [f"{what} {_bytes(size)}"] * bool(size or not unknown) + [f"{what} of {unknown} unknown"] * bool(unknown)
    return ", ".join(parts)


def _conditions(need) -> str:
    return f"{need.licence} {need.source}"


def _free(folder: Path) -> str:
    return _bytes(free(folder))


def _bytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.0f} MB"
