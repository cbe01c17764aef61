"""Decides what each column of your CSV is, by its name, its values and your flags; asks where that is not clear.

A column has one role. Where several columns fit a role, or only columns of unknown names, nothing is guessed:
`OpenQuestions` lists them, with what they contain and the flags to choose them by.
"""

from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import PurePosixPath

import pandas as pd

from panderm_utils.data.column_contents import (
    NAMES,
    SAMPLE,
    SPLIT_NAMES,
    by_likeness,
    by_name,
    classes_text,
    could_be_classes,
    has_only,
    image_columns,
    is_within,
    mask_columns,
    one_hot_classes,
    one_hot_columns,
    repeats_like_patients,
    role_of,
    same_classes,
    split_values,
    without_missing,
)
from panderm_utils.data.column_questions import OpenQuestions, Question
from panderm_utils.data.csv_tables import DataError
from panderm_utils.data.own_sources import Source

GROUPS = ("lesion", "patient")
METADATA = ("age", "sex", "site", "skin_tone", "institution")
RESERVED = {"image": "image", "split": "split", "label": "label", "binary_label": "label"}  # by the CSV contract
NONE = "none"  # after --split, --patient, --lesion or --mask: no column is; after --label: masks are enough


@dataclass
class Roles:
    """What the columns are.

    Attributes:
        image: The column of images.
        mask: The column of masks; "" if there is none, though masks may be named after the images.
        label: The column of labels, or several one-hot columns; () if there are only masks.
        split: The column of splits; "" if there is none to use.
        groups, metadata: Kind -> column.
        messages: An explanation of each decision.
    """

    image: str = ""
    mask: str = ""
    label: tuple[str, ...] = ()
    split: str = ""
    groups: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


def find_roles(source: Source, flags: dict[str, list[str]], drawn: bool) -> Roles:
    """Returns what the columns are.

    Args:
        source: The table and images.
        flags: Role (label, image, mask, split, patient or lesion) -> the columns that the user named for it, or `none`.
        drawn: Whether the splits will be drawn even if there is a column of splits.

    Raises:
        OpenQuestions: Several columns fit a role, or only columns of unknown names.
        DataError: A flag is wrong, or no column can be the images' or the label.
    """
    return _Decisions(source, flags).decide(drawn)


