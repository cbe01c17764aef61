"""The paper's tables as DataFrames drawn from records, and their CSV, LaTeX and Markdown files."""

import re
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from panderm_utils.leftovers import temporary
from panderm_utils.manifests import (
    PublishedResult,
    fitting,
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

INTERVAL = re.compile(r"\[(\S+), (\S+)\]")  # an interval in a narrow column stays on one line
ANY = object()  # of a setting: whatever it is


def paper_scores(
    runs: pd.DataFrame,
    profile: str,
    protocol: str = "linear_probe",
    seed: int | None = 0,
    own: bool = False,
    **settings,
) -> pd.DataFrame:
    """Picks the rows of `records.read_records` that a table or figure of the paper shows, in the profile's order.

    Args:
        runs: A row a run and metric.
        seed: None: runs of every seed.
        own: Whether the user's own datasets come too, after the paper's.
        settings: Which runs are meant where they differ in settings; by default those with the published settings; ANY
            where it does not matter.

    Returns:
        The rows of the profile's datasets, with `dataset_label` and `encoder_label` for people.
    """
    wanted = {**DEFAULT_SETTINGS[protocol], **settings, "seed": ANY if seed is None else seed}
    runs = runs[runs["protocol"] == protocol] if "protocol" in runs else runs
    datasets = list(load_profile(profile).datasets)
    if own:
        others = sorted(set(runs["dataset"]) - set(datasets))
        datasets += [name for name in others if name in list_datasets() and load_dataset_manifest(name).own]
    keep = runs["dataset"].isin(datasets)
    for name, value in wanted.items():
        if value is ANY:
            continue
        if name in runs:
            keep &= runs[name].isna() if value is None else runs[name].eq(value)
        else:
            keep &= value is None
    rows = runs[keep].reset_index(drop=True)
    rows["dataset_label"] = [load_dataset_manifest(name).short_title for name in rows["dataset"]]
    rows["encoder_label"] = [load_encoder_manifest(name).title for name in rows["encoder"]]
    order = {name: i for i, name in enumerate(_encoder_order(rows["encoder"]))}
    position = {"d": rows["dataset"].map(datasets.index), "e": rows["encoder"].map(order), "s": rows.get("seed")}
    position = pd.DataFrame(position)
    return rows.loc[position.sort_values(["d", "e", "s"], kind="stable").index].reset_index(drop=True)


def encoder_colors(scores: pd.DataFrame) -> dict[str, str]:
    """Returns the label and the colour of each encoder in `scores`, in one order everywhere."""
    present = [load_encoder_manifest(name) for name in _encoder_order(scores["encoder"])]
    return {encoder.title: encoder.color for encoder in present}


def missing_runs(
    scores: pd.DataFrame, profile: str, protocol: str = "linear_probe", seed: int | None = None, **settings
) -> pd.DataFrame:
    """Lists the protocol's runs of the profile that have no record, each with the command that makes it.

    Args:
        scores: The rows of `paper_scores`, which was given the same seed and settings.
    """
    known, there = load_profile(profile), set(zip(scores["dataset"], scores["encoder"], strict=True))
    command = f"python run_all.py --profile {profile} --protocols {protocol}"
    more = "" if seed in (None, known.seeds[0]) else f" --seeds {seed}"
    more += "".join(f" -p {n}={v}" for n, v in settings.items() if v != DEFAULT_SETTINGS[protocol].get(n))
    rows = [
        {"dataset": d, "encoder": e, "command": f"{command} --datasets {d} --encoders {e}{more}"}
        for d in fitting(known.datasets, protocol)
        for e in known.choice(protocol).encoders
        if (d, e) not in there
    ]
    return pd.DataFrame(rows, columns=["dataset", "encoder", "command"])


def linear_probe_table(scores: pd.DataFrame) -> pd.DataFrame:
    """A row a dataset and encoder, a column a metric, each cell `value [low, high]`."""
    cells = scores[["value", "low", "high"]].itertuples(index=False)
    return wide(scores, [f"{v:.3f} [{a:.3f}, {b:.3f}]" for v, a, b in cells])


def wide(rows: pd.DataFrame, texts: list[str]) -> pd.DataFrame:
    """A row a dataset and encoder, a column a metric, each cell the text of its row."""
    cells = rows.assign(text=texts).pivot(index=["dataset_label", "encoder_label"], columns="metric", values="text")
    order = rows[["dataset_label", "encoder_label"]].drop_duplicates()
    cells = cells.reindex(index=pd.MultiIndex.from_frame(order), columns=[m for m in METRIC_TITLES if m in cells])
    return cells.rename(columns=METRIC_TITLES).rename_axis(index=["Dataset", "Encoder"], columns=None).reset_index()


def in_words(scores: pd.DataFrame, column: str = "value") -> str:
    """Returns what a figure of scores shows as text, for readers who cannot see it: a part a dataset and metric."""
    groups = scores.groupby(["dataset_label", "metric"], sort=False)
    parts = {
        f"{dataset} ({METRIC_TITLES[metric]})": ", ".join(
            f"{label} {value:.3f}" for label, value in zip(rows["encoder_label"], rows[column], strict=True)
        )
        for (dataset, metric), rows in groups
    }
    return "; ".join(f"{name}: {values}" for name, values in parts.items()) or "no record yet"


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

    Args:
        scores: A row a run and metric. Of several runs of a dataset and encoder, the one whose settings are nearest to
            the published ones is taken.

    Returns:
        A row a published number: dataset, encoder, metric, published, ours, low, high, verdict, settings (of the
        published run), differs (what was otherwise in ours), run_id, source. The verdict is "reproduced" (the
        published value lies inside our interval), "outside the interval" or "not run". Records of drawn images are
        never compared.
    """
    ours = scores.iloc[0:0] if synthetic else scores
    rows = []
    for result in load_published_results():
        if result.protocol != protocol:
            continue
        told = ", ".join(f"{name} {value}" for name, value in result.settings.items())
        runs = ours[(ours["dataset"] == result.dataset) & (ours["encoder"] == result.encoder)]
        others = [(run["run_id"], otherwise(run, result)) for run in runs.drop_duplicates("run_id").to_dict("records")]
        run, differs = min(others, key=lambda other: len(other[1]), default=(None, {}))
        cells = runs[runs["run_id"] == run].set_index("metric")
        for metric, published in result.metrics.items():
            row = {"dataset": result.dataset, "encoder": result.encoder, "metric": metric, "published": published}
            if metric in cells.index:
                cell = cells.loc[metric]
                inside = cell["low"] <= published <= cell["high"]
                row |= {"ours": cell["value"], "low": cell["low"], "high": cell["high"], "run_id": run}
                row |= {
                    "verdict": "reproduced" if inside else "outside the interval",
                    "differs": "; ".join(f"{n} {a}, not {b}" for n, (a, b) in differs.items()) or "nothing",
                }
            rows.append({"verdict": "not run", **row, "settings": told, "source": result.source})
    columns = ["dataset", "encoder", "metric", "published", "ours", "low", "high", "verdict"]
    return pd.DataFrame(rows).reindex(columns=[*columns, "settings", "differs", "run_id", "source"])


def otherwise(run: dict, result: PublishedResult) -> dict[str, tuple]:
    """Returns what a run did otherwise than the published one: setting -> (the run's, the published).

    What a published result does not name was as the protocol has it, and so was what a run left at None.
    """
    usual = dict(DEFAULT_SETTINGS[result.protocol])
    if result.protocol == "fine_tune":
        from panderm_utils.recipe import FineTuneRecipe  # loads torch, which no other table needs

        usual |= asdict(FineTuneRecipe())
    wanted = {**usual, **result.settings}
    for name in ("tta", "replicates"):  # scores with views are other metrics; the interval is ours alone
        wanted.pop(name, None)
    mine = {name: usual.get(name) if pd.isna(run.get(name)) else run[name] for name in wanted}
    return {name: (mine[name], wanted[name]) for name in wanted if mine[name] != wanted[name]}


def write_tables(table: pd.DataFrame, folder: Path, name: str, formats=("csv", "tex", "md")) -> list[Path]:
    """Writes a table as name.csv, name.tex and name.md (to temporary names, renamed) and returns the paths."""
    plain = {"index": False, "missingval": "", "disable_numparse": True}  # a text "1.000" stays as it is
    writers = {
        "csv": lambda: table.to_csv(index=False),
        "tex": lambda: table.to_latex(index=False, escape=True, na_rep=""),
        "md": lambda: table.astype(object).where(table.notna(), None).to_markdown(**plain) + "\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind in formats:
        path = folder / f"{name}.{kind}"
        new = temporary(path)
        new.write_text(writers[kind](), encoding="utf-8")
        new.replace(path)
        paths.append(path)
    return paths


def with_suffix(scores: pd.DataFrame, others: pd.DataFrame, suffix: str) -> pd.DataFrame:
    """Returns two tables of metrics as one; the second's metrics get a suffix, such as "_tta"."""
    return pd.concat([scores, others.rename(index=lambda metric: f"{metric}{suffix}")]).rename_axis(scores.index.name)


def readable(table: pd.DataFrame, rows: int = 30):
    """Returns a table as a notebook should show it: whole texts, four decimals as upstream, at most `rows` rows.

    Counts have thousands separators, what is missing is a dash, and a caption says how many rows are not shown.
    """
    shown = table.head(rows)
    formats = {
        name: "{:.4f}" if pd.api.types.is_float_dtype(kind) else "{:,}"
        for name, kind in table.dtypes.items()
        if pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)
    }
    texts = [name for name in shown if name not in formats]
    formats |= dict.fromkeys(texts, lambda text: INTERVAL.sub("[\\1,\u00a0\\2]", str(text)))
    style = shown.style.format(formats, na_rep="–", escape="html").format_index(escape="html")
    style = style.set_properties(subset=texts, **{"text-align": "left", "white-space": "pre-wrap"})
    style = style.set_table_styles({name: [{"selector": "th", "props": "text-align: left"}] for name in texts})
    if len(shown.columns) >= 8:
        style = style.set_table_attributes('style="font-size: 11px"')  # so that a page holds it
    if shown.index.equals(pd.RangeIndex(len(shown))):
        style = style.hide()
    if table.empty:
        return style.set_caption("nothing")
    return style if len(shown) == len(table) else style.set_caption(f"the first {rows} of {len(table):,} rows")


def _encoder_order(names) -> list[str]:
    """Known encoders in the order of encoders.yaml, then any others by name."""
    present, known = set(names), list_encoders()
    return [name for name in known if name in present] + sorted(present - set(known))
