"""What the report of own data shows of label efficiency."""

import pandas as pd

from panderm_utils.figures import METRIC_TITLES, Exhibit, encoder_colors, upright
from panderm_utils.protocols.label_efficiency.data_needed import data_needed_table, find_match, sentence
from panderm_utils.protocols.label_efficiency.plots import efficiency_curves
from panderm_utils.protocols.label_efficiency.sweep import label_efficiency_table, read_curves


def study_exhibits(scores: pd.DataFrame) -> list[Exhibit]:
    """Returns the curve and the table of a dataset's runs (rows of `results.study_runs`), in words too."""
    curves, draws = (read_curves(scores, file) for file in ("curve.csv", "draws.csv"))
    curves, draws = (rows[rows["headline"]].reset_index(drop=True) for rows in (curves, draws))
    match, ids = find_match(draws), tuple(dict.fromkeys(curves["run_id"]))
    answers = [sentence(*match)] if match else [_gain(rows) for _, rows in curves.groupby("encoder_label", sort=False)]
    words = (
        f"{'. '.join(answers)}. The band spans the draws of labels, the bars are 95% intervals over the test images."
    )
    figure = efficiency_curves(curves, encoder_colors(scores), match)
    alt = f"The score against the fraction of training labels. {'. '.join(answers)}"
    exhibits = [Exhibit("labels_needed", "The score against the number of labels", words, figure, alt=alt, records=ids)]
    table = label_efficiency_table(curves).replace({"metric": METRIC_TITLES}).drop(columns="Dataset")
    table = upright(table, ["Encoder", "metric"], "labels", METRIC_TITLES[curves["metric"].iloc[0]])
    note = "Mean over the draws ± their standard deviation [95% interval]."
    exhibits.append(Exhibit("label_fractions", "Every fraction of the labels", note, table=table, records=ids))
    if match:
        needed = data_needed_table(draws).replace({"metric": METRIC_TITLES}).drop(columns="Dataset")
        note = "With how many labels one encoder matches another that uses all."
        exhibits.append(Exhibit("labels_to_match", "How much data is needed", note, table=needed, records=ids))
    return exhibits


def _gain(rows: pd.DataFrame) -> str:
    """Returns how much the last doubling of the labels gained, which says whether more labels would help."""
    rows = rows.sort_values("fraction")
    full = rows.iloc[-1]
    half = rows.iloc[(rows["fraction"] - 0.5).abs().argmin()]
    metric = METRIC_TITLES[full["metric"]]
    return (
        f"{full['encoder_label']}: {metric} is {half['value']:.3f} with {half['images']:.0f} labelled images and "
        f"{full['value']:.3f} with all {full['images']:.0f}; a curve that still rises at its end asks for more labels"
    )
