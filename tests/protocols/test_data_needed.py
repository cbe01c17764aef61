"""How much data is needed: against closed forms; the answers in words."""

import numpy as np
import pandas as pd
import pytest

from panderm_utils.protocols.label_efficiency import data_needed
from panderm_utils.protocols.label_efficiency.data_needed import BELOW, NOT_REACHED, REACHED

FRACTIONS = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0]


def test_a_straight_line_over_the_logarithm_is_crossed_where_its_formula_says():
    fractions = np.array(FRACTIONS)
    values = 0.9 + 0.1 * np.log(fractions)
    for target in (0.62, 0.75, 0.8766, 0.9):
        assert data_needed.crossing(values, fractions, target) == pytest.approx(np.exp((target - 0.9) / 0.1))


def test_between_two_points_the_line_is_straight_over_the_logarithm():
    assert data_needed.crossing(np.array([0.5, 0.7]), np.array([0.01, 1.0]), 0.6) == pytest.approx(0.1)
    assert data_needed.crossing(np.array([0.5, 0.7, 0.7, 0.9]), np.array([0.1, 0.2, 0.4, 1]), 0.7) == pytest.approx(0.2)


def test_a_lucky_point_is_not_followed_up():
    """The 10% beat the 20% by chance; a running maximum would say 10%."""
    values, fractions = np.array([0.5, 0.8, 0.6, 0.75, 0.9]), np.array([0.05, 0.1, 0.2, 0.5, 1])
    # Pooled, 10% and 20% are 0.7; from there to 0.75 at 50% the line meets 0.72 at 0.2 * 2.5 ** 0.4.
    assert data_needed.crossing(values, fractions, 0.72) == pytest.approx(0.2 * 2.5**0.4)


def test_ends_of_the_curve():
    values, fractions = np.array([0.5, 0.6, 0.7]), np.array([0.1, 0.5, 1.0])
    assert data_needed.crossing(values, fractions, 0.49) == 0
    assert data_needed.crossing(values, fractions, 0.5) == 0.1
    assert data_needed.crossing(values, fractions, 0.7) == pytest.approx(1.0)
    assert data_needed.crossing(values, fractions, 0.7001) == np.inf


def test_a_falling_curve_is_flat_at_its_mean():
    values, fractions = np.array([0.9, 0.7, 0.5]), np.array([0.1, 0.5, 1.0])
    assert data_needed.crossing(values, fractions, 0.69) == 0
    assert data_needed.crossing(values, fractions, 0.71) == np.inf


def test_the_interval_is_over_draws_and_the_answer_of_their_mean():
    fractions = np.array([0.1, 1.0])
    draws = np.array([[0.4, 0.8], [0.5, 0.8], [0.6, 0.8]])  # 0.7 is met at 10 ** -0.25, 10 ** -1/3, 10 ** -0.5
    needed = data_needed.data_needed(draws, fractions, 0.7)
    assert needed.state == REACHED
    assert (needed.low, needed.high) == (pytest.approx(10**-0.5), pytest.approx(10**-0.25))
    assert needed.fraction == pytest.approx(10 ** (-1 / 3))
    assert (needed.score, needed.target, needed.draws, needed.smallest) == (
        pytest.approx(0.8),
        0.7,
        3,
        pytest.approx(0.1),
    )


def test_two_fractions_that_a_giant_group_makes_one_count_once():
    values, fractions = np.array([0.5, 0.6, 0.6, 0.6, 0.9]), np.array([0.1, 0.3, 0.3, 0.3, 1.0])
    expected = data_needed.crossing(values[[0, 1, 4]], fractions[[0, 1, 4]], 0.7)
    assert data_needed.crossing(values, fractions, 0.7) == expected
    assert data_needed.data_needed([values, values], [fractions, fractions], 0.7).fraction == expected
    # Pooled alike or not: with 0.6 counted thrice the fall to 0.5 would weigh less.
    fallen = np.array([0.6, 0.6, 0.6, 0.5, 0.9])
    assert data_needed.crossing(fallen, np.array([0.1, 0.1, 0.1, 0.3, 1.0]), 0.56) == pytest.approx(
        data_needed.crossing(np.array([0.55, 0.55, 0.9]), np.array([0.1, 0.3, 1.0]), 0.56)
    )


def test_of_many_draws_the_outer_ones_are_left_out():
    rng = np.random.default_rng(0)
    draws = np.stack([rng.uniform(0.4, 0.6, 400), np.full(400, 0.8)], axis=1)
    needed = data_needed.data_needed(draws, [0.1, 1.0], 0.7)
    each = np.sort([data_needed.crossing(row, np.array([0.1, 1.0]), 0.7) for row in draws])
    assert (needed.low, needed.high) == (each[9], each[390])


def test_each_draw_may_have_fractions_of_its_own():
    same = data_needed.data_needed([[0.5, 0.9]], [[0.2, 1.0]], 0.7)
    other = data_needed.data_needed([[0.5, 0.9], [0.5, 0.9]], [[0.2, 1.0], [0.1, 1.0]], 0.7)
    assert same.fraction == pytest.approx(0.2**0.5)
    assert other.low == pytest.approx(0.1**0.5)
    assert other.high == pytest.approx(0.2**0.5)


