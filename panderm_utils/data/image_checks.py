"""Checks the images that a table names: whether they are there, can be decoded, and are named once."""

import os
import posixpath
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from panderm_utils.data.csv_tables import Problems
from panderm_utils.data.image_files import ImageError, ImageFolder, oddity, open_image, unsafe
from panderm_utils.data.mask_files import check_mask


def find_images(table: pd.DataFrame, image_root: Path, suffix: str, problems: Problems) -> dict[str, str]:
    """Returns image name -> file relative to the image root; reports missing files and different spellings."""
    if not image_root.is_dir():
        remedy = "unpack the images there, or correct image_root in the manifest"
        problems.add("error", "missing folder", f"there is no image root {image_root}; {remedy}")
        return {}
    folder, files, seen = ImageFolder(image_root), {}, set()
    for row, name in zip(table["row"], table["image"], strict=True):
        if name in seen or not name:
            continue
        seen.add(name)
        file, remark = folder.find(name, suffix)
        if file is not None:
            files[name] = file
            if remark:
                problems.add("note", "file name", remark, row, name)
        elif "missing" in remark or "differ only" in remark:
            problems.add("error", "missing file", f"{remark} below {image_root}; add it or remove the row", row, name)
        else:
            problems.add("error", "unsafe path", f"{remark}; put the file below {image_root}", row, name)
    return files


def name_images(table: pd.DataFrame, problems: Problems) -> dict[str, str]:
    """Returns image name -> file from the spelling alone, without looking at the disk."""
    files = {}
    for row, name in zip(table["row"], table["image"], strict=True):
        if reason := unsafe(name) if name else "":
            problems.add("error", "unsafe path", f"{reason}; name a file below the image root", row, name)
        elif name:
            files[name] = posixpath.normpath(name.replace("\\", "/"))
    return files


def check_pixels(
    table: pd.DataFrame, image_root: Path, files: dict[str, str], masks: dict[str, Path], problems: Problems, known=()
) -> None:
    """Decodes every image and its mask, with a progress bar; reports unusable files and unusual modes.

    Args:
        files: Image name -> file below the image root.
        masks: Image name -> file of its mask.
        known: The images whose mask has another size.
    """

    def check(row_and_name: tuple[int, str]) -> list[tuple[str, str, str]]:
        _, name = row_and_name
        path, found = image_root / files[name], []
        try:
            pixels = open_image(path)
            if remark := oddity(path):
                found.append(("note", "image mode", remark))
            return found + (check_mask(pixels, path, masks[name], name in known) if name in masks else [])
        except ImageError as error:
            return [*found, ("error", "unreadable image", str(error))]

    first = table.drop_duplicates("image")
    items = [(row, name) for row, name in zip(first["row"], first["image"], strict=True) if name in files]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL releases the GIL while decoding
        found = tqdm(pool.map(check, items), total=len(items), desc="checking pixels", unit="image")
        for (row, name), problems_of_one in zip(items, found, strict=True):
            for severity, kind, message in problems_of_one:
                problems.add(severity, kind, message, row, name)


def check_repeats(table: pd.DataFrame, files: dict[str, str], problems: Problems) -> None:
    """Reports images that appear in several rows: with different labels (fatal), or twice in one split."""
    if "split" not in table:
        return
    named = table.assign(file=table["image"].map(files)).dropna(subset=["file"])
    for file, rows in named[named.duplicated("file", keep=False)].groupby("file"):
        lines = ", ".join(str(row) for row in rows["row"])
        first = rows.iloc[0]
        if "label" in rows and rows["label"].nunique() > 1:
            labels = ", ".join(f"{label:.0f}" for label in rows["label"])
            message = f"one image has labels {labels} in rows {lines}; keep only one of these rows"
            problems.add("error", "contradicting labels", message, first["row"], first["image"])
        elif rows["split"].duplicated().any():
            message = f"the file {file} is in rows {lines}: it is counted once per row"
            problems.add("warning", "repeated image", message, first["row"], first["image"])
