"""The scoreboard: verdicts with the right signs, commands that repeat the published run, and the paper item by item."""

import ast
import dataclasses
import shlex
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

from panderm_utils import cli, workspace
from panderm_utils.batch import plan, what_is_missing
from panderm_utils.figures import paper as paper_plots
from panderm_utils.figures import tables
from panderm_utils.manifests import ManifestError
from panderm_utils.manifests import reading as manifests
from panderm_utils.protocols import load_protocol
from panderm_utils.results import differing_settings, records
from panderm_utils.results import published as scoreboard
from tests.results import published_run

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks/paper"
PUBLISHED = manifests.load_published_results()
HAM = next(r for r in PUBLISHED if r.protocol == "linear_probe")
PAD = next(r for r in PUBLISHED if r.dataset == "pad_ufes")


@pytest.fixture
def space(tmp_path):
    return workspace.open_workspace("paper", tmp_path / "data", tmp_path / "weights", tmp_path / "out")


def board_of(space):
    return scoreboard.scoreboard(records.read_records(space.records), space, load_protocol, what_is_missing)


def test_numbers_inside_above_and_below_our_interval(space):
    ours = {metric: (value + 0.001, value - 0.01, value + 0.01) for metric, value in HAM.metrics.items()}
    ours["accuracy"] = (0.94, 0.93, 0.95)  # published 0.923701: below
    ours["balanced_accuracy"] = (0.72, 0.70, 0.75)  # published 0.796631: above
    ours["auroc"] = (0.98, HAM.metrics["auroc"], 1.0)  # on the very end of the interval: inside
    published_run.save(published_run.begin(space, HAM), ours)
    board = board_of(space)
    assert len(board) == sum(len(r.metrics) for r in PUBLISHED) == 26
    rows = board[board["protocol"] == "linear_probe"].set_index("metric")
    assert rows["published"].to_dict() == HAM.metrics
    assert rows["verdict"].value_counts().to_dict() == {"reproduced": 4, "outside the interval": 2}
    assert rows.loc["accuracy", "by_how_much"] == pytest.approx(0.923701 - 0.93)
    assert rows.loc["balanced_accuracy", "by_how_much"] == pytest.approx(0.796631 - 0.75)
    assert rows["by_how_much"].notna().sum() == 2
    assert rows.loc["accuracy", "difference"] == pytest.approx(0.94 - 0.923701)
    assert rows.loc["balanced_accuracy", "difference"] == pytest.approx(0.72 - 0.796631)
    assert set(rows["run_id"]) == {"ham10000-linear_probe-panderm_large-seed0"}
    assert set(rows["missing"]) == {""}
    assert set(rows["differs"]) == {"nothing"}
    others = board[board["protocol"] == "fine_tune"]
    assert set(others["verdict"]) == {"not run"}
    assert others[["ours", "low", "high", "by_how_much", "difference", "run_id"]].isna().all(axis=None)
    total = scoreboard.scoreboard_summary(board).set_index("run")
    assert total.loc["all"].to_dict() == {
        "published": 26,
        "reproduced": 4,
        "outside": 2,
        "not comparable": 0,
        "not run": 20,
    }
    assert total.loc["HAM10000, PanDerm (large), linear probing"].tolist() == [6, 4, 2, 0, 0]
    assert scoreboard.scoreboard_sentence(board) == (
        "4 of 26 numbers reproduced, 2 outside our interval, 0 not comparable, 20 not run"
    )
    assert "balanced_accuracy 0.797 (ours 0.720, outside the interval)" in scoreboard.scoreboard_alt_text(board)


def planned_by(text, space):
    """The jobs of the command that the scoreboard tells to type, as run_all.py would plan them."""
    command = shlex.split(text[text.index("python run_all.py") :])[2:]
    options = cli.build_parser().parse_args(command)
    selection = (options.datasets, options.encoders, options.protocols, options.seeds)
    assert options.profile == "paper"
    return plan.make_plan(space, *selection, overrides=options.p).runs


