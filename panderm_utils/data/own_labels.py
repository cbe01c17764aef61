"""Finds the column of labels in a researcher's own table and numbers its classes; see `own_data`."""

import re
from pathlib import Path

import pandas as pd

from panderm_utils.data.csv_tables import DataError, is_missing

# Column names that are understood, the likeliest first; compared without case, blanks, dashes and underscores.
LABEL_COLUMNS = ("label", "binary_label", "target", "class", "diagnosis", "dx", "category", "diagnostic", "y")
# AUROC scores class 1, so of two named classes the diseased one must be 1.
POSITIVE = re.compile(r"malig|melanom|^mel$|cancer|carcinoma|^bcc$|^scc$|^positive$|^yes$|^true$|^1$|disease|abnormal")
NEGATIVE = re.compile(r"^(non|not|no)\b|benign|healthy|normal|negative")
MAX_CLASSES = 200


def take_labels(
    table: pd.DataFrame, csv: Path, taken: set[str], said: list[str]
) -> tuple[pd.DataFrame, list[str], str]:
    """Returns the labelled rows with numbers 0..K-1, the class names in label order, and the label column's name."""
    candidates = [name for name in named(table, LABEL_COLUMNS) if name not in taken]
    if not candidates:
        names = ", ".join(name for name in table.columns if name not in ("row", "image"))
        raise DataError(f"{csv}:1: no column of labels among {names}; rename yours to `label`")
    column = candidates[0]
    absent = is_missing(table[column])
    if absent.any():
        lines = ", ".join(map(str, table.loc[absent, "row"].head(5)))
        said.append(f"{int(absent.sum()):,} rows without a label are LEFT OUT (rows {lines})")
        table = table[~absent]
    spelled = table[column].groupby(table[column].map(normal)).agg(lambda values: values.value_counts().index[0])
    classes = order_classes(list(spelled.index))
    if len(classes) < 2:
        raise DataError(f"{csv}: column `{column}` holds {len(classes)} class; at least 2 are needed")
    if len(classes) > MAX_CLASSES or (len(classes) > 20 and len(classes) > len(table) / 3):
        raise DataError(
            f"{csv}: column `{column}` has {len(classes):,} values, too many for classes; rename another one"
        )
    label = table[column].map(normal).map({text: str(k) for k, text in enumerate(classes)})
    names = [spelled[text] for text in classes]
    numbers = classes == [str(k) for k in range(len(classes))]
    if numbers:
        names = companion_names(table, label, column) or names
    target = "binary_label" if len(classes) == 2 else "label"
    target = column if numbers and column in ("label", "binary_label") else target
    how = "are class numbers" if numbers else "were numbered"
    listed = ", ".join(f"{k} = {text}" for k, text in enumerate(names))
    said.append(f"column `{column}`: {len(classes)} classes {how}: {listed}")
    if len(classes) == 2:
        said.append(
            f"AUROC takes class 1 ({names[1]}) as the positive one; if that is wrong, number the classes yourself"
        )
    if target in table and target != column:
        table = table.rename(columns={target: f"csv_{target}"})
    if target == column and not numbers:
        table = table.assign(label_name=table[column])
    return table.assign(**{target: label}), names, target


def normal(value: str) -> str:
    """Spells a label so that `Melanoma`, `melanoma ` and `1`, `1.0` are one class."""
    return re.sub(r"\s+", " ", re.sub(r"^(\d+)\.0+$", r"\1", value.strip())).casefold()


def order_classes(classes: list[str]) -> list[str]:
    """Orders class names: numbers by size, else the alphabet, and of two the diseased one last."""
    numeric = all(re.fullmatch(r"-?\d+", text) for text in classes)
    ordered = sorted(classes, key=int) if numeric else sorted(classes)
    if len(ordered) == 2 and not numeric:
        ordered.sort(key=lambda text: bool(POSITIVE.search(text)) and not NEGATIVE.search(text))
    return ordered


def companion_names(table: pd.DataFrame, label: pd.Series, column: str) -> list[str]:
    """Returns class names from a text column that goes one to one with the class numbers, [] if there is none."""
    for other in named(table, (*LABEL_COLUMNS, "label_name", "class_name")):
        pairs = pd.DataFrame({"label": label, "text": table[other]}).drop_duplicates()
        words = not pairs["text"].str.fullmatch(r"[\d.]*").any()
        if other != column and words and pairs["label"].is_unique and pairs["text"].is_unique:
            return list(pairs.assign(k=pairs["label"].astype(int)).sort_values("k")["text"])
    return []


def named(table: pd.DataFrame, names: tuple[str, ...]) -> list[str]:
    """Returns the table's columns of these names, in the order of `names`, whatever their case and separators."""
    plain = {re.sub(r"[\s_\-]+", "", column).lower(): column for column in reversed(table.columns)}
    keys = (name.replace("_", "") for name in names)
    return list(dict.fromkeys(plain[key] for key in keys if key in plain))
