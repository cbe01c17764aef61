"""What a column's name and its values say about its role; `column_roles` decides."""

import re
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import PurePosixPath

import pandas as pd

from panderm_utils.data.csv_tables import is_missing
from panderm_utils.data.image_files import SUFFIXES, ImageIndex

# Known column names, likeliest first, each of one role; compared as `plain` returns them.
NAMES = {
    "image": "image image_id image_name filename file path image_path image_file img img_id isic_id",
    "split": "split set partition subset",
    "label": "label binary_label target class diagnosis dx category diagnostic y label_name class_name ground_truth gt "
    "benign_malignant malignant malignancy melanoma disease pathology",
    "lesion": "lesion_id lesion",
    "patient": "patient_id patient person_id subject_id subject case_id case case_num",
    "age": "age age_approx",
    "sex": "sex gender",
    "site": "localization site anatom_site_general anatomical_site body_site region location",
    "skin_tone": "skin_tone fitzpatrick fitspatrick fitzpatrick_skin_type fitzpatrick_scale skin_type phototype monk",
    "institution": "institution hospital centre center clinic",
}
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "ts", "holdout"), "test"),
}
MASK = re.compile("mask|seg")  # in the names of columns of masks
SAMPLE = 500  # rows that are looked at where every row would take long
ONE_HOT = {**dict.fromkeys(("0", "0.0", "false"), 0), **dict.fromkeys(("1", "1.0", "true"), 1)}
DECIMAL = r"-?\d*[.,]\d*[1-9]\d*"
DATE = r"\d{1,4}([-./])\d{1,2}\1\d{1,4}.*"


def plain(name: str) -> str:
    """Returns a column name's letters and digits in lower case, without a number at its end, as in `diagnosis_3`."""
    return re.sub(r"[\W_]+", "", re.sub(r"[\W_]\d+$", "", name)).casefold()


ROLES = {plain(name): role for role, names in NAMES.items() for name in names.split()}


def role_of(name: str) -> str:
    """Returns the role that a column's name states, "" if the name is unknown."""
    return ROLES.get(plain(name), "")


def by_name(columns: list[str], role: str) -> list[str]:
    """Returns the columns whose name states the role, likeliest first."""
    order = [plain(name) for name in NAMES[role].split()]
    return sorted((name for name in columns if role_of(name) == role), key=lambda name: order.index(plain(name)))


def by_likeness(columns: list[str], role: str) -> list[str]:
    """Returns the columns, first those whose names are most like the role's, as Diagnose is for a label."""

    def likeness(name: str) -> float:
        return max(SequenceMatcher(None, plain(name), plain(known)).ratio() for known in NAMES[role].split())

    return sorted(columns, key=likeness, reverse=True)


def without_missing(cells: pd.Series) -> pd.Series:
    """Returns a column of stripped text with missing values for the cells that mean "no value"."""
    short = pd.Series([value for value in cells.unique() if len(value) < 6], dtype=object)  # fast for long tables
    return cells.mask(cells.isin(short[is_missing(short)]))


def has_only(values: pd.Series, words: set[str]) -> bool:
    """Returns whether every cell is one of the words, in any case; the first rows decide about most columns."""
    return all({str(value).lower() for value in part.unique()} <= words for part in (values.head(SAMPLE), values))


def image_columns(cells: pd.DataFrame, columns: list[str], images: ImageIndex) -> list[str]:
    """Returns the columns that name images: those of known names if any cell does, others if most of their cells do."""
    sure, likely = [], []
    for name in columns:
        values = cells[name].dropna().head(SAMPLE)
        found = values.map(images.find).dropna()
        most = 2 * len(found) > len(values)
        files = values.map(lambda value: PurePosixPath(value.lower()).suffix in SUFFIXES).mean() > 0.5
        if len(found) and (role_of(name) == "image" or (most and files)):
            sure.append(name)
        elif most and 2 * found.nunique() > len(found):  # not an age or a class number that happens to match files
            likely.append(name)
    return sure or [name for name in likely if not role_of(name)] or likely


