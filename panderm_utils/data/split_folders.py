"""Lists the images of a dataset without a CSV, whose splits are folders; imports no pandas, as every plan calls it."""

from pathlib import Path

from panderm_utils.data.image_files import ImageFolder
from panderm_utils.manifests import DatasetManifest


def list_split_folders(manifest: DatasetManifest, data_root: str | Path) -> list[tuple[str, str]]:
    """Returns the name and the split of each image in a dataset's `split_folders`: by split, then sorted by name."""
    root, suffix, rows = ImageFolder(Path(data_root) / manifest.image_root), manifest.image_suffix.lower(), []
    for split, folder in manifest.split_folders.items():
        names = [name for name in root.names(folder) if name.lower().endswith(suffix) and not name.startswith(".")]
        rows += [(f"{folder}/{name}", split) for name in sorted(names)]
    return rows
