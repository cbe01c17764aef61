"""The tables of two sets of predictions on the same test images, drawn from the rows of `comparison`."""

import pandas as pd

from panderm_utils.figures.plots import METRIC_TITLES
from panderm_utils.figures.tables import wide
from panderm_utils.manifests import Protocol, published_value

# Heading -> column of `comparison.compare_encoders`.
TESTS = {"p": "p_value", "p (Holm)": "p_holm", "p (t)": "p_t"}


def protocols_table(comparison: pd.DataFrame, sides: tuple[Protocol, Protocol], synthetic: bool) -> pd.DataFrame:
    """The question of Supplementary Table 2: a row a dataset and encoder, its headline metric by both protocols.

    Args:
        comparison: Rows of `results.compare_protocols`, of one seed; sides: the two protocols.
        synthetic: Drawn images have no published numbers: those two columns are left out.
    """
    rows = comparison[comparison["headline"]]
    table = _side_by_side(rows, _columns(sides), {"p": "p_value"})
    for protocol in () if synthetic else sides:
        keys = zip(rows["dataset"], rows["encoder"], rows["metric"], strict=True)
        values = [published_value(dataset, protocol.name, encoder, metric) for dataset, encoder, metric in keys]
        table[f"Published {protocol.title}"] = ["" if v is None else f"{v:.3f}" for v in values]
    return table


def comparisons_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """A row a dataset and other encoder: the headline metric of the reference and of the other, and three p-values.

    Args:
        comparison: Rows of `comparison.compare_encoders`, of one seed.
    """
    rows = comparison[comparison["headline"]]
    reference = next(iter(rows["reference_label"]), "Reference")
    table = _side_by_side(rows, {reference: "reference", "The other": "other"}, TESTS)
    return table.rename(columns={"Encoder": "Compared with"})


def differences_table(comparison: pd.DataFrame) -> pd.DataFrame:
    """A row a dataset and encoder, a column a metric: the difference with its interval."""
    return wide(comparison, _differences(comparison))


def seeds_table(comparison: pd.DataFrame, sides: tuple[Protocol, Protocol]) -> pd.DataFrame:
    """The headline metric over seeds, where there are several: mean (lowest to highest) by protocol, and the gain."""
    rows = comparison[comparison["headline"]]
    groups = [(key, g) for key, g in rows.groupby(["dataset_label", "encoder_label"], sort=False) if len(g) > 1]
    found = []
    for (dataset, encoder), group in groups:
        row = {"Dataset": dataset, "Encoder": encoder, "Metric": METRIC_TITLES[group["metric"].iloc[0]]}
        row["Seeds"] = " ".join(map(str, group["seed"]))
        for title, name in {**_columns(sides), "Difference": "difference"}.items():
            mean, low, high = group[name].mean(), group[name].min(), group[name].max()
            sign = "+" if name == "difference" else ""
            row[title] = "" if pd.isna(mean) else f"{mean:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"
        found.append(row)
    columns = ["Dataset", "Encoder", "Metric", "Seeds", *_columns(sides), "Difference"]
    return pd.DataFrame(found, columns=columns)


def _columns(sides: tuple[Protocol, Protocol]) -> dict[str, str]:
    """Heading -> column of `results.compare_protocols`."""
    first, second = (side.title.capitalize() for side in sides)
    return {first: sides[0].name, second: sides[1].name, f"{second}, 5 views": "views"}


def _side_by_side(rows: pd.DataFrame, sides: dict[str, str], tests: dict[str, str]) -> pd.DataFrame:
    """A row a comparison: the scores of all sides, difference, p-values, verdict; sides, tests: heading -> column."""
    table = pd.DataFrame({"Dataset": rows["dataset_label"], "Encoder": rows["encoder_label"]})
    table["Metric"] = rows["metric"].map(METRIC_TITLES)
    for title, name in sides.items():
        cells = rows[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)
        table[title] = ["" if pd.isna(v) else f"{v:.3f} [{a:.3f}, {b:.3f}]" for v, a, b in cells]
    table["Difference"] = _differences(rows)
    for title, name in tests.items():
        table[title] = [_p_value(p) for p in rows[name]]
    table["Verdict"], table["Test images"] = rows["verdict"], rows["images"]
    return table.reset_index(drop=True)


def _differences(rows: pd.DataFrame) -> list[str]:
    cells = rows[["difference", "low", "high"]].itertuples(index=False)
    return ["" if pd.isna(d) else f"{d:+.3f} [{low:+.3f}, {high:+.3f}]" for d, low, high in cells]


def _p_value(p: float) -> str:
    return "" if pd.isna(p) else "<0.001" if p < 0.001 else f"{p:.3f}"
