"""Plans a batch: which runs, with which parameters, what they need and what of it is missing. Starts nothing.

Imports neither torch nor pandas, so `run_all.py --plan` answers at once.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain, product
from pathlib import Path

from panderm_utils import manifests, needs, workspace
from panderm_utils.needs import Need
from panderm_utils.parameters import PlanError, read_parameters, read_shares, settle_parameters, split_given
from panderm_utils.targets import PROTOCOL as EXTERNAL
from panderm_utils.targets import choose_targets
from panderm_utils.typed_yaml import unknown
from panderm_utils.workspace import REPOSITORY, Workspace

NOTEBOOKS = REPOSITORY / "notebooks"
CANONICAL = "ham10000"  # the notebook of each protocol from which its siblings are stamped
FINE_TUNE = "fine_tune"  # the protocol that takes PanDerm's architecture only
EFFICIENCY = "label_efficiency"  # the protocol that may ask for fine-tuning at some fractions, as runs of their own
PAPER = "paper"  # the folder of the notebooks that draw from records and run nothing


@dataclass(frozen=True, eq=False)
class Job:
    """A notebook to execute.

    Attributes:
        name: The run id, or the paper notebook's name.
        output: The executed notebook; `log`: what papermill and the cells print.
        record: The folder that a run leaves, or None for a paper notebook.
        needs: What it reads.
    """

    name: str
    notebook: Path
    parameters: dict
    output: Path
    log: Path
    record: Path | None = None
    needs: tuple[Need, ...] = ()

    @property
    def missing(self) -> tuple[Need, ...]:
        return tuple(need for need in self.needs if need.state == "missing")


@dataclass(frozen=True)
class Plan:
    """A batch: its runs, and the paper notebooks that are drawn after them."""

    space: Workspace
    runs: tuple[Job, ...]
    paper: tuple[Job, ...]

    @property
    def needs(self) -> list[Need]:
        return list(dict.fromkeys(need for run in self.runs for need in run.needs))


def make_plan(
    space: Workspace,
    datasets: Sequence[str] = (),
    encoders: Sequence[str] = (),
    protocols: Sequence[str] = (),
    seeds: Sequence[int] = (),
    given: Iterable[str] = (),
    notebooks: Path = NOTEBOOKS,
) -> Plan:
    """Plans the runs of datasets x protocols x encoders x seeds; an empty selection means what the profile says.

    Args:
        datasets: Names; ("all",) for every dataset of the profile rather than its quick handful. A protocol takes those
            that fit it; one that does not is an error where both were named.
        given: Notebook parameters as `name=value`, checked against each notebook's parameters cell.
        notebooks: The folder with a folder of notebooks a protocol.

    Raises:
        PlanError: A dataset, encoder, protocol or parameter is unknown or does not fit; all problems at once.
    """
    profile = manifests.load_profile(space.profile)
    named, protocols_named = tuple(dict.fromkeys(datasets)), bool(protocols)
    if list(datasets) == ["all"]:
        datasets, named = profile.datasets, ()
    asked = bool(encoders) and FINE_TUNE in protocols
    protocols = tuple(dict.fromkeys(protocols or profile.protocols))
    wanted = {protocol: _choose(profile, protocol, datasets, encoders) for protocol in protocols}
    problems: list[str] = []
    given = split_given(given, list(chain(*(models for _, models in wanted.values()))), problems)
    variants = {protocol: [{}] for protocol in protocols}  # parameters beside those given, a run each
    if EFFICIENCY in protocols and (shares := read_shares(given.get("finetune_fractions"), problems)):
        wanted.setdefault(FINE_TUNE, _choose(profile, FINE_TUNE, wanted[EFFICIENCY][0], encoders))
        variants[FINE_TUNE] = variants.get(FINE_TUNE, []) + [{"train_fraction": share} for share in shares]
    names, models = (dict.fromkeys(chain(*parts)) for parts in zip(*wanted.values(), strict=True))
    cards = {name: _load(manifests.load_dataset_manifest, name, problems) for name in names}
    for protocol, (chosen, its_encoders) in wanted.items():
        fit = tuple(name for name in chosen if not (cards[name] and cards[name].lacks(protocol)))
        wanted[protocol] = fit, its_encoders
    taken = {name for chosen, _ in wanted.values() for name in chosen}
    for protocol, name in product(wanted, named):
        if cards[name] and (lack := cards[name].lacks(protocol)) and (protocols_named or name not in taken):
            having = ", ".join(manifests.fitting(profile.datasets, protocol))
            problems.append(f"dataset {name}: {protocol} needs {lack}; of the profile's, these have it: {having}")
    models = {name: _load(needs.find_encoder, name, problems) for name in models}
    unfit = [name for name, model in models.items() if model and model.architecture != "beit"]
    if asked and unfit:
        problems.append(f"encoder {', '.join(unfit)}: fine-tuning takes PanDerm's architecture only; leave it out")
    if "checkpoint" in given and (list(wanted) != [FINE_TUNE] or len(cards) > 1):
        problems.append(f"-p checkpoint: of one dataset; write --protocols {FINE_TUNE} --datasets {next(iter(cards))}")
    known = list_protocols(notebooks)
    problems += [unknown("protocol", name, known, "") for name in wanted if name not in known]
    for name, card in cards.items():
        if card and card.own and space.synthetic:
            problems.append(f"dataset {name} is your own, no demo; write --profile paper --datasets {name}")
    offered = {protocol: _parameter_names(notebooks / protocol) for protocol in wanted if protocol in known}
    studies = {}
    for protocol in offered:
        # What another of the protocols takes is not unknown, only not for this one.
        elsewhere = set().union(*offered.values()) - offered[protocol]
        mine = {key: value for key, value in given.items() if key not in elsewhere}
        for name in wanted[protocol][0]:
            path = notebooks / protocol / f"{name if cards[name] else CANONICAL}.ipynb"
            settled = [settle_parameters(path, mine | variant, problems) for variant in variants[protocol]]
            studies[protocol, name] = path, settled
    problems += [f"seed {n}: write a whole number from 0 to {2**32 - 1}" for n in seeds if not 0 <= n < 2**32]
    targets = {
        name: _load(partial(choose_targets, card, profile), settled[0][0].get("targets"), problems)
        for (protocol, name), (_, settled) in studies.items()
        if protocol == EXTERNAL and (card := cards[name])
    }
    if "rival" in given:
        _load(needs.find_encoder, given["rival"], problems)
    if problems:
        raise PlanError("\n".join(dict.fromkeys(problems)))

    data = {name: needs.data_need(cards[name], space) for name in taken}
    file = given.get("checkpoint", given.get("weights"))
    weights = {name: needs.weights_need(model, space, file) for name, model in models.items()}
    folders = {name: str(getattr(space, name)) for name in ("data_root", "weights_root")}
    common = {"profile": space.profile, **folders, "output_root": str(space.root.parent)}
    chosen_seeds, runs = tuple(dict.fromkeys(seeds or profile.seeds)), []
    # Datasets innermost: two jobs at once then rarely draw or read the same images, and later seeds find the features.
    for seed, (protocol, (names, encoders)) in product(chosen_seeds, wanted.items()):
        fit = [name for name in encoders if not (protocol == FINE_TUNE and name in unfit)]
        for encoder, dataset, variant in product(fit, names, range(len(variants[protocol]))):
            path, settled = studies[protocol, dataset]
            own, settings = settled[variant]
            name = workspace.run_id(dataset, protocol, encoder, seed, **settings)
            rival = own.get("rival") or profile.choice(protocol).rival_of(encoder)
            beside = [needs.weights_need(needs.find_encoder(rival), space, None)] if rival else []
            if protocol == EXTERNAL:
                beside = [needs.target_need(card, space) for card in targets[dataset] if card.name not in data]
            runs.append(
                Job(
                    name=name,
                    notebook=path,
                    parameters={**common, "encoder": encoder, "seed": seed, **own},
                    output=space.root / "executed" / protocol / f"{name}.ipynb",
                    log=space.root / "logs" / f"{name}.log",
                    record=space.records / name,
                    needs=tuple(dict.fromkeys(need for need in (data[dataset], weights[encoder], *beside) if need)),
                )
            )
    runs = {run.name: run for run in runs}.values()  # all labels as a fraction are the run that may be there anyway
    return Plan(space, tuple(runs), _plan_paper(space, chosen_seeds[0], notebooks))


def select_runs(plan: Plan, names: Sequence[str]) -> Plan:
    """Returns the plan of the named runs alone, without drawings; of no name, the drawings alone.

    Args:
        names: Run ids, or patterns of them, such as "ham10000-*".

    Raises:
        PlanError: A name is of no run in the plan.
    """
    found = {name: [run for run in plan.runs if fnmatchcase(run.name, name)] for name in names}
    if strange := [name for name, runs in found.items() if not runs]:
        raise PlanError(f"--only {' '.join(strange)}: not in this plan of {len(plan.runs)} runs; --plan names them")
    runs = dict.fromkeys(chain(*found.values()))
    return replace(plan, runs=tuple(runs), paper=() if names else plan.paper)


def _choose(profile: manifests.Profile, protocol: str, datasets: Sequence[str], encoders: Sequence[str]) -> tuple:
    """Returns the datasets and the encoders of a protocol: those named, else those that the profile has for it."""
    usual = profile.choice(protocol)
    return tuple(dict.fromkeys(datasets or usual.quick)), tuple(dict.fromkeys(encoders or usual.encoders))


def _parameter_names(folder: Path) -> set[str]:
    """The parameters of a protocol's canonical notebook; none where it cannot be read, which is reported elsewhere."""
    try:
        return set(read_parameters(folder / f"{CANONICAL}.ipynb"))
    except PlanError:
        return set()


