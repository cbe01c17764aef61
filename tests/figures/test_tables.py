"""Tables: the right runs, in the right order, with honest verdicts."""

import io
import re

import numpy as np
import pandas as pd
import pytest

from panderm_utils import workspace
from panderm_utils.figures import paper as paper_plots
from panderm_utils.figures import plots, tables
from panderm_utils.manifests import reading as manifests
from panderm_utils.protocols import load_protocol
from panderm_utils.protocols.fine_tune.metrics import evaluate_fine_tuning
from panderm_utils.results import published_verdicts, records, selection

METRICS = ("accuracy", "balanced_accuracy", "quadratic_kappa", "weighted_f1", "auroc", "aupr")


def runs(*cells, value=0.92, profile="paper", seed=0, **settings):
    """Rows as `records.read_records` has them; a cell is (dataset, encoder)."""
    rows = []
    for dataset, encoder in cells:
        headline = manifests.load_dataset_manifest(dataset).headline_metric
        for i, metric in enumerate(METRICS):
            row = {"run_id": f"{dataset}-{encoder}", "dataset": dataset, "encoder": encoder, "seed": seed}
            row |= {
                "protocol": "linear_probe",
                **load_protocol("linear_probe").settings,
                **settings,
                "metric": metric,
                "headline": metric == headline,
            }
            rows.append(row | {"value": value - i / 100, "low": value - i / 100 - 0.02, "high": value - i / 100 + 0.02})
    return pd.DataFrame(rows)


@pytest.fixture
def scores():
    cells = [("ddi", "dinov2_large"), ("ham10000", "panderm_base"), ("ham10000", "panderm_large")]
    return selection.paper_scores(runs(*cells), "paper", load_protocol("linear_probe"))


def test_rows_come_in_the_profiles_order_with_names_for_people(scores):
    shown = scores.drop_duplicates(["dataset", "encoder"])
    assert shown["dataset"].tolist() == ["ham10000", "ham10000", "ddi"]
    assert shown["encoder"].tolist() == ["panderm_large", "panderm_base", "dinov2_large"]
    assert shown["dataset_label"].tolist() == ["HAM10000", "HAM10000", "DDI"]
    assert list(tables.encoder_colors(scores)) == ["PanDerm (large)", "PanDerm (base)", "DINOv2 (large)"]


def test_only_the_published_settings_and_the_asked_seed_are_shown():
    both = pd.concat(
        [
            runs(("ddi", "panderm_large"), value=0.9),
            runs(("ddi", "panderm_large"), value=0.5, train_fraction=0.1),
            runs(("ddi", "panderm_large"), value=0.4, solver="sklearn"),
            runs(("ddi", "panderm_large"), value=0.3, seed=1),
            runs(("demo", "panderm_large"), value=0.2),
        ]
    )
    assert selection.paper_scores(both, "paper", load_protocol("linear_probe"))["value"].max() == 0.9
    assert len(selection.paper_scores(both, "paper", load_protocol("linear_probe"))) == len(METRICS)
    assert selection.paper_scores(both, "paper", load_protocol("linear_probe"), seed=1)["value"].max() == 0.3
    assert selection.paper_scores(both, "paper", load_protocol("linear_probe"), solver="sklearn")["value"].max() == 0.4


def test_a_setting_that_does_not_matter_leaves_all_others_asked_for():
    both = pd.concat(
        [
            runs(("ddi", "panderm_large"), value=0.9),
            runs(("ddi", "panderm_large"), value=0.4, solver="sklearn"),
            runs(("ddi", "panderm_large"), value=0.5, train_fraction=0.1),
            runs(("ddi", "panderm_large"), value=0.3, seed=1),
        ]
    )
    found = selection.paper_scores(both, "paper", load_protocol("linear_probe"), solver=selection.ANY)
    assert found.groupby("solver", dropna=False)["value"].max().tolist() == [0.9, 0.4]
    assert len(found) == 2 * len(METRICS)


