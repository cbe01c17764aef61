"""The paper's tables as DataFrames drawn from records, and their CSV, LaTeX and Markdown files."""

import os
from pathlib import Path

import pandas as pd

from panderm_utils.manifests import (
    list_datasets,
    list_encoders,
    load_dataset_manifest,
    load_encoder_manifest,
    load_profile,
    load_published_results,
)
from panderm_utils.plots import METRIC_TITLES
from panderm_utils.workspace import DEFAULT_SETTINGS

# Upstream's results table: its column -> our metric.
UPSTREAM_COLUMNS = {
    "W_F1": "weighted_f1",
    "AUROC": "auroc",
    "BACC": "balanced_accuracy",
    "ACC": "accuracy",
    "AUPR": "aupr",
}


def paper_scores(
    runs: pd.DataFrame, profile: str, protocol: str = "linear_probe", seed: int = 0, own: bool = False, **settings
) -> pd.DataFrame:
    """Picks the rows of `records.read_records` that a table or figure of the paper shows, in the profile's order.

    Args:
        runs: A row a run and metric.
        own: Whether the user's own datasets come too, after the paper's.
        settings: Which runs are meant where they differ in settings; by default those with the published settings.

    Returns:
        The rows of the profile's datasets, with `dataset_label` and `encoder_label` for people.
    """
    wanted = {**DEFAULT_SETTINGS[protocol], **settings, "seed": seed}
    runs = runs[runs["protocol"] == protocol] if "protocol" in runs else runs
    datasets = list(load_profile(profile).datasets)
    if own:
        others = sorted(set(runs["dataset"]) - set(datasets))
        datasets += [name for name in others if name in list_datasets() and load_dataset_manifest(name).own]
    keep = runs["dataset"].isin(datasets)
    for name, value in wanted.items():
        if name in runs:
            keep &= runs[name].isna() if value is None else runs[name].eq(value)
        else:
            keep &= value is None
    rows = runs[keep].copy()
    rows["dataset_label"] = [load_dataset_manifest(name).short_title for name in rows["dataset"]]
    rows["encoder_label"] = [load_encoder_manifest(name).title for name in rows["encoder"]]
    order = {name: i for i, name in enumerate(_encoder_order(rows["encoder"]))}
    position = pd.DataFrame({"d": rows["dataset"].map(datasets.index), "e": rows["encoder"].map(order)})
    return rows.loc[position.sort_values(["d", "e"], kind="stable").index].reset_index(drop=True)


def encoder_colors(scores: pd.DataFrame) -> dict[str, str]:
    """Returns the label and the colour of each encoder in `scores`, in one order everywhere."""
    present = [load_encoder_manifest(name) for name in _encoder_order(scores["encoder"])]
    return {encoder.title: encoder.color for encoder in present}


def missing_runs(scores: pd.DataFrame, profile: str, protocol: str = "linear_probe") -> pd.DataFrame:
    """Lists the protocol's runs of the profile that have no record, each with the command that makes it."""
    known, there = load_profile(profile), set(zip(scores["dataset"], scores["encoder"], strict=True))
    command = f"python run_all.py --profile {profile} --protocols {protocol}"
    rows = [
        {"dataset": d, "encoder": e, "command": f"{command} --datasets {d} --encoders {e}"}
        for d in known.datasets
        for e in known.choice(protocol).encoders
        if (d, e) not in there
    ]
    return pd.DataFrame(rows, columns=["dataset", "encoder", "command"])


def linear_probe_table(scores: pd.DataFrame) -> pd.DataFrame:
    """A row a dataset and encoder, a column a metric, each cell `value [low, high]`."""
    text = [f"{v:.3f} [{a:.3f}, {b:.3f}]" for v, a, b in scores[["value", "low", "high"]].itertuples(index=False)]
    cells = scores.assign(text=text).pivot(index=["dataset_label", "encoder_label"], columns="metric", values="text")
    rows = scores[["dataset_label", "encoder_label"]].drop_duplicates()
    cells = cells.reindex(index=pd.MultiIndex.from_frame(rows), columns=[m for m in METRIC_TITLES if m in cells])
    return cells.rename(columns=METRIC_TITLES).rename_axis(index=["Dataset", "Encoder"], columns=None).reset_index()


