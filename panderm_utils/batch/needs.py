"""What a run needs: the data of its datasets and the weights of its encoders, where they are or are to be had.

Imports neither torch nor pandas, so `run_all.py --plan` answers at once.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from panderm_utils import manifests
from panderm_utils.workspace import Workspace


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
        place = next((path for path in self.paths if not path.exists()), self.paths[0])
        return f"{self.kind} of {self.name}: {place} is not there; to be had: {self.source}"


def find_encoder(name: str) -> manifests.EncoderManifest:
    """Returns the encoder's manifest.

    Raises:
        ValueError: No encoder has that name, here or among timm's.
    """
    manifest = manifests.load_encoder_manifest(name)
    if name.startswith("timm:"):
        from panderm_utils.encoders import timm_settings

        timm_settings(manifest)
    return manifest


def data_need(card: manifests.DatasetManifest, space: Workspace) -> Need:
    """Returns the data of a dataset as a need, and whether they are there."""
    paths = (space.data_root / card.csv, space.data_root / card.image_root)
    if space.synthetic:
        return Need("data", card.name, paths, "drawn on first use", "this repository", "MIT")
    source = "your own files" if card.own else _sources(card)
    state = "missing" if card.missing_path(space.data_root) else "there"
    return Need("data", card.name, paths, state, source, card.licence)


def other_need(other: manifests.DatasetManifest | manifests.EncoderManifest, space: Workspace) -> Need | None:
    """Returns what a run reads besides its own: an encoder's weights, or data, without which a run goes on."""
    if isinstance(other, manifests.EncoderManifest):
        return weights_need(other, space, None)
    need = data_need(other, space)
    return dataclasses.replace(need, state="not there, so no target") if need.state == "missing" else need


def weights_need(model: manifests.EncoderManifest, space: Workspace, given: str | None) -> Need | None:
    """Returns the weights of an encoder as a need, None where it has none; `given`: a file or folder of the user's."""
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
