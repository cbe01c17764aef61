"""Makes manifests for your own images: reads what you have, explains each decision, and draws a split or folds.

Your files are never changed. If they do not follow the CSV contract of `dataset`, a new CSV is written that does.
"""

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from panderm_utils import manifests
from panderm_utils.data.column_contents import split_values
from panderm_utils.data.column_roles import Roles, find_roles
from panderm_utils.data.csv_tables import DataError, is_missing
from panderm_utils.data.own_labels import read_labels, rows_text, shortened
from panderm_utils.data.own_masks import find_own_masks
from panderm_utils.data.own_sources import Source, read_source
from panderm_utils.data.splits import connected_groups, propose_folds, propose_splits
from panderm_utils.manifests import NAME_RULE, SPLITS, valid_name
from panderm_utils.workspace import REPOSITORY, settle_path

MELANOMA = re.compile(r"(malignant )?(mel|melanom[ae]?)\b", re.IGNORECASE)  # how the names of melanoma classes begin
FEW_TEST_IMAGES = 5  # of a class; with fewer, folds are worth their time


@dataclass(frozen=True)
class OwnData:
    """What was made of your data.

    Attributes:
        manifests: One, or one per fold; `own=True`, absolute paths; not written yet.
        messages: An explanation of each decision.
        written: The new CSVs; none if yours is used as it is.
    """

    manifests: tuple[manifests.DatasetManifest, ...]
    messages: list[str]
    written: tuple[Path, ...]


def read_own_data(
    paths: list[str | Path],
    image_dir: str | Path | None,
    name: str,
    csv_out_dir: str | Path | None = None,
    columns: dict[str, list[str]] | None = None,
    folds: int = 0,
    mask_dir: str | Path | None = None,
) -> OwnData:
    """Returns manifests for your images with classes, masks or both; writes new CSVs if yours needs changes.

    Args:
        paths, image_dir, mask_dir: See `own_sources.read_source`; only read.
        name: The dataset's name: lower-case letters, digits, underscores.
        csv_out_dir: Where a new `<name>.csv` goes; by default data/own in the repository, which git ignores.
        columns: Role (label, image, mask, split, patient, lesion) -> the columns that have it; the others are guessed.
        folds: Draws this many folds instead of one split: datasets `<name>_fold1`, ..., of which each tests one fold.

    Raises:
        OpenQuestions: The columns can be read in several ways; the message lists the flags to choose by.
        DataError: The name is taken or invalid, the data are empty or damaged, or no image, label or mask was found.
    """
    names = [f"{name}_fold{k + 1}" for k in range(folds)] or [name]
    for each in (name, *names):
        check_name(each)
    if folds and not 3 <= folds <= 20:
        raise DataError(f"--folds {folds}: write 3 to 20; each fold is tested once, with the next one as val")
    source = read_source(paths, image_dir, mask_dir)
    roles = find_roles(source, columns or {}, drawn=folds > 0)
    messages = list(source.messages)
    table = read_images(source, roles.image, messages)
    classes, label = [], ""
    if roles.label:
        table, classes, label = read_labels(table, roles.label, str(source.place), messages)
    masks = source.masks or (source.images if roles.mask else None)
    if masks:
        table = find_own_masks(table, roles.mask, source.images, masks, messages)
    messages += roles.messages
    if roles.split and not folds:
        table, split = read_split(table, roles.split, source.place, messages)
        splits, origin = [split], f"The split is that of the column `{roles.split}`."
    else:
        if roles.split:
            messages.append(f"column `{roles.split}` is not used as the split: --folds draws its own")
        splits = draw_splits(table, label, classes, roles.groups, folds, messages)
        kept = f", images of one {' or '.join(roles.groups)} kept together" if roles.groups else ""
        how = f"into {folds} folds" if folds else "into 70% train, 10% val and 20% test"
        origin = f"The split {how} was drawn at random{', stratified by class' * bool(label)} (seed 0){kept}."
    if "split" in table and (folds or roles.split != "split"):
        table = table.rename(columns={"split": "csv_split"})
    table = table.drop(columns="row")
    cards, written = [], []
    for each, split in zip(names, splits, strict=True):
        made = table.assign(split=split)
        path = source.csv
        if path is None or source.messages or not same_cells(made, source.table.drop(columns="row")):
            path = write_new_csv(made, each, csv_out_dir, (source.csv,))
            written.append(path)
        card = make_manifest(each, made, classes, label, path, source, roles, folds > 0, origin)
        cards.append(replace(card, masks=manifests.Masks(root=str(masks.root)) if masks else None))
    messages += [
        f"class `{name}` counts as melanoma, against the rest in external validation" for name in cards[0].melanoma
    ]
    messages += [f"the new CSV is {path}" for path in written] or [
        f"{source.csv} needs no changes and is used as it is"
    ]
    return OwnData(tuple(cards), messages, tuple(written))


