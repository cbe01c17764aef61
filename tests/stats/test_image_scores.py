"""Means of per-image scores: against loops, SciPy and exact enumeration, and what clusters must do."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from panderm_utils.stats import image_scores, resampling
from panderm_utils.stats.resampling import MetricError, resampled_rows


def scores_of(images=60, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    dice = np.clip(rng.beta(8, 2, images) + shift, 0, 1)
    return pd.DataFrame({"dice": dice, "hd95_original": 20 * (1 - dice) + rng.random(images)})


def test_means_and_intervals_are_those_of_a_loop():
    scores = scores_of()
    table = image_scores.evaluate_image_scores(scores, replicates=50, seed=3)
    resampled = np.array(
        [scores.to_numpy()[rows].mean(axis=0) for block in resampled_rows(np.zeros(60), 50, 3) for rows in block]
    )
    np.testing.assert_allclose(table["value"], scores.mean())
    np.testing.assert_allclose(table["low"], np.quantile(resampled, 0.025, axis=0))
    np.testing.assert_allclose(table["high"], np.quantile(resampled, 0.975, axis=0))
    assert table.index.tolist() == ["dice", "hd95_original"]
    assert table.index.name == "metric"
    assert list(table) == ["value", "low", "high", "normal_low", "normal_high"]


def test_a_resample_draws_whole_clusters_and_the_mean_is_over_images():
    scores, lesions = scores_of(10), np.array(list("aaabbcccdd"))
    table = image_scores.evaluate_image_scores(scores, lesions, replicates=40, seed=1)
    parts, resampled = [scores["dice"].to_numpy()[lesions == name] for name in "abcd"], []
    for block in resampled_rows(np.zeros(4), 40, 1):
        resampled += [np.concatenate([parts[i] for i in rows]).mean() for rows in block]
    assert table.loc["dice", "value"] == pytest.approx(scores["dice"].mean())
    np.testing.assert_allclose(table.loc["dice", ["low", "high"]], np.quantile(resampled, [0.025, 0.975]))


def test_copies_of_an_image_in_one_cluster_add_no_certainty():
    scores = scores_of(50)
    copies = pd.concat([scores] * 8, ignore_index=True)
    alone = image_scores.evaluate_image_scores(scores, replicates=200)
    pd.testing.assert_frame_equal(image_scores.evaluate_image_scores(copies, list(range(50)) * 8, 200), alone)
    naive = image_scores.evaluate_image_scores(copies, replicates=200)
    assert (naive["high"] - naive["low"] < 0.5 * (alone["high"] - alone["low"])).all()


def test_images_without_a_cluster_are_clusters_of_their_own():
    scores = scores_of(6)
    some = image_scores.evaluate_image_scores(scores, ["x", None, "", np.nan, "x", "NA"], 50)
    named = image_scores.evaluate_image_scores(scores, list("xabcxd"), 50)
    pd.testing.assert_frame_equal(some, named)
    numbered = image_scores.evaluate_image_scores(scores, [None] * 6, 50)
    pd.testing.assert_frame_equal(numbered, image_scores.evaluate_image_scores(scores, replicates=50))


def test_undefined_scores_are_left_out_of_their_metric_only():
    scores = scores_of(40)
    scores.loc[3, "dice"] = np.nan
    table = image_scores.evaluate_image_scores(scores, replicates=50)
    assert table.loc["dice", "value"] == pytest.approx(scores["dice"].mean())
    assert table.loc["hd95_original", "value"] == pytest.approx(scores["hd95_original"].mean())
    assert table.notna().all(axis=None)
    scores["dice"] = np.nan
    assert image_scores.evaluate_image_scores(scores, replicates=50).loc["dice"].isna().all()


def test_the_interval_holds_the_true_mean_as_often_as_it_says():
    held = []
    for seed in range(200):
        row = image_scores.evaluate_image_scores(scores_of(80, seed)[["dice"]], replicates=200, seed=seed).loc["dice"]
        held.append(row["low"] <= 0.8 <= row["high"])
    assert stats.binom.ppf(0.001, 200, 0.94) <= sum(held) <= stats.binom.ppf(0.999, 200, 0.96)


def test_a_paired_difference_is_that_of_a_loop():
    a, b = scores_of(), scores_of(seed=1, shift=0.05)
    table = image_scores.compare_image_scores(a, b, replicates=60, seed=2)
    rows = np.concatenate(list(resampled_rows(np.zeros(60), 60, 2)))
    differences = (b - a).to_numpy()[rows].mean(axis=1)
    np.testing.assert_allclose(table["difference"], b.mean() - a.mean())
    np.testing.assert_allclose(table["low"], np.quantile(differences, 0.025, axis=0))
    np.testing.assert_allclose(table["high"], np.quantile(differences, 0.975, axis=0))
    assert list(table)[:6] == ["a", "a_low", "a_high", "b", "b_low", "b_high"]


def test_p_values_are_those_of_all_swaps():
    a, b = scores_of(9), scores_of(9, seed=1, shift=0.08)
    exact = stats.permutation_test(
        (a["dice"], b["dice"]),
        lambda x, y: np.mean(y) - np.mean(x),
        permutation_type="samples",
        vectorized=False,
        n_resamples=2**9,
    )
    found = image_scores.compare_image_scores(a, b, replicates=20_000)["p_value"]
    assert found["dice"] == pytest.approx(exact.pvalue, abs=0.015)


def test_of_a_cluster_all_images_are_swapped_together():
    a, b, lesions = scores_of(12), scores_of(12, seed=1, shift=0.05), np.repeat(range(4), 3)
    difference = (b - a)["dice"].to_numpy()
    signs = [np.repeat(sign, 3) for sign in itertools.product([-1, 1], repeat=4)]
    exact = np.mean([abs((sign * difference).mean()) >= abs(difference.mean()) - 1e-12 for sign in signs])
    found = image_scores.compare_image_scores(a, b, lesions, replicates=20_000)["p_value"]["dice"]
    assert found == pytest.approx(exact, abs=0.015)


def test_a_model_against_itself_differs_by_nothing():
    table = image_scores.compare_image_scores(scores_of(), scores_of(), replicates=30)
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)
    assert (table[["p_value", "p_t"]] == 1).all(axis=None)


def test_groups_and_their_gap_are_those_of_a_loop():
    values, groups = scores_of(150)["dice"].to_numpy().copy(), np.array(["b", "a", "unknown"])[np.arange(150) % 3]
    groups[:3] = "tiny"
    values[groups == "b"] -= 0.3
    table, gap = image_scores.compare_group_means(values, groups, replicates=99, seed=4)
    assert table["group"].tolist() == ["a", "b", "tiny", "unknown"]
    assert table["images"].tolist() == [49, 49, 3, 49]
    assert table["note"].tolist() == ["", "", "under 30 images", ""]
    np.testing.assert_allclose(table["value"], [values[groups == name].mean() for name in table["group"]])
    mine = values[groups == "b"]
    resampled = mine[np.concatenate(list(resampled_rows(np.zeros(49), 99, [4, 1])))].mean(axis=1)
    np.testing.assert_allclose(table.loc[1, ["low", "high"]].astype(float), np.quantile(resampled, [0.025, 0.975]))
    assert (gap.highest, gap.lowest, gap.p_value) == ("a", "b", 0.01)
    assert gap.gap == pytest.approx(values[groups == "a"].mean() - mine.mean())


def test_a_gap_by_chance_has_no_small_p_value():
    p_values = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        values, groups = rng.random(120), rng.integers(0, 3, 120)
        p_values.append(image_scores.compare_group_means(values, groups, replicates=99, seed=seed)[1].p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= stats.binom.ppf(0.999, 100, 0.05) / 100
    assert 0.35 < np.mean(p_values) < 0.65


def test_groups_count_clusters_not_their_images():
    values, groups = scores_of(160)["dice"], np.repeat(["a", "b"], 80)
    lesions = np.arange(160) // 4  # 20 in each group
    table, gap = image_scores.compare_group_means(values, groups, lesions, replicates=20)
    assert table["images"].tolist() == [80, 80]
    assert table["note"].tolist() == ["under 30 clusters"] * 2
    assert np.isnan(gap.gap)
    table, _ = image_scores.compare_group_means(values, groups, np.arange(160) // 2, replicates=20)
    assert table["judged"].all()
    np.testing.assert_allclose(table["value"], [values[:80].mean(), values[80:].mean()])


@pytest.mark.parametrize("ties", [False, True])
def test_correlation_is_that_of_scipy_in_every_resample(ties):
    rng = np.random.default_rng(0)
    a = rng.normal(size=70)
    b = a + rng.normal(size=70)
    if ties:
        a, b = np.round(a), np.round(b * 2)
    row = image_scores.rank_correlation(a, b, replicates=40, seed=6)
    rows = np.concatenate(list(resampled_rows(np.zeros(70), 40, 6)))
    resampled = [stats.spearmanr(a[r], b[r]).statistic for r in rows]
    assert row["value"] == pytest.approx(stats.spearmanr(a, b).statistic)
    np.testing.assert_allclose(row[["low", "high"]], np.quantile(resampled, [0.025, 0.975]))
    assert list(row.index) == ["value", "low", "high", "normal_low", "normal_high"]


def test_correlation_by_clusters_and_of_constants():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 30))
    alone = image_scores.rank_correlation(a, b, replicates=60)
    copies = image_scores.rank_correlation(np.tile(a, 3), np.tile(b, 3), list(range(30)) * 3, replicates=60)
    assert copies["value"] == pytest.approx(alone["value"], abs=0.01)
    np.testing.assert_allclose(copies[["low", "high"]], alone[["low", "high"]], atol=0.02)
    assert np.isnan(image_scores.rank_correlation(np.ones(30), b, replicates=20)["value"])
    assert image_scores.rank_correlation(a, -(a**3), replicates=20)["high"] == pytest.approx(-1)


def test_the_block_affects_no_digit():
    scores = image_scores.mean_scorer(scores_of(), None)
    whole, single = (resampling.bootstrap(scores, scores.y, 20, 0, block) for block in (20, 1))
    np.testing.assert_array_equal(whole, single)


def test_what_cannot_be_meant_is_refused():
    scores = scores_of(5)
    with pytest.raises(MetricError, match=r"clusters must be one per image, \[5\], got \[3\]"):
        image_scores.evaluate_image_scores(scores, list("abc"))
    with pytest.raises(MetricError, match="there are no scores"):
        image_scores.evaluate_image_scores(scores.head(0))
    with pytest.raises(MetricError, match="5 images with dice, hd95_original and 4 images"):
        image_scores.compare_image_scores(scores, scores.head(4))
    with pytest.raises(MetricError, match="values and groups"):
        image_scores.compare_group_means(scores["dice"], ["a"])
    with pytest.raises(MetricError, match="leave out NaN"):
        image_scores.rank_correlation([0.1, np.nan], [1, 2])
