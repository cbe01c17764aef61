"""Frozen dataclasses of what was published: numbers of runs, and the paper's figures and tables."""

import typing
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PublishedResult:
    """Published numbers of one run, with their source."""

    dataset: str
    protocol: str
    encoder: str
    metrics: dict[str, float]
    source: str
    settings: dict[str, typing.Any] = field(default_factory=dict)
    split_sizes: dict[str, int] | None = None
    cost: dict[str, typing.Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PaperItem:
    """A figure or table of the paper, or a part of one, and where this package shows it.

    Attributes:
        data: The data behind it.
        access: "public", "private" or "mixed", according to the paper's data availability statement.
        notebooks: Those of notebooks/paper that show it; if none, `note` says why.
    """

    item: str
    shows: str
    data: str
    access: str
    notebooks: tuple[str, ...] = ()
    note: str = ""
