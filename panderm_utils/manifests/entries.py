"""Frozen dataclasses of what the manifests contain: datasets, encoders and profiles."""

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from panderm_utils.manifests.references import Reference, cited_text
from panderm_utils.manifests.releases import Release

SPLITS = ("train", "val", "test")
METADATA_KINDS = ("age", "sex", "site", "skin_tone", "institution")
POPULATION = ("patients", "lesions", "age", "sex", "skin_tone")  # what a card says of the people in the images
GREY = "#767676"


@dataclass(frozen=True)
class ClassName:
    """A class: its short name, for axes, and its long name, for readers."""

    name: str
    long_name: str


@dataclass(frozen=True)
class Access:
    """Where something is available.

    Attributes:
        fetch: How `run_all.py --fetch` gets it: "automatic" (it downloads), "instead" (it downloads, if what is
            automatic cannot be had), "by hand" (it says what to do), or "" (not at all).
        files: Name of a file or folder at the source, with or without suffix -> its place below the data root or the
            weights root, where that has another name.
    """

    what: str
    url: str
    note: str = ""
    fetch: str = ""
    files: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Masks:
    """Where the masks of a dataset's lesions are: one file for each image.

    Attributes:
        root: Their folder, below the data root, or absolute for your own data.
        suffix: What follows the stem of the image in the name of its mask, "_mask.png"; "": the table's column `mask`
            names it.
        folders: Split -> folder below the root, for a dataset with `split_folders`.
        other_sizes: Names of the images known to have a mask of another size.
    """

    root: str
    suffix: str = ""
    folders: dict[str, str] = dataclasses.field(default_factory=dict)
    other_sizes: tuple[str, ...] = ()

    def name(self, image: str, split: str) -> str:
        """Returns the name of an image's mask, below the root; for masks with a `suffix`."""
        place = PurePosixPath(image)
        folder = PurePosixPath(self.folders[split]) if self.folders else place.parent
        return str(folder / f"{place.stem}{self.suffix}")


@dataclass(frozen=True)
class Draw:
    """How the splits of a dataset without a published list are drawn: see `data.draw_splits`.

    Attributes:
        metadata: A CSV below the data root that lists all images and the column of `DatasetManifest.groups`.
        image: Its column of the images' names, with or without suffix.
        percent: Split -> percent of the images.
        images: The number of images in the complete dataset.
        seed: Of the draw.
    """

    metadata: str
    image: str
    percent: dict[str, int]
    images: int
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DatasetManifest:
    """A dataset: images with classes, masks of their lesions, or both.

    Attributes:
        classes: In label order; `classes_verified` says whether that order is verified.
        melanoma: The names of the classes that are melanoma, if it is separate from all other classes.
        csv, image_root: Below the data root, or absolute for your own data. Without a `csv`, the splits are folders.
        split_folders: Split -> folder of its images below the image root, for a dataset without a CSV.
        draw: How the splits are drawn, if no list of them was published; `csv` is where they are written down.
        images: Of all splits, in the paper, for a dataset whose `split_sizes` are unknown.
        release: How the table is made from the original release, or why it cannot be.
        split_sizes: Images in train, val and test, if known; `class_counts`: the same per class, in label order.
        headline_metric: AUROC for two classes, weighted F1 for more, as in the paper.
        references: Publications to cite; `citation`: in words, what has none, or a remark.
        collection: How, when and with what the images were made. `labelling`: how their labels or masks were.
        population: One of POPULATION -> what is known of it, in words.
        groups: Kind ("lesion", "patient") -> CSV column whose values must not be in two splits.
        metadata: Kind (one of METADATA_KINDS) -> CSV column.
        unverified: Keys of this manifest whose facts are not verified.
        own: Made by `run_all.py --new-dataset` from your own CSV.
        external: Used for testing only: all its images are test images, whatever the splits in its CSV.
    """

    name: str
    title: str
    modality: str
    institution: str
    task: str
    classes: tuple[ClassName, ...] = ()
    classes_verified: bool = False
    label_column: str = ""
    csv: str = ""
    image_root: str
    image_suffix: str
    split_folders: dict[str, str] = dataclasses.field(default_factory=dict)
    masks: Masks | None = None
    draw: Draw | None = None
    release: Release | None = None
    headline_metric: str
    licence: str
    citation: str = ""
    references: tuple[Reference, ...] = ()
    collection: str = ""
    population: dict[str, str] = dataclasses.field(default_factory=dict)
    labelling: str = ""
    short_title: str = ""
    melanoma: tuple[str, ...] = ()
    images: int | None = None
    split_sizes: dict[str, int] | None = None
    class_counts: dict[str, tuple[int, ...]] | None = None
    groups: dict[str, str] = dataclasses.field(default_factory=dict)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    access: tuple[Access, ...] = ()
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
        """Returns "own" for your data; "demo" for the paper's datasets, whose stand-ins run anywhere."""
        return "own" if self.own else "demo"

    def title_of_label(self, label: int) -> str:
        return self.classes[label].long_name

    @property
    def content(self) -> str:
        """What the images come with: "7 classes", "lesion masks", or both."""
        classes = [f"{self.num_classes} classes"] if self.classes else []
        return " and ".join(classes + ["lesion masks"] * (self.masks is not None))

    @property
    def table(self) -> str:
        """The file that lists the images, below the data root; a folder if the splits are folders."""
        return self.draw.metadata if self.draw else self.csv or self.image_root

    @property
    def mask_places(self) -> tuple[str, ...]:
        """The folders of the masks, below the data root."""
        if self.masks is None:
            return ()
        return tuple(f"{self.masks.root}/{folder}" for folder in self.masks.folders.values()) or (self.masks.root,)

    @property
    def places(self) -> tuple[str, ...]:
        """The files and folders that the data consist of, below the data root: table, images, masks."""
        folders = tuple(f"{self.image_root}/{folder}" for folder in self.split_folders.values())
        return (*(folders or (self.table, self.image_root)), *self.mask_places)

    def missing_path(self, data_root: str | Path) -> str:
        """Returns a message if one of the `places` does not exist, "" if all do."""
        paths = (Path(data_root) / place for place in self.places)
        return next((f"{path} is not there" for path in paths if not path.exists()), "")

    @property
    def cited(self) -> str:
        """What to cite, in a line, with DOIs; "" if nothing is known."""
        return "; ".join(part for part in (cited_text(self.references), self.citation) if part)

    def _repr_markdown_(self) -> str:
        from panderm_utils.manifests.cards import dataset_card  # which imports this module

        return dataset_card(self).markdown()


