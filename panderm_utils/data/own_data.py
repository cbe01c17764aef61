"""Makes a manifest for your own CSV and images: guesses what the columns mean and explains each guess.

Your CSV is never changed. If it does not follow the CSV contract of `dataset`, a new CSV is written that does.
"""

import os
import re
from collections import Counter
from pathlib import Path, PurePosixPath

import pandas as pd

from panderm_utils import manifests
from panderm_utils.data.csv_tables import DataError, Problems, is_missing, read_text
from panderm_utils.data.image_files import SUFFIXES, fold
from panderm_utils.data.splits import propose_splits
from panderm_utils.manifests import NAME_RULE, SPLITS, valid_name
from panderm_utils.workspace import REPOSITORY, settle_path

# Recognised column names, likeliest first; compared without case, blanks, dashes and underscores.
IMAGE_COLUMNS = (
    "image",
    "image_id",
    "image_name",
    "filename",
    "file_name",
    "file",
    "path",
    "image_path",
    "img",
    "isic_id",
)
SPLIT_COLUMNS = ("split", "set", "partition", "subset")
GROUP_COLUMNS = {
    "lesion": ("lesion_id", "lesion"),
    "patient": ("patient_id", "patient", "person_id", "subject_id", "subject", "case_id", "case", "case_num"),
}
METADATA_COLUMNS = {
    "age": ("age", "age_approx"),
    "sex": ("sex", "gender"),
    "site": ("localization", "site", "anatom_site_general", "anatomical_site", "region"),
    "skin_tone": ("skin_tone", "fitzpatrick", "fitspatrick", "fitzpatrick_skin_type", "monk"),
    "institution": ("institution", "hospital", "centre", "center", "clinic"),
}
MELANOMA = ("mel", "melanoma")  # class names, in any case
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "ts", "holdout"), "test"),
}


def make_own_manifest(
    csv_path: str | Path, image_dir: str | Path, name: str, csv_out_dir: str | Path | None = None
) -> tuple[manifests.DatasetManifest, list[str], Path]:
    """Returns a manifest guessed from a CSV and a folder of images; writes a new CSV if yours needs changes.

    Args:
        csv_path: One row per image; only read.
        image_dir: The folder that contains the images, at any depth.
        name: The dataset's name: lower-case letters, digits, underscores.
        csv_out_dir: Where a new `<name>.csv` goes; by default data/own in the repository, which git ignores.

    Returns:
        The manifest (`own=True`, absolute paths; not written yet), an explanation of each guess, and the CSV to use.

    Raises:
        DataError: The name is taken or invalid, the CSV is empty or damaged, or no image or label was found.
    """
    check_name(name)
    csv, root = settle_path(csv_path), settle_path(image_dir)
    if not csv.is_file():
        raise DataError(f"there is no CSV {csv}; give the path of an existing file")
    if not root.is_dir():
        raise DataError(f"there is no image folder {root}; give --images the folder that contains the images")
    problems = Problems(csv)
    original = read_text(csv.read_bytes(), problems)
    problems.stop(name)
    if original.empty:
        raise DataError(f"{csv}: the CSV has no rows; it needs a header line and one row per image")
    messages = [problem["message"] for problem in problems.found][:5]

    table, suffix = read_images(original, csv, root, messages)
    groups = column_of_kind(table, GROUP_COLUMNS)
    metadata = column_of_kind(table, METADATA_COLUMNS)
    messages += [f"column `{column}` is the {kind}: kept together in splits" for kind, column in groups.items()]
    messages += [f"column `{column}` is the {kind}" for kind, column in metadata.items()]
    table, classes, label_column = read_labels(table, csv, {*groups.values(), *metadata.values()}, messages)
    table = read_splits(table, label_column, list(groups.values()), messages)

    used, original = table.drop(columns="row"), original.drop(columns="row")
    unchanged = list(used) == list(original) and used.to_numpy().tolist() == original.to_numpy().tolist()
    path = csv if unchanged and not problems.found else write_new_csv(used, csv, name, csv_out_dir)
    messages.append(f"{csv} needs no changes and is used as it is" if path == csv else f"the new CSV is {path}")
    counts = pd.crosstab(table["split"], table[label_column].astype(int)).reindex(SPLITS, fill_value=0)
    counts = counts.reindex(columns=range(len(classes)), fill_value=0)
    melanoma = tuple(str(text) for text in classes if str(text).casefold() in MELANOMA)
    messages += [f"class `{name}` counts as melanoma, against the rest in external validation" for name in melanoma]
    manifest = manifests.DatasetManifest(
        name=name,
        title=f"{name} (own data)",
        modality="unknown",
        institution="own data",
        task="binary" if len(classes) == 2 else "multiclass",
        classes=tuple(manifests.ClassName(name=str(text), long_name=str(text)) for text in classes),
        classes_verified=True,
        melanoma=melanoma,
        label_column=label_column,
        csv=str(path),
        image_root=str(root),
        image_suffix=suffix,
        split_sizes={split: int(counts.loc[split].sum()) for split in SPLITS},
        class_counts={split: tuple(int(n) for n in counts.loc[split]) for split in SPLITS},
        headline_metric="auroc" if len(classes) == 2 else "weighted_f1",
        groups=groups,
        metadata=metadata,
        licence="not stated",
        citation="own data",
        caveats=(f"What the columns of {csv.name} mean was guessed from their names.",),
        own=True,
    )
    return manifest, messages, path


