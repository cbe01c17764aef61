"""Plans a batch: which runs, with which parameters, what they need and what of it is missing. Starts nothing.

Imports neither torch nor pandas, so `run_all.py --plan` answers at once.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path

from panderm_utils import manifests, workspace
from panderm_utils.parameters import PlanError, read_parameters, read_shares, settle_parameters, split_given
from panderm_utils.typed_yaml import unknown
from panderm_utils.workspace import REPOSITORY, Workspace

NOTEBOOKS = REPOSITORY / "notebooks"
CANONICAL = "ham10000"  # the notebook of each protocol from which its siblings are stamped
FINE_TUNE = "fine_tune"  # the protocol that takes PanDerm's architecture only
EFFICIENCY = "label_efficiency"  # the protocol that may ask for fine-tuning at some fractions, as runs of their own
PAPER = "paper"  # the folder of the notebooks that draw from records and run nothing


@dataclass(frozen=True)
class Need:
    """Data or weights that a run needs.

    Attributes:
        kind: "data" or "weights"; `name` is the dataset's or the encoder's.
        paths: Where they are, or are expected.
        state: "there", "missing", or how they come about, such as "drawn on first use".
        source: Where to get them.
    """

    kind: str
    name: str
    paths: tuple[Path, ...]
    state: str
    source: str
    licence: str

    def complaint(self) -> str:
        """Says which file is missing and where to get it."""
        absent = next((path for path in self.paths if not path.exists()), self.paths[0])
        return f"{self.kind} of {self.name}: {absent} is not there; to be had: {self.source}"


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
        datasets: Names; ("all",) for every dataset of the profile rather than its quick handful.
        given: Notebook parameters as `name=value`, checked against each notebook's parameters cell.
        notebooks: The folder with a folder of notebooks a protocol.

    Raises:
        PlanError: A dataset, encoder, protocol or parameter is unknown or does not fit; all problems at once.
    """
    profile = manifests.load_profile(space.profile)
    if list(datasets) == ["all"]:
        datasets = profile.datasets
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
    models = {name: _load(_load_encoder, name, problems) for name in models}
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
    named = {protocol: _parameter_names(notebooks / protocol) for protocol in wanted if protocol in known}
    studies = {}
    for protocol in named:
        # What another of the protocols takes is not unknown, only not for this one.
        elsewhere = set().union(*named.values()) - named[protocol]
        mine = {key: value for key, value in given.items() if key not in elsewhere}
        for name in wanted[protocol][0]:
            path = notebooks / protocol / f"{name if cards[name] else CANONICAL}.ipynb"
            settled = [settle_parameters(path, mine | variant, problems) for variant in variants[protocol]]
            studies[protocol, name] = path, settled
    problems += [f"seed {n}: write a whole number from 0 to {2**32 - 1}" for n in seeds if not 0 <= n < 2**32]
    if "rival" in given:
        _load(_load_encoder, given["rival"], problems)
    if problems:
        raise PlanError("\n".join(dict.fromkeys(problems)))

    data = {name: _data_need(card, space) for name, card in cards.items()}
    file = given.get("checkpoint", given.get("weights"))
    weights = {name: _weights_need(model, space, file) for name, model in models.items()}
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
            beside = _weights_need(_load_encoder(rival), space, None) if rival else None
            runs.append(
                Job(
                    name=name,
                    notebook=path,
                    parameters={**common, "encoder": encoder, "seed": seed, **own},
                    output=space.root / "executed" / protocol / f"{name}.ipynb",
                    log=space.root / "logs" / f"{name}.log",
                    record=space.records / name,
                    needs=tuple(dict.fromkeys(need for need in (data[dataset], weights[encoder], beside) if need)),
                )
            )
    runs = {run.name: run for run in runs}.values()  # all labels as a fraction are the run that may be there anyway
    return Plan(space, tuple(runs), _plan_paper(space, chosen_seeds[0], notebooks))


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


def _load_encoder(name: str) -> manifests.EncoderManifest:
    manifest = manifests.load_encoder_manifest(name)
    if name.startswith("timm:"):
        from panderm_utils.weights import timm_settings  # loads torch, so only where only timm can tell

        timm_settings(manifest)
    return manifest


def _data_need(card: manifests.DatasetManifest, space: Workspace) -> Need:
    paths = (space.data_root / card.csv, space.data_root / card.image_root)
    if space.synthetic:
        return Need("data", card.name, paths, "drawn on first use", "this repository", "MIT")
    there = paths[0].is_file() and paths[1].is_dir()
    source = "your own files" if card.own else _sources(card)
    return Need("data", card.name, paths, "there" if there else "missing", source, card.licence)


def _weights_need(model: manifests.EncoderManifest, space: Workspace, given: str | None) -> Need | None:
    if model.layout == "none":
        return None
    need = Need("weights", model.name, (), "there", _sources(model), model.licence)
    file = model.weights_file or f"{model.timm_name}.safetensors"
    if given is not None:
        places = [Path(given) / file if Path(given).is_dir() else Path(given)]
    else:
        places = [space.weights_root / file, manifests.MANIFEST_ROOT / "weights" / file]
    for path in places:
        if path.is_file():
            return dataclasses.replace(need, paths=(path,))
    state = "downloaded by timm on first use" if model.layout == "timm" and given is None else "missing"
    return dataclasses.replace(need, paths=(places[0],), state=state)


def _sources(manifest) -> str:
    places = [f"{a.url} ({a.note})" if a.url and a.note else a.url or a.note for a in manifest.access]
    return "; or ".join(places) or "ask its authors"


def _plan_paper(space: Workspace, seed: int, notebooks: Path) -> tuple[Job, ...]:
    folders = {name: str(getattr(space, name)) for name in ("data_root", "weights_root")}
    settled = {"profile": space.profile, **folders, "output_root": str(space.root.parent), "seed": seed}
    jobs = []
    for path in sorted((notebooks / PAPER).glob("*.ipynb")):
        wanted = {name: value for name, value in settled.items() if name in read_parameters(path)}
        output, log = space.root / "executed" / PAPER / path.name, space.root / "logs" / f"{path.stem}.log"
        jobs.append(Job(path.stem, path, wanted, output, log))
    return tuple(jobs)
