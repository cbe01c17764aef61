"""Cards: what a reader must know of a dataset or a model before using it; what is unknown is said to be unknown.

A dataset's card follows "Datasheets for Datasets" (Gebru et al., doi 10.1145/3458723), a model's "Model Cards for Model
Reporting" (Mitchell et al., doi 10.1145/3287560.3287596). Texts are plain; whoever shows a card escapes them.
"""

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from panderm_utils.manifests.entries import POPULATION, SPLITS, Access, DatasetManifest, EncoderManifest
from panderm_utils.manifests.references import Reference, bibtex, cited_text

UNKNOWN = "unknown"
NOT_A_DEVICE = "Research only: this is not a medical device; do not use its output for diagnosis or treatment."
LONG = 90  # characters of an address that fit a line
ADDRESS = re.compile(r"(https?://[^\s<>]*[^\s<>.,;)])")
FAULTS = "Known faults"


@dataclass(frozen=True)
class Section:
    """A part of a card. `facts`: what -> text; `table`: its first row has the heads; `notes`: sentences."""

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    table: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Card:
    """The card of a dataset ("datasheet") or of a model ("model card")."""

    title: str
    kind: str
    lede: str
    sections: tuple[Section, ...]
    references: tuple[Reference, ...] = ()

    @property
    def bibtex(self) -> str:
        return bibtex(self.references)

    def markdown(self) -> str:
        """Returns the card in Markdown, for notebooks and to keep beside a model."""
        lines = [f"### {_escape(self.title)}", "", f"*{self.kind}.* {_escape(self.lede)}"]
        for section in self.sections:
            lines += ["", f"**{_escape(section.title)}**", ""]
            lines += [f"- **{_escape(name)}:** {_linked(text)}" for name, text in section.facts.items()]
            lines += [f"- {_linked(text)}" for text in section.notes]
            if section.table:
                head, *rows = [[_escape(cell) for cell in row] for row in section.table]
                lines += ["", *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))]
        if self.references:
            lines += ["", "```bibtex", self.bibtex, "```"]
        return "\n".join(lines) + "\n"


def dataset_card(m: DatasetManifest, counted: Mapping[str, str] | None = None) -> Card:
    """Returns the card of a dataset.

    Args:
        counted: One of POPULATION -> what was counted in the data, "female: 158, male: 163 (of 321 test images)".
    """

    def mark(key: str) -> str:
        return " (unverified)" if key in m.unverified else ""

    images = {"Images": _sizes(m) + mark("split_sizes")}
    if m.external:
        images["External"] = "probes trained on other datasets are tested on it; none is trained on it"
    labels = {"How they were made": (m.labelling + mark("labelling")) if m.labelling else UNKNOWN}
    if m.melanoma:
        labels["Melanoma"] = f"{', '.join(m.melanoma)}, against all other classes{mark('melanoma')}"
    use = {"Licence": m.licence + mark("licence"), "Cite": (m.cited or UNKNOWN) + mark("references")}
    use |= _places(m.access)
    if m.unverified:
        use["Not verified"] = ", ".join(_words(key) for key in m.unverified)
    if m.own:
        place = f"data_manifests/datasets/{m.name}.yaml"
        use["To complete this card"] = f"write collection, population, labelling, licence and references in {place}"
    origin = {
        "Institution": m.institution + mark("institution"),
        "Collection": (m.collection + mark("collection")) if m.collection else UNKNOWN,
    }
    modality = "modality unknown" if m.modality == UNKNOWN else m.modality
    return Card(
        title=m.title,
        kind="Datasheet",
        lede=f"{modality}{mark('modality')}; {m.task}, {m.content}; headline metric: {_words(m.headline_metric)}",
        sections=(
            Section("Origin", origin),
            Section("Composition", images, _class_table(m)),
            Section("People", {_words(kind).capitalize(): _people(m, kind, counted or {}) for kind in POPULATION}),
            Section("Labels" if m.classes else "Masks", labels),
            Section(FAULTS, notes=m.caveats or ("none on file",)),
            Section("Use", use),
        ),
        references=m.references,
    )


def encoder_card(e: EncoderManifest, evaluation: Iterable[Section] = ()) -> Card:
    """Returns the card of an encoder; `evaluation`: its sections about records."""
    size = f"BEiT, width {e.width}, depth {e.depth}, {e.heads} heads" if e.width else f"timm's {e.timm_name}"
    weights = "random" if e.layout == "none" else e.weights_file or "timm's"
    details = {
        "Architecture": size,
        "Features of an image": f"{e.num_features:,}" if e.num_features else UNKNOWN,
        "Weights file": weights,
        "Published SHA-256": f"{e.sha256 or 'none on file'}{f' ({e.sha256_note})' if e.sha256_note else ''}",
        "Licence": e.licence,
        "Cite": cited_text(e.references) or "no reference on file",
        **_places(e.access),
    }
    use = {
        "Intended": "research: features of skin images, and as the start of training, as the protocols here do",
        "Out of scope": f"everything else. {NOT_A_DEVICE}",
    }
    if e.toy:
        use["Toy"] = "for demonstrations; its scores say nothing about real skin"
    return Card(
        title=e.title,
        kind="Model card",
        lede="an encoder: from an image to features",
        sections=(
            Section("Model", details),
            Section("Training data", {"Images": e.trained_on or UNKNOWN} | ({} if e.toy else {"People": UNKNOWN})),
            Section("Use", use),
            *evaluation,
            Section(FAULTS, notes=e.caveats or ("none on file",)),
        ),
        references=e.references,
    )


