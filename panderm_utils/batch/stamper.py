"""Stamps the sibling notebooks of each protocol from its canonical one, such as notebooks/linear_probe/ham10000.ipynb.

A sibling differs in two cells: the title, written from the dataset's manifest, and the values of `dataset` and
`profile` in the parameters cell. There are no special cases: where a dataset needs something else, add a parameter, a
manifest key or a library function.
"""

import copy
import json
import re
from collections.abc import Iterable
from pathlib import Path

import nbformat

from panderm_utils import manifests, protocols
from panderm_utils.batch.plan import NOTEBOOKS, canonical_notebook, list_protocols
from panderm_utils.disk import write_file
from panderm_utils.manifests import DatasetManifest, ManifestError, Protocol
from panderm_utils.messages import UserError

METRICS = {"auroc": "AUROC", "weighted_f1": "weighted F1", "jaccard": "Jaccard index"}
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class StampError(UserError):
    """No sibling can be stamped from a canonical notebook; the message names the notebook and the remedy."""


def sync(check: bool = False, datasets: Iterable[str] | None = None, notebooks: Path = NOTEBOOKS) -> list[Path]:
    """Rewrites every notebook that differs from its canonical notebook and manifest; returns those that differed.

    Args:
        check: Whether to write nothing. Notebooks of the user's own data are then not compared.
        datasets: Datasets whose notebooks to write, by default all, including the user's own. A dataset has a notebook
            for each protocol that it fits.
        notebooks: The folder with a subfolder of notebooks per protocol.

    Returns:
        The paths. With `check`, also notebooks without a manifest, or whose dataset does not fit the protocol.

    Raises:
        StampError: A canonical notebook has no title or parameters cell, or its folder is not named after a protocol.
        ManifestError: A manifest is invalid.
    """
    names, drifted = manifests.list_datasets(), []
    for name in list_protocols(notebooks):
        protocol = _find_protocol(name, notebooks / name)
        canonical = canonical_notebook(protocol, notebooks)
        for name in names if datasets is None else datasets:
            card = manifests.load_dataset_manifest(name)
            if protocol.lacks(card) or (check and datasets is None and card.own):
                continue
            text = stamp(canonical, card)
            path = canonical.with_name(f"{name}.ipynb")
            if path.is_file() and path.read_text(encoding="utf-8") == text:
                continue
            drifted.append(path)
            if not check:
                write_file(path, text)
        if check and datasets is None:
            cards = map(manifests.load_dataset_manifest, names)
            fit = {card.name for card in cards if card.own or not protocol.lacks(card)}
            drifted += [path for path in sorted(canonical.parent.glob("*.ipynb")) if path.stem not in fit]
    return drifted


def describe_drift(drifted: list[Path]) -> str:
    """Returns a line per notebook that differs, with the reason, and the command that repairs them."""
    names = set(manifests.list_datasets())
    lines = []
    for path in drifted:
        canonical = canonical_notebook(_protocol_of(path), path.parents[1])
        if path == canonical:
            lines.append(f"{path}: its title differs from the manifest, or it has outputs")
        elif path.stem in names and (lack := _protocol_of(path).lacks(manifests.load_dataset_manifest(path.stem))):
            lines.append(f"{path}: {path.parent.name} needs {lack}; add that, or delete the notebook")
        elif path.stem in names:
            lines.append(f"{path}: {'differs from' if path.exists() else 'not yet stamped from'} {canonical.name}")
        else:
            lines.append(
                f"{path}: no manifest data_manifests/datasets/{path.stem}.yaml; write one, or delete the notebook"
            )
    return "\n".join([*lines, "edit only the canonical notebook and run: python run_all.py --sync"])