def list_protocols(notebooks: Path = NOTEBOOKS) -> list[str]:
    """Returns the protocols that have a canonical notebook."""
    return sorted(path.parent.name for path in notebooks.glob(f"*/{CANONICAL}.ipynb"))


def is_done(record: Path) -> bool:
    """Whether the folder holds a whole record of the run that it is named after."""
    try:
        found = json.loads((record / "record.json").read_bytes())
    except (OSError, ValueError):
        return False
    whole = isinstance(found, dict) and found.get("run_id") == record.name and found.get("status") == "done"
    return whole and (record / "predictions.csv").is_file()


def _load(load, name: str, problems: list[str]):
    try:
        return load(name)
    except ValueError as error:
        problems.append(str(error))


def _plan_paper(space: Workspace, seed: int, notebooks: Path) -> tuple[Job, ...]:
    folders = {name: str(getattr(space, name)) for name in ("data_root", "weights_root")}
    settled = {"profile": space.profile, **folders, "output_root": str(space.root.parent), "seed": seed}
    jobs = []
    for path in sorted((notebooks / PAPER).glob("*.ipynb")):
        wanted = {name: value for name, value in settled.items() if name in read_parameters(path)}
        output, log = space.root / "executed" / PAPER / path.name, space.root / "logs" / f"{path.stem}.log"
        jobs.append(Job(path.stem, path, wanted, output, log))
    return tuple(jobs)
