"""Plans a batch: which runs, with which parameters, what they need and what is missing. Starts nothing.

Imports neither torch nor pandas, so that `run_all.py --plan` answers at once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import chain, product
from pathlib import Path

from panderm_utils import manifests, protocols, results
from panderm_utils.batch.data_root import DataRoot
from panderm_utils.batch.jobs import PAPER, Job, Plan
from panderm_utils.batch.needs import Need, data_need, find_encoder, other_need, weights_need
from panderm_utils.batch.parameters import (
    PlanError,
    Settled,
    each_run,
    read_parameters,
    settle_parameters,
    split_overrides,
)
from panderm_utils.manifests import DoesNotApply, EncoderManifest, Profile, Protocol, unknown_name
from panderm_utils.workspace import REPOSITORY, Workspace

NOTEBOOKS = REPOSITORY / "notebooks"


@dataclass
class Part:
    """A protocol's part of a batch: its datasets x encoders x variants.

    Attributes:
        variants: Parameters besides the overrides, one run for each.
        requested: Whether the user named the protocol; datasets that do not fit are then an error, not left out.
    """

    protocol: Protocol
    datasets: tuple[str, ...]
    encoders: tuple[str, ...]
    variants: list[dict] = field(default_factory=lambda: [{}])
    requested: bool = False


def make_plan(
    space: Workspace,
    datasets: Sequence[str] = (),
    encoders: Sequence[str] = (),
    protocols: Sequence[str] = (),
    seeds: Sequence[int] = (),
    overrides: Iterable[str] = (),
    notebooks: Path = NOTEBOOKS,
) -> Plan:
    """Returns the plan of datasets x protocols x encoders x seeds; an empty selection means the profile's default.

    Args:
        datasets: Names; ("all",) for every dataset of the profile instead of its default few. Each protocol uses those
            that fit it; naming both a protocol and a dataset that does not fit is an error.
        overrides: Notebook parameters as `name=value`, checked against each notebook's parameters cell.
        notebooks: The folder with a subfolder of notebooks per protocol.

    Raises:
        PlanError: A dataset, encoder, protocol or parameter is unknown or does not fit; lists all problems.
    """
    profile, problems = manifests.load_profile(space.profile, space.weights_root), []
    every = list(datasets) == ["all"]
    named, datasets = () if every else tuple(datasets), profile.datasets if every else datasets
    if profile.own and not profile.datasets:
        raise PlanError("there is no dataset of yours yet; add one: --new-dataset my.csv --images DIR --name mine")
    parts = _parts(profile, datasets, encoders, protocols, notebooks, problems)
    overrides = split_overrides(overrides, [name for part in parts for name in part.encoders], problems)
    parts = _with_companions(parts, profile, encoders, overrides, notebooks, problems)
    cards = {name: _load(manifests.load_dataset_manifest, name, problems) for part in parts for name in part.datasets}
    models = {name: _load(find_encoder, name, problems) for part in parts for name in part.encoders}
    _leave_out_misfits(parts, cards, models, named, bool(encoders), profile, problems)
    problems += _out_of_place(parts, cards, overrides, profile)
    problems += [f"seed {n}: {remedy}" for n in seeds if (remedy := manifests.SEED.remedy(n))]
    drafts = list(_drafts(parts, cards, models, profile, overrides, space, notebooks, problems))
    if problems:
        raise PlanError("\n".join(dict.fromkeys(problems)))
    seeds, runs = tuple(dict.fromkeys(seeds or profile.seeds)), {}
    for seed, draft in product(seeds, drafts):
        job = draft.with_seed(seed, space)
        runs.setdefault(job.name, job)  # a label fraction of 1 is the same run as without fractions
    paper = () if profile.own else _plan_paper(space, seeds[0], notebooks)  # the report draws what concerns own data
    return Plan(space, tuple(runs.values()), paper)


def select_runs(plan: Plan, names: Sequence[str]) -> Plan:
    """Returns the plan with only the named runs; without names, with only tables, figures and report.

    Args:
        names: Run ids or patterns, such as "ham10000-*".

    Raises:
        PlanError: A name matches no run of the plan.
    """
    matches = {name: [run for run in plan.runs if fnmatchcase(run.name, name)] for name in names}
    if unmatched := [name for name, runs in matches.items() if not runs]:
        raise PlanError(
            f"--only {' '.join(unmatched)}: not in this plan of {len(plan.runs)} runs; list them with --plan"
        )
    runs = dict.fromkeys(chain(*matches.values()))
    return replace(plan, runs=tuple(runs), paper=() if names else plan.paper, report=not names)


def list_protocols(notebooks: Path = NOTEBOOKS) -> list[str]:
    """Returns the protocols that have a canonical notebook."""
    names = {protocols.load_protocol(name).canonical for name in protocols.list_protocols()}
    return sorted({path.parent.name for name in names for path in notebooks.glob(f"*/{name}.ipynb")})


def canonical_notebook(protocol: Protocol, notebooks: Path = NOTEBOOKS) -> Path:
    """Returns the notebook of a protocol from which those of the other datasets are stamped."""
    return notebooks / protocol.name / f"{protocol.canonical}.ipynb"


def _parts(profile: Profile, datasets, encoders, names, notebooks: Path, problems: list[str]) -> list[Part]:
    found = [_load(lambda name: _find(name, notebooks), name, problems) for name in names or profile.usual]
    parts = [_part(profile, p, datasets, encoders, requested=bool(names)) for p in dict.fromkeys(filter(None, found))]
    if not names:  # a dataset that fits only protocols on request has no other study: they need not be named
        known = [name for name in dict.fromkeys(datasets or profile.datasets) if name in manifests.list_datasets()]
        fitting = {name for part in parts for name in part.protocol.supported(known)}
        for protocol in [_find(name, notebooks) for name in profile.on_request if name in list_protocols(notebooks)]:
            if alone := protocol.supported(name for name in known if name not in fitting):
                parts.append(_part(profile, protocol, alone, encoders))
    return parts


def _part(profile: Profile, protocol: Protocol, datasets, encoders, **fields) -> Part:
    """Returns a protocol's part, with the named datasets and encoders, or else those of the profile."""
    choice = profile.choice(protocol.name)
    datasets, encoders = dict.fromkeys(datasets or choice.quick), dict.fromkeys(encoders or choice.encoders)
    return Part(protocol, tuple(datasets), tuple(encoders), **fields)


