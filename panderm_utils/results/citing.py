"""BibTeX of what records used, from the manifests of datasets and encoders. Loads neither torch nor pandas."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from panderm_utils import manifests
from panderm_utils.manifests import DatasetManifest, EncoderManifest, ManifestError, Reference


def cite_records(records: Iterable[Mapping]) -> str:
    """Returns BibTeX of the paper, and of the datasets and encoders of records, sorted by key.

    Comments say what each is cited for, and what has no reference on file.
    """
    records = list(records)
    datasets = {name for record in records for name in (record["dataset"], *record.get("targets", {}))}
    encoders = {record["encoder"] for record in records}
    paper = manifests.load_encoder_manifest(manifests.load_profile("paper").encoders[0])
    lines = [f"What {len(records)} record{'s' * (len(records) != 1)} used. Cite also this package: see CITATION.cff."]
    if any(record.get("synthetic") for record in records):
        lines.append("The images of these runs were drawn: stand-ins of the datasets below.")
    used = [("the paper", paper)]
    used += [(name, _load(manifests.load_dataset_manifest, name)) for name in sorted(datasets)]
    used += [(name, _load(manifests.load_encoder_manifest, name)) for name in sorted(encoders)]
    keys = manifests.bibtex_keys(one for _, card in used if card for one in card.references)
    lines += [f"{name}: {_cited(card, keys) or _without_reference(card)}" for name, card in used]
    comments = "\n".join(f"% {' '.join(line.split()).replace('@', '(at)')}" for line in lines)  # BibTeX reads any @
    return f"{comments}\n\n{manifests.bibtex(keys)}\n"


def _load(load: Callable, name: str) -> DatasetManifest | EncoderManifest | None:
    try:
        return load(name)
    except ManifestError:
        return None


def _cited(card: DatasetManifest | EncoderManifest | None, keys: Mapping[Reference, str]) -> str:
    if not card or not card.references:
        return ""
    remark = card.citation if isinstance(card, DatasetManifest) else ""
    return ", ".join(keys[replace(one, cites="")] for one in card.references) + (f"; {remark}" if remark else "")


def _without_reference(card: DatasetManifest | EncoderManifest | None) -> str:
    if card is None:
        return "its manifest is gone or invalid, so how to cite it is unknown"
    if isinstance(card, EncoderManifest):
        return f"no reference on file; {next((a.url or a.note for a in card.access), 'its weights are random')}"
    if card.own:
        remedy = f"write `references` in data_manifests/datasets/{card.name}.yaml"
        return f"{card.citation or 'your data'}, without a reference; {remedy}"
    return card.citation or "no reference on file"
