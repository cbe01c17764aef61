"""A right answer to an exercise is right, and a wrong one gets the hint of its mistake."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from panderm_utils import tutorial
from panderm_utils.messages import UserError
from panderm_utils.tutorial import checking

NAMES = ("nv", "mel", "df")
PATCHES = np.zeros((14, 14, 8))
COUNTS = np.array([[5, 1, 0], [2, 6, 2], [0, 1, 3]])
# Of the classes 8, 5 and 2 images: the nearest of nv is right for 6, of mel for 2, of df for 1.
Y = np.repeat([0, 1, 2], [8, 5, 2])
NEAR = np.array([0] * 6 + [1, 2] + [1, 1, 0, 0, 2] + [2, 0])
ANGLES = np.deg2rad([0, 2, 90, 91, 45, 47])
ROWS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1) * np.array([[1], [9], [1], [1], [1], [1]])
LABELS = np.array([0, 0, 1, 1, 0, 1])
HONEST = np.eye(3)[np.array([0] * 8 + [1] * 5 + [2] * 2)]
MIXED = pd.DataFrame(
    {
        "lesion": list("aabccdeeeefg"),
        "patient": list("pppqqrsssstt"),
        "split": ["train", "test", "test", "train", "train", "val", "train", "test", "test", "test", "train", "test"],
        "label": [0, 0, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1],
    }
)
TRAIN = SimpleNamespace(x=np.array([[1.0, 0.0], [0.0, 1.0]]), y=np.array([0, 1]))
TEST = SimpleNamespace(
    x=np.array([[1.0, 0.1], [1.0, 0.2], [0.1, 1.0], [0.2, 1.0], [1.0, 0.9]]), y=np.array([0, 0, 1, 1, 1])
)
CURVE = pd.Series({"draw_low": 0.4, "draw_high": 0.6, "low": 0.45, "high": 0.55})
IMBALANCED = np.repeat([0, 1], [90, 10])
STEP, VAL = [0, 2, 4, 6, 8, 10, 12], [2.0, 1.5, 1.0, 1.2, 1.1, 1.3, 1.4]
SICK = np.repeat([1, 0], [10, 10])
P = np.array(
    [0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.4, 0.3, 0.2, 0.6, 0.55, 0.45, 0.25, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
)
TARGET = 0.9 * np.array([0.3, 0.7, 0.0]) + 0.1 / 3
MIX = {"classes": [1, 0], "shares": [0.7, 0.3], "smoothing": 0.1, "num_classes": 3}
# exercise: facts, right answers, wrong answer -> part of its hint
CASES = {
    "01-1": (
        {"patches": PATCHES},
        [196, np.int64(196), 196.0],
        [(14, "two sides"), (197, "class token"), (3136, "divide by both"), (100, "fit beside each other")],
    ),
    "01-2": (
        {"y": Y, "neighbour": NEAR, "names": NAMES},
        ["mel", "MEL "],
        [("nv", "works best"), ("df", "divide by the number"), ("bcc", "one of these"), (1, "one of these")],
    ),
    "01-3": (
        {"x": ROWS, "y": LABELS},
        [4 / 6, 0.67],
        [(1.0, "its own nearest"), (5 / 6, "not of length 1"), (0.1, "Then what?"), ("0.6", "without quotes")],
    ),
    "02-1": (
        {"num_features": 192, "num_classes": 7},
        [1351],
        [(1344, "bias"), (193, "for one class"), (199, "multiplied"), (7, "a weight for each feature")],
    ),
    "02-2": (
        {"counts": COUNTS, "k": 1},
        [0.6],
        [
            (6 / 8, "precision"),
            (14 / 20, "accuracy"),
            (0.4, "missed"),
            (6, "Of how many"),
            (60, "percent"),
            (0.1, "row"),
        ],
    ),
    "02-3": (
        {"y": Y, "proba": HONEST},
        [1 / 3, 0.4],
        [(1.0, "true labels teach"), (0.8, "More than luck"), (-0.4, "Less than luck")],
    ),
    "03-1": (
        {"table": MIXED, "lesion": "lesion", "patient": "patient"},
        [2],
        [(3, "These are patients"), (4, "count lesions"), (7, "in all"), (9, "count splits")],
    ),
    "03-2": (
        {"train": TRAIN, "test": TEST},
        [np.array([4]), [4], np.array([False] * 4 + [True])],
        [([0], "the goal is"), ([3, 4], "not needed"), ([7], "row numbers"), (0.5, "row numbers"), ([], "row numbers")],
    ),
    "03-3": (
        {"table": MIXED, "groups": ["lesion", "patient"]},
        [["test"] * 3 + ["train"] * 9],
        [
            (["train"] * 3, "12 words"),
            ([["train", "test"], ["train"]] * 6, "12 words"),
            (["train", "test"] + ["train"] * 10, "values of `lesion`"),
            (["train"] * 2 + ["test"] + ["train"] * 9, "values of `patient`"),
            (["train"] * 12, "test has 0%"),
            (["train"] * 6 + ["test"] * 4 + ["train"] * 2, "test has no image of class 0"),
        ],
    ),
    "04-1": (
        {"y": Y, "names": NAMES},
        [2],
        [(8, "most images"), (15, "whole draw"), (3, "smallest number")],
    ),
    "04-2": ({"row": CURVE}, ["labels"], [("test images", "Subtract"), ("both", "one of these")]),
    "04-3": (
        {"y": IMBALANCED, "fraction": 0.2},
        [0.0951, 0.107],
        [(0.905, "at least one"), (0.4, "count the draws"), (9, "percent")],
    ),
    "05-1": (
        {"lr": 5e-4, "layer_decay": 0.65, "depth": 24},
        [5e-4 * 0.65**25],
        [(5e-4 * 0.65**24, "first block"), (5e-4, "of the head"), (0.65**25, "Multiply"), (1.0, "24 blocks")],
    ),
    "05-2": (
        MIX,
        [TARGET, TARGET.tolist(), TARGET.round(2)],
        [
            ([0.3, 0.7, 0.0], "smoothing"),
            (0.9 * np.array([0.7, 0.3, 0]) + 0.1 / 3, "swapped"),
            ([0.5, 0.7, 0.1], "sum to"),
            ([0.5, 0.25, 0.25], "Start with zeros"),
            ([0.3, 0.7], "3 numbers"),
            ("mel", "3 numbers"),
        ],
    ),
    "05-3": (
        {"step": STEP, "val": VAL, "patience": 3},
        [10],
        [(4, "lowest"), (5, "number of the check"), (12, "stops earlier"), (7, "in order")],
    ),
    "06-1": (
        {"y": SICK, "p": P},
        [0.7],
        [(0.8, "specificity"), (7 / 9, "all alarms"), (0.3, "missed"), (0.75, "accuracy"), (0.1, "Take the melanomas")],
    ),
    "06-2": ({"y": SICK, "p": P}, [0.3, 0.295], [(0.35, "must be lower"), (0.15, "a higher threshold")]),
    "06-3": (
        {"y": SICK, "p": P, "threshold": 0.5},
        [0.7 * 0.01 / (0.7 * 0.01 + 0.2 * 0.99)],
        [(7 / 9, "test images"), (0.7, "sensitivity"), (0.966, "false alarms"), (0.5, "10,000 lesions")],
    ),
}


@pytest.fixture(autouse=True)
def no_tries():
    checking._wrong.clear()


def test_every_exercise_has_its_cases():
    assert list(CASES) == list(tutorial.EXERCISES)


@pytest.mark.parametrize("exercise", CASES)
def test_right_answers_are_right_and_wrong_ones_get_their_hint(exercise):
    facts, right, wrong = CASES[exercise]
    for answer in right:
        verdict = tutorial.check(exercise, answer, **facts)
        assert verdict.right, verdict
        assert str(verdict).startswith("Right. ")
    for answer, hint in wrong:
        checking._wrong.clear()
        verdict = tutorial.check(exercise, answer, **facts)
        assert verdict.right is False
        assert hint in str(verdict), verdict


def test_a_repaired_split_is_right_whichever_it_is():
    table = pd.concat([MIXED.assign(lesion=MIXED["lesion"] + n, patient=MIXED["patient"] + n) for n in "12345"])
    for test in (["1"], ["2", "4"]):
        answer = np.where(table["lesion"].str[1].isin(test), "test", "train")
        for given in (answer, answer.tolist(), pd.Series(answer)):
            assert tutorial.check("03-3", given, table=table, groups=["lesion", "patient"]).right


def test_no_hint_gives_the_answer_away_and_the_solution_is_named_only_after_three_tries():
    first, second, third = (tutorial.check("01-1", 14, patches=PATCHES) for _ in range(3))
    assert "196" not in str(first)
    assert str(first) == str(second)
    assert (first.link, third.link) == ("", "solutions/01_what_an_encoder_sees.ipynb")
    assert f'<a href="{third.link}">' in third._repr_html_()
    assert tutorial.check("01-2", "nv", y=Y, neighbour=NEAR, names=NAMES).link == ""  # each exercise by itself


def test_an_unanswered_exercise_is_neither_right_nor_wrong():
    for _ in range(4):
        verdict = tutorial.check("01-1", ..., patches=PATCHES)
        assert verdict.right is None
        assert verdict.link == ""


def test_an_answer_that_is_no_number_says_what_it_is():
    for answer, text in (
        ([1, 2], "yours is 2 values"),
        (None, "yours is a NoneType"),
        (True, "yours is a bool"),
        ([[1], [1, 2]], "cannot be read as numbers"),
        (torch.ones(1, requires_grad=True), "cannot be read as numbers"),
    ):
        assert text in str(tutorial.check("01-1", answer, patches=PATCHES))
    assert tutorial.check("01-1", torch.tensor([196]), patches=PATCHES).right


def test_what_is_shown_is_safe_and_marks_code():
    shown = tutorial.check("01-3", "<b>", x=ROWS, y=LABELS)._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "<code>answer = 0.5</code>" in shown


def test_an_unknown_exercise_and_missing_facts_say_what_to_write():
    with pytest.raises(UserError, match="exercise '1-1' is unknown; did you mean '01-1'"):
        tutorial.check("1-1", 3)
    with pytest.raises(UserError, match=r'tutorial.check\("02-2", answer, counts=..., k=...\)'):
        tutorial.check("02-2", 0.5, counts=COUNTS)


@pytest.mark.parametrize(
    ("guess", "text"),
    [
        (0.7, "You predicted 0.70. It is 0.60 (of all): 0.10 too high."),
        (0.5, "0.10 too low"),
        (0.6, "just right"),
        (..., "It is 0.60 (of all). You made no prediction"),
        ("much", "cannot be compared"),
    ],
)
def test_a_prediction_is_shown_beside_what_came_out(guess, text):
    assert text in str(tutorial.reveal(guess, 0.6, "of all"))
