"""What a protocol is, in one description: planning, records, tables, the report and the stamper ask it, by no name."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panderm_utils.manifests.entries import DatasetManifest, EncoderManifest, Profile
from panderm_utils.manifests.reading import load_dataset_manifest

# A metric, one of its columns, the number in the record, and the number that its predictions give.
Pair = tuple[str, str, float | None, float]


def _nothing(*_: Any) -> tuple:
    return ()


def _as_given(*_: Any) -> dict:
    return {}


@dataclass(frozen=True, eq=False)
class Protocol:
    """One way to evaluate an encoder on a dataset.

    It is found by its name: `PROTOCOL` of `panderm_utils.protocols.<name>`, with the canonical notebook
    `notebooks/<name>/ham10000.ipynb`.

    Attributes:
        title: For headings: "linear probing".
        question, reproduces, teaches: For a notebook's first cell: what is asked, in one sentence; where the paper
            shows it; what the reader learns.
        seconds_an_image: Of panderm_large on two CPU cores; `besides`: what else takes time.
        settings: Default of every setting that decides a run's numbers; a run's id leaves defaults out. None: as
            published, unless the profile has its own value.
        recompute: Takes a record and its folder, yields the `Pair`s that `--verify` compares.
        metric: The paper's headline metric of the protocol; "": the dataset's own.
        dataset_keys: Keys that a dataset's manifest must fill, such as "melanoma".
        architectures: Of the encoders that it takes; (): any.
        trains: Whether a run leaves checkpoints; the others leave features.
        weights_parameters: Notebook parameters that name a weights file, the first that is set wins.
        single_dataset: Notebook parameters that belong to one dataset, such as the path of a checkpoint.
        published: Returns the published value of each setting that is None by default.
        beside: Takes the dataset's manifest, the encoder's name, the profile and the parameters of a run; returns the
            manifests of the datasets (optional) and encoders that the run reads besides. ValueError: there is no such.
        companions: Takes the parameters given to a batch and a list for problems; returns protocol -> parameters of
            each of the runs of another protocol that are asked for along with this one.
    """

    name: str
    title: str
    question: str
    reproduces: str
    teaches: str
    seconds_an_image: float
    settings: Mapping[str, Any]
    recompute: Callable[[dict, Path], Iterator[Pair]]
    besides: str = ""
    metric: str = ""
    dataset_keys: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    trains: bool = False
    weights_parameters: tuple[str, ...] = ("weights",)
    single_dataset: tuple[str, ...] = ()
    published: Callable[[], dict] = field(default=_as_given)
    beside: Callable[[DatasetManifest, str, Profile, dict], Iterable] = field(default=_nothing)
    companions: Callable[[dict, list[str]], dict[str, list[dict]]] = field(default=_as_given)

    def lacks(self, card: DatasetManifest) -> str:
        """Returns what the protocol needs of a dataset and this one lacks; "" if the protocol can take it."""
        if card.external:
            return "a training split"
        return next((f"`{key}` in its manifest" for key in self.dataset_keys if not getattr(card, key)), "")

    def fitting(self, datasets: Iterable[str]) -> list[str]:
        """Returns those of the named datasets that the protocol can take."""
        return [name for name in datasets if not self.lacks(load_dataset_manifest(name))]

    def takes(self, encoder: EncoderManifest) -> bool:
        return not self.architectures or encoder.architecture in self.architectures