def _find(name: str, notebooks: Path) -> Protocol:
    valid = list_protocols(notebooks)
    if name not in valid:
        raise PlanError(unknown_name("protocol", name, valid, ""))
    return protocols.load_protocol(name)


def _with_companions(parts: list[Part], profile: Profile, encoders, overrides, notebooks, problems) -> list[Part]:
    """Adds the runs of other protocols that a protocol's parameters ask for, on its own datasets."""
    by_name = {part.protocol.name: part for part in parts}
    for part in parts:
        for name, variants in part.protocol.companions(overrides).items():
            if name in by_name:
                by_name[name].variants += variants
            elif other := _load(lambda name: _find(name, notebooks), name, problems):
                by_name[name] = replace(_part(profile, other, part.datasets, encoders), variants=variants)
    return list(by_name.values())


def _leave_out_misfits(parts, cards, models, named, encoders_named, profile, problems) -> None:
    """Removes the datasets and encoders that do not fit a protocol; appends a problem if the user named them."""
    fitting = {name for part in parts for name in part.datasets if cards[name] and not part.protocol.lacks(cards[name])}
    for part in parts:
        lacking = {name: card and part.protocol.lacks(card) for name, card in cards.items()}
        for name in named:
            if lacking.get(name) and (part.requested or name not in fitting):
                suitable = ", ".join(part.protocol.supported(profile.datasets))
                needed = f"{part.protocol.name} needs {lacking[name]}"
                problems.append(
                    f"dataset {name}: {needed}; {f'choose from: {suitable}' if suitable else 'none here has'}"
                )
        part.datasets = tuple(name for name in part.datasets if not lacking[name])
        unfit = [name for name in part.encoders if models[name] and not part.protocol.supports(models[name])]
        if unfit and part.requested and encoders_named:
            only = f"{part.protocol.title} supports only the architecture {', '.join(part.protocol.architectures)}"
            problems.append(f"encoder {', '.join(unfit)}: {only}; leave it out")
        part.encoders = tuple(name for name in part.encoders if name not in unfit)


def _out_of_place(parts: list[Part], cards: dict, overrides: dict, profile: Profile) -> Iterator[str]:
    """Yields the problems of parameters for one dataset used with several, and of datasets in the wrong profile."""
    for part in parts:
        for name in part.protocol.single_dataset:
            if name in overrides and (len(parts) > 1 or len(cards) > 1):
                remedy = f"write --protocols {part.protocol.name} --datasets {next(iter(cards))}"
                yield f"-p {name}: applies to one dataset only; {remedy}"
    for name, card in cards.items():
        if card and card.own and not profile.own:
            yield f"dataset {name}: your data have their own profile; write --profile own --datasets {name}"
        elif card and profile.own and not card.own:
            yield f"dataset {name}: not your data; write --profile paper --datasets {name}"


