"""The paper's tables, made from records: DataFrames and their CSV, LaTeX and Markdown files."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from panderm_utils.disk import write_file
from panderm_utils.figures.plots import METRIC_TITLES
from panderm_utils.manifests import load_encoder_manifest
from panderm_utils.results import order_encoders
from panderm_utils.stats import PER_IMAGE

# Upstream's results table: its column -> our metric.
UPSTREAM_COLUMNS = {
    "W_F1": "weighted_f1",
    "AUROC": "auroc",
    "BACC": "balanced_accuracy",
    "ACC": "accuracy",
    "AUPR": "aupr",
}

# Names of one number in the tables of the published fine-tuning: metric -> its synonyms.
SYNONYMS = {"balanced_accuracy": ("sensitivity", "macro_recall"), "accuracy": ("weighted_recall",)}
PERCENT = ("fraction",)  # columns whose numbers are shares
COUNTS = ("images", "iterations")  # columns of counts, also where they are means
# In tables too wide for a page these columns stand directly after those that say what a row is about.
WIDE = 8
SUBJECTS = ("dataset", "encoder", "seed", "protocol", "reference", "other", "matches", "metric")
DECISIVE = ("verdict", "state", "value", "ours", "published", "difference", "p_holm", "p_value")
DAGGER = "†"
UNDEFINED = "– (one class only)"  # kappa, AUROC and AUPR compare classes
INTERVAL = re.compile(r"\[(\S+), (\S+)\]")  # kept on one line in a narrow column


def encoder_colors(scores: pd.DataFrame) -> dict[str, str]:
    """Returns encoder label -> colour of the encoders in `scores`, always in the same order."""
    present = [load_encoder_manifest(name) for name in order_encoders(scores["encoder"])]
    return {encoder.title: encoder.color for encoder in present}


def metrics_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per dataset and encoder, one column per metric, each cell `value [low, high]`.

    A dagger marks intervals that too few test images of a class make too narrow; an undefined metric is a dash with
    the reason.
    """
    cells = zip(scores["value"], scores["low"], scores["high"], few_images(scores), strict=True)
    texts = [f"{v:.3f} [{a:.3f}, {b:.3f}]{DAGGER * few}" for v, a, b, few in cells]
    return wide(scores, [UNDEFINED if pd.isna(v) else text for v, text in zip(scores["value"], texts, strict=True)])


def few_images(scores: pd.DataFrame) -> pd.Series:
    """Returns which rows have an interval that too few test images of a class make too narrow (`stats.evaluate`)."""
    if "unstratified_low" not in scores:
        return pd.Series(False, index=scores.index)
    return scores["unstratified_low"].notna() & ~scores["metric"].isin(PER_IMAGE)


def wide(rows: pd.DataFrame, texts: list[str]) -> pd.DataFrame:
    """Returns one row per dataset and encoder, one column per metric, each cell the text of its row."""
    cells = rows.assign(text=texts).pivot(index=["dataset_label", "encoder_label"], columns="metric", values="text")
    order = rows[["dataset_label", "encoder_label"]].drop_duplicates()
    cells = cells.reindex(index=pd.MultiIndex.from_frame(order), columns=[m for m in METRIC_TITLES if m in cells])
    return cells.rename(columns=METRIC_TITLES).rename_axis(index=["Dataset", "Encoder"], columns=None).reset_index()


def scores_alt_text(scores: pd.DataFrame, column: str = "value") -> str:
    """Returns the alternative text of a figure of scores: one part per dataset and metric."""
    groups = scores.groupby(["dataset_label", "metric"], sort=False)
    parts = {
        f"{dataset} ({METRIC_TITLES[metric]})": ", ".join(
            f"{label} {value:.3f}" for label, value in zip(rows["encoder_label"], rows[column], strict=True)
        )
        for (dataset, metric), rows in groups
    }
    return "; ".join(f"{name}: {values}" for name, values in parts.items()) or "no record yet"


