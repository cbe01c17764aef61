"""Describes a protocol in one object, so that batch, results, figures and report need not know protocols by name."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panderm_utils.manifests.entries import DatasetManifest, EncoderManifest, Profile
from panderm_utils.manifests.parameters import PARAMETERS, ParameterError, Rule
from panderm_utils.manifests.reading import load_dataset_manifest
from panderm_utils.messages import UserError

# Metric, column, number in the record, number recomputed from the predictions.
Pair = tuple[str, str, float | None, float]


@dataclass(frozen=True)
class Work:
    """What a training computes; its time is these numbers times those of a calibration.

    Attributes:
        trained: Images in all steps. steps: Optimizer steps. predicted: Images that the model predicts, a view each.
        step: What the time of a step depends on, `batch` (images) among it; the same for every dataset.
    """

    trained: int
    steps: int
    predicted: int
    step: Mapping[str, Any]


def batches_of(images: int, batch_size: int) -> tuple[int, int]:
    """Returns the steps of an epoch and the images of each; the last, smaller batch is dropped, as published.

    With fewer images than a batch there would be no step, so each then has the largest even number of them.
    """
    batch = min(batch_size, images // 2 * 2)
    return (images // batch, batch) if batch else (0, 0)


def training_work(
    images: Mapping[str, int],
    settings: Mapping[str, Any],
    epochs: int,
    batch_size: int,
    predicted: Mapping[str, int],
    **step: Any,
) -> Work:
    """Returns the work of a training that predicts val after each epoch, unless it evaluates a checkpoint.

    Args:
        images: Of each split.
        settings: Of the run. epochs, batch_size: Published, for settings that are None.
        predicted: How often the images of each split are predicted at the end.
        step: What else the time of a step depends on.
    """
    epochs, size = settings.get("epochs") or epochs, settings.get("batch_size") or batch_size
    epochs = 0 if settings["checkpoint"] else epochs
    steps, batch = batches_of(int(images["train"] * settings["train_fraction"]), size)
    passes = epochs * bool(steps) * images["val"] + sum(images[split] * times for split, times in predicted.items())
    return Work(epochs * steps * batch, epochs * steps, passes, {"batch": size, **step})


class DoesNotApply(UserError):
    """A dataset lacks something for a protocol in this profile; without the protocol's name, the run is left out."""


