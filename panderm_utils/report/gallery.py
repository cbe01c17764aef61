"""Small copies of a dataset's images, for the report of own data."""

from dataclasses import dataclass
from pathlib import Path

from panderm_utils.data import Dataset, ImageError, open_image
from panderm_utils.disk import replacing
from panderm_utils.results import prediction_table, read_predictions, worst_mistakes

SIDE = 300  # pixels


@dataclass(frozen=True)
class Gallery:
    """Images with captions. `name` begins the names of their files."""

    name: str
    title: str
    words: str
    paths: tuple[Path, ...]
    captions: tuple[str, ...]


def sample_gallery(dataset: Dataset, count: int = 3) -> Gallery:
    """Returns the first training images, of each class if there are classes."""
    rows = dataset.split("train")
    if dataset.manifest.classes:
        rows = rows.groupby("label").head(count).sort_values("label", kind="stable")
        captions = tuple(dataset.manifest.title_of_label(label) for label in rows["label"])
        words = f"The first {count} training images of each class, as the files have them."
    else:
        rows = rows.head(2 * count)
        captions, words = tuple(rows["image"]), "The first training images, as the files have them."
    return Gallery("samples", "Examples", words, tuple(map(dataset.path, rows["image"])), captions)


def worst_mistakes_gallery(dataset: Dataset, run: dict, count: int = 12) -> Gallery:
    """Returns the most confident wrong predictions of a run on the test split."""
    y, proba, names = read_predictions(run["folder"])
    titles = [c.long_name for c in dataset.manifest.classes]
    worst = worst_mistakes(prediction_table(names, y, proba), titles, count)
    words = "The most confident errors on the test split. Would you have known? Is the label right?"
    paths = tuple(map(dataset.path, worst["filename"]))
    return Gallery(f"mistakes-{run['run_id']}", "The worst mistakes", words, paths, tuple(worst["caption"]))


def write_gallery(gallery: Gallery, folder: Path) -> tuple[list[tuple[str, str]], list[Path]]:
    """Writes the images as small JPEGs; returns (file name, caption) of each that can be read, and the paths."""
    pictures, paths = [], []
    for i, (source, caption) in enumerate(zip(gallery.paths, gallery.captions, strict=True)):
        try:
            image = open_image(source)
        except ImageError:
            continue
        image.thumbnail((SIDE, SIDE))
        path = folder / f"{gallery.name}-{i:02}.jpg"
        with replacing(path) as new:
            image.save(new, "jpeg", quality=85)
        pictures.append((path.name, caption))
        paths.append(path)
    return pictures, paths
