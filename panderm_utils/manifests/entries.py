"""What a manifest says of a dataset, an encoder, a profile and a published result, as frozen dataclasses."""

import dataclasses
import html
import re
import typing
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "val", "test")
METADATA_KINDS = ("age", "sex", "site", "skin_tone", "institution")
GREY = "#767676"


@dataclass(frozen=True)
class ClassName:
    """A class: its short name, for axes, and its long name, for people."""

    name: str
    long_name: str


@dataclass(frozen=True)
class Access:
    """Where something is to be had."""

    what: str
    url: str
    note: str = ""


@dataclass(frozen=True)
class DatasetManifest:
    """What a dataset is.

    Attributes:
        classes: In label order; `classes_verified` says whether that order could be verified.
        melanoma: The names of the classes that are melanoma, where it can be told from all the others.
        csv, image_root: Below the data root, or absolute for own data.
        split_sizes: Images in train, val and test, where known; `class_counts`: the same a class, in label order.
        headline_metric: AUROC for two classes, weighted F1 for more, as in the paper.
        groups: Kind ("lesion", "patient") -> CSV column whose values must not straddle splits.
        metadata: Kind (one of METADATA_KINDS) -> CSV column.
        unverified: Keys of this manifest whose facts could not be verified.
        own: Made by `run_all.py --new-dataset` from a user's own CSV.
        external: Nothing is trained on it: all its images are a test split, whatever its CSV says of splits.
    """

    name: str
    title: str
    modality: str
    institution: str
    task: str
    classes: tuple[ClassName, ...]
    classes_verified: bool
    label_column: str
    csv: str
    image_root: str
    image_suffix: str
    headline_metric: str
    licence: str
    citation: str
    short_title: str = ""
    melanoma: tuple[str, ...] = ()
    split_sizes: dict[str, int] | None = None
    class_counts: dict[str, tuple[int, ...]] | None = None
    groups: dict[str, str] = dataclasses.field(default_factory=dict)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    access: tuple[Access, ...] = ()
    doi: str = ""
    caveats: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    own: bool = False
    external: bool = False

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @property
    def default_profile(self) -> str:
        """Own data are real; the paper's datasets have synthetic stand-ins, so that their notebooks run anywhere."""
        return "paper" if self.own else "demo"

    def title_of_label(self, label: int) -> str:
        return self.classes[label].long_name

    def absent(self, data_root: str | Path) -> str:
        """Returns which of the dataset's two places is not there, "" where both are."""
        places = Path(data_root) / self.csv, Path(data_root) / self.image_root
        return next((f"{place} is not there" for place in places if not place.exists()), "")

    def card_markdown(self) -> str:
        """The dataset's card: what it is, its classes, where it comes from, and what is not verified."""

        def mark(key: str) -> str:
            return " *(unverified)*" if key in self.unverified else ""

        unsure = "" if self.classes_verified else " (names and order **unverified**)"
        counts = self.class_counts or {}
        splits = [s for s in SPLITS if s in counts]
        heads = ["label", "class" + unsure, *[f"{s}{mark('class_counts')}" for s in splits]]
        lines = [
            f"### {_escape(self.title)}",
            "",
            f"{_escape(self.modality)}{mark('modality')} · {_escape(self.institution)}{mark('institution')} · "
            f"{self.task}, {self.num_classes} classes · headline metric: {self.headline_metric.replace('_', ' ')}",
            "",
            "".join(f"| {head} " for head in heads) + "|",
            "|---" * (2 + len(splits)) + "|",
        ]
        for k, c in enumerate(self.classes):
            cells = [str(k), f"{_escape(c.long_name)} ({_escape(c.name)})", *[f"{counts[s][k]:,}" for s in splits]]
            lines.append("".join(f"| {cell} " for cell in cells) + "|")
        if self.split_sizes:
            sizes = ", ".join(f"{s} {n:,}" for s, n in self.split_sizes.items())
            lines += ["", f"**Images:** {sizes}{mark('split_sizes')}"]
        if self.melanoma:
            names = ", ".join(map(_escape, self.melanoma))
            lines += ["", f"**Melanoma:** {names}{mark('melanoma')}, against all other classes"]
        if self.external:
            lines += ["", "**External:** probes trained on other datasets are tested on it; none is trained on it"]
        facts = {"Licence": _escape(self.licence) + mark("licence"), "Cite": _escape(self.citation)}
        if self.doi:
            facts["Cite"] += f" [doi:{_escape(self.doi)}](https://doi.org/{_escape(self.doi)})"
        for a in self.access:
            where = f"<{html.escape(a.url)}>" if a.url else ""
            facts[_escape(a.what[:1].upper() + a.what[1:])] = f"{where} {_escape(a.note)}".strip()
        lines += ["", *[f"- **{key}:** {text}" for key, text in facts.items() if text]]
        lines += [f"- {_escape(text)}" for text in self.caveats]
        if self.unverified:
            lines.append(f"- **Not verified:** {', '.join(key.replace('_', ' ') for key in self.unverified)}")
        return "\n".join(lines) + "\n"

    _repr_markdown_ = card_markdown