def mask_columns(cells: pd.DataFrame, columns: list[str], masks: ImageIndex) -> tuple[list[str], list[str]]:
    """Returns the columns called a mask's most of whose cells name masks, and those that name other image files."""
    named = {name: cells[name].dropna().head(SAMPLE) for name in columns if MASK.search(plain(name))}
    found = [name for name, values in named.items() if values.map(masks.find).notna().mean() > 0.5]
    files = [name for name, values in named.items() if values.str.lower().str.endswith(SUFFIXES).mean() > 0.5]
    return found, [name for name in files if name not in found]


def could_be_classes(values: pd.Series) -> bool:
    """Returns whether a column has two or more values, few for its rows, and neither decimals nor dates."""
    known = values.dropna()
    n = known.nunique()
    few = 2 <= n < len(known) and (n <= 20 or 3 * n <= len(known))
    return few and known.head(SAMPLE).str.fullmatch(f"{DATE}|{DECIMAL}").mean() < 0.2


def same_classes(one: pd.Series, other: pd.Series) -> bool:
    """Returns whether two columns divide the rows in the same way, as class numbers and their names do."""
    pairs = pd.DataFrame({"one": one, "other": other}).drop_duplicates().dropna(how="all")
    return not pairs.isna().any(axis=None) and pairs["one"].is_unique and pairs["other"].is_unique


def classes_text(values: pd.Series) -> str:
    """Returns a column's classes with their counts, most frequent first."""
    counts = values.value_counts()
    rest = f", and {len(counts) - 6:,} more" if len(counts) > 6 else ""
    return f"{len(counts):,} classes: " + ", ".join(f"{name} {n:,}" for name, n in counts.head(6).items()) + rest


def one_hot_columns(cells: pd.DataFrame, columns: list[str]) -> list[str]:
    """Returns the longest run of three or more columns of 0 and 1 with a single 1 in 9 of 10 rows, [] if none."""
    best: list[str] = []
    for binary, group in groupby(columns, lambda name: has_only(cells[name], {*ONE_HOT})):
        run = list(group) if binary else []
        ones = one_hot_values(cells, run).to_numpy() if run else None
        for start in range(len(run)):
            for end in range(start + max(3, len(best) + 1), len(run) + 1):
                part = ones[:, start:end]
                if (part.sum(axis=1) == 1).mean() >= 0.9 and part.any(axis=0).sum() >= 2:
                    best = run[start:end]
    return best


def one_hot_values(cells: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Returns the cells of one-hot columns as 0 and 1; missing where a cell is neither."""
    return cells[columns].apply(lambda values: values.str.lower().map(ONE_HOT))


def one_hot_classes(cells: pd.DataFrame, columns: list[str]) -> pd.Series:
    """Returns the name of each row's column with the 1; missing where none or several have one."""
    ones = one_hot_values(cells, columns)
    return ones.fillna(0).idxmax(axis=1).where(ones.sum(axis=1) == 1)


def split_values(values: pd.Series) -> pd.Series:
    """Returns a column's split names as train, val and test; missing where a cell is none of them."""
    return values.str.lower().map(SPLIT_NAMES).astype(object)


def is_within(part: pd.Series, whole: pd.Series) -> bool:
    """Returns whether all rows that share a value of `part` share one of `whole` too."""
    return bool((whole.groupby(part).nunique() <= 1).all())


def repeats_like_patients(values: pd.Series, sex: pd.Series | None) -> bool:
    """Returns whether a column may be a patient's id: many values, each of a few rows, and those of one sex.

    Decimals, dates and columns of few values, such as body sites, are not.
    """
    known = values.dropna()
    if 2 * len(known) < len(values) or known.head(SAMPLE).str.fullmatch(f"{DATE}|{DECIMAL}").mean() > 0.2:
        return False
    n, rows = known.nunique(), len(known)
    if n < 8 or n > 0.95 * rows or (n <= 50 and rows > 30 * n):
        return False
    if sex is None:
        return True
    repeated = known[known.duplicated(keep=False)]
    return bool((sex[repeated.index].groupby(repeated).nunique() <= 1).mean() >= 0.9)
