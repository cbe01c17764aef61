"""The data and weights that a run needs, where they are, and where to get them.

Imports neither torch nor pandas, so that `run_all.py --plan` answers at once.
"""

import dataclasses
import glob
import shlex
from dataclasses import dataclass
from pathlib import Path

from panderm_utils import manifests
from panderm_utils.batch.data_root import DataRoot
from panderm_utils.workspace import Workspace


@dataclass(frozen=True)
class Need:
    """Data or weights that a run needs.

    Attributes:
        kind: "data" or "weights"; `name` is the dataset's or the encoder's.
        paths: Where they are, or are expected.
        state: "found", "missing", "incomplete", or how they are obtained, such as "drawn on first use".
        source: Where to get them.
        problem, remedy: What is wrong with data that are incomplete or missing, and what puts that right if they are
            nearly there.
    """

    kind: str
    name: str
    paths: tuple[Path, ...]
    state: str
    source: str
    licence: str
    problem: str = ""
    remedy: str = ""

    def describe_missing(self) -> str:
        """Returns the message that says what is missing and how to mend it, or where to get it."""
        if self.remedy or self.state == "incomplete":
            return f"{self.kind} of {self.name}: {'; '.join(filter(None, (self.problem, self.remedy)))}"
        place = next((path for path in self.paths if not path.exists()), self.paths[0])
        return f"{self.kind} of {self.name}: {place} is missing; source: {self.source}"


def find_encoder(name: str) -> manifests.EncoderManifest:
    """Returns the encoder's manifest.

    Raises:
        ValueError: No encoder here or in timm has that name.
    """
    manifest = manifests.load_encoder_manifest(name)
    if name.startswith("timm:"):
        from panderm_utils.encoders import timm_settings

        timm_settings(manifest)
    return manifest


def data_need(card: manifests.DatasetManifest, space: Workspace, root: DataRoot) -> Need:
    """Returns the need for a dataset's data, with whether they are present; `root` is the workspace's data root."""
    paths = tuple(space.data_root / place for place in card.places)
    if space.synthetic:
        return Need("data", card.name, paths, "drawn on first use", "this repository", "MIT")
    source = "your own files" if card.own else _sources(card)
    finding = root.find(card)
    state = "missing" if card.missing_path(space.data_root) else "incomplete" if finding.problem else "found"
    return Need("data", card.name, paths, state, source, card.licence, *finding)


def other_need(
    other: manifests.DatasetManifest | manifests.EncoderManifest, space: Workspace, root: DataRoot
) -> Need | None:
    """Returns the need for a second encoder's weights, or for a further dataset, which the run can do without."""
    if isinstance(other, manifests.EncoderManifest):
        need, without = weights_need(other, space, None), "missing, so not compared with"
    else:
        need, without = data_need(other, space, root), "missing, so not a target"
    return dataclasses.replace(need, state=without) if need and need.state == "missing" else need


def weights_need(model: manifests.EncoderManifest, space: Workspace, override: str | None) -> Need | None:
    """Returns the need for an encoder's weights, None if it has none; `override` is the user's file or folder."""
    if model.layout == "none":
        return None
    need = Need("weights", model.name, (), "found", _sources(model), model.licence)
    places = manifests.weights_places(model, space.weights_root)
    if override is not None:
        folder = Path(override)
        places = [manifests.weights_places(model, folder)[0] if folder.is_dir() else folder]
    for path in places:
        if path.is_file():
            return dataclasses.replace(need, paths=(path,))
    if model.layout == "timm" and override is None:
        return dataclasses.replace(need, paths=(places[0],), state="downloaded by timm on first use")
    need = dataclasses.replace(need, paths=(places[0],), state="missing")
    if near := next(iter(sorted(places[0].parent.glob(f"*/{glob.escape(places[0].name)}"))), None):
        remedy = f"mv {shlex.quote(str(near))} {shlex.quote(str(places[0]))}"
        return dataclasses.replace(need, problem=f"the file lies in {near.parent}", remedy=remedy)
    return need


def _sources(manifest) -> str:
    places = [f"{a.url} ({a.note})" if a.url and a.note else a.url or a.note for a in manifest.access]
    return "; or ".join(places) or "ask its authors"