def check_name(name: str) -> None:
    """Raises DataError unless the name is valid for a manifest, a notebook and a folder, and not taken."""
    if name != (proposal := valid_name(name)):
        raise DataError(f"the name {name!r} is not a valid file name everywhere ({NAME_RULE}); write --name {proposal}")
    if name == "all":
        raise DataError("--datasets all means every dataset; choose another name, such as --name all_own")
    if name in manifests.list_datasets():
        raise DataError(f"there is already a dataset {name}; choose another name, such as --name {name}_own")


def read_images(table: pd.DataFrame, csv: Path, root: Path, messages: list[str]) -> tuple[pd.DataFrame, str]:
    """Returns the rows whose image was found, with `image` relative to the root, and the most common suffix."""
    exact, loose = index_images(root)
    if not exact:
        others = Counter(Path(name).suffix.lower() or "(none)" for *_, names in os.walk(root) for name in names)
        contents = ", ".join(f"{n:,} x {suffix}" for suffix, n in others.most_common(5)) or "nothing"
        raise DataError(f"{root} has no image ({', '.join(SUFFIXES)}) but {contents}; give --images another folder")
    names = [name for name in table.columns if name != "row"]
    sample = table.head(500)
    hits = {name: len({find_file(value, exact, loose) for value in sample[name]} - {None}) for name in names}
    preferred = matching_columns(table, IMAGE_COLUMNS)
    # A class number or an age may happen to match a file name, so other columns must name a file in most rows.
    hits = {name: n if name in preferred or 2 * n > len(sample) else 0 for name, n in hits.items()}
    column = max(hits, key=lambda name: (bool(hits[name]) and name in preferred, hits[name], -names.index(name)))
    suffixes = Counter(PurePosixPath(file).suffix for file in exact)
    if not hits[column]:
        contents = ", ".join(f"{n:,} x {suffix}" for suffix, n in suffixes.most_common(4))
        column = next(iter(preferred), names[0])
        raise DataError(
            f"{csv}: none of the first {len(sample):,} rows names an image below {root}. Column `{column}` has, for "
            f"example, {sample[column].iloc[0]!r}; the folder has {contents}, for example {min(exact)!r}. "
            "Give --images the folder that the names are relative to, or add a column `image`"
        )
    found = table[column].map(lambda value: find_file(value, exact, loose))
    missing = table.loc[found.isna(), "row"]
    if len(missing):
        lines = ", ".join(map(str, missing.head(5)))
        counts = f"{len(missing):,} of {len(table):,}"
        messages.append(f"{counts} rows name no image below {root} and are LEFT OUT (rows {lines})")
    changed = int((found.notna() & (found != table[column])).sum())
    detail = f"; {changed:,} were completed to the file name, such as {found.dropna().iloc[0]}" if changed else ""
    messages.append(f"column `{column}` names the images: {int(found.notna().sum()):,} found{detail}")
    if column != "image" and "image" in table:
        table = table.rename(columns={"image": "csv_image"})
    return table.assign(image=found)[found.notna()], suffixes.most_common(1)[0][0]