def test_no_records_give_empty_tables_and_all_runs_missing():
    empty = selection.paper_scores(
        pd.DataFrame(columns=["dataset", "protocol", "encoder", "run_id", "metric", "value"]),
        "paper",
        load_protocol("linear_probe"),
    )
    assert empty.empty
    missing = selection.missing_runs(empty, "paper", load_protocol("linear_probe"))
    paper = manifests.load_profile("paper")
    assert len(missing) == len(load_protocol("linear_probe").supported(paper.datasets)) * len(paper.encoders)
    assert not set(missing["dataset"]) & {"ph2", "med_node"}
    assert set(published_verdicts(empty, load_protocol("linear_probe"), synthetic=False)["verdict"]) == {"not run"}


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_figures_and_tables_of_nothing_are_drawn_and_say_so(tmp_path, own):
    """No record at all, or only of own data: the paper's notebooks must still run."""
    space = workspace.open_workspace("paper", output_root=tmp_path)
    if own:
        run = records.begin_run(load_protocol("linear_probe"), "mine", "panderm_tiny", 0, space)
        metrics = pd.DataFrame(dict.fromkeys(("value", "low", "high"), 0.5), index=list(METRICS))
        records.save_record(run, metrics, records.prediction_table(["a"], [0], [[0.7, 0.3]]), "auroc")
    scores = selection.paper_scores(
        records.read_records(space.records, "linear_probe"), "paper", load_protocol("linear_probe")
    )
    headline = scores[scores["headline"]]
    for figure in (
        paper_plots.figure_2a(headline, tables.encoder_colors(headline)),
        paper_plots.extended_data_figure_1(scores, tables.encoder_colors(scores)),
    ):
        assert "no record yet" in [text.get_text() for axis in figure.axes for text in axis.texts]
        plots.save_figure(figure, tmp_path, "figure", list(scores["run_id"]), tables.scores_alt_text(scores))
    assert tables.metrics_table(scores).empty
    tables.write_tables(tables.metrics_table(scores), tmp_path, "table")
    assert tables.upstream_results(scores) == {}
    assert set(published_verdicts(scores, load_protocol("linear_probe"), synthetic=False)["verdict"]) == {"not run"}


def test_missing_runs_name_the_command(scores):
    missing = selection.missing_runs(scores, "paper", load_protocol("linear_probe"))
    assert ("ham10000", "panderm_large") not in set(zip(missing["dataset"], missing["encoder"], strict=True))
    assert "python run_all.py --profile paper --protocols linear_probe --datasets ddi --encoders panderm_large" in set(
        missing["command"]
    )


def test_cells_are_value_and_interval(scores):
    table = tables.metrics_table(scores)
    assert table["Dataset"].tolist() == ["HAM10000", "HAM10000", "DDI"]
    assert table.loc[0, "Accuracy"] == "0.920 [0.900, 0.940]"
    assert table.loc[0, "AUPR"] == "0.870 [0.850, 0.890]"


def test_upstreams_table_has_its_columns_and_four_decimals():
    scores = selection.paper_scores(
        runs(("ham10000", "panderm_large"), value=0.123456), "paper", load_protocol("linear_probe")
    )
    text = tables.upstream_results(scores)["panderm_large"].to_csv(index=False)
    assert text == "Dataset,W_F1,AUROC,BACC,ACC,AUPR\nham10000,0.0935,0.0835,0.1135,0.1235,0.0735\n"


def test_runs_of_every_seed_come_in_order_where_asked_for():
    both = pd.concat([runs(("ddi", "panderm_large"), seed=s) for s in (2, 0)] + [runs(("hiba", "panderm_large"))])
    found = selection.paper_scores(both, "paper", load_protocol("linear_probe"), seed=None).drop_duplicates(
        ["dataset", "seed"]
    )
    assert found[["dataset", "seed"]].to_numpy().tolist() == [["hiba", 0], ["ddi", 0], ["ddi", 2]]