@pytest.mark.parametrize("result", PUBLISHED, ids=lambda r: f"{r.dataset}-{r.protocol}-{r.encoder}")
def test_the_command_of_a_missing_run_is_the_published_run_like_for_like(result, space):
    other = dataclasses.replace(result, settings={**result.settings, "weighted_sampling": False, "epochs": 30})
    for published in [result] + [other] * (result.protocol == "fine_tune"):
        text = what_is_missing(published, space)
        (job,) = planned_by(text, space)
        assert job.name.startswith(f"{result.dataset}-{result.protocol}-{result.encoder}-seed")
        protocol = load_protocol(result.protocol)
        assert differing_settings({**protocol.settings, **job.parameters}, protocol, published) == {}
    usual = what_is_missing(result, space)
    assert ("--seeds 122 -p monitor=acc" in usual) == (result is PAD)
    assert ("-p" in usual.split()) == (result is PAD)  # nothing is given that is as usual


def test_what_is_missing_is_looked_for(space):
    def said(result):
        return what_is_missing(result, space).split("python")[0]

    assert said(HAM) == "the data and the weights; then: "
    card = manifests.load_dataset_manifest("ham10000")
    (space.data_root / card.image_root).mkdir(parents=True)
    (space.data_root / card.csv).parent.mkdir()
    (space.data_root / card.csv).write_text("image,split,label\n")
    assert said(HAM) == "the weights; then: "
    space.weights_root.mkdir()
    (space.weights_root / manifests.load_encoder_manifest("panderm_large").weights_file).touch()
    assert said(HAM) == "nothing but the run: "
    assert said(PAD) == "the data; then: "


def test_drawn_images_are_compared_with_nothing_and_their_files_are_no_data(tmp_path):
    space = workspace.open_workspace("demo", output_root=tmp_path)
    card = manifests.load_dataset_manifest("ham10000")
    (space.data_root / card.image_root).mkdir(parents=True)
    ours = {metric: (value, value - 0.1, value + 0.1) for metric, value in HAM.metrics.items()}
    published_run.save(published_run.begin(space, HAM), ours)
    board = board_of(space)
    assert set(board["verdict"]) == {"not run"}
    assert board[["ours", "low", "high", "run_id"]].isna().all(axis=None)
    assert (
        board["missing"].str.startswith("synthetic images reproduce no published number; the paper's run: python").all()
    )


