"""What to get: the named datasets and encoders, where each comes from, and whether it is there."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from panderm_utils import manifests
from panderm_utils.fetching import ledger, placing
from panderm_utils.fetching.errors import FetchError
from panderm_utils.manifests import Access, DatasetManifest, EncoderManifest

CONDITIONS = {"BY": "name the authors", "NC": "no commercial use", "ND": "share no changed versions"}
CONDITIONS |= {"SA": "share changes under the same licence"}
COLUMNS = ("name", "what", "size", "licence", "way", "original release", "state")


@dataclass(frozen=True)
class Item:
    """A dataset or an encoder to get.

    Attributes:
        data_root, weights_root: Where data and weights belong.
    """

    manifest: DatasetManifest | EncoderManifest
    data_root: Path
    weights_root: Path

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def is_data(self) -> bool:
        return isinstance(self.manifest, DatasetManifest)

    @property
    def home(self) -> str:
        """The folder of its downloads: that of the dataset below the data root, shared by datasets that share files."""
        return PurePosixPath(self.manifest.places[0]).parts[0] if self.is_data else self.name

    @property
    def main_file(self) -> tuple[str, Path]:
        """The table or the weights file: its name in the lock file, and where it belongs."""
        if self.is_data:
            return self.manifest.table, self.data_root / self.manifest.table
        place = manifests.weights_places(self.manifest, self.weights_root)[0]
        return place.name, place

    @property
    def licence(self) -> str:
        """The licence, with its conditions in words."""
        return with_conditions(self.manifest.licence)

    @functools.cached_property
    def sources(self) -> list[Access]:
        """Where it comes from, first the automatic ones."""
        return sorted((a for a in self.manifest.access if a.fetch), key=lambda access: access.fetch)

    @property
    def automatic(self) -> list[Access]:
        return [access for access in self.sources if access.fetch == "automatic"]

    @property
    def instead(self) -> list[Access]:
        """The original releases that are downloaded if what is automatic cannot be had."""
        return [access for access in self.sources if access.fetch == "instead"]

    @property
    def release(self) -> str:
        """Whether the data can be put together from their original release: in words, for the table."""
        if not self.is_data:
            return ""
        if self.lacking_release:
            return f"lacks {PurePosixPath(self.manifest.csv).name}"
        return "enough, own splits" if self.manifest.release and self.manifest.release.indexes else "enough"

    @property
    def lacking_release(self) -> str:
        """What the original release lacks of the published data, "" if nothing."""
        return self.manifest.release.lacks if self.is_data and self.manifest.release else ""

    def lacks(self) -> str:
        """Returns what is missing, "" if it is all there."""
        if self.is_data:
            return placing.lacking(self.manifest, self.data_root)
        if self.manifest.layout == "none" or any(
            place.is_file() for place in manifests.weights_places(self.manifest, self.weights_root)
        ):
            return ""
        return f"the file {manifests.weights_places(self.manifest, self.weights_root)[0].name}"

    def accepted(self) -> bool:
        """Whether the user has accepted its licence, as it reads now."""
        return ledger.accepted(self.data_root, self.name, self.manifest.licence)


def list_items(names: Sequence[str], data_root: Path, weights_root: Path) -> list[Item]:
    """Returns the named datasets and encoders, by default all those of the paper.

    Raises:
        FetchError: A name is unknown, or is that of your own data.
    """
    if not names:
        profile = manifests.load_profile("paper")
        names = (*profile.datasets, *profile.encoders)
    found = []
    for name in dict.fromkeys(names):
        if name in manifests.list_datasets():
            card = manifests.load_dataset_manifest(name)
            if card.own or name not in manifests.load_profile("paper").datasets:
                raise FetchError(
                    f"{name}: there is nothing to fetch: its images are {'yours' if card.own else 'drawn'}"
                )
            found.append(Item(card, data_root, weights_root))
        elif name in manifests.list_encoders() or name.startswith("timm:"):
            found.append(Item(manifests.load_encoder_manifest(name), data_root, weights_root))
        else:
            known = [*manifests.load_profile("paper").datasets, *manifests.list_encoders()]
            raise FetchError(manifests.unknown_name("dataset or encoder", name, known, ""))
    return found


def with_conditions(licence: str) -> str:
    """Returns a licence; a Creative Commons one with what it asks for, in words."""
    found = re.fullmatch(r"CC ((?:BY|NC|ND|SA)(?:-(?:BY|NC|ND|SA))*)(?: [\d.]+)?", licence)
    return f"{licence}: {', '.join(CONDITIONS[part] for part in found[1].split('-'))}" if found else licence


def describe_items(wanted: Sequence[Item], lacks: dict[str, str], sizes: dict[str, int]) -> str:
    """Returns the table of what there is to get.

    Args:
        lacks: Name -> what is missing; `sizes`: folder of downloads -> bytes, as far as known.
    """
    rows = [COLUMNS]
    for item in wanted:
        manifest, lacking = item.manifest, lacks[item.name]
        ways = list(dict.fromkeys(access.fetch for access in item.sources if access.fetch != "instead"))
        size = sizes.get(item.home)
        unsure = " (unverified)" if item.is_data and "licence" in manifest.unverified else ""
        rows.append(
            (
                item.name,
                manifest.content if item.is_data else "weights",
                f"{size / 1e9:,.2f} GB" if size else "unknown",
                f"{item.licence}{unsure}",
                " and ".join(ways) or ("by timm, on first use" if lacking else ""),
                item.release,
                _state(item, lacking),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[3], widths[6] = min(widths[3], 60), min(widths[6], 60)
    lines = []
    for row in rows:
        cells = [
            cell if len(cell) <= width else f"{cell[: width - 1]}…" for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join(map(str.ljust, cells, widths)).rstrip())
    return "\n".join(lines)


def _state(item: Item, lacks: str) -> str:
    if not lacks:
        return "there"
    partly = "" if lacks.startswith("the ") else f": lacks {lacks}"
    if not item.sources:
        return "not needed before the first run"
    if not item.automatic:
        return f"by hand{partly}"
    return f"to get{partly}" if item.accepted() else f"licence not accepted{partly}"