def check_name(name: str) -> None:
    """Raises DataError unless the name is valid for a manifest, a notebook and a folder, and not taken."""
    if name != (proposal := valid_name(name)):
        raise DataError(f"the name {name!r} is not a valid file name everywhere ({NAME_RULE}); write --name {proposal}")
    if name == "all":
        raise DataError("--datasets all means every dataset; choose another name, such as --name all_own")
    if name in manifests.list_datasets():
        raise DataError(f"there is already a dataset {name}; choose another name, such as --name {name}_own")


def read_images(source: Source, column: str, messages: list[str]) -> pd.DataFrame:
    """Returns the rows whose image was found, with `image` relative to the root."""
    table, images = source.table, source.images
    found = table[column].map(images.find)
    missing = found.isna()
    if missing.any():
        counts = f"{int(missing.sum()):,} of {len(table):,}"
        messages.append(
            f"{counts} rows name no image below {images.root} and are LEFT OUT ({rows_text(table, missing)})"
        )
    changed = int((~missing & (found != table[column])).sum())
    detail = f"; {changed:,} were completed to the file name, such as {found.dropna().iloc[0]}" if changed else ""
    messages.append(f"column `{column}` names the images: {int((~missing).sum()):,} found{detail}")
    if column != "image" and "image" in table:
        table = table.rename(columns={"image": "csv_image"})
    return table.assign(image=found)[~missing]


def read_split(table: pd.DataFrame, column: str, place: Path, messages: list[str]) -> tuple[pd.DataFrame, pd.Series]:
    """Returns the rows of a split, and their splits: train, val and test, in whatever words the column has them."""
    split = split_values(table[column])
    skipped = int(split.isna().sum())
    rest = f"; {skipped:,} rows of other names are LEFT OUT" if skipped else ""
    counts = split.value_counts()
    if not {"train", "test"} <= set(counts.index):
        found = ", ".join(f"{name} {n:,}" for name, n in table[column].value_counts().head(6).items()) or "no row"
        raise DataError(
            f"{place}: the split `{column}` needs labelled images in both train and test; it has {found}; "
            "name another column: --split COLUMN, or --split none draws a split"
        )
    messages.append(f"column `{column}` is the split{rest}")
    return table[split.notna()], split.dropna()