def short_card(m: DatasetManifest) -> list[str]:
    """Returns the card in three lines of Markdown, for the first cell of a notebook.

    "With age": the table has a column of it.
    """

    def mark(key: str) -> str:
        return " *(unverified)*" if key in m.unverified else ""

    known = {kind: m.population.get(kind, "") for kind in ("patients", "lesions")}
    counts = [f"{text} {kind}{mark('population')}" for kind, text in known.items() if text[-1:].isdigit()]
    kinds = {has: [_words(k) for k in ("age", "sex", "skin_tone") if (k in m.metadata) == has] for has in (True, False)}
    people = [f"with {', '.join(kinds[True])}{mark('metadata')}"] if kinds[True] else []
    people += [f"without {', '.join(kinds[False])}"] if kinds[False] else []
    data = "; ".join(
        [_escape(m.institution) + mark("institution"), ", ".join([f"{_total(m)} images", *counts]), *people]
    )
    labels = m.labelling or f"how the {'labels' if m.classes else 'masks'} were made is unknown"
    several = "faults are" if len(m.caveats) > 1 else "fault is"
    faults = f"; {len(m.caveats)} known {several} in its card below" if m.caveats else ""
    return [
        f"- **Data:** {data}.",
        f"- **{'Labels' if m.classes else 'Masks'}:** {_linked(labels.rstrip('.'))}{mark('labelling')}{faults}.",
        f"- **Licence:** {_linked(m.licence)}{mark('licence')}. **Cite:** {_linked(m.cited or UNKNOWN)}.",
    ]


def _people(m: DatasetManifest, kind: str, counted: Mapping[str, str]) -> str:
    parts = []
    if kind in m.population:
        parts.append(m.population[kind] + (" (unverified)" if "population" in m.unverified else ""))
    column = m.metadata.get(kind) or m.groups.get(kind.removesuffix("s"))
    if column:
        parts.append(f"column {column} of its table" + (" (unverified)" if "metadata" in m.unverified else ""))
    if kind in counted:
        parts.append(counted[kind])
    return "; ".join(parts) or UNKNOWN


def _total(m: DatasetManifest) -> str:
    total = sum((m.split_sizes or {}).values()) or m.images or (m.draw and m.draw.images)
    return f"{total:,}" if total else "an unknown number of"


def _sizes(m: DatasetManifest) -> str:
    if m.draw:
        shares = ", ".join(f"{split} {n}%" for split, n in m.draw.percent.items())
        return f"{m.draw.images:,}; drawn with seed {m.draw.seed}: {shares}"
    return ", ".join(f"{split} {n:,}" for split, n in (m.split_sizes or {}).items()) or _total(m)


def _class_table(m: DatasetManifest) -> tuple[tuple[str, ...], ...]:
    if not m.classes:
        return ()
    counts = m.class_counts or {}
    splits = [split for split in SPLITS if split in counts]
    unsure = "" if m.classes_verified else " (names and order unverified)"
    numbers = " (unverified)" if "class_counts" in m.unverified else ""
    rows = [("label", f"class{unsure}", *(f"{split}{numbers}" for split in splits))]
    for k, c in enumerate(m.classes):
        named = f"{c.long_name} ({c.name})" if c.name != c.long_name else c.name
        rows.append((str(k), named, *(f"{counts[split][k]:,}" for split in splits)))
    return tuple(rows)


def _places(access: Iterable[Access]) -> dict[str, str]:
    places: dict[str, str] = {}
    for a in access:
        what, where = a.what[:1].upper() + a.what[1:], f"{a.url} {a.note}".strip()
        places[what] = f"{places[what]}; {where}" if what in places else where
    return places


def _words(key: str) -> str:
    return {"auroc": "AUROC", "weighted_f1": "weighted F1"}.get(key, key.replace("_", " "))


def _linked(text: str) -> str:
    """Returns text escaped for Markdown, its addresses as links."""
    parts = ADDRESS.split(text)
    return "".join(_link(part) if i % 2 else _escape(part) for i, part in enumerate(parts))


def _link(address: str) -> str:
    """Returns a Markdown link; a long address, which a notebook would cut off, shows its site and its end."""
    if len(address) <= LONG:
        return f"<{html.escape(address)}>"
    site, last = address.split("/")[2], address.rstrip("/").rsplit("/", 1)[1]
    return f"[{_escape(f'{site}/…/{last}')}]({html.escape(address)})"


def _escape(text: str) -> str:
    """Returns text escaped for Markdown, including HTML and table bars."""
    return re.sub(r"([\\`*_{}\[\]|#<>])", r"\\\1", html.escape(str(text), quote=False)).replace("\n", " ")