def test_the_figure_shows_each_number_where_it_is(space):
    ours = {metric: (value, value - 0.01, value + 0.01) for metric, value in HAM.metrics.items()}
    ours["accuracy"] = (0.95, 0.93, 0.97)
    published_run.save(published_run.begin(space, HAM), ours)
    board = board_of(space)
    figure = paper_plots.scoreboard(board, tables.encoder_colors(board))
    (axis,) = figure.axes
    diamonds = [line for line in axis.lines if line.get_marker() == "D"]
    np.testing.assert_allclose([line.get_xdata()[0] for line in diamonds], board["published"])
    assert [line.get_markerfacecolor() for line in diamonds] == ["black"] * 6 + ["white"] * 20
    np.testing.assert_allclose(
        [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o"], board["ours"][:6]
    )
    ends = np.concatenate([c.get_segments() for c in axis.collections])[:, :, 0]
    np.testing.assert_allclose(ends, board[["low", "high"]][:6])
    assert {c.get_color()[0].tobytes() for c in axis.collections} == {
        np.append(plt.matplotlib.colors.to_rgb("#D55E00"), 0.45).tobytes()
    }
    texts = [text.get_text() for text in axis.texts]
    assert texts.count("reproduced") == 5
    assert texts.count("not run") == 20
    assert texts.count("outside by -0.0063") == 1
    assert "HAM10000, PanDerm (large), linear probing, n = 1,232" in texts


# The paper's figures and tables.


BEYOND = {"figure_umap", "figure_calibration", "scoreboard", "table_leakage"}  # show nothing that the paper has


def test_every_item_has_a_notebook_or_a_reason_and_every_notebook_an_item():
    items = manifests.load_paper_items()
    named = {name for item in items for name in item.notebooks}
    there = {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    assert named <= there
    assert there - BEYOND <= named
    table = scoreboard.paper_items()
    assert len(table) == len(items) > 20
    assert set(table["access"]) == {"public", "mixed", "private"}
    assert (table.loc[table["access"] == "private", "notebooks"] == "none").all()
    assert (table.loc[table["notebooks"] == "none", "note"] != "").all()
    row = table.set_index("item").loc["Fig. 2d"]
    assert (row["access"], row["notebooks"]) == ("mixed", "figure_2d")
    assert "MMT-09" in row["data"]


def test_what_is_wrong_with_an_item_is_told_all_at_once(tmp_path):
    shutil.copytree(ROOT / "data_manifests", tmp_path / "m", ignore=shutil.ignore_patterns("*.pth"))
    path = tmp_path / "m/paper_items.yaml"
    path.write_text(
        "- {item: A, shows: s, data: d, access: secret, note: n}\n"
        "- {item: B, shows: s, data: d, access: public}\n"
        "- {item: A, shows: s, data: d, access: private, notebooks: [figure_2a]}\n"
        "- {item: C, shows: s, data: d, access: public, notebook: [figure_2a]}\n"
    )
    with pytest.raises(ManifestError) as error:
        manifests.check_manifests(tmp_path / "m")
    text = str(error.value)
    assert f"{path}: entry 1: access: 'secret' is unknown; write one of public, mixed, private" in text
    assert f"{path}: entry 2: note: missing; without a notebook, say why there is none" in text
    assert f"{path}: entry 3: notebooks: none can show private data" in text
    assert f"{path}: item: 'A' is item of paper_items.yaml too; write another" in text
    assert "did you mean 'notebooks'?" in text


# The notebooks, run in this process: whatever records there are.


def run_notebook(name, **parameters):
    """Executes a notebook's cells in order and returns its names and what each cell shows."""
    names, shown = {}, {}
    for cell in nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type != "code":
            continue
        if cell.id == "parameters":
            exec(cell.source, names)
            assert set(parameters) <= set(names)
            names |= parameters
            continue
        *steps, last = ast.parse(cell.source).body
        assert isinstance(last, ast.Expr), f"{cell.id} ends with nothing to see"
        exec(compile(ast.Module(steps, []), cell.id, "exec"), names)
        value = eval(compile(ast.Expression(last.value), cell.id, "eval"), names)
        assert value is not None
        shown[cell.id] = value.to_html() if hasattr(value, "to_html") else value
    return names, shown


@pytest.mark.parametrize("there", ["nothing", "one"])
@pytest.mark.parametrize(("name", "more"), [("figure_2d", {}), ("figure_umap", {"method": "pca"}), ("scoreboard", {})])
def test_a_notebook_runs_on_whatever_is_there_and_says_what_is_missing(space, name, more, there):
    if there == "one":
        for dataset in ("ham10000", "dermnet"):  # without features in any cache
            scores = dict.fromkeys(HAM.metrics, (0.9, 0.8, 0.95))
            published_run.save(published_run.begin(space, dataclasses.replace(HAM, dataset=dataset)), scores)
    folders = {"data_root": str(space.data_root)} if name != "figure_2d" else {}
    _, shown = run_notebook(name, profile="paper", output_root=str(space.root.parent), **folders, **more)
    figure = shown["figure"]
    texts = {text.get_text() for text in figure.findobj(plt.Text)}
    if name == "scoreboard":
        assert ("0 of 26" in shown["sentence"]) == (there == "nothing")
        assert "-p monitor=acc" in shown["missing"]
        for table in ("scoreboard", "paper_items"):
            assert all((space.tables / f"{table}.{kind}").is_file() for kind in ("csv", "tex", "md"))
        saved = pd.read_csv(space.tables / "scoreboard.csv")
        wanted = "dataset protocol encoder metric published ours low high verdict by_how_much missing run_id source"
        assert set(wanted.split()) <= set(saved)
        assert len(saved) == 26
        assert "SDDI2" in shown["private"]
        assert "SDDI2" not in shown["uncovered"]
        assert "figure_2b" in shown["items"]
    else:
        nothing = {"no record yet", "no features of a record"} & texts
        assert bool(nothing) == (name == "figure_umap" or there == "nothing")
        assert ("--encoders panderm_large" in shown["missing"]) == (there == "nothing")
        assert "--encoders panderm_base" in shown["missing"]
    if name == "figure_umap":
        assert ("--encoders panderm_large --seeds 0 --force" in shown["gone"]) == (there == "one")
    assert "synthetic demo data" not in texts
    assert {path.suffix for path in shown["save"]} == {".pdf", ".png"}
    assert (space.figures / f"{name}.csv").is_file()