@dataclass(frozen=True)
class EncoderManifest:
    """What an encoder is, and which file its weights are.

    Attributes:
        architecture: "beit" (timm's Beit of the width, depth and heads given) or "timm" (timm's model `timm_name`).
        layout: How its file names tensors: "encoder_prefix" and "plain" (the two released files), "module_prefix"
            (SwAVDerm), "timm", or "none" (random weights, no file).
        sha256: Of the weights file where known; `sha256_note` says from whom.
        color: The encoder's colour in every figure.
    """

    name: str
    title: str
    architecture: str
    layout: str
    licence: str
    color: str = GREY
    timm_name: str = ""
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    num_features: int | None = None
    weights_file: str = ""
    access: tuple[Access, ...] = ()
    sha256: str | None = None
    sha256_note: str = ""
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedResult:
    """Published numbers of one run, and where they were published."""

    dataset: str
    protocol: str
    encoder: str
    metrics: dict[str, float]
    source: str
    settings: dict[str, typing.Any] = dataclasses.field(default_factory=dict)
    split_sizes: dict[str, int] | None = None
    cost: dict[str, typing.Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class PaperItem:
    """A figure or table of the paper, or a part of one, and where this package shows it.

    Attributes:
        data: What it is drawn from.
        access: Whether that is "public", "private" or "mixed", by the paper's statement on data availability.
        notebooks: Of notebooks/paper, those that show it; none: `note` says why.
    """

    item: str
    shows: str
    data: str
    access: str
    notebooks: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class ProtocolChoice:
    """What a profile chooses for one protocol.

    Attributes:
        quick, encoders: As the profile's, where this protocol's differ (it costs more, or takes fewer).
        settings: What the profile changes of the protocol's published settings.
    """

    quick: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    settings: dict[str, typing.Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """Which runs belong together: "demo" (synthetic stand-ins, tiny encoders) or "paper" (the real thing).

    Attributes:
        protocols: Name -> what is chosen for it; those that `run_all.py` runs when none are named.
        quick: The datasets that `run_all.py` runs when none are named; empty: all of them.
    """

    name: str
    synthetic: bool
    datasets: tuple[str, ...]
    encoders: tuple[str, ...]
    protocols: dict[str, ProtocolChoice]
    seeds: tuple[int, ...]
    quick: tuple[str, ...] = ()

    def choice(self, protocol: str) -> ProtocolChoice:
        """Returns what is chosen for a protocol, with the profile's own choice where nothing else is said."""
        own = self.protocols.get(protocol, ProtocolChoice())
        quick = own.quick or self.quick or self.datasets
        return ProtocolChoice(quick, own.encoders or self.encoders, own.settings)


def _escape(text: str) -> str:
    """Text for Markdown: neither markup nor a table's bar gets through."""
    return re.sub(r"([\\`*_{}\[\]|#<>])", r"\\\1", html.escape(str(text), quote=False)).replace("\n", " ")
