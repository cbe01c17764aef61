"""Training subsets: pinned, nested, stratified, groups whole; the published ones bit for bit."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest

from panderm_utils import data
from panderm_utils.data.splits import connected_groups
from panderm_utils.demo import stand_ins as demo
from panderm_utils.manifests import reading as manifests
from panderm_utils.protocols.label_efficiency import subsets
from panderm_utils.protocols.label_efficiency.subsets import FRACTIONS, SubsetError

HALF = [*range(200), *[200] * 200]  # the last patient has half of 400 images


def table_of(labels, **groups):
    """Training rows, each followed by a test row that no subset may hold."""
    train = pd.DataFrame(
        {"image": [f"{i}.jpg" for i in range(len(labels))], "split": "train", "label": labels, **groups}
    )
    table = pd.concat([train, train.assign(split="test")])
    return table.sort_index(kind="stable").reset_index(drop=True)


def of_demo(name="demo"):
    card = manifests.load_dataset_manifest(name)
    rows = demo.plan_rows(card)
    return rows[["image", "split", "label", "lesion", "patient"]], ["lesion", "patient"]


def of_patients():
    """Patients with lesions of several classes, some of them with many images."""
    rng = np.random.default_rng(1)
    size = rng.choice([1, 2, 3, 9, 40], 500, p=[0.5, 0.3, 0.12, 0.06, 0.02])
    patient = np.repeat(np.arange(500), size)
    own = rng.choice(5, 500, p=[0.5, 0.3, 0.1, 0.07, 0.03])[patient]
    label = np.where(rng.random(len(patient)) < 0.8, own, rng.integers(5, size=len(patient)))
    return table_of(label, patient=patient), ["patient"]


def of_single_images():
    return table_of(np.random.default_rng(2).permutation([0] * 700 + [1] * 200 + [2] * 80 + [3] * 20)), []


def of_tiny_classes():
    return table_of([0] * 400 + [1] * 2 + [2]), []


def of_one_giant():
    """One patient with half of all images, and the only ones of class 2."""
    return table_of([0] * 100 + [1] * 100 + [0] * 120 + [1] * 60 + [2] * 20, patient=HALF), ["patient"]


def of_own_giant():
    """One patient with half of all images, of classes that others have too."""
    return table_of([0] * 100 + [1] * 100 + [0] * 120 + [1] * 80, patient=HALF), ["patient"]


PINNED = [
    (0.5, 0, [3, 6, 9, 4, 5]),
    (0.5, 1, [2, 6, 9, 3, 0, 1]),
    (1.0, 0, [8, 1, 5, 0, 7, 2, 9, 4, 3, 6]),
]
PINNED_DEMO = [
    [119, 11, 271, 292, 429, 534],
    [365, 366, 387, 564, 157, 589],
    [199, 95, 358, 585, 525, 333],
    [55, 170, 410, 333, 77, 274],
    [182, 43, 582, 384, 175, 12],
]
TABLES = [of_demo, of_patients, of_single_images, of_tiny_classes, of_one_giant, of_own_giant]


def by_draw(drawn):
    """Draw -> fraction -> the set of its rows."""
    nested = {}
    for subset in drawn:
        nested.setdefault(subset.draw, {})[subset.fraction] = set(subset.rows.tolist())
        assert len(set(subset.rows.tolist())) == len(subset.rows)
    return nested


def usable(table, columns, draws=5, seed=0):
    orders = subsets.honest_orders(table, draws, seed, columns)
    return max(order.smallest for order in orders)


def quietly(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return subsets.draw_subsets(*arguments, **options)


def test_honest_draws_are_pinned():
    """Seed to rows: who moves these numbers makes every published curve another one."""
    table = table_of([0] * 6 + [1] * 3 + [2], lesion=[1, 1, 2, 3, 4, 4, 5, 6, 6, 7])
    drawn = subsets.draw_subsets(table, "0.5, 1", draws=2, group_columns=["lesion"])
    assert [(s.fraction, s.draw, s.rows.tolist()) for s in drawn] == PINNED


def test_the_demo_s_draws_are_pinned():
    table, columns = of_demo()
    drawn = subsets.draw_subsets(table, [0.05], draws=5, seed=0, group_columns=columns)
    assert [s.rows[:6].tolist() for s in drawn if s.fraction < 1] == PINNED_DEMO


@pytest.mark.parametrize("make", TABLES)
@pytest.mark.parametrize("seed", [0, 7])
def test_every_smaller_fraction_is_inside_the_larger_one_and_the_last_has_all(make, seed):
    table, columns = make()
    *smaller, whole = quietly(table, None, draws=4, seed=seed, group_columns=columns)
    assert (whole.fraction, whole.draw) == (1.0, 0)
    assert sorted(whole.rows) == list(range((table["split"] == "train").sum()))
    assert len({s.draw for s in smaller}) == 4
    for fractions in by_draw(smaller).values():
        assert len(fractions) >= 2
        for smaller, larger in itertools.pairwise(sorted(fractions)):
            assert fractions[smaller] <= fractions[larger]


@pytest.mark.parametrize("make", TABLES)
def test_groups_stay_whole_and_every_class_is_there(make):
    table, columns = make()
    train = table[table["split"] == "train"].reset_index(drop=True)
    least = usable(table, columns)
    for subset in quietly(table, [least, 0.6, 0.8], draws=5, group_columns=columns):
        inside = train.index.isin(subset.rows)
        for column in columns:
            assert pd.Series(inside).groupby(train[column]).nunique().max() == 1, column
        assert set(train["label"][inside]) == set(train["label"])


@pytest.mark.parametrize("make", TABLES)
def test_no_division_into_whole_groups_along_the_order_is_nearer_to_the_share(make):
    table, columns = make()
    train = table[table["split"] == "train"].reset_index(drop=True)
    groups = connected_groups(train, columns)
    largest = np.bincount(groups).max()
    for order in subsets.honest_orders(table, 3, 0, columns):
        visited = groups[order.rows]
        ends = np.flatnonzero(np.append(visited[1:] != visited[:-1], True)) + 1  # by looking, not by `ends`
        assert len(ends) == len(set(groups))
        for fraction in (0.031, 0.1, 0.29, 0.5, 0.77, 1.0):
            distance = abs(order.cut(fraction) - fraction * len(train))
            assert distance == np.abs(np.append(0, ends) - fraction * len(train)).min()
            assert distance <= largest / 2


def test_single_images_are_stratified_to_within_one_image_a_class():
    table, _ = of_single_images()
    y = table.loc[table["split"] == "train", "label"].to_numpy()
    for subset in subsets.draw_subsets(table, [0.05, 0.1, 0.123, 0.3, 0.5, 0.9], draws=6):
        assert len(subset.rows) == round(subset.fraction * 1000)
        assert np.abs(np.bincount(y[subset.rows], minlength=4) - subset.fraction * np.bincount(y)).max() <= 1


@pytest.mark.parametrize("make", [of_demo, of_patients])
def test_with_groups_a_draw_is_far_nearer_to_the_classes_shares_than_chance(make):
    table, columns = make()
    y = table.loc[table["split"] == "train", "label"].to_numpy()
    groups = connected_groups(table[table["split"] == "train"], columns)
    share = np.bincount(y) / len(y)
    rng = np.random.default_rng(0)

    def distance(rows):
        return (np.square(np.bincount(y[rows], minlength=len(share)) / len(rows) - share) / share).sum()

    def whole_groups_at_random(count):
        order = rng.permutation(groups.max() + 1)
        return np.argsort(np.argsort(order)[groups], kind="stable")[:count]

    drawn = [s for s in subsets.draw_subsets(table, [0.1, 0.3], draws=20, group_columns=columns) if s.fraction < 1]
    chance = [distance(whole_groups_at_random(len(s.rows))) for s in drawn]
    assert np.mean([distance(s.rows) for s in drawn]) < 0.35 * np.mean(chance)


def test_no_kind_of_group_is_drawn_more_often_than_its_share():
    """Large patients and those with several classes come as often as the rest: 300 draws of the 10%."""
    table, columns = of_patients()
    train = table[table["split"] == "train"].reset_index(drop=True)
    drawn = np.zeros(len(train))
    for order in subsets.honest_orders(table, 300, 0, columns):
        drawn[order.rows[: order.cut(0.1)]] += 1 / 300
    patient = train.groupby("patient")["label"]
    size, kinds = patient.transform("size").to_numpy(), patient.transform("nunique").to_numpy()
    for kind in (size == 1, (size > 1) & (size < 5), size == 9, kinds == 1, kinds == 2, kinds > 2):
        assert drawn[kind].mean() == pytest.approx(0.1, abs=0.02)


def test_a_giant_patient_waits_until_the_rest_outweighs_it():
    table, columns = of_own_giant()
    for subset in subsets.draw_subsets(table, [0.05, 0.2, 0.4], draws=8, group_columns=columns):
        assert len(subset.rows) == round(subset.fraction * 400)
        assert (subset.rows >= 200).any() == (subset.fraction == 1)


def test_a_draw_depends_on_its_seed_and_number_alone():
    table, columns = of_patients()
    many = by_draw(subsets.draw_subsets(table, FRACTIONS, draws=7, seed=3, group_columns=columns))
    few = by_draw(subsets.draw_subsets(table, [0.3], draws=2, seed=3, group_columns=columns))
    other = by_draw(subsets.draw_subsets(table, [0.3], draws=2, seed=4, group_columns=columns))
    for draw in (0, 1):
        assert few[draw][0.3] == many[draw][0.3] != other[draw][0.3]
    assert len({frozenset(many[draw][0.05]) for draw in many}) == 7


def test_patients_and_lesions_together_are_whole_even_where_ids_are_missing():
    table, _ = of_demo()
    table = table.astype({"patient": object})
    table.loc[table.index % 3 == 0, "patient"] = None
    train = table[table["split"] == "train"].reset_index(drop=True)
    for subset in subsets.draw_subsets(
        table, [0.1, 0.5], draws=2, group_columns=["lesion", "patient", "no such column"]
    ):
        inside = pd.Series(train.index.isin(subset.rows))
        assert inside.groupby(train["lesion"]).nunique().max() == 1
        assert inside.groupby(train["patient"]).nunique().max() == 1


@pytest.mark.parametrize("make", TABLES)
def test_the_smallest_usable_fraction_that_an_error_names_is_the_smallest(make):
    table, columns = make()
    with pytest.raises(SubsetError, match="smallest usable fraction is") as caught:
        subsets.draw_subsets(table, [1e-4], draws=3, group_columns=columns)
    smallest = float(str(caught.value).split()[-1])
    drawn = subsets.draw_subsets(table, [smallest], draws=3, group_columns=columns)
    y = table.loc[table["split"] == "train", "label"].to_numpy()
    assert all(set(y[s.rows]) == set(y) for s in drawn)
    with pytest.raises(SubsetError, match=f"no row of class .* smallest usable fraction is {smallest:g}"):
        subsets.draw_subsets(table, [smallest - 2e-6], draws=3, group_columns=columns)


def test_an_error_names_the_class_that_is_lost():
    table = table_of([0] * 300 + [1] * 300 + [2] * 100, patient=[*range(600), *[600] * 100])
    text = r"0\.01 of 700 training rows is 2 in draw 0 and has no row of class melanoma; .* 0\.07"
    with pytest.raises(SubsetError, match=text):
        names = ["nevus", "keratosis", "melanoma"]
        subsets.draw_subsets(table, [0.01], draws=1, group_columns=["patient"], class_names=names)


def test_the_default_fractions_leave_out_what_cannot_hold_every_class():
    table = table_of(list(range(16)) * 9)
    with pytest.warns(UserWarning, match=r"5%, 10% of the labels cannot hold every class .* fraction is 0\.1\d+"):
        drawn = subsets.draw_subsets(table, draws=2)
    assert sorted({s.fraction for s in drawn}) == [0.2, 0.3, 0.5, 0.7, 1.0]
    with pytest.raises(SubsetError):
        subsets.draw_subsets(table, "0.05, 1", draws=2)


def test_fractions_as_text_and_as_numbers():
    assert subsets.settle_fractions("0.2, .05") == subsets.settle_fractions([0.2, 0.05]) == (0.05, 0.2, 1.0)
    assert subsets.settle_fractions("[0.5, 1.0]") == (0.5, 1.0)
    assert subsets.settle_fractions() == (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    with pytest.raises(SubsetError, match=r'write them as "0\.05'):
        subsets.settle_fractions("5%")


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("drawing", subsets.DRAWINGS)
def test_fractions_that_cannot_be(fraction, drawing):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        subsets.draw_subsets(table_of([0, 1] * 30), [fraction], drawing)


def test_other_errors_say_what_to_do():
    table = table_of([0, 1] * 30)
    with pytest.raises(SubsetError, match="'honest', 'published'"):
        subsets.draw_subsets(table, drawing="upstream")
    with pytest.raises(SubsetError, match="draws"):
        subsets.draw_subsets(table, draws=0)
    with pytest.raises(SubsetError, match="no row's split is train"):
        subsets.draw_subsets(table[table["split"] == "test"])
    with pytest.raises(SubsetError, match=r"study\.table"):
        subsets.draw_subsets(table.drop(columns="split"))


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3, 1.0])
def test_published_subsets_are_those_of_linear_probing(fraction):
    rng = np.random.default_rng(0)
    splits = rng.choice(["train", "val", "test"], 1500, p=[0.7, 0.1, 0.2])
    table = pd.DataFrame({"image": np.arange(1500), "split": splits, "label": np.arange(1500) % 3})
    train = table[splits == "train"].reset_index(drop=True)
    rows = subsets.published_subset(table, fraction).rows
    expected = data.label_fraction(train, fraction)
    assert train["image"].iloc[rows].tolist() == expected["image"].tolist()


def test_the_published_drawing_is_one_draw_without_stratification():
    table = table_of([0] * 190 + [1] * 10)
    with pytest.warns(UserWarning, match="leaves no training row of class melanoma$") as warned:
        names = ["nevus", "melanoma"]
        drawn = subsets.draw_subsets(table, "0.05, 0.1, 0.5", "published", draws=5, seed=9, class_names=names)
    assert [str(w.message).split()[1] for w in warned] == ["0.05", "0.1"]
    order = np.random.RandomState(42).permutation(200)  # upstream's rule, whatever the seed of the run
    assert [s.rows.tolist() for s in drawn] == [order[:k].tolist() for k in (10, 20, 100, 200)]
    assert {s.draw for s in drawn} == {0}


def test_all_labels_are_the_linear_probe_s_own_rows_in_its_order():
    table, columns = of_demo()
    train = table[table["split"] == "train"].reset_index(drop=True)
    for subset in subsets.draw_subsets(table, "1", draws=3, group_columns=columns):
        assert train["image"].iloc[subset.rows].tolist() == data.label_fraction(train, 1.0)["image"].tolist()


def test_the_table_of_subsets_counts_the_classes_of_one_draw():
    table = table_of([0] * 60 + [1] * 30 + [2] * 10)
    drawn = subsets.draw_subsets(table, "0.1, 0.5", draws=2)
    counts = subsets.subset_table(table, drawn, ["nevus", "melanoma", "scar"], draw=1)
    assert list(counts) == ["10%", "50%", "100%"]
    assert counts.index.tolist() == ["nevus", "melanoma", "scar", "all"]
    assert counts["100%"].tolist() == [60, 30, 10, 100]
    assert counts["50%"].tolist() == [30, 15, 5, 50]
    first, second = (subset for subset in drawn if subset.fraction == 0.1)
    uneven = [first, subsets.Subset(0.1, 1, second.rows[:4])]  # which of the two was counted can be told
    assert subsets.subset_table(table, uneven, list("abc")).loc["all"].tolist() == [len(first.rows)]
