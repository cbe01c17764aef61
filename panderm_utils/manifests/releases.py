"""How a dataset's table is made from its original release, where the table of upstream's archive cannot be had."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """The official files of a dataset, and what upstream's table has of them.

    A release lists its images in a table, whose rows have a split or are numbered in a file for each split; or it has a
    folder of images for each class; or upstream's table cannot be made from it.

    Attributes:
        lacks: What it lacks of the published data: its images help only those who have upstream's table. "": nothing.
        table: The file that lists the images, with the folder it lies in, if it has one; "": there are folders.
        separator: What separates its cells.
        image: Its column of the images' names, with or without suffix.
        label: Its column of classes.
        labels: Value of that column, or folder -> class; images of other values are not in the dataset. Empty: the
            values are the names of the classes.
        split: Its column of splits.
        indexes: Split -> file of the numbers of its rows, counted from 0, under a line with a name.
        changes: Image -> split, where upstream's table has another.
        counts: Images of each class in all splits, in label order, if the manifest has no `class_counts` of them.
        note: In what the table may differ from upstream's.
    """

    lacks: str = ""
    table: str = ""
    separator: str = ","
    image: str = ""
    label: str = ""
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    split: str = ""
    indexes: dict[str, str] = dataclasses.field(default_factory=dict)
    changes: dict[str, str] = dataclasses.field(default_factory=dict)
    counts: tuple[int, ...] = ()
    note: str = ""
