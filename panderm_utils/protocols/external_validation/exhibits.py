"""What the report of own data shows of external validation."""

import pandas as pd

from panderm_utils.figures import Exhibit, encoder_colors, figure_2c, scores_alt_text
from panderm_utils.protocols.external_validation.study import read_left_out, read_panel


def study_exhibits(scores: pd.DataFrame) -> list[Exhibit]:
    """Returns the figure and the table of a dataset's runs (rows of `results.study_runs`)."""
    panel = read_panel(scores)
    ids = tuple(dict.fromkeys(panel["run_id"]))
    words = "Melanoma against the rest: trained on this dataset, tested on its own test split and on other datasets."
    alt = f"AUROC of melanoma against the rest. {scores_alt_text(panel)}"
    figure = figure_2c(panel, encoder_colors(panel))
    table = panel.drop(columns=["run_id", "encoder", "dataset", "metric"])
    exhibits = [
        Exhibit("external", "On other datasets", words, figure, alt=alt, records=ids),
        Exhibit("external_table", "AUROC on each dataset", "With 95% intervals.", table=table, records=ids),
    ]
    if len(left_out := read_left_out(scores)):
        exhibits.append(Exhibit("left_out", "Datasets left out", "And why.", table=left_out, records=ids))
    return exhibits