def draw_splits(
    table: pd.DataFrame, label: str, classes: list[str], groups: dict[str, str], folds: int, messages: list[str]
) -> list[pd.Series | np.ndarray]:
    """Returns one drawn split, or one per fold, and says which classes have too few images for it.

    Raises:
        DataError: There are too few images, patients or lesions to have two classes in both train and test.
    """
    ids = table.assign(**{column: table[column].mask(is_missing(table[column])) for column in groups.values()})
    if not label:  # masks alone: one stratum
        label, classes, ids = "stratum", ["all images"], ids.assign(stratum="0")
    columns = [*groups.values(), "image"]  # a file named twice must not be in two splits either
    group = pd.Series(connected_groups(ids, columns), index=table.index)
    per_class = group.groupby(ids[label].astype(int)).nunique()
    unit = next((f"{kind}s" for kind in ("patient", "lesion") if kind in groups), "images")
    needed = folds or len(SPLITS)
    if group.nunique() < needed:
        what = f"the {len(table):,} images are of {group.nunique()} {unit}"
        raise DataError(f"{what}, too few for {needed} {'folds' if folds else 'splits'}; add images")
    if len(classes) > 1 and (per_class >= 2).sum() < 2:
        single = shortened([classes[k] for k, n in per_class.items() if n < 2])
        raise DataError(
            f"of {group.nunique():,} {unit}, only 1 has the class {single}, which cannot be in both train and test; it "
            "needs 2, better 3 for val too: add images, or choose another label with --label COLUMN"
        )
    by = f", images of one {' or '.join(groups)} kept together" if groups else ", each image on its own: no id column"
    rare = [f"{classes[k]} ({n})" for k, n in per_class.items() if n < needed]
    stratified = "stratified " * (len(classes) > 1)
    if folds:
        fold = propose_folds(ids, label, columns, folds)
        messages.append(f"{folds} {stratified}folds were drawn (seed 0){by}")
        messages.append("each fold is the test split of one dataset, the next fold its val: report the mean over all")
        if rare:
            messages.append(f"WARNING: fewer {unit} than folds, so some splits have none: {shortened(rare)}")
        return [np.select([fold == k, fold == (k + 1) % folds], ["test", "val"], "train") for k in range(folds)]
    split = propose_splits(ids, label, columns)
    messages.append(f"no split column: a {stratified}70/10/20 split was drawn (seed 0){by}")
    if rare:
        messages.append(f"WARNING: too few {unit} to be in train, test and val, which need 1 each: {shortened(rare)}")
    tested = ids.loc[split == "test", label].astype(int).value_counts().reindex(range(len(classes)), fill_value=0)
    if few := [f"{classes[k]} ({n})" for k, n in tested.items() if n < FEW_TEST_IMAGES]:
        advice = f"add --folds {max(3, min(5, *per_class))}, which tests every image once"
        messages.append(f"WARNING: few test images of {shortened(few)}; {advice}")
    return [split]


def make_manifest(
    name: str,
    table: pd.DataFrame,
    classes: list[str],
    label: str,
    csv: Path,
    source: Source,
    roles: Roles,
    fold: bool,
    origin: str,
) -> manifests.DatasetManifest:
    """Returns the manifest of a table that follows the CSV contract; `origin` says where its split is from."""
    sizes = table["split"].value_counts()
    labels = table[label].astype(int) if label else pd.Series(0, index=table.index)
    counts = pd.crosstab(table["split"], labels).reindex(index=SPLITS, columns=range(len(classes)), fill_value=0)
    task, headline_metric = manifests.task_of(len(classes))
    suffixes = Counter(PurePosixPath(file).suffix for file in source.images.files)
    # Folds are neither sources nor targets of external validation: they share their images.
    melanoma = () if fold else tuple(text for text in classes if MELANOMA.match(text))
    return manifests.DatasetManifest(
        name=name,
        title=f"{name} (own data)",
        modality="unknown",
        institution="own data",
        task=task,
        classes=tuple(manifests.ClassName(name=text, long_name=text) for text in classes),
        classes_verified=bool(classes),
        melanoma=melanoma if len(melanoma) < len(classes) else (),
        label_column=label,
        csv=str(csv),
        image_root=str(source.images.root),
        image_suffix=suffixes.most_common(1)[0][0],
        split_sizes={split: int(sizes.get(split, 0)) for split in SPLITS},
        class_counts={split: tuple(int(n) for n in counts.loc[split]) for split in SPLITS} if classes else None,
        headline_metric=headline_metric,
        groups=roles.groups,
        metadata=roles.metadata,
        licence="not stated",
        citation="own data",
        caveats=(f"What the columns of {source.place.name} mean was guessed, or stated by flags.", origin),
        own=True,
    )


def same_cells(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Returns whether two tables have the same columns, rows and text."""
    return list(one) == list(other) and one.to_numpy().tolist() == other.to_numpy().tolist()


def write_new_csv(table: pd.DataFrame, name: str, folder: str | Path | None, sources: tuple[Path | None, ...]) -> Path:
    """Writes `<name>.csv` atomically and returns its path; refuses to replace a file with other content."""
    path = settle_path(folder or REPOSITORY / "data" / "own") / f"{name}.csv"
    first = ["image", "split", *[column for column in ("label", "binary_label", "mask") if column in table]]
    text = table[[*first, *[c for c in table.columns if c not in first]]].to_csv(index=False, lineterminator="\n")
    if path.exists():
        if path not in sources and path.read_text(encoding="utf-8") == text:
            return path
        raise DataError(f"{path} exists and is not replaced; move it away, or choose another --name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path