class _Decisions:
    """Roles are decided in turn; each decision removes its columns from `free`."""

    def __init__(self, source: Source, flags: dict[str, list[str]]):
        self.source, self.roles = source, Roles()
        self.cells = source.table.drop(columns="row").apply(without_missing)
        self.flags = ({"split": [source.split]} if source.split else {}) | flags
        self.questions: list[Question] = []
        self.empty = [name for name in self.cells if self.cells[name].isna().all()]
        self._check_flags()
        flagged = {name for names in self.flags.values() for name in names}
        self.free = [name for name in self.cells if name not in flagged and name not in self.empty]
        for name in self.empty:
            if role := role_of(name):
                self._say(f"column `{name}` is empty: it is not used as the {role.replace('_', ' ')}")

    def decide(self, drawn: bool) -> Roles:
        """Returns the roles, or raises OpenQuestions with all questions."""
        for find in (self._find_mask, self._find_image, self._find_label, self._find_split, self._find_metadata):
            used = find()
            self.free = [name for name in self.free if name not in used]
        for kind in GROUPS:
            self._find_group(kind)
        self._look_for_patients(drawn or not self.roles.split)
        if self.questions:
            raise OpenQuestions(self.source.place, self.questions)
        if self.free:
            self._say(f"kept, without a role: {', '.join(f'`{name}`' for name in self.free)}")
        return self.roles

    def _say(self, message: str) -> None:
        self.roles.messages.append(message)

    def _ask(self, why: str, flag: str, meanings: dict[str | tuple[str, ...], str]) -> None:
        choices = [([f"--{flag}", *([key] if isinstance(key, str) else key)], text) for key, text in meanings.items()]
        self.questions.append(Question(why, choices))

    def _check_flags(self) -> None:
        """Raises DataError unless every column that a flag names exists, has values, and has one role."""
        place, roles = self.source.place, {}
        for role, names in self.flags.items():
            for name in names:
                if name == NONE and role in ("label", "mask", "split", *GROUPS):
                    continue
                if name not in self.cells:
                    near = get_close_matches(name, list(self.cells), 3, 0.5) or list(self.cells)
                    raise DataError(f"{place}: --{role} {name}: no such column; write one of {', '.join(near)}")
                if name in self.empty:
                    raise DataError(f"{place}: --{role} {name}: the column is empty; name another")
                if RESERVED.get(name, role) != role:
                    raise DataError(f"{place}: --{role} {name}: the name is for the {RESERVED[name]}; rename it")
                if name in roles:
                    raise DataError(f"{place}: {name} is both --{roles[name]} and --{role}; a column has one role")
                roles[name] = role

    def _find_mask(self) -> list[str]:
        """Decides which column names the masks, if one does; returns it."""
        masks = self.source.masks or self.source.images
        found, unfound = mask_columns(self.cells, self.free, masks)
        if "mask" not in self.flags and not found:
            for name in unfound:
                remedy = "to use it, give the folder that its names are relative to: --masks DIR"
                self._say(f"column `{name}` names no mask below {masks.root}; {remedy}")
        columns = [name for name in self.flags.get("mask", found) if name != NONE]
        if len(columns) > 1:
            files = {name: self.cells[name].map(masks.find, na_action="ignore").dropna() for name in columns}
            meanings = {name: f"{len(names):,} masks, such as {names.iloc[0]}" for name, names in files.items()}
            self._ask("Which column names the masks?", "mask", {**meanings, NONE: "no column does"})
        self.roles.mask = columns[0] if columns else ""
        return columns

    def _find_image(self) -> list[str]:
        """Decides which column names the images; returns all that do, as none of them has another role."""
        images, cells = self.source.images, self.cells
        candidates = image_columns(cells, self.free, images)
        if "image" in self.flags:
            candidates = [*self.flags["image"], *candidates]
        found = {name: cells[name].dropna().map(images.find).dropna() for name in candidates}
        if not candidates or not len(found[candidates[0]]):
            column = [*candidates, *by_name(self.free, "image"), *self.free, *cells][0]
            raise DataError(f"{self.source.place}: {self._no_image(column)}")
        if "image" not in self.flags:
            candidates.sort(key=lambda name: (name != "image", role_of(name) != "image", -len(found[name])))
        first, *others = candidates
        different = [name for name in others if not found[name].equals(found[first].reindex(found[name].index))]
        if different and first != "image" and "image" not in self.flags:
            meanings = {n: f"{len(found[n]):,} images, such as {found[n].iloc[0]}" for n in (first, *different)}
            self._ask("Which column names the images?", "image", meanings)
        self.roles.image = first
        for name in others:
            self._say(f"column `{name}` names images too, and is not used")
        return candidates

    def _no_image(self, column: str) -> str:
        images, values = self.source.images, self.cells[column]
        suffixes = pd.Series([PurePosixPath(file).suffix for file in images.files]).value_counts()
        contents = ", ".join(f"{n:,} x {suffix}" for suffix, n in suffixes.head(4).items())
        return (
            f"none of the first {min(len(values), SAMPLE):,} rows names an image below {images.root}. Column "
            f"`{column}` has, for example, {values.iloc[0]!r}; the folder has {contents}, for example "
            f"{images.files[0]!r}. Give --images the folder that the names are relative to, or name the column with "
            "--image COLUMN"
        )

    def _find_label(self) -> list[str]:
        """Decides which column, or which one-hot columns, are the label; returns all that could be."""
        masks = self.source.masks is not None or self.roles.mask
        if self.flags.get("label") == [NONE] and not masks:
            raise DataError(f"{self.source.place}: --label none is for images with masks; give them with --masks DIR")
        if "label" in self.flags:
            self.roles.label = () if self.flags["label"] == [NONE] else tuple(self.flags["label"])
            return []
        cells = self.cells
        contract = [name for name in ("label", "binary_label") if name in self.free]
        named = contract or by_name(self.free, "label")
        values = {(name,): cells[name] for name in named if could_be_classes(cells[name])}
        if not contract and (block := one_hot_columns(cells, self.free)):
            values = {names: column for names, column in values.items() if names[0] not in block}
            values = {tuple(block): one_hot_classes(cells, block), **values}
        different: list[tuple[str, ...]] = []
        for names in values:
            if not any(same_classes(values[names], values[other]) for other in different):
                different.append(names)
        if len(different) > 1:
            meanings = {names: classes_text(values[names]) for names in different}
            self._ask("Which column is the label?", "label", meanings)
        elif values or named:  # why a column cannot be used is said when it is read
            self.roles.label = different[0] if different else (named[0],)
        else:
            likely = [name for name in self.free if not role_of(name) and could_be_classes(cells[name])]
            likely = by_likeness(likely, "label")[:10]
            if masks:
                named = " or ".join(f"--label {name}" for name in likely[:5])
                self._say(f"no label: the dataset has masks alone{f'; if there are classes: {named}' if named else ''}")
                return []
            if not likely:
                names = [f"{name} (empty)" if name in self.empty else name for name in cells]
                found = f"no label column among {', '.join(names)}"
                remedy = "name yours: --label COLUMN; or give masks: --masks DIR"
                raise DataError(f"{self.source.place}:1: {found}; {remedy}")
            why = f"Which column is the label? None has a known name ({', '.join(NAMES['label'].split()[:6])}, ...)."
            self._ask(why, "label", {name: classes_text(cells[name]) for name in likely})
            return []
        return list(self.roles.label) or [name for names in different for name in names]

    def _find_split(self) -> list[str]:
        """Decides which column is the split, if there is one; returns it, and any that says the same."""
        if "split" in self.flags:
            self.roles.split = "" if self.flags["split"] == [NONE] else self.flags["split"][0]
            return []
        splits = {name: split_values(self.cells[name]) for name in by_name(self.free, "split")}
        for name in list(splits):
            if not {"train", "test"} <= set(splits[name].dropna()):
                self._say(f"column `{name}` is not used as the split: it does not have both train and test")
                del splits[name]
        for name in self.free:  # a name in another language, with values that leave no doubt
            if not role_of(name) and has_only(self.cells[name].dropna(), {*SPLIT_NAMES}):
                values = split_values(self.cells[name])
                splits |= {name: values} if {"train", "test"} <= set(values) else {}
        first = next(iter(splits), "")
        different = [name for name in splits if name != first and not splits[name].equals(splits[first])]
        if different and first != "split":
            meanings = {name: classes_text(self.cells[name]) for name in (first, *different)}
            self._ask("Which column is the split?", "split", {**meanings, NONE: "none: draw a new split"})
        self.roles.split = first
        return [name for name in splits if name == first or name not in different]

    def _find_metadata(self) -> list[str]:
        for kind in METADATA:
            for name in by_name(self.free, kind)[:1]:
                self.roles.metadata[kind] = name
                self._say(f"column `{name}` is the {kind.replace('_', ' ')}")
        return list(self.roles.metadata.values())

    def _find_group(self, kind: str) -> None:
        """Decides which column is the lesion or the patient: of patients and their cases, the patient."""
        columns = []
        for name in by_name(self.free, kind) if kind not in self.flags else []:
            if self.cells[name].dropna().is_unique:
                self._say(f"column `{name}` has a different value in each row: it is not used as the {kind}")
            else:
                columns.append(name)
        whole = [name for name in columns if all(is_within(self.cells[other], self.cells[name]) for other in columns)]
        if columns and not whole:
            self._ask_group(f"Which column is the {kind}?", kind, columns)
        for name in self.flags.get(kind, whole[:1]):
            if name != NONE:
                self.roles.groups[kind] = name
                self._say(f"column `{name}` is the {kind}: kept together in splits")
        used = [*self.roles.groups.values(), *(columns if not whole else ())]
        self.free = [name for name in self.free if name not in used]

    def _look_for_patients(self, drawn: bool) -> None:
        """Names the columns of unknown names that may be the patient's; asks if a split is to be drawn."""
        asked = any(question.choices[0][0][0] == "--patient" for question in self.questions)
        if asked or "patient" in self.roles.groups or "patient" in self.flags:
            return
        sex = self.cells[self.roles.metadata["sex"]] if "sex" in self.roles.metadata else None
        likely = [name for name in self.free if not role_of(name) and repeats_like_patients(self.cells[name], sex)]
        likely = by_likeness(likely, "patient")[:5]
        if likely and drawn:
            why = (
                "Is one of these the patient's id (or, by --lesion, the lesion's)? A split drawn without it may put a "
                "patient's images into both train and test."
            )
            self._ask_group(why, "patient", likely)
        elif likely:
            flags = " or ".join(f"--patient {name}" for name in likely)
            self._say(f"no patient id is known, so leakage by patient is not checked; if there is one: {flags}")

    def _ask_group(self, why: str, kind: str, columns: list[str]) -> None:
        meanings = {}
        for name in columns:
            known = self.cells[name].dropna()
            meanings[name] = f"{known.nunique():,} values in {len(known):,} rows, such as {known.iloc[0]}"
        self._ask(why, kind, {**meanings, NONE: f"no column is the {kind}"})
