"""Two records side by side: which go together, what is said of them, and the notebooks that show it."""

import ast
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics as sk

from panderm_utils import workspace
from panderm_utils.figures import comparison_plots, tables
from panderm_utils.figures import comparison_plots as comparison_tables
from panderm_utils.manifests import reading as manifests
from panderm_utils.protocols import load_protocol
from panderm_utils.protocols.fine_tune.metrics import evaluate_fine_tuning
from panderm_utils.results import comparison, records, selection
from panderm_utils.stats import metrics, significance
from tests.small_record import rewrite_predictions
from tests.stats.test_significance import predictions

SIDES = load_protocol("linear_probe"), load_protocol("fine_tune")
NOTEBOOK = Path(__file__).parents[2] / "notebooks/paper/table_fine_tuning.ipynb"
ENCODERS = NOTEBOOK.with_name("table_comparisons.ipynb")


def folder_of(root, name, names, y, proba):
    folder = root / name
    folder.mkdir()
    records.prediction_table(names, y, proba).to_csv(folder / "predictions.csv", index=False)
    return folder


@pytest.fixture
def pair(tmp_path):
    (y, a), (_, b) = predictions(), predictions(seed=1)
    names = [f"{i:03}.jpg" for i in range(len(y))]
    return y, a, b, names, folder_of(tmp_path, "probe", names, y, a)