def _drafts(parts, cards, models, profile, overrides, space, notebooks, problems) -> Iterator["_Draft"]:
    """Yields the runs of one seed; appends errors in their parameters to `problems`."""
    accepted = {part.protocol.name: _parameter_names(part.protocol, notebooks) for part in parts}
    root = DataRoot(space.data_root)
    studied = {name for part in parts for name in part.datasets}
    for part in parts:
        protocol = part.protocol
        # A parameter of another protocol in this plan is not unknown, it only does not apply here.
        elsewhere = set().union(*accepted.values()) - accepted[protocol.name]
        applicable = {key: value for key, value in overrides.items() if key not in elsewhere}
        file = next((applicable[name] for name in protocol.weights_parameters if name in applicable), None)
        variants = [given for variant in part.variants for given in each_run(protocol, applicable | variant)]
        # Datasets vary fastest, so that concurrent runs rarely draw or read the same images.
        for encoder, dataset, variant in product(part.encoders, part.datasets, variants):
            card, model = cards[dataset], models[encoder]
            canonical = canonical_notebook(protocol, notebooks)
            notebook = canonical.with_stem(dataset) if card else canonical
            settled = settle_parameters(notebook, protocol, variant, problems)
            if not (card and model):
                continue
            try:
                others = [
                    find_encoder(o.name) if isinstance(o, EncoderManifest) else o
                    for o in protocol.extra_inputs(card, encoder, profile, settled.parameters)
                ]
            except ValueError as error:
                if part.requested or not isinstance(error, DoesNotApply):
                    problems.append(str(error))
                continue
            needs = [data_need(card, space, root), weights_need(model, space, file)]
            further = {other.name: other_need(other, space, root) for other in others if other.name != encoder}
            # One that the batch studies too is listed as that run's need, unless it would stop this run.
            needs += [n for name, n in further.items() if name not in studied or (n and n.state == "incomplete")]
            needs = tuple(dict.fromkeys(filter(None, needs)))
            pairs = [(dataset, o.name) if isinstance(o, EncoderManifest) else (o.name, encoder) for o in others]
            features = () if protocol.trains else tuple(dict.fromkeys([(dataset, encoder), *pairs]))
            yield _Draft(protocol, dataset, encoder, notebook, settled, needs, features)


@dataclass(frozen=True)
class _Draft:
    """A run without its seed."""

    protocol: Protocol
    dataset: str
    encoder: str
    notebook: Path
    settled: Settled
    needs: tuple[Need, ...]
    features: tuple[tuple[str, str], ...]

    def with_seed(self, seed: int, space: Workspace) -> Job:
        settings = self.settled.settings
        name = results.run_id(self.protocol, space.profile, self.dataset, self.encoder, seed, **settings)
        return Job(
            name=name,
            notebook=self.notebook,
            parameters={**_folders(space), "encoder": self.encoder, "seed": seed, **self.settled.parameters},
            output=space.root / "executed" / self.protocol.name / f"{name}.ipynb",
            log=space.root / "logs" / f"{name}.log",
            protocol=self.protocol.name,
            record=space.records / name,
            needs=self.needs,
            features=self.features,
        )


def _plan_paper(space: Workspace, seed: int, notebooks: Path) -> tuple[Job, ...]:
    jobs = []
    for path in sorted((notebooks / PAPER).glob("*.ipynb")):
        defaults = read_parameters(path)
        parameters = {name: value for name, value in {**_folders(space), "seed": seed}.items() if name in defaults}
        output, log = space.root / "executed" / PAPER / path.name, space.root / "logs" / f"{path.stem}.log"
        jobs.append(Job(path.stem, path, parameters, output, log))
    return tuple(jobs)


def _folders(space: Workspace) -> dict[str, str]:
    folders = {name: str(getattr(space, name)) for name in ("data_root", "weights_root")}
    return {"profile": space.profile, **folders, "output_root": str(space.root.parent)}


def _parameter_names(protocol: Protocol, notebooks: Path) -> set[str]:
    """Returns the parameters of a protocol's canonical notebook; none if it cannot be read, reported elsewhere."""
    try:
        return set(read_parameters(canonical_notebook(protocol, notebooks)))
    except PlanError:
        return set()


def _load(load: Callable, name: str, problems: list[str]):
    try:
        return load(name)
    except ValueError as error:
        problems.append(str(error))