def stamp(canonical: Path, card: DatasetManifest) -> str:
    """Returns the text of a dataset's notebook, stamped from a canonical one; the same text every time."""
    protocol = _protocol_of(canonical)
    notebook = nbformat.read(canonical, as_version=4)
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if not notebook.cells or notebook.cells[0].cell_type != "markdown":
        raise StampError(f"{canonical}: the first cell is not Markdown; it must be the title cell")
    if len(tagged) != 1 or tagged[0].cell_type != "code":
        raise StampError(f"{canonical}: tag exactly one code cell `parameters`; {len(tagged)} cells have that tag")
    notebook.cells[0].source = title_markdown(protocol, card)
    tagged[0].source = stamp_parameters(tagged[0].source, card, canonical)
    notebook.metadata = nbformat.from_dict(copy.deepcopy(METADATA))
    for cell in notebook.cells:
        cell.metadata = {"tags": list(cell.metadata.tags)} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        cell.pop("attachments", None) if not cell.get("attachments") else None
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def stamp_parameters(source: str, card: DatasetManifest, place: Path) -> str:
    """Returns a parameters cell with the values of `dataset` and `profile` replaced; all other text stays."""
    for name, value in (("dataset", card.name), ("profile", card.default_profile)):
        pattern = rf"""^({name} = )("[^"\n]*"|'[^'\n]*')"""
        source, count = re.subn(pattern, lambda m, v=value: m[1] + json.dumps(v), source, flags=re.MULTILINE)
        if count != 1:
            raise StampError(f'{place}: the parameters cell has {count} lines `{name} = "..."`; write exactly one')
    return source


def title_markdown(protocol: Protocol, card: DatasetManifest) -> str:
    """Returns the title cell: question, what it reproduces, published score, cost, what one learns, data."""
    lines = [
        f"# {' '.join(card.title.split())}: {protocol.title}",
        "",
        f"{protocol.question} Dataset `{card.name}` ({card.modality}, {card.content}), protocol `{protocol.name}`.",
        "",
        f"- **Reproduces:** {_reproduces(protocol, card)}",
        *[f"- **Published:** {line}" for line in _published(protocol, card)],
        f"- **Takes:** {_cost(protocol, card)}",
        f"- **You learn** {protocol.teaches}.",
        *manifests.short_card(card),
    ]
    return "\n".join(lines)


def _reproduces(protocol: Protocol, card: DatasetManifest) -> str:
    if card.own:
        return f"nothing; it does for your data what the paper does for its {protocol.reproduces}."
    if card.name in manifests.load_profile("paper").datasets:
        return f"this dataset's part of the paper's {protocol.reproduces}."
    return f"nothing of the paper; it shows the way to its {protocol.reproduces}."


def _published(protocol: Protocol, card: DatasetManifest) -> list[str]:
    metric = protocol.metric or card.headline_metric
    found = [
        f"{METRICS[metric]} {result.metrics[metric]:.4f} with {manifests.load_encoder_manifest(result.encoder).title} "
        f"(source: {result.source})."
        for result in manifests.load_published_results()
        if (result.dataset, result.protocol) == (card.name, protocol.name) and metric in result.metrics
    ]
    if not found and card.name in manifests.load_profile("paper").datasets:
        return [f"no number to compare with is on file; the paper's headline metric here is {METRICS[metric]}."]
    return found


def _cost(protocol: Protocol, card: DatasetManifest) -> str:
    demo = f"`demo` about {protocol.demo_time} on two CPU cores, on drawn images with a tiny encoder"
    sizes = card.split_sizes or {}
    images = sum(sizes.get(split, 0) for split in ("train", "test"))
    if not images:
        return f"profile {demo}."
    minutes = images * protocol.seconds_an_image / 60
    duration = f"{max(1, round(minutes))} minutes" if minutes < 100 else f"{minutes / 60:.0f} hours"
    large = f"for {images:,} images through a large encoder{protocol.extra_time}"
    paper = f"`paper` about {duration} on two CPU cores, on a GPU not yet timed, {large}"
    return f"profile {paper}." if card.own else f"profile {demo}; profile {paper}."


def _protocol_of(notebook: Path) -> Protocol:
    return _find_protocol(notebook.parent.name, notebook)


def _find_protocol(name: str, place: Path) -> Protocol:
    try:
        return protocols.load_protocol(name)
    except ManifestError as error:
        raise StampError(f"{place}: {error}") from error