def upstream_results(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns encoder -> the table that upstream's evaluation writes: `Dataset,W_F1,AUROC,BACC,ACC,AUPR`."""
    results = {}
    for encoder, rows in scores.groupby("encoder", sort=False):
        values = rows.pivot(index="dataset", columns="metric", values="value").reindex(rows["dataset"].unique())
        table = pd.DataFrame({column: values[metric].round(4) for column, metric in UPSTREAM_COLUMNS.items()})
        results[encoder] = table.rename_axis("Dataset").reset_index()
    return results


def write_tables(table: pd.DataFrame, folder: Path, name: str, formats=("csv", "tex", "md")) -> list[Path]:
    """Writes a table as name.csv, name.tex and name.md and returns the paths."""
    plain = {"index": False, "missingval": "", "disable_numparse": True}  # keeps the text "1.000"
    writers = {
        "csv": lambda: table.to_csv(index=False),
        "tex": lambda: table.to_latex(index=False, escape=True, na_rep=""),
        "md": lambda: table.astype(object).where(table.notna(), None).to_markdown(**plain) + "\n",
    }
    return [write_file(folder / f"{name}.{kind}", writers[kind]()) for kind in formats]


def with_suffix(scores: pd.DataFrame, others: pd.DataFrame, suffix: str) -> pd.DataFrame:
    """Returns two tables of metrics as one, the metrics of the second with a suffix such as "_tta"."""
    return pd.concat([scores, others.rename(index=lambda metric: f"{metric}{suffix}")]).rename_axis(scores.index.name)


def readable(table: pd.DataFrame, rows: int = 30):
    """Returns a table styled for a notebook: full text, four decimals as upstream, at most `rows` rows.

    Counts have thousands separators, fractions are percentages, missing values are dashes, and a caption says if rows
    are not shown. A number under several names is one row, and in a wide table the decisive columns come first.
    """
    table = _decisive_first(_merge_synonyms(table))
    shown = table.head(rows)
    formats = {
        name: _number_format(name, kind)
        for name, kind in table.dtypes.items()
        if pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)
    }
    texts = [name for name in shown if name not in formats]
    formats |= dict.fromkeys(texts, lambda text: INTERVAL.sub("[\\1,\u00a0\\2]", str(text)))
    style = shown.style.format(formats, na_rep="–", escape="html").format_index(escape="html")
    style = style.set_properties(subset=texts, **{"text-align": "left", "white-space": "pre-wrap"})
    style = style.set_table_styles({name: [{"selector": "th", "props": "text-align: left"}] for name in texts})
    if len(shown.columns) >= WIDE:
        style = style.set_table_attributes('style="font-size: 11px"')  # so that it fits a page
    if shown.index.equals(pd.RangeIndex(len(shown))):
        style = style.hide()
    if table.empty:
        return style.set_caption("nothing")
    return style if len(shown) == len(table) else style.set_caption(f"the first {rows} of {len(table):,} rows")


def _number_format(name: str, kind) -> str | Callable[[float], str]:
    if name in PERCENT:
        return lambda share: f"{100 * share:g}%"
    return "{:.4f}" if pd.api.types.is_float_dtype(kind) and name not in COUNTS else "{:,.0f}"


def _merge_synonyms(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table indexed by metric without the rows that repeat a number under a synonym, which is then named."""
    if table.index.name != "metric" or not table.index.is_unique:
        return table
    names = {}
    for metric in table.index:
        there = [name for name in SYNONYMS.get(metric, ()) if name in table.index]
        if same := [name for name in there if table.loc[name].equals(table.loc[metric])]:
            names[metric] = f"{metric} (= {', '.join(same)})"
            table = table.drop(index=same)
    return table.rename(index=names)


def _decisive_first(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table; if it is wide, what its rows are about comes first, then what decides, then the rest."""
    if len(table.columns) < WIDE:
        return table

    def place(column) -> int:
        name = str(column).lower().removesuffix("_label")
        return 0 if name in SUBJECTS else 1 + DECISIVE.index(name) if name in DECISIVE else 1 + len(DECISIVE)

    return table[sorted(table.columns, key=place)]