@dataclass(frozen=True)
class EncoderManifest:
    """An encoder and its weights file.

    Attributes:
        architecture: "beit" (timm's Beit of this width, depth and heads) or "timm" (timm's model `timm_name`).
        layout: How the file names its tensors: "encoder_prefix" and "plain" (the two released files), "module_prefix"
            (SwAVDerm), "timm", or "none" (random weights, no file).
        sha256: Of the weights file, if known; `sha256_note` says who published it.
        toy: For demonstrations only: its scores say nothing about real skin.
        trained_on: Its training images; "": unknown. `references`: publications to cite.
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
    toy: bool = False
    trained_on: str = ""
    references: tuple[Reference, ...] = ()


@dataclass(frozen=True)
class ProtocolChoice:
    """A profile's choices for one protocol.

    Attributes:
        quick, encoders: As the profile's, if they differ (the protocol is slower, or supports fewer encoders).
        settings: The profile's changes to the protocol's published settings.
    """

    quick: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ()
    settings: dict[str, typing.Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """The datasets, encoders and protocols to run: "demo" (synthetic stand-ins), "paper" (real data) or "own" (yours).

    Attributes:
        own: Its datasets are the user's, and it uses one encoder: the first whose weights are there; see
            `load_profile`.
        protocols: Name -> its choices; `run_all.py` runs them by default, except those `on_request`.
        on_request: Protocols that run only if they are named, or on datasets that no other one fits.
        quick: The datasets that `run_all.py` runs by default; empty: all of them.
    """

    name: str
    synthetic: bool
    encoders: tuple[str, ...]
    protocols: dict[str, ProtocolChoice]
    seeds: tuple[int, ...]
    datasets: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    own: bool = False
    on_request: tuple[str, ...] = ()

    @property
    def usual(self) -> list[str]:
        """The protocols that run by default."""
        return [name for name in self.protocols if name not in self.on_request]

    def choice(self, protocol: str) -> ProtocolChoice:
        """Returns the choices for a protocol, completed by the profile's defaults."""
        choice = self.protocols.get(protocol, ProtocolChoice())
        quick = choice.quick or self.quick or self.datasets
        return ProtocolChoice(quick, choice.encoders or self.encoders, choice.settings)
