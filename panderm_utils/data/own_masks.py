"""Finds the masks of your images: in a folder of masks, by the images' names, or by a column that names them."""

from collections import Counter
from pathlib import Path, PurePosixPath

import pandas as pd

from panderm_utils.data.csv_tables import DataError
from panderm_utils.data.image_files import ImageIndex, fold, open_image
from panderm_utils.data.mask_files import check_mask
from panderm_utils.data.own_labels import rows_text
from panderm_utils.workspace import settle_path

ENDINGS = ("_segmentation", "_mask", "_seg", "")  # of a mask's stem, after that of its image
SAMPLE = 20  # pairs that are decoded at once, so that most mistakes show before any run


def mask_name(image: str) -> str:
    """Returns the name of an image's mask, by which `--new-dataset` finds it: `a/b_segmentation.png` for `a/b.jpg`."""
    path = PurePosixPath(image)
    return str(path.with_name(f"{path.stem}{ENDINGS[0]}.png"))


def split_off_masks(images: ImageIndex, folder: str | Path | None) -> tuple[ImageIndex, ImageIndex | None]:
    """Returns the images without the masks among them, and the masks in `folder`; None without a folder.

    The folder may be that of the images: its masks are then the files that end in one of ENDINGS after an image's stem.

    Raises:
        DataError: There is no such folder, or no mask in it.
    """
    if folder is None:
        return images, None
    root = settle_path(folder)
    if not root.is_dir():
        raise DataError(f"there is no folder of masks {root}; give --masks the folder that contains the masks")
    masks = ImageIndex(root)
    if root == images.root:
        stems = {_stem(file) for file in images.files}
        named = [f for f in images.files if any(e and _stem(f).removesuffix(e) in stems - {_stem(f)} for e in ENDINGS)]
        masks = ImageIndex(root, named)
    if not masks.files:
        raise DataError(f"{root} has no mask; give --masks a folder of images named as {', '.join(_examples('x'))}")
    theirs = {root / file for file in masks.files}
    return ImageIndex(images.root, [file for file in images.files if images.root / file not in theirs]), masks


def find_own_masks(
    table: pd.DataFrame, column: str, images: ImageIndex, masks: ImageIndex, messages: list[str]
) -> pd.DataFrame:
    """Returns the rows that have a mask, with its path below `masks.root` in the column `mask`.

    Args:
        table: Its column `image` has paths below `images.root`.
        column: The column that names the masks; "": they are named after the images.

    Raises:
        DataError: No image has a mask, one has several, or the first few masks are unusable.
    """
    found = table[column].map(masks.find) if column else _by_name(table["image"], masks)
    missing = found.isna()
    how = f"column `{column}` names the masks" if column else f"the masks in {masks.root} are named after the images"
    if missing.all():
        image = table["image"].iloc[0]
        tried = f"the cell {table[column].iloc[0]!r}" if column else ", ".join(_examples(PurePosixPath(image).stem))
        raise DataError(
            f"no image has a mask below {masks.root}. Of {image}, that would be {tried}; the folder has "
            f"{masks.files[0]!r}. Give --masks another folder, or name the column of the masks with --mask COLUMN"
        )
    messages.append(f"{how}: {int((~missing).sum()):,} of {len(table):,} images have one")
    if missing.any():
        rows = rows_text(table, missing)
        messages.append(f"{int(missing.sum()):,} rows without a mask are LEFT OUT ({rows})")
    if not column and (others := len(set(masks.files) - set(found.dropna()))):
        messages.append(f"{others:,} files in {masks.root} are the mask of no image, and are not used")
    if column != "mask" and "mask" in table:
        table = table.rename(columns={"mask": "csv_mask"})
    table = table.assign(mask=found)[~missing]
    shared = table.groupby("mask")["image"].unique()
    if len(shared := shared[shared.map(len) > 1]):
        images_of = " and ".join(shared.iloc[0][:3])
        raise DataError(
            f"{masks.root}: {shared.index[0]} would be the mask of {images_of}; put the masks into folders named as "
            "those of the images, or name them in a column: --mask COLUMN"
        )
    _check_sample(table, images.root, masks.root, messages)
    return table


def _by_name(names: pd.Series, masks: ImageIndex) -> pd.Series:
    """Returns the mask of each image, missing where it has none; of several, that in a folder of the same name."""
    files: dict[str, list[str]] = {}
    for file in masks.files:
        files.setdefault(_stem(file, whole=False), []).append(file)

    def find(image: str) -> str | None:
        stem = fold(PurePosixPath(image).stem)
        fitting = [file for ending in ENDINGS for file in files.get(stem + ending, [])]
        alike = [file for file in fitting if PurePosixPath(file).parent == PurePosixPath(image).parent] or fitting
        if len(alike) > 1:
            choice = "remove one, or name the right one in a column: --mask COLUMN"
            raise DataError(f"{masks.root}: the masks of {image} are {' and '.join(alike[:3])}; {choice}")
        return alike[0] if alike else None

    return names.map(find)


def _check_sample(table: pd.DataFrame, image_root: Path, mask_root: Path, messages: list[str]) -> None:
    """Decodes the first few images and masks; raises DataError if one is unusable."""
    warned: Counter[str] = Counter()
    for image, mask in table[["image", "mask"]].head(SAMPLE).itertuples(index=False):
        path = image_root / image
        for severity, kind, message in check_mask(open_image(path), path, mask_root / mask, known=False):
            if severity == "error":
                raise DataError(message)
            warned[kind] += 1
    messages += [f"{kind}: {n} of the first {min(SAMPLE, len(table))} masks" for kind, n in warned.items()]


def _stem(file: str, whole: bool = True) -> str:
    path = PurePosixPath(file)
    return fold(str(path.with_suffix(""))) if whole else fold(path.stem)


def _examples(stem: str) -> list[str]:
    return [f"{stem}{ending}.png" for ending in ENDINGS]
