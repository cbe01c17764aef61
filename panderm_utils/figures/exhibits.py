"""A figure or table of the report of own data."""

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Exhibit:
    """A figure or a table, with the words around it.

    Attributes:
        name: Of its files.
        words: What it shows and how to read it, in Markdown.
        figure, table: One of the two; `alt` is the figure's alternative text.
        records: Ids of the records that it was made from.
    """

    name: str
    title: str
    words: str
    figure: Figure | None = None
    table: pd.DataFrame | None = None
    alt: str = ""
    records: tuple[str, ...] = ()


def upright(table: pd.DataFrame, keys: list[str], heading: str, value: str) -> pd.DataFrame:
    """Returns a wide table of one row as two columns, its headings (but for `keys`) and its cells; others unchanged."""
    if len(table) != 1:
        return table
    row = table.drop(columns=keys).iloc[0]
    return pd.DataFrame({heading: row.index, value: row.to_numpy()})
