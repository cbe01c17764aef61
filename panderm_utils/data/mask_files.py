"""Finds, opens and checks the masks of a dataset's images; a mask is True where the lesion is."""

from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from PIL import Image

from panderm_utils.data.csv_tables import Problems
from panderm_utils.data.image_files import SUFFIXES, ImageError, ImageFolder, decode, fold, to_rgb
from panderm_utils.manifests import Masks

THRESHOLD = 127  # grey values above it are lesion
EDGE = 32  # grey levels that count as nearly black or nearly white: JPEG spreads both
SURE = 0.9  # the least fraction of such pixels in a mask


def open_mask(path: str | Path, content: bytes | None = None) -> np.ndarray:
    """Returns a mask as bool [H, W], True = lesion: where the grey value is above 127.

    A file of zeros and ones is read as such. `content` is the file's bytes, if already read.

    Raises:
        ImageError: The file cannot be read (see `open_image`), or its greys are all too dark for a mask.
    """
    return _lesion(decode(path, _grey, content), path)


def _lesion(grey: np.ndarray, path: str | Path) -> np.ndarray:
    highest = int(grey.max())
    if 1 < highest <= THRESHOLD:
        raise ImageError(
            f"{path}: no pixel is lesion: the highest grey value is {highest}, lesions are above {THRESHOLD}; save the "
            "mask in black and white (0 and 255)"
        )
    return grey > (0 if highest == 1 else THRESHOLD)


def _grey(image: Image.Image, path: str | Path) -> np.ndarray:
    """Returns an opened image's grey values, uint8 [H, W]."""
    return np.asarray(image.convert("L") if image.mode in ("1", "L") else to_rgb(image, path).convert("L"))


def name_masks(table: pd.DataFrame, masks: Masks) -> pd.DataFrame:
    """Returns the table with the column `mask`, for masks that are named after their images."""
    if not masks.suffix or not {"image", "split"} <= set(table):
        return table
    return table.assign(mask=[masks.name(*row) for row in zip(table["image"], table["split"], strict=True)])


def find_masks(table: pd.DataFrame, mask_root: Path, masks: Masks, problems: Problems) -> dict[str, str]:
    """Returns image name -> file of its mask relative to the mask root; reports missing, second and other masks."""
    if not mask_root.is_dir():
        remedy = "unpack the masks there, or correct masks.root in the manifest"
        problems.add("error", "missing mask folder", f"there is no folder of masks {mask_root}; {remedy}")
        return {}
    folder, files = ImageFolder(mask_root), {}
    named = table[table["image"] != ""]
    for row, image, name in zip(named["row"], named["image"], named["mask"], strict=True):
        file, remark = folder.find(name) if name else (None, "the cell `mask` is empty: the file is missing")
        if file is None:
            remedy = "add it, or remove the image from the table" if "missing" in remark else "rename one"
            problems.add("error", "missing mask", f"its mask {name}: {remark} below {mask_root}; {remedy}", row, image)
        elif (known := files.setdefault(image, file)) != file:
            problems.add("error", "two masks", f"its masks are {known} and {file}; keep one row", row, image)
        elif remark:
            problems.add("note", "file name", remark, row, name)
    if masks.suffix:
        _report_others(folder, files, problems)
    return files


def _report_others(folder: ImageFolder, files: dict[str, str], problems: Problems) -> None:
    """Reports the images in the folders of masks that no image of the table is named after."""
    used = set(files.values())
    stems = {_stem(file): (image, file) for image, file in files.items()}
    for place in sorted({str(PurePosixPath(file).parent) for file in used}):
        for name in sorted(folder.names("" if place == "." else place)):
            file = name if place == "." else f"{place}/{name}"
            if file in used or name.startswith(".") or PurePosixPath(name).suffix.lower() not in SUFFIXES:
                continue
            if _stem(file) in stems:
                image, known = stems[_stem(file)]
                message = f"its masks are {known} and {file} below {folder.root}; keep one file"
                problems.add("error", "two masks", message, image=image)
            else:
                message = f"{folder.root / file} is of no image in the table; add its image, or remove it"
                problems.add("warning", "mask without image", message)


def _stem(file: str) -> str:
    return fold(str(PurePosixPath(file).with_suffix("")))


def check_mask(pixels: Image.Image, image: Path, mask: Path, known: bool) -> list[tuple[str, str, str]]:
    """Returns (severity, kind, message) of each problem of an image and its mask, after decoding the mask.

    Args:
        pixels: The decoded image.
        image, mask: The files.
        known: Whether the two are known to differ in size.

    Raises:
        ImageError: The mask cannot be read.
    """
    found, colours = [], np.asarray(pixels)
    if (colours == colours[..., :1]).all() and _black_and_white(colours[..., 0])[1] >= SURE:
        remedy = f"is it swapped with {mask.name}? Exchange the two"
        found.append(("error", "image like a mask", f"{image} has only black and white pixels; {remedy}"))
    grey = decode(mask, _grey)
    if grey.shape != (pixels.height, pixels.width):
        sizes = f"{mask} has {grey.shape[1]} x {grey.shape[0]} pixels, its image {pixels.width} x {pixels.height}"
        remedy = "get the mask of this image, or list it in masks.other_sizes of the manifest"
        found.append(("note", "known size", sizes) if known else ("error", "mask size", f"{sizes}; {remedy}"))
    values, share = _black_and_white(grey)
    if values > 2 and share < SURE:
        remedy = "a mask is black and white; is it swapped with its image?"
        message = f"{mask} has {values} grey values, {1 - share:.0%} of its pixels in between; {remedy}"
        return [*found, ("error", "mask values", message)]
    if values > 2:
        message = f"{mask} has {values} grey values: those above {THRESHOLD} are read as lesion"
        found.append(("warning", "grey edges", message))
    lesion = _lesion(grey, mask)
    if not lesion.any() or lesion.all():
        kind, pixels = ("full mask", "only") if lesion.any() else ("empty mask", "no")
        found.append(("note", kind, f"{mask} has {pixels} lesion pixels"))
    return found


def _black_and_white(grey: np.ndarray) -> tuple[int, float]:
    """Returns the number of grey values, and the fraction of pixels that are nearly black or nearly white."""
    counts = np.bincount(grey.ravel(), minlength=256)
    return int((counts > 0).sum()), float(counts[:EDGE].sum() + counts[-EDGE:].sum()) / grey.size