def index_images(root: Path) -> tuple[set[str], dict[str, str | None]]:
    """Returns the relative paths of the images below a root, and looser spelling -> path (None if ambiguous)."""
    exact: set[str] = set()
    for folder, _, names in os.walk(root):
        below = Path(folder).relative_to(root).as_posix()
        images = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
        exact.update(name if below == "." else f"{below}/{name}" for name in images)
    loose: dict[str, str | None] = {}
    for file in sorted(exact):
        path = PurePosixPath(file)
        for key in {file, file.removesuffix(path.suffix), path.name, path.stem}:
            key = fold(key)
            loose[key] = None if key in loose and loose[key] != file else file
    return exact, loose


def find_file(value: str, exact: set[str], loose: dict[str, str | None]) -> str | None:
    """Returns the file that a cell names: exactly, without case or suffix, or by its last parts (if unambiguous)."""
    if value in exact:
        return value
    parts = [part for part in fold(value.replace("\\", "/")).split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        if (file := loose.get("/".join(parts[start:]))) is not None:
            return file
    return None


def read_splits(table: pd.DataFrame, label: str, groups: list[str], messages: list[str]) -> pd.DataFrame:
    """Returns the table with `split`: its own one, as train, val and test, or a proposed 70/10/20 split."""
    for column in matching_columns(table, SPLIT_COLUMNS):
        split = table[column].str.lower().map(SPLIT_NAMES)
        if not {"train", "test"} <= set(split.dropna()):
            messages.append(f"column `{column}` is not used as the split: it does not have both train and test")
            continue
        skipped = int(split.isna().sum())
        rest = f"; {skipped:,} rows of other names are LEFT OUT" if skipped else ""
        messages.append(f"column `{column}` is the split{rest}")
        if column != "split" and "split" in table:
            table = table.rename(columns={"split": "csv_split"})
        return table.assign(split=split)[split.notna()]
    ids = table.assign(**{name: table[name].mask(is_missing(table[name])) for name in groups})
    # A file named twice must not be in two splits either.
    split = propose_splits(ids, label, [*groups, "image"])
    by = f", images of one {' or '.join(groups)} kept together" if groups else ", each image on its own: no id column"
    messages.append(f"no split column: a stratified 70/10/20 split was drawn (seed 0){by}")
    if "split" in table:
        table = table.rename(columns={"split": "csv_split"})
    return table.assign(split=split)


def write_new_csv(table: pd.DataFrame, csv: Path, name: str, folder: str | Path | None) -> Path:
    """Writes `<name>.csv` atomically and returns its path; refuses to replace a file with other content."""
    path = settle_path(folder or REPOSITORY / "data" / "own") / f"{name}.csv"
    first = ["image", "split", *[column for column in ("label", "binary_label") if column in table]]
    text = table[[*first, *[c for c in table.columns if c not in first]]].to_csv(index=False, lineterminator="\n")
    if path.exists():
        if path != csv and path.read_text(encoding="utf-8") == text:
            return path
        raise DataError(f"{path} exists and is not replaced; move it away, or choose another --name")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def column_of_kind(table: pd.DataFrame, kinds: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Returns kind -> column for each kind that the table has a column of."""
    found = {kind: matching_columns(table, names) for kind, names in kinds.items()}
    return {kind: columns[0] for kind, columns in found.items() if columns}


# Recognised column names, as above.
LABEL_COLUMNS = ("label", "binary_label", "target", "class", "diagnosis", "dx", "category", "diagnostic", "y")
# AUROC takes class 1 as positive, so of two named classes the diseased one must be 1.
POSITIVE = re.compile(r"malig|melanom|^mel$|cancer|carcinoma|^bcc$|^scc$|^positive$|^yes$|^true$|^1$|disease|abnormal")
NEGATIVE = re.compile(r"^(non|not|no)\b|benign|healthy|normal|negative")
MAX_CLASSES = 200


def read_labels(
    table: pd.DataFrame, csv: Path, taken: set[str], messages: list[str]
) -> tuple[pd.DataFrame, list[str], str]:
    """Returns the labelled rows with numbers 0..K-1, the class names in label order, and the label column's name."""
    candidates = [name for name in matching_columns(table, LABEL_COLUMNS) if name not in taken]
    if not candidates:
        names = ", ".join(name for name in table.columns if name not in ("row", "image"))
        raise DataError(f"{csv}:1: no label column among {names}; rename yours to `label`")
    column = candidates[0]
    missing = is_missing(table[column])
    if missing.any():
        lines = ", ".join(map(str, table.loc[missing, "row"].head(5)))
        messages.append(f"{int(missing.sum()):,} rows without a label are LEFT OUT (rows {lines})")
        table = table[~missing]
    spelled = table[column].groupby(table[column].map(normalise)).agg(lambda values: values.value_counts().index[0])
    classes = order_classes(list(spelled.index))
    if len(classes) < 2:
        raise DataError(f"{csv}: column `{column}` has {len(classes)} class; at least 2 are needed")
    if len(classes) > MAX_CLASSES or (len(classes) > 20 and len(classes) > len(table) / 3):
        found = f"column `{column}` has {len(classes):,} values, too many for classes"
        raise DataError(f"{csv}: {found}; rename another column to `label`")
    label = table[column].map(normalise).map({text: str(k) for k, text in enumerate(classes)})
    names = [spelled[text] for text in classes]
    numbers = classes == [str(k) for k in range(len(classes))]
    if numbers:
        names = companion_names(table, label, column) or names
    target = "binary_label" if len(classes) == 2 else "label"
    target = column if numbers and column in ("label", "binary_label") else target
    origin = "are class numbers" if numbers else "were numbered"
    listed = ", ".join(f"{k} = {text}" for k, text in enumerate(names))
    messages.append(f"column `{column}`: {len(classes)} classes {origin}: {listed}")
    if len(classes) == 2:
        messages.append(f"AUROC takes class 1 ({names[1]}) as positive; if that is wrong, number the classes yourself")
    if target in table and target != column:
        table = table.rename(columns={target: f"csv_{target}"})
    if target == column and not numbers:
        table = table.assign(label_name=table[column])
    return table.assign(**{target: label}), names, target


def normalise(value: str) -> str:
    """Returns one spelling for labels of one class, such as `Melanoma` and `melanoma `, or `1` and `1.0`."""
    return re.sub(r"\s+", " ", re.sub(r"^(\d+)\.0+$", r"\1", value.strip())).casefold()


def order_classes(classes: list[str]) -> list[str]:
    """Returns class names in label order: numerical or alphabetical; of two names, the diseased one last."""
    numeric = all(re.fullmatch(r"-?\d+", text) for text in classes)
    ordered = sorted(classes, key=int) if numeric else sorted(classes)
    if len(ordered) == 2 and not numeric:
        ordered.sort(key=lambda text: bool(POSITIVE.search(text)) and not NEGATIVE.search(text))
    return ordered


def companion_names(table: pd.DataFrame, label: pd.Series, column: str) -> list[str]:
    """Returns class names from a text column that matches the class numbers one to one, [] if there is none."""
    for other in matching_columns(table, (*LABEL_COLUMNS, "label_name", "class_name")):
        pairs = pd.DataFrame({"label": label, "text": table[other]}).drop_duplicates()
        words = not pairs["text"].str.fullmatch(r"[\d.]*").any()
        if other != column and words and pairs["label"].is_unique and pairs["text"].is_unique:
            return list(pairs.assign(k=pairs["label"].astype(int)).sort_values("k")["text"])
    return []


def matching_columns(table: pd.DataFrame, names: tuple[str, ...]) -> list[str]:
    """Returns the table's columns with these names, in the order of `names`, ignoring case and separators."""
    plain = {re.sub(r"[\s_\-]+", "", column).lower(): column for column in reversed(table.columns)}
    keys = (name.replace("_", "") for name in names)
    return list(dict.fromkeys(plain[key] for key in keys if key in plain))