def test_answers_in_words():
    def said(draws, target):
        needed = data_needed.data_needed(draws, [0.05, 0.5, 1.0], target)
        return needed.state, data_needed.with_interval(needed), data_needed.sentence(needed, "PanDerm", "DINOv2")

    draws = [[0.5, 0.8, 0.9], [0.6, 0.8, 0.9], [0.7, 0.8, 0.9]]
    state, share, sentence = said(draws, 0.72)
    assert (state, share) == (REACHED, "20% [7.9-27]")
    assert sentence == "PanDerm with 20% [7.9-27] of the labels matches DINOv2 with all"
    assert said(draws, 0.62)[1] == "6.3% [<5-13]"
    assert said(draws[:1], 0.72)[2] == "PanDerm with 27% of the labels matches DINOv2 with all"
    state, share, sentence = said(draws, 0.3)
    assert (state, share) == (BELOW, "<5%")
    assert sentence == "PanDerm with less than 5% of the labels, the smallest fraction studied, matches DINOv2 with all"
    assert said(draws, 0.59)[:2] == (BELOW, "<5% [<5-10]")
    state, share, sentence = said(draws, 0.95)
    assert (state, share) == (NOT_REACHED, "not reached")
    assert sentence == "PanDerm does not reach DINOv2, each with all of the labels (0.900 against 0.950)"


@pytest.mark.parametrize(
    ("values", "fractions", "target", "words"),
    [
        ([[0.5, 0.6]], [0.5, 0.1], 0.5, "must rise"),
        ([[0.5, 0.6]], [0.0, 1.0], 0.5, "must rise"),
        ([[0.5, np.nan]], [0.1, 1.0], 0.5, "NaN"),
        ([[0.5, 0.6]], [0.1, 1.0], np.nan, "NaN"),
    ],
)
def test_what_cannot_be_read(values, fractions, target, words):
    with pytest.raises(ValueError, match=words):
        data_needed.data_needed(values, fractions, target)


def draws_of(encoder, curves, dataset="HAM10000", images=(100, 500, 1000)):
    """The last fraction has draw 0 only, as in a record."""
    rows = [
        {
            "dataset_label": dataset,
            "encoder_label": encoder,
            "metric": "auroc",
            "fraction": f,
            "draw": d,
            "images": n,
            "value": v,
        }
        for d, curve in enumerate(curves)
        for f, n, v in zip((0.1, 0.5, 1.0), images, curve, strict=True)
        if f < 1 or d == 0
    ]
    return pd.DataFrame(rows)


def test_the_table_answers_for_each_pair_on_each_dataset():
    ours = [[0.5, 0.8, 0.9], [0.7, 0.8, 0.9]]
    draws = pd.concat(
        [draws_of("PanDerm", ours), draws_of("DINOv2", [[0.4, 0.5, 0.7]] * 2), draws_of("PanDerm", ours, "DDI")]
    )
    table = data_needed.data_needed_table(draws).set_index(["Dataset", "Encoder", "matches"])
    assert list(table.index) == [("HAM10000", "PanDerm", "DINOv2"), ("HAM10000", "DINOv2", "PanDerm")]
    row = table.loc["HAM10000", "PanDerm", "DINOv2"]
    middle = 0.1 * 5**0.5  # the mean curve goes from 0.6 at 10% to 0.8 at 50%
    assert row["images needed"] == round(1000 * middle) == 224
    assert row["labels needed"] == "22% [10-29]"
    assert row["score to reach"] == 0.7
    assert row["state"] == REACHED
    assert table.loc["HAM10000", "DINOv2", "PanDerm"]["state"] == NOT_REACHED
    assert table.loc["HAM10000", "DINOv2", "PanDerm"]["images needed"] is pd.NA


def test_no_rival_is_an_empty_table():
    table = data_needed.data_needed_table(draws_of("PanDerm", [[0.5, 0.8, 0.9]]))
    assert table.empty
    assert "labels needed" in table


def test_shares_are_those_that_were_drawn():
    """Asked for 10%, whole groups gave 200 of 1,000 images."""
    draws = pd.concat([draws_of("a", [[0.5, 0.7, 0.9]], images=(200, 500, 1000)), draws_of("b", [[0.4, 0.4, 0.5]])])
    assert data_needed.compare(draws, "a", "b").fraction == pytest.approx(0.2)


def test_answers_for_figures_name_the_best_and_the_next_best_or_those_asked_for():
    draws = pd.concat(
        [draws_of("a", [[0.4, 0.5, 0.6]]), draws_of("b", [[0.5, 0.8, 0.9]]), draws_of("c", [[0.4, 0.6, 0.7]])]
    )
    assert data_needed.find_match(draws)[1:] == ("b", "c")
    assert data_needed.find_match(draws, "a")[1:] == ("a", "b")
    assert data_needed.find_match(draws, rival="b")[1:] == ("c", "b")
    needed, *names = data_needed.find_match(draws, "c", "a")
    assert names == ["c", "a"]
    assert needed.fraction == pytest.approx(0.5)
    assert data_needed.find_match(draws, "a", "d") is None
    assert data_needed.find_match(draws_of("a", [[0.4, 0.5, 0.6]])) is None
    said = data_needed.match_sentences({"HAM10000": (needed, "c", "a"), "DDI": None})
    assert said.to_dict("records") == [{"Dataset": "HAM10000", "answer": "c with 50% of the labels matches a with all"}]


def test_a_share_is_whole_from_ten_percent_up_and_never_a_power_of_ten():
    shares = {1.0: "100", 0.996: "100", 0.5049: "50", 0.0996: "10", 0.0994: "9.9", 0.05: "5", 0.0123: "1.2"}
    assert {share: data_needed.percent(share) for share in shares} == shares