@dataclass(frozen=True, eq=False)
class Protocol:
    """One way to evaluate an encoder on a dataset.

    It is found by name: `PROTOCOL` in `panderm_utils.protocols.<name>`, with the canonical notebook
    `notebooks/<name>/<canonical>.ipynb`.

    Attributes:
        title: For headings: "linear probing".
        question, reproduces, teaches: For a notebook's first cell: the question, in one sentence; where the paper shows
            it; what the reader learns.
        seconds_an_image: Of panderm_large on two CPU cores; `extra_time`: what else takes time.
        demo_time: How long a notebook takes in the demo on two CPU cores, measured: "half a minute".
        canonical: The dataset whose notebook is edited by hand; those of other datasets are stamped from it.
        settings: Default of every setting that decides a run's numbers; a run's id omits defaults. None: as published,
            unless the profile has its own value.
        recompute: Takes a record and its folder, yields the `Pair`s that `--verify` compares.
        other_tests: Takes a record's folder; returns the predictions on datasets other than the record's: name -> true
            labels [N], class probabilities [N, K], image names [N].
        metric: The paper's headline metric for the protocol; "": the dataset's own.
        dataset_keys: Keys that a dataset's manifest must have: "classes", "melanoma", "masks".
        architectures: Supported encoder architectures; (): any.
        trains: Whether a run leaves checkpoints; other runs leave features.
        parameters: Rules of its notebook's parameters that are not in PARAMETERS, or differ there.
        conflicts: Takes the parameters and returns what to write instead for those that contradict others.
        weights_parameters: Notebook parameters that name a weights file; the first that is set wins.
        single_dataset: Notebook parameters specific to one dataset, such as the path of a checkpoint.
        published: Returns the published value of each setting that is None by default.
        extra_inputs: Takes the dataset's manifest, the encoder's name, the profile and the parameters of a run; returns
            the manifests of other datasets (optional) and encoders that the run reads. ValueError: one does not exist;
            DoesNotApply: there is none, without which the run makes no sense.
        load_classifier: Takes the facts and tensors of a kept classifier, its record and folder, the weights root, a
            device ("auto", ...) and the number of random views (0: none); returns a `classifiers.Predictor`.
            None: records of the protocol keep no classifier.
        load_segmenter: Takes a record, its folder and a device; returns a `classifiers.MaskPredictor`, with which new
            images get masks in place of classes. None: the protocol predicts no masks.
        work: Of a protocol that `trains`: takes the images of each split and the run's settings; returns its `Work`.
        trial: Of such a protocol: takes an encoder's manifest, a `Work.step`, a device and a precision; returns a
            `training.TrialStep`.
        companions: Takes a batch's parameter overrides; returns protocol -> parameters of each run of another protocol
            that this one also requests.
        methods: Takes a record; returns what a run did, in sentences for the methods section of a manuscript.
        exhibits: Takes one dataset's rows of `results.study_runs` and the dataset, from which images are shown (None if
            it is gone); returns the `figures.Exhibit`s of the report of own data. None: a run scores a classifier of
            the dataset's classes, which that report shows in full.
    """

    name: str
    title: str
    question: str
    reproduces: str
    teaches: str
    seconds_an_image: float
    demo_time: str
    settings: Mapping[str, Any]
    recompute: Callable[[dict, Path], Iterator[Pair]]
    canonical: str = "ham10000"
    extra_time: str = ""
    metric: str = ""
    dataset_keys: tuple[str, ...] = ("classes",)
    architectures: tuple[str, ...] = ()
    trains: bool = False
    parameters: Mapping[str, Rule] = field(default_factory=dict)
    conflicts: Callable[[Mapping[str, Any]], dict[str, str]] = lambda _: {}
    weights_parameters: tuple[str, ...] = ("weights",)
    single_dataset: tuple[str, ...] = ()
    other_tests: Callable[[Path], Mapping[str, tuple]] = lambda folder: {}
    published: Callable[[], dict] = dict
    extra_inputs: Callable[[DatasetManifest, str, Profile, dict], Iterable] = lambda *_: ()
    work: Callable[[Mapping[str, int], Mapping[str, Any]], Work] | None = None
    trial: Callable[..., tuple] | None = None
    companions: Callable[[dict], dict[str, list[dict]]] = lambda *_: {}
    load_classifier: Callable[..., Any] | None = None
    load_segmenter: Callable[..., Any] | None = None
    methods: Callable[[dict], str] = lambda record: ""
    exhibits: Callable[..., list] | None = None

    def rule(self, parameter: str) -> Rule | None:
        """Returns the rule of a parameter of its notebook, None if it has none."""
        return self.parameters.get(parameter, PARAMETERS.get(parameter))

    def check_parameters(self, values: Mapping[str, Any]) -> None:
        """Raises ParameterError if any of its notebook's parameters is invalid; `values` may hold other names too."""
        if remedies := self.remedies(values):
            raise ParameterError("\n".join(f"{name} = {values[name]!r}: {text}" for name, text in remedies.items()))

    def remedies(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Returns what to write instead, for each invalid parameter among `values`."""
        rules = {name: self.rule(name) for name in (*PARAMETERS, *self.parameters) if name in values}
        remedies = {name: remedy for name, rule in rules.items() if (remedy := rule.remedy(values[name]))}
        if values.get("precision") == "fp16" and values.get("device") == "cpu":
            remedies["precision"] = "is for GPUs only; with the device cpu, write fp32 or bf16"
        return remedies or self.conflicts(values)

    def lacks(self, card: DatasetManifest) -> str:
        """Returns what the dataset lacks for this protocol; "" if it is suitable."""
        if card.external:
            return "a training split"
        return next((f"`{key}` in its manifest" for key in self.dataset_keys if not getattr(card, key)), "")

    def supported(self, datasets: Iterable[str]) -> list[str]:
        """Returns those of the named datasets that the protocol supports."""
        return [name for name in datasets if not self.lacks(load_dataset_manifest(name))]

    def supports(self, encoder: EncoderManifest) -> bool:
        return not self.architectures or encoder.architecture in self.architectures