def test_records_in_another_order_are_joined_by_name(pair, tmp_path):
    y, a, b, names, probe = pair
    order = np.random.default_rng(5).permutation(len(y))
    shuffled = folder_of(tmp_path, "tuned", [names[i] for i in order], y[order], b[order])
    for got, wanted in zip(comparison.read_pair(probe, shuffled), (y, a, b), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_an_image_in_two_rows_meets_itself(tmp_path):
    y, a = predictions(4, 2)
    first = folder_of(tmp_path, "probe", ["x", "y", "x", "z"], y[[0, 1, 0, 2]], a[[0, 1, 0, 2]])
    second = folder_of(tmp_path, "tuned", ["z", "x", "x", "y"], y[[2, 0, 0, 1]], a[[2, 0, 0, 1]])
    _, left, right = comparison.read_pair(first, second)
    np.testing.assert_array_equal(left, right)
    third = folder_of(tmp_path, "once", ["z", "x", "y"], y[[2, 0, 1]], a[[2, 0, 1]])
    with pytest.raises(comparison.ComparisonError, match="4 rows, the second 3"):
        comparison.read_pair(first, third)


def test_other_images_labels_or_classes_are_refused_by_name(pair, tmp_path):
    y, _, b, names, probe = pair
    others = ["new.jpg", *names[1:]]
    cases = {
        "images": (others, y, b, r"probe and images .*first has 000.jpg \(1 in all\); .*second has new.jpg .*--force"),
        "labels": (names, np.where(np.arange(60) == 7, (y + 1) % 3, y), b, r"1 images .*007.jpg \(\d, then \d\).*CSV"),
        "classes": (names, y, np.pad(b, ((0, 0), (0, 2))), "3 classes, the second 5; run both"),
        "fewer": (names[:-1], y[:-1], b[:-1], r"only the first has 059.jpg \(1 in all\); run both"),
    }
    for name, (ids, labels, proba, message) in cases.items():
        with pytest.raises(comparison.ComparisonError, match=message):
            comparison.read_pair(probe, folder_of(tmp_path, name, ids, labels, proba))


# From here on: whole records.


def save(space, dataset, encoder="panderm_large", seed=0, tuned_by=1.0, probe=True, tune=True, shift=0, views=True):
    """Leaves a record of each protocol, the fine-tuned one `tuned_by` further from chance, its images in reverse."""
    known = dataset in manifests.list_datasets()
    classes = manifests.load_dataset_manifest(dataset).num_classes if known else 3
    headline = "auroc" if classes == 2 else "weighted_f1"
    images = 30 * classes
    names = [f"{i + shift}.jpg" for i in range(images)]
    if probe:
        y, proba = predictions(images, classes, 1.5, seed)
        run = records.begin_run(load_protocol("linear_probe"), dataset, encoder, seed, space)
        table = records.prediction_table(names, y, proba)
        records.save_record(run, metrics.evaluate(y, proba, 20, seed), table, headline)
    if tune:
        y, proba = predictions(images, classes, 1.5 + tuned_by, seed + 100)
        _, averaged = predictions(images, classes, 1.7 + tuned_by, seed + 200)
        run = records.begin_run(load_protocol("fine_tune"), dataset, encoder, seed, space)
        scores, with_views = (evaluate_fine_tuning(y, p, 20, seed) for p in (proba, averaged))
        back, tables_of = [f"{i}.jpg" for i in reversed(range(images))], {}
        for file, p in (("predictions.csv", proba), ("predictions_tta.csv", averaged)):
            tables_of[file] = records.prediction_table(back, y[::-1], p[::-1])
        tables_of = tables_of if views else {"predictions.csv": tables_of["predictions.csv"]}
        records.save_record(
            run, tables.with_suffix(scores, with_views, "_tta"), tables_of.pop("predictions.csv"), headline, tables_of
        )


def scores_of(space):
    runs = records.read_records(space.records)
    return [selection.paper_scores(runs, space.profile, side, None) for side in SIDES]


@pytest.fixture
def space(tmp_path):
    return workspace.open_workspace("paper", output_root=tmp_path / "out")


def test_only_runs_of_one_dataset_encoder_and_seed_are_paired(space):
    save(space, "ham10000", tuned_by=3)
    save(space, "ham10000", "panderm_base", tune=False)
    save(space, "ddi", seed=1)
    save(space, "hiba", seed=0, tune=False)
    save(space, "hiba", seed=1, probe=False)
    save(space, "pad_ufes", tuned_by=-1.4)
    probes, tuned = scores_of(space)
    table = comparison.compare_protocols(probes, tuned, SIDES, replicates=20)
    headline = table[table["headline"]].set_index("dataset")
    assert headline["metric"].to_dict() == {"ham10000": "weighted_f1", "pad_ufes": "weighted_f1", "ddi": "auroc"}
    assert headline["seed"].to_dict() == {"ham10000": 0, "pad_ufes": 0, "ddi": 1}
    assert len(table) == 3 * len(metrics.METRICS)
    assert headline.loc["ham10000", "verdict"] == "fine-tuning is better"
    assert headline.loc["pad_ufes", "verdict"] == "linear probing is better"
    assert headline.loc["ham10000", "images"] == 210
    # What is computed anew is what the records say, though the two are in another order.
    keys = ["dataset", "encoder", "metric"]
    for rows, name in ((probes, "linear_probe"), (tuned, "fine_tune")):
        said = rows[rows["headline"]].set_index(keys)
        for key, found in table[table["headline"]].set_index(keys).iterrows():
            assert found[name] == pytest.approx(said.loc[key, "value"], abs=1e-12)
            assert found[f"{name}_run"] == said.loc[key, "run_id"]
            if name == "linear_probe":
                assert found["linear_probe_low"] == pytest.approx(said.loc[key, "low"], abs=1e-12)
    views = tuned[tuned["metric"] == "weighted_f1_tta"].set_index("dataset")["value"]
    assert headline.loc["ham10000", "views"] == pytest.approx(views["ham10000"], abs=1e-12)


def test_models_alike_show_no_difference(space):
    save(space, "ham10000", tuned_by=0)
    table = comparison.compare_protocols(*scores_of(space), SIDES, replicates=100)
    assert table.set_index("metric").loc["weighted_f1", "verdict"] == "no difference to be seen"


def test_auroc_is_computed_in_one_way_for_both(space):
    save(space, "ham10000")
    table = comparison.compare_protocols(*scores_of(space), SIDES, replicates=20).set_index("metric")
    y, proba, _ = records.read_predictions(space.records / "ham10000-fine_tune-panderm_large-seed0")
    assert table.loc["auroc", "fine_tune"] == pytest.approx(sk.roc_auc_score(y, proba, multi_class="ovo"))


def test_a_pair_of_other_images_is_left_out_and_named(space):
    save(space, "ham10000", shift=1)
    save(space, "ddi")
    with pytest.warns(comparison.ComparisonWarning, match=r"ham10000-fine_tune-panderm_large-seed0 .*only the first"):
        table = comparison.compare_protocols(*scores_of(space), SIDES, replicates=20)
    assert set(table["dataset"]) == {"ddi"}


def test_a_record_without_views_leaves_their_cells_empty(space):
    save(space, "ddi", views=False)
    table = comparison.compare_protocols(*scores_of(space), SIDES, replicates=20)
    assert comparison_tables.protocols_table(table, SIDES, False).loc[0, "Fine-tuning, 5 views"] == ""


def test_the_table_shows_both_scores_their_difference_and_what_was_published(space):
    save(space, "ham10000")
    save(space, "ddi")
    table = comparison.compare_protocols(*scores_of(space), SIDES, replicates=20)
    shown = comparison_tables.protocols_table(table, SIDES, synthetic=False)
    assert shown["Dataset"].tolist() == ["HAM10000", "DDI"]
    assert shown["Metric"].tolist() == ["Weighted F1", "AUROC"]
    assert shown["Published linear probing"].tolist() == ["0.922", ""]
    assert shown["Published fine-tuning"].tolist() == ["0.867", ""]
    row = table[table["headline"]].iloc[0]
    assert shown.loc[0, "Difference"] == f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    assert shown.loc[0, "Fine-tuning"].startswith(f"{row['fine_tune']:.3f} [")
    assert not [name for name in comparison_tables.protocols_table(table, SIDES, synthetic=True) if "Published" in name]
    every = comparison_tables.differences_table(table)
    assert every.loc[0, "Weighted F1"] == shown.loc[0, "Difference"]
    assert every.shape == (2, 2 + len(metrics.METRICS))


def test_several_seeds_have_a_mean_and_a_range(space):
    for seed in (0, 1, 2):
        save(space, "ddi", seed=seed)
    save(space, "hiba")
    table = comparison.compare_protocols(*scores_of(space), SIDES, replicates=20)
    shown = comparison_tables.seeds_table(table, SIDES)
    assert shown[["Dataset", "Seeds"]].to_numpy().tolist() == [["DDI", "0 1 2"]]
    values = table[table["headline"] & (table["dataset"] == "ddi")]["fine_tune"]
    assert len(values) == 3
    assert shown.loc[0, "Fine-tuning"] == f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"
    assert len(comparison_tables.protocols_table(table[table["seed"] == 1], SIDES, False)) == 1


def test_the_figure_stands_at_the_numbers(space):
    for seed in (0, 1):
        save(space, "ddi", seed=seed)
    save(space, "ham10000", tuned_by=-1)
    table = comparison.compare_protocols(*scores_of(space), SIDES, replicates=20)
    main = table[table["headline"]]
    left, right = comparison_plots.protocol_differences(main, SIDES, tables.encoder_colors(main)).axes
    points = sorted(line.get_xdata()[0] for line in left.lines if line.get_marker() == "o")
    ddi, ham = main[main["dataset"] == "ddi"], main[main["dataset"] == "ham10000"]
    sides = ["linear_probe", "fine_tune"]
    np.testing.assert_allclose(points, sorted([*main[sides].to_numpy().ravel(), *ddi[sides].mean()]))
    diamonds = sorted(line.get_xdata()[0] for line in right.lines if line.get_marker() == "D")
    np.testing.assert_allclose(diamonds, sorted([*main["difference"], ddi["difference"].mean()]))
    ends = np.concatenate([c.get_segments() for c in right.collections])[:, :, 0]
    np.testing.assert_allclose(sorted(ends.ravel()), sorted(main[["low", "high"]].to_numpy().ravel()))
    low, high = right.get_xlim()
    assert low < 0 < high
    texts = [text.get_text() for text in left.texts + right.texts]
    assert {"linear probing", "fine-tuning"} <= set(texts)
    assert f"{ddi['difference'].mean():+.3f}: mean of 2 seeds" in texts
    assert any(text.startswith(f"{comparison_plots.MINUS}{-ham['difference'].iloc[0]:.3f} [") for text in texts)
    # Down the page in the order of the table, the seeds below their mean.
    labels = [text.get_text().split("\n")[0] for text in left.get_yticklabels()]
    assert labels == ["HAM10000", "DDI", "seed 0", "seed 1"]
    assert left.yaxis_inverted()


def save_probes(space, dataset, *encoders, seed=0, shift=0, images=30):
    """Leaves a linear probe of each encoder, given as (name, how far from chance); images are named from `shift` on."""
    card = selection.load_dataset_manifest(dataset)  # which may have been told of one that is mine
    for i, (encoder, gain) in enumerate(encoders):
        y, proba = predictions(images * card.num_classes, card.num_classes, gain, 10 * seed + i)
        run = records.begin_run(load_protocol("linear_probe"), dataset, encoder, seed, space)
        names = [f"{n + shift}.jpg" for n in range(len(y))]
        table = records.prediction_table(names, y, proba)
        records.save_record(run, metrics.evaluate(y, proba, 20, seed), table, card.headline_metric)


THREE = (("panderm_large", 2.5), ("panderm_base", 2.2), ("dinov2_large", 1.0))


def encoders_of(space, reference="panderm_large", replicates=99):
    runs = records.read_records(space.records)
    scores = selection.paper_scores(runs, space.profile, load_protocol("linear_probe"), None)
    return comparison.compare_encoders(scores, reference, replicates)


def test_an_encoder_is_held_against_each_other_one_where_both_were_run(space):
    save_probes(space, "ham10000", *THREE)
    save_probes(space, "ddi", *THREE[:2])
    save_probes(space, "ddi", *THREE[:2], seed=1)
    save_probes(space, "hiba", *THREE[1:])  # without the reference
    save_probes(space, "pad_ufes", THREE[0])  # with nothing beside it
    table = encoders_of(space)
    assert len(table) == 4 * len(metrics.METRICS)
    main = table[table["headline"]].set_index(["dataset", "encoder", "seed"])
    assert main["metric"].to_dict() == {
        ("ham10000", "panderm_base", 0): "weighted_f1",
        ("ham10000", "dinov2_large", 0): "weighted_f1",
        ("ddi", "panderm_base", 0): "auroc",
        ("ddi", "panderm_base", 1): "auroc",
    }
    assert main.loc[("ham10000", "dinov2_large", 0), "verdict"] == "PanDerm (large) is better"
    assert set(table["reference_label"]) == {"PanDerm (large)"}
    # The numbers are those of the predictions themselves, the reference minus the other.
    for row in table.itertuples():
        folders = [space.records / run for run in (row.other_run, row.reference_run)]
        assert [f.name for f in folders] == [
            f"{row.dataset}-linear_probe-{encoder}-seed{row.seed}" for encoder in (row.encoder, "panderm_large")
        ]
        (y, other, _), (_, mine, _) = map(records.read_predictions, folders)
        told = significance.paired_difference(y, other, mine, 99, row.seed).loc[row.metric]
        found = [row.other, row.reference, row.reference_low, row.difference, row.low, row.high, row.p_t]
        wanted = told[["a", "b", "b_low", "difference", "low", "high", "p_t"]]
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
        assert row.p_value == significance.permutation_test(y, other, mine, 99, row.seed)[row.metric]
        assert row.images == len(y)


def test_the_worse_encoder_as_reference_turns_the_difference_round(space):
    save_probes(space, "ddi", *THREE)
    table = encoders_of(space, "dinov2_large").query("headline").set_index("encoder")
    assert (table["difference"] < 0).all()
    assert table.loc["panderm_large", "verdict"] == "PanDerm (large) is better"
    shown = comparison_tables.comparisons_table(table)
    assert [cell[:5] for cell in shown["DINOv2 (large)"]] == [f"{value:.3f}" for value in table["reference"]]


def test_p_values_are_corrected_over_the_datasets_of_one_encoder(space):
    for dataset, gain in (("ham10000", 2.2), ("ddi", 1.5), ("hiba", 1.7), ("pad_ufes", 2.3)):
        save_probes(space, dataset, ("panderm_large", 2.5), ("panderm_base", gain), ("dinov2_large", gain - 0.3))
    table = encoders_of(space)
    changed = []
    for _, rows in table.groupby("encoder"):
        families = [rows[rows["headline"]], *(g for _, g in rows.groupby("metric"))]
        for i, family in enumerate(families):
            wanted = significance.holm(family["p_value"])
            mine = slice(None) if i == 0 else ~family["headline"].to_numpy()
            np.testing.assert_allclose(family["p_holm"].to_numpy()[mine], wanted[mine])
            changed.append((wanted > family["p_value"]).any())
            assert len(family) == 4
    assert any(changed)
    decided = table["verdict"] == "PanDerm (large) is better"
    assert (decided == ((table["p_holm"] < 0.05) & (table["difference"] > 0))).all()
    assert 0 < decided.mean() < 1
    assert ((table["p_value"] < 0.05) & ~decided).any()  # what alone would have been called significant


def test_encoders_tested_on_other_images_are_left_out_and_named(space):
    save_probes(space, "ddi", THREE[0])
    save_probes(space, "ddi", THREE[2], shift=1)
    save_probes(space, "hiba", *THREE[:2])
    with pytest.warns(comparison.ComparisonWarning, match=r"ddi-linear_probe-dinov2_large-seed0 .*has 60.jpg") as heard:
        table = encoders_of(space)
    assert "only the second has 0.jpg" in str(heard[0].message)
    assert set(table["dataset"]) == {"hiba"}


def test_a_metric_that_is_not_defined_has_neither_p_value_nor_verdict(space):
    save_probes(space, "ddi", *THREE[:2])
    for encoder in ("panderm_large", "panderm_base"):  # a test split of one class only
        folder = space.records / f"ddi-linear_probe-{encoder}-seed0"
        rewrite_predictions(folder, lambda table: table.query("true_label == 0"))
    with pytest.warns(metrics.MetricWarning, match=r"are of benign \(DDI\)"):
        table = encoders_of(space).set_index("metric")
    assert table["p_holm"].isna().to_dict() == {m: m in ("quadratic_kappa", "auroc", "aupr") for m in metrics.METRICS}
    assert table.loc["auroc", "verdict"] == "not defined"
    assert comparison_tables.comparisons_table(table.reset_index()).loc[0, ["Difference", "p (Holm)"]].tolist() == [
        "",
        "",
    ]


def test_the_table_of_encoders_shows_every_number(space):
    save_probes(space, "ham10000", *THREE)
    table = encoders_of(space)
    shown, row = comparison_tables.comparisons_table(table), table[table["headline"]].iloc[1]
    assert shown["Compared with"].tolist() == ["PanDerm (base)", "DINOv2 (large)"]
    assert shown.loc[1, "Difference"] == f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    assert shown.loc[1, "The other"] == f"{row['other']:.3f} [{row['other_low']:.3f}, {row['other_high']:.3f}]"
    assert shown.loc[1, ["p", "p (Holm)"]].tolist() == ["0.010", "0.010"]
    assert row["p_t"] < 1e-16
    assert shown.loc[1, "p (t)"] == "<0.001"
    assert shown.loc[1, "Test images"] == 210


def test_the_forest_stands_at_the_numbers(space):
    for dataset in ("ham10000", "ddi"):
        save_probes(space, dataset, *THREE)
    main = encoders_of(space).query("headline").assign(p_value=0.01, p_holm=[0.012, 0.03, 0.06, 0.049])
    colors = tables.encoder_colors(main)
    (axis,) = comparison_plots.encoder_differences(main, colors).axes
    diamonds = [line for line in axis.lines if line.get_marker() == "D"]
    np.testing.assert_allclose([d.get_xdata()[0] for d in diamonds], main["difference"])
    np.testing.assert_allclose([c.get_segments()[0][:, 0] for c in axis.collections], main[["low", "high"]])
    assert [d.get_markeredgecolor() for d in diamonds] == [colors[label] for label in main["encoder_label"]]
    full = [d.get_markerfacecolor() != "white" for d in diamonds]
    assert full == [True, True, False, True]
    assert axis.get_xlim()[0] < 0 < axis.get_xlim()[1]
    assert axis.yaxis_inverted()  # in the order of the table
    assert [label.get_text() for label in axis.get_yticklabels()] == main["encoder_label"].tolist()
    texts = [text.get_text() for text in axis.texts]
    assert {"HAM10000, Weighted F1, n = 210", "DDI, AUROC, n = 60"} <= set(texts)
    assert sum(text.endswith(f"   {p:.3f}") for text in texts for p in main["p_holm"].unique()) == 4


def run_notebook(output, profile="paper", notebook=NOTEBOOK, **given):
    """Executes a notebook's cells one after another in this process and returns its names and what each cell shows.

    Here, not in a kernel, so that a test can pretend that there is a dataset of one's own.
    """
    names, shown = {}, {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        if cell.id == "parameters":
            exec(cell.source, names)
            names |= {"profile": profile, "output_root": str(output), "seed": 0, "replicates": 20, **given}
            continue
        *steps, last = ast.parse(cell.source).body
        assert isinstance(last, ast.Expr), f"{cell.id} ends with nothing to see"
        exec(compile(ast.Module(steps, []), cell.id, "exec"), names)
        value = eval(compile(ast.Expression(last.value), cell.id, "eval"), names)
        shown[cell.id] = value.to_html() if hasattr(value, "to_html") else value
    return names, shown


@pytest.mark.parametrize("there", ["nothing", "probes", "both"])
def test_the_notebook_runs_on_whatever_is_there_and_says_what_is_missing(space, there):
    if there in ("probes", "both"):
        save(space, "ham10000", tune=there == "both")
    names, shown = run_notebook(space.root.parent)
    labels = [text.get_text() for text in shown["figure"].axes[0].texts]
    assert ("no dataset has both records yet" in labels) == (there in ("nothing", "probes"))
    assert ("nothing" in shown["table"]) == (there in ("nothing", "probes"))
    tune = "--protocols fine_tune --datasets ham10000 --encoders panderm_large"
    probe = "--protocols linear_probe --datasets ham10000 --encoders panderm_large"
    assert (tune in shown["missing"]) == (there != "both")
    assert (probe in shown["missing"]) == (there == "nothing")
    assert "dinov2_large" not in shown["missing"]  # is never fine-tuned, so its probe is not missing here
    for name in ("table_fine_tuning", "fine_tuning_differences", "fine_tuning_seeds", "fine_tune_verdicts"):
        assert all((space.tables / f"{name}.{kind}").is_file() for kind in ("csv", "tex", "md"))
    saved = pd.read_csv(space.tables / "table_fine_tuning.csv")
    assert len(saved) == (there == "both")
    assert {p.suffix for p in shown["save"]} == {".pdf", ".png"}
    if there == "both":
        picture = (space.figures / "table_fine_tuning.png").read_bytes()
        assert b"ham10000-fine_tune-panderm_large-seed0 ham10000-linear_probe-panderm_large-seed0" in picture
        assert "not comparable" in shown["verdict"]  # of 210 images that are none of the dataset's
    else:
        assert set(names["verdicts"]["verdict"]) == {"not run"}


def test_the_demo_s_figure_and_tables_say_that_they_are_drawn(tmp_path):
    space = workspace.open_workspace("demo", output_root=tmp_path)
    save(space, "ham10000", "panderm_tiny")
    names, shown = run_notebook(tmp_path, "demo")
    assert "synthetic demo data" in [text.get_text() for text in shown["figure"].findobj(plt.Text)]
    assert "Published" not in shown["table"]
    assert set(names["verdicts"]["verdict"]) == {"not run"}


@pytest.mark.parametrize("there", ["nothing", "one encoder", "all"])
def test_the_encoders_notebook_runs_on_whatever_is_there_and_says_what_is_missing(space, there):
    for dataset in ("ham10000", "ddi"):
        save_probes(space, dataset, *THREE[: {"nothing": 0, "one encoder": 1}.get(there, 3)])
    names, shown = run_notebook(space.root.parent, notebook=ENCODERS, reference=None)
    compared = there == "all"
    assert ("no dataset has two encoders yet" in [t.get_text() for t in shown["figure"].axes[0].texts]) != compared
    assert ("nothing" in shown["table"]) != compared
    assert "--protocols linear_probe --datasets hiba --encoders panderm_large" in shown["missing"]
    assert ("--datasets ddi --encoders dinov2_large" in shown["missing"]) == (there != "all")
    for name in ("table_comparisons", "comparison_differences"):
        assert all((space.tables / f"{name}.{kind}").is_file() for kind in ("csv", "tex", "md"))
    assert len(pd.read_csv(space.tables / "table_comparisons.csv")) == (4 if there == "all" else 0)
    assert {p.suffix for p in shown["save"]} == {".pdf", ".png"}
    assert (space.figures / "table_comparisons.csv").is_file()
    if there == "all":
        picture = Image.open(space.figures / "table_comparisons.png").text
        assert set(picture["Records"].split()) == {path.name for path in space.records.iterdir()}
        assert f"DINOv2 (large) {names['headline_pairs']['difference'].iloc[1]:.3f}" in picture["Description"]
        assert f"below 0.05 in {(names['headline_pairs']['p_holm'] < 0.05).sum()} of 4" in picture["Description"]


def test_the_encoders_notebook_takes_another_reference_and_names_those_that_there_are(space):
    save_probes(space, "ddi", *THREE)
    _, shown = run_notebook(space.root.parent, notebook=ENCODERS, reference="dinov2_large")
    assert "PanDerm (large) is better" in shown["table"]
    with pytest.raises(manifests.ManifestError, match="dinov2_large"):
        run_notebook(space.root.parent, notebook=ENCODERS, reference="dinov2_lrage")