def test_an_interval_is_never_broken_over_two_lines():
    html = tables.readable(pd.DataFrame({"AUROC": ["0.900 [0.880, 0.920]"], "names": ["a, b"]})).to_html()
    assert "0.900 [0.880,\u00a00.920]" in html
    assert "a, b" in html


def test_a_wide_table_is_set_smaller():
    wide = {columns: tables.readable(pd.DataFrame([range(columns)])).to_html() for columns in (7, 8)}
    assert ["font-size" in html for html in wide.values()] == [False, True]


def test_tables_are_written_in_three_formats(tmp_path):
    table = pd.DataFrame({"Dataset": ["a & b", "<script>"], "AUROC": [0.5, 0.25]})
    csv, tex, md = tables.write_tables(table, tmp_path / "t", "table")
    pd.testing.assert_frame_equal(pd.read_csv(csv), table)
    assert "a \\& b" in tex.read_text()
    rows = pd.read_csv(io.StringIO(md.read_text()), sep="|", skipinitialspace=True).iloc[1:, 1:-1]
    assert [cell.strip() for cell in rows.iloc[:, 0]] == ["a & b", "<script>"]
    assert len(list(csv.parent.iterdir())) == 3


def test_readable_tables_show_whole_texts_few_digits_and_no_markup():
    table = pd.DataFrame(
        {
            "why": ["x" * 200, "<script>alert(1)</script>"],
            "value": [0.123456, np.nan],
            "images": pd.array([12345, None], dtype="Int64"),
        },
        index=["a", "<b>"],
    )
    html = tables.readable(table).to_html()
    for wanted in ("x" * 200, "0.1235", "12,345", "&lt;script&gt;", "&lt;b&gt;", "–"):
        assert wanted in html
    assert "<script>" not in html
    long = tables.readable(pd.DataFrame({"n": range(5000)})).to_html()
    assert long.count("<tr>") == 31
    assert "the first 30 of 5,000 rows" in long
    assert "nothing" in tables.readable(table.iloc[:0]).to_html()


def test_a_dataset_of_another_profile_is_not_shown():
    rows = runs(("ham10000", "panderm_base"), ("demo", "panderm_base"))
    assert set(selection.paper_scores(rows, "paper", load_protocol("linear_probe"))["dataset"]) == {"ham10000"}


def test_one_number_under_several_names_is_one_row():
    proba = np.random.default_rng(0).dirichlet(np.ones(3), 60)
    scores = evaluate_fine_tuning(np.arange(60) % 3, proba, replicates=20, seed=0)
    html = tables.readable(scores).to_html()
    assert "balanced_accuracy (= sensitivity, macro_recall)" in html
    assert "accuracy (= weighted_recall)" in html
    assert html.count("<tr>") == 2 + len(scores) - 3
    scores.loc["sensitivity", "high"] += 0.01  # no longer the same number
    assert "balanced_accuracy (= macro_recall)" in tables.readable(scores).to_html()


def test_fractions_are_percentages_and_counts_are_whole():
    html = tables.readable(pd.DataFrame({"fraction": [0.05, 0.07], "images": [30.6, 1042.0], "value": 0.5})).to_html()
    for text in (">5%<", ">7%<", ">31<", ">1,042<", ">0.5000<"):
        assert text in html


def test_what_decides_stands_first_in_a_wide_table():
    names = ["dataset", "encoder", "epochs", "low", "high", "images", "note", "value", "verdict"]
    head = re.findall(r"col_heading[^>]*>([^<]+)<", tables.readable(pd.DataFrame(columns=names)).to_html())
    assert head == ["dataset", "encoder", "verdict", "value", "epochs", "low", "high", "images", "note"]
    narrow = names[3:]
    head = re.findall(r"col_heading[^>]*>([^<]+)<", tables.readable(pd.DataFrame(columns=narrow)).to_html())
    assert head == narrow