def upstream_results(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns, for each encoder, the table that upstream's evaluation writes: `Dataset,W_F1,AUROC,BACC,ACC,AUPR`."""
    results = {}
    for encoder, rows in scores.groupby("encoder", sort=False):
        values = rows.pivot(index="dataset", columns="metric", values="value").reindex(rows["dataset"].unique())
        table = pd.DataFrame({column: values[metric].round(4) for column, metric in UPSTREAM_COLUMNS.items()})
        results[encoder] = table.rename_axis("Dataset").reset_index()
    return results


def published_verdicts(scores: pd.DataFrame, protocol: str, synthetic: bool) -> pd.DataFrame:
    """Holds every published number of a protocol against ours.

    Returns:
        A row a published number: dataset, encoder, metric, published, ours, low, high, verdict, run_id, source. The
        verdict is "reproduced" (the published value lies inside our interval), "outside the interval" or "not run".
        Records of drawn images are never compared.
    """
    ours = scores.iloc[0:0] if synthetic else scores
    cells = ours.set_index(["dataset", "encoder", "metric"])
    rows = []
    for result in load_published_results():
        if result.protocol != protocol:
            continue
        for metric, published in result.metrics.items():
            key = (result.dataset, result.encoder, metric)
            row = {"dataset": key[0], "encoder": key[1], "metric": metric, "published": published}
            if key in cells.index:
                cell = cells.loc[key]
                inside = cell["low"] <= published <= cell["high"]
                row |= {"ours": cell["value"], "low": cell["low"], "high": cell["high"], "run_id": cell["run_id"]}
                row["verdict"] = "reproduced" if inside else "outside the interval"
            rows.append({"verdict": "not run", **row, "source": result.source})
    columns = ["dataset", "encoder", "metric", "published", "ours", "low", "high", "verdict", "run_id", "source"]
    return pd.DataFrame(rows).reindex(columns=columns)


def write_tables(table: pd.DataFrame, folder: Path, name: str, formats=("csv", "tex", "md")) -> list[Path]:
    """Writes a table as name.csv, name.tex and name.md (to temporary names, renamed) and returns the paths."""
    writers = {
        "csv": lambda: table.to_csv(index=False),
        "tex": lambda: table.to_latex(index=False, escape=True, na_rep=""),
        "md": lambda: table.to_markdown(index=False) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind in formats:
        path, temporary = folder / f"{name}.{kind}", folder / f".{name}.{os.getpid()}.{kind}"
        temporary.write_text(writers[kind](), encoding="utf-8")
        temporary.replace(path)
        paths.append(path)
    return paths


def with_suffix(scores: pd.DataFrame, others: pd.DataFrame, suffix: str) -> pd.DataFrame:
    """Returns two tables of metrics as one; the second's metrics get a suffix, such as "_tta"."""
    return pd.concat([scores, others.rename(index=lambda metric: f"{metric}{suffix}")]).rename_axis(scores.index.name)


def readable(table: pd.DataFrame, rows: int = 20):
    """Returns a table as a notebook should show it: whole texts, four decimals as upstream, at most `rows` rows.

    Counts have thousands separators, what is missing is a dash, and a caption says how many rows are not shown.
    """
    shown = table.head(rows)
    formats = {
        name: "{:.4f}" if pd.api.types.is_float_dtype(kind) else "{:,}"
        for name, kind in table.dtypes.items()
        if pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)
    }
    style = shown.style.format(formats, na_rep="–", escape="html").format_index(escape="html")
    texts = [name for name in shown if name not in formats]
    style = style.set_properties(subset=texts, **{"text-align": "left", "white-space": "pre-wrap"})
    if shown.index.equals(pd.RangeIndex(len(shown))):
        style = style.hide()
    if table.empty:
        return style.set_caption("nothing")
    return style if len(shown) == len(table) else style.set_caption(f"the first {rows} of {len(table):,} rows")


def _encoder_order(names) -> list[str]:
    """Known encoders in the order of encoders.yaml, then any others by name."""
    present, known = set(names), list_encoders()
    return [name for name in known if name in present] + sorted(present - set(known))
