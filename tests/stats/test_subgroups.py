"""Subgroups: against scikit-learn in a loop, exact enumeration, simulated gaps, and records old and new."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from sklearn.metrics import f1_score, roc_auc_score

from panderm_utils.data import dataset as data
from panderm_utils.figures import plots
from panderm_utils.figures import subgroups as subgroup_plots
from panderm_utils.manifests import reading as manifests
from panderm_utils.results import records, subgroups_of_records
from panderm_utils.stats import metrics, subgroups
from panderm_utils.stats.resampling import MetricError, resampled_rows


def predictions(images=120, classes=2, seed=0, gain=1.5):
    """`gain` is one number, or one an image: the larger, the better."""
    rng = np.random.default_rng(seed)
    y = np.arange(images) % classes
    z = np.broadcast_to(gain, images)[:, None] * np.eye(classes)[y] + rng.normal(size=(images, classes))
    return y, np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


def by_scikit_learn(y, proba, metric):
    return roc_auc_score(y, proba[:, 1]) if metric == "auroc" else f1_score(y, proba.argmax(1), average="weighted")


@pytest.mark.parametrize(
    ("kind", "values", "groups"),
    [
        ("age", [0, 39.9, "40", 59, "60.0", "85+", 200], "0-39 0-39 40-59 40-59 60+ 60+ 60+"),
        ("age", ["NaN", None, np.nan, "", " NA ", "unknown", "50-60"], "unknown " * 6 + "50-60"),
        ("sex", ["male", " female ", "Unknown", "n/a"], "male female unknown unknown"),
        ("site", ["head/neck", "none", 7.0], "head/neck unknown 7"),
        ("skin_tone", ["12", 34.0, "56", 12], "1-2 3-4 5-6 1-2"),
        ("skin_tone", ["3.0", 4, "IV", np.nan], "3 4 IV unknown"),
        ("institution", ["vidir_modern", "012"], "vidir_modern 12"),
    ],
)
def test_entries_fall_into_their_groups(kind, values, groups):
    assert subgroups.group_labels(kind, values).tolist() == groups.split()


@pytest.mark.parametrize(("metric", "classes"), [("auroc", 2), ("weighted_f1", 3)])
def test_values_intervals_and_gap_are_those_of_a_loop(metric, classes):
    y, proba = predictions(240, classes)
    groups = np.array(["b", "a", "10", "9"])[np.random.default_rng(1).integers(0, 4, len(y))]
    groups[:20] = "9"
    table, gap = subgroups.compare_groups(y, proba, groups, metric, replicates=40, seed=5)
    assert table["group"].tolist() == ["9", "10", "a", "b"]
    resampled = {}
    for place, row in enumerate(table.itertuples()):
        mine = groups == row.group
        rows = np.concatenate(list(resampled_rows(y[mine], 40, [5, place])))
        values = [by_scikit_learn(y[mine][r], proba[mine][r], metric) for r in rows]
        assert row.value == pytest.approx(by_scikit_learn(y[mine], proba[mine], metric))
        assert (row.low, row.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
        assert row.images == mine.sum()
        assert row.rarest == np.unique(y[mine], return_counts=True)[1].min()
        resampled[row.group] = np.array(values)
    judged = table[table["judged"]].set_index("group")["value"]
    assert len(judged) == 4
    assert (gap.highest, gap.lowest) == (judged.idxmax(), judged.idxmin())
    assert gap.gap == pytest.approx(judged.max() - judged.min())
    low, high = np.quantile(resampled[gap.highest] - resampled[gap.lowest], [0.025, 0.975])
    assert (gap.low, gap.high) == pytest.approx((low, high))


def test_a_group_of_29_is_grey_one_of_30_is_not_and_none_is_dropped():
    y, proba = predictions(140)
    y[59:99] = 1
    groups = np.repeat(["thirty", "few", "one class", "unknown"], [30, 29, 40, 41])
    table, gap = subgroups.compare_groups(y, proba, groups, "auroc", replicates=20)
    table = table.set_index("group")
    assert table.index.tolist() == ["few", "one class", "thirty", "unknown"]
    assert table["judged"].to_dict() == {"few": False, "one class": False, "thirty": True, "unknown": True}
    assert table["note"].tolist() == ["under 30 images", "one class only", "", ""]
    assert table["value"].isna().tolist() == [False, True, False, False]
    assert (gap.highest, gap.lowest) == ("", "")  # "unknown" is no kind of people
    assert np.isnan([gap.gap, gap.low, gap.high, gap.p_value]).all()
    by_f1 = subgroups.compare_groups(y, proba, groups, "weighted_f1", replicates=20)[0].set_index("group")
    assert not by_f1.loc["one class", "judged"]
    assert by_f1.loc["one class", "value"] > 0


def test_a_known_gap_is_recovered_and_chance_does_not_explain_it():
    groups = np.repeat(["easy", "hard", "middle"], 400)
    y, proba = predictions(1200, gain=np.repeat([2.5, 0.3, 1.2], 400))
    table, gap = subgroups.compare_groups(y, proba, groups, "auroc", replicates=199)
    easy, hard = (
        subgroups.compare_groups(*predictions(200_000, gain=g, seed=9), np.zeros(200_000), "auroc", 2)[0]
        for g in (2.5, 0.3)
    )
    truth = easy["value"][0] - hard["value"][0]
    assert (gap.highest, gap.lowest) == ("easy", "hard")
    assert gap.low < truth < gap.high
    assert truth > 0.3
    assert gap.p_value == pytest.approx(0.005)
    assert table["low"].lt(table["value"]).all()


def test_among_equal_groups_the_interval_is_fooled_and_the_p_value_is_not():
    rng, found = np.random.default_rng(3), []
    for seed in range(40):
        y, proba = predictions(320, seed=seed)
        found.append(subgroups.compare_groups(y, proba, rng.integers(0, 8, 320), "auroc", replicates=99, seed=seed)[1])
    assert np.mean([gap.p_value <= 0.05 for gap in found]) <= 0.15  # 5% are meant
    assert np.mean([gap.low > 0 for gap in found]) > 0.5
    assert 0.3 < np.mean([gap.p_value for gap in found]) < 0.7


def test_chance_is_that_of_all_ways_to_deal_the_groups_within_the_classes():
    y, proba = predictions(9, classes=3, gain=0.8)
    groups = np.array(["a", "a", "b", "a", "b", "b", "b", "b", "a"])
    exact = []
    for dealt in itertools.product(*(sorted(set(itertools.permutations(groups[y == k]))) for k in range(3))):
        g = np.empty(9, dtype="<U1")
        for k in range(3):
            g[y == k] = dealt[k]
        values = [by_scikit_learn(y[g == name], proba[g == name], "weighted_f1") for name in "ab"]
        exact.append(abs(values[0] - values[1]))
    column = metrics.METRICS.index("weighted_f1")
    found = subgroups.gaps_by_chance(lambda rows: subgroups._quietly(y[rows], proba[rows]), y, groups, column, 6000, 0)
    values, shares = np.unique(np.round(exact, 9), return_counts=True)
    seen, counts = np.unique(np.round(found, 9), return_counts=True)
    assert seen.tolist() == values.tolist()
    np.testing.assert_allclose(counts / 6000, shares / len(exact), atol=0.03)


def test_what_cannot_be_meant_is_refused():
    y, proba = predictions()
    with pytest.raises(MetricError, match=r"groups must be one per label, \[120\], got \[3\]"):
        subgroups.compare_groups(y, proba, ["a", "b", "c"], "auroc")
    with pytest.raises(MetricError, match="'auc' is unknown; write one of accuracy"):
        subgroups.compare_groups(y, proba, y, "auc")


def record_of(root, dataset, metadata, images=120):
    y, proba = predictions(images)
    folder = root / f"{dataset}-linear_probe-panderm_tiny-seed0"
    folder.mkdir()
    names = [f"{i:03d}" for i in range(images)]
    records.prediction_table(names, y, proba).to_csv(folder / "predictions.csv", index=False)
    if metadata is not None:
        table = pd.DataFrame({"filename": names, **metadata})
        table.sample(frac=1, random_state=0).to_csv(folder / "metadata.csv", index=False)  # joined by name
    row = {"dataset": dataset, "dataset_label": dataset.upper(), "encoder": "panderm_tiny", "encoder_label": "tiny"}
    row |= {"metric": "auroc", "value": 0.8, "run_id": folder.name, "folder": str(folder), "seed": 0}
    return row | {"profile": "demo", "protocol": "linear_probe"}


def scores_of(root, count=1):
    rng = np.random.default_rng(0)
    several = {
        "age": rng.choice(["20", "50.0", "85+", ""], 120, p=[0.4, 0.3, 0.28, 0.02]),
        "site": rng.choice(["back", "a site with a very long name indeed", "foot"], 120),
        "sex": np.where(np.arange(120) % 2, "male", "female"),  # the class itself: one class a group
    }
    return pd.DataFrame(
        [record_of(root, f"set{i}", several if i % 2 == 0 else {"sex": several["site"]}) for i in range(count)]
    )


def test_records_are_compared_by_the_metadata_they_keep_and_others_say_what_to_run(tmp_path):
    scores = pd.concat(
        [scores_of(tmp_path), pd.DataFrame([record_of(tmp_path, "old", None), record_of(tmp_path, "bare", {})])]
    )
    groups, gaps, without = subgroups_of_records(scores, replicates=20)
    assert list(dict.fromkeys(groups["kind"])) == gaps["kind"].tolist() == ["age", "site", "sex"]
    y, proba, names = records.read_predictions(scores["folder"].iloc[0])
    kept = pd.read_csv(f"{scores['folder'].iloc[0]}/metadata.csv", dtype={"filename": str}).set_index("filename")
    back = (kept.loc[names, "site"] == "back").to_numpy()
    row = groups.query("group == 'back'").iloc[0]
    assert row["value"] == pytest.approx(roc_auc_score(y[back], proba[back, 1]))
    assert row["images"] == back.sum()
    assert groups.query("kind == 'sex'")["note"].tolist() == ["one class only"] * 2
    assert groups.query("kind == 'age'")["group"].tolist() == ["0-39", "40-59", "60+", "unknown"]
    assert without["dataset"].tolist() == ["old", "bare"]
    command = "run_all.py --profile demo --protocols linear_probe --datasets old --encoders panderm_tiny --seeds 0"
    assert without["command"].tolist() == [f"python {command} --force", "none"]
    table = subgroup_plots.groups_table(groups)
    assert table["Kind"].tolist() == ["Age"] * 4 + ["Site"] * 3 + ["Sex"] * 2
    assert "" in table["Value"].tolist()  # AUROC of one class
    largest = subgroup_plots.gaps_table(gaps)
    assert largest["Largest gap"].tolist()[2] == "fewer than two groups to judge"
    assert largest["Largest gap"][1] == "{gap:.3f} [{low:.3f}, {high:.3f}]".format(**gaps.iloc[1])
    words = subgroup_plots.subgroups_alt_text(groups, gaps)
    assert f"back {row['value']:.3f} of {back.sum()}" in words
    assert "SET0, sex: female nan of 60, male nan of 60 images; no gap to judge" in words


@pytest.mark.parametrize("count", [0, 1, 2, pytest.param(5, marks=pytest.mark.slow)])
def test_the_figure_fits_its_sheet_and_greys_what_is_not_judged(tmp_path, count):
    scores = scores_of(tmp_path, max(1, count)).iloc[:count]
    groups, gaps, _ = subgroups_of_records(scores, replicates=20)
    figure = subgroup_plots.subgroup_panels(groups, gaps, scores, "#D55E00", synthetic=True)
    texts = [text.get_text() for text in figure.findobj(plt.Text)]
    assert texts.count(plots.SYNTHETIC_MARK) == 1
    assert ("no record with metadata yet" in texts) == (not count)
    told = "largest gap {gap:.3f} [{low:.3f}, {high:.3f}], p = {p_value:.3f}"
    expected = [told.format(**gap) for gap in gaps.to_dict(orient="records") if gap["highest"]]
    assert sorted(text for text in texts if text.startswith("largest gap")) == sorted(expected)
    dots = [line for axis in figure.axes for line in axis.lines if line.get_marker() == "o"]
    filled = [to_hex(line.get_markerfacecolor()).upper() for line in dots]
    assert filled.count("#D55E00") == groups["judged"].sum()
    assert filled.count("#FFFFFF") == (~groups["judged"]).sum()
    assert texts.count("one class only") == groups["value"].isna().sum()
    figure.draw_without_rendering()
    box, sheet = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0) > -0.02
    assert box.x1 < sheet[0] + 0.02
    assert box.y1 < sheet[1] + 0.02
    assert plt.get_fignums() == []


def test_a_record_s_metadata_are_the_mapped_columns_of_the_test_split(tmp_path):
    card = manifests.load_dataset_manifest("ham10000")
    csv = tmp_path / card.csv
    csv.parent.mkdir(parents=True)
    rows = ["ISIC_1.jpg,train,0,60,male,back,rosendahl", "ISIC_2.jpg,test,1,,female,face,vidir_modern"]
    rows += ["ISIC_3.jpg,test,5,85.0,,foot,rosendahl", "ISIC_4.jpg,train,5,40,male,foot,rosendahl"]
    csv.write_text("\n".join(["image,split,label,age,sex,localization,dataset", *rows, ""]))
    table = data.metadata_table(data.load_dataset(card, tmp_path, check="table"), "test")
    assert table.columns.tolist() == ["filename", "age", "sex", "site", "institution"]
    assert table.astype(object).fillna("?").to_numpy().tolist() == [
        ["ISIC_2.jpg", "?", "female", "face", "vidir_modern"],
        ["ISIC_3.jpg", 85.0, "?", "foot", "rosendahl"],
    ]
    csv.write_text(csv.read_text().replace("localization,dataset", "place,source"))
    table = data.metadata_table(data.load_dataset(card, tmp_path, check="table"), "test")
    assert table.columns.tolist() == ["filename", "age", "sex"]
