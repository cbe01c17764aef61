"""Numbers the classes of your label column, or one-hot columns, 0..K-1, and explains how."""

import re

import pandas as pd

from panderm_utils.data.column_contents import by_name, one_hot_classes, one_hot_values
from panderm_utils.data.csv_tables import DataError, is_missing

# AUROC takes class 1 as positive, so of two named classes the diseased one must be 1.
POSITIVE = re.compile(r"malig|melanom|^mel$|cancer|carcinoma|^bcc$|^scc$|^positive$|^yes$|^true$|^1$|disease|abnormal")
NEGATIVE = re.compile(r"^(non|not|no)\b|benign|healthy|normal|negative")
YES_NO = ({"0", "1"}, {"false", "true"}, {"no", "yes"})
MANY_CLASSES = 200


def read_labels(
    table: pd.DataFrame, columns: tuple[str, ...], place: str, messages: list[str]
) -> tuple[pd.DataFrame, list[str], str]:
    """Returns the labelled rows with numbers 0..K-1, the class names in label order, and the label column's name."""
    if len(columns) > 1:
        return read_one_hot(table, list(columns), place, messages)
    (column,) = columns
    missing = is_missing(table[column])
    if missing.any():
        messages.append(f"{int(missing.sum()):,} rows without a label are LEFT OUT ({rows_text(table, missing)})")
        table = table[~missing]
    spelled = table[column].groupby(table[column].map(normalise)).agg(lambda values: values.value_counts().index[0])
    classes = order_classes(list(spelled.index))
    if len(classes) < 2:
        raise DataError(
            f"{place}: column `{column}` has {len(classes)} class; at least 2 are needed: name another with --label"
        )
    if len(classes) > 20 and len(classes) > len(table) / 3:
        found = f"column `{column}` has {len(classes):,} values in {len(table):,} rows, too many for classes"
        raise DataError(f"{place}: {found}; name another: --label COLUMN")
    if len(classes) > MANY_CLASSES:
        messages.append(
            f"WARNING: {len(classes):,} classes: plots and tables are large, and the results of rare classes vague"
        )
    label = table[column].map(normalise).map({text: str(k) for k, text in enumerate(classes)})
    names = [spelled[text] for text in classes]
    numbers = classes == [str(k) for k in range(len(classes))]
    if numbers:
        names = companion_names(table, label, column) or names
    if set(map(normalise, names)) in YES_NO and is_positive(column.lower()):
        word = re.sub(r"[\W_]+", " ", column).strip().lower()
        names = [f"not {word}", word]
    target = "binary_label" if len(classes) == 2 else "label"
    target = column if numbers and column in ("label", "binary_label") else target
    if target == column and not numbers:
        table = table.assign(label_name=table[column])
    origin = "are class numbers" if numbers else "were numbered"
    return finish(table, label, names, column, target, f"column `{column}`: {len(classes)} classes {origin}", messages)


def read_one_hot(
    table: pd.DataFrame, columns: list[str], place: str, messages: list[str]
) -> tuple[pd.DataFrame, list[str], str]:
    """Returns what `read_labels` does from columns of 0 and 1, whose order is that of the labels."""
    ones = one_hot_values(table, columns)
    if ones.isna().any(axis=None):
        column = ones.columns[ones.isna().any()][0]
        value = table[column][ones[column].isna()].iloc[0]
        raise DataError(f"{place}: --label {' '.join(columns)}: `{column}` has {value!r}; one-hot cells are 0 or 1")
    count = ones.sum(axis=1)
    for wrong, which in ((count == 0, "none"), (count > 1, "several")):
        if wrong.any():
            text = f"{int(wrong.sum()):,} rows with a 1 in {which} of {', '.join(columns)} are LEFT OUT"
            messages.append(f"{text} ({rows_text(table, wrong)})")
    table = table[count == 1]
    classes = one_hot_classes(table, columns)
    present = [name for name in columns if (classes == name).any()]
    if unused := [name for name in columns if name not in present]:
        messages.append(f"no row has a 1 in {', '.join(unused)}: not a class")
    if len(present) < 2:
        raise DataError(f"{place}: the one-hot columns have {len(present)} class; at least 2 are needed")
    if len(present) == 2:
        present = sorted(present, key=lambda name: is_positive(name.lower()))
    label = classes.map({name: str(k) for k, name in enumerate(present)})
    target = "binary_label" if len(present) == 2 else "label"
    return finish(table, label, present, "", target, f"{len(present)} one-hot columns are the label", messages)


def finish(
    table: pd.DataFrame, label: pd.Series, names: list[str], column: str, target: str, origin: str, messages: list[str]
) -> tuple[pd.DataFrame, list[str], str]:
    """Returns the table with the numbers in the column `target`; another column of that name is kept as `csv_...`."""
    messages.append(f"{origin}: {shortened([f'{k} = {text}' for k, text in enumerate(names)], 25)}")
    if len(names) == 2:
        messages.append(f"AUROC takes class 1 ({names[1]}) as positive; if that is wrong, number the classes yourself")
    if target in table and target != column:
        table = table.rename(columns={target: f"csv_{target}"})
    return table.assign(**{target: label}), names, target


def rows_text(table: pd.DataFrame, chosen: pd.Series) -> str:
    """Returns the first few of the chosen rows, as `rows 2, 5, 9`."""
    rows = table.loc[chosen, "row"]
    return f"rows {', '.join(map(str, rows.head(5)))}{', ...' if len(rows) > 5 else ''}"


def shortened(texts: list[str], shown: int = 10) -> str:
    """Returns a list in one line: the first few, and how many more."""
    rest = f" and {len(texts) - shown:,} more" if len(texts) > shown else ""
    return ", ".join(texts[:shown]) + rest


def normalise(value: str) -> str:
    """Returns one spelling for labels of one class, such as `Melanoma` and `melanoma `, or `1` and `1.0`."""
    return re.sub(r"\s+", " ", re.sub(r"^(\d+)\.0+$", r"\1", value.strip())).casefold()


def order_classes(classes: list[str]) -> list[str]:
    """Returns class names in label order: numerical or alphabetical; of two names, the diseased one last."""
    numeric = all(re.fullmatch(r"-?\d+", text) for text in classes)
    ordered = sorted(classes, key=int) if numeric else sorted(classes)
    if len(ordered) == 2 and not numeric:
        ordered.sort(key=is_positive)
    return ordered


def is_positive(name: str) -> bool:
    """Returns whether a class, in lower case, is named after a disease."""
    return bool(POSITIVE.search(name)) and not NEGATIVE.search(name)


def companion_names(table: pd.DataFrame, label: pd.Series, column: str) -> list[str]:
    """Returns class names from a text column that matches the class numbers one to one, [] if there is none."""
    for other in by_name(list(table), "label"):
        pairs = pd.DataFrame({"label": label, "text": table[other]}).drop_duplicates()
        words = not pairs["text"].str.fullmatch(r"[\d.]*").any()
        if other != column and words and pairs["label"].is_unique and pairs["text"].is_unique:
            return list(pairs.assign(k=pairs["label"].astype(int)).sort_values("k")["text"])
    return []
