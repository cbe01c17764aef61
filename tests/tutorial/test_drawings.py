"""What the pictures of the lessons say."""

import numpy as np

from panderm_utils import tutorial

Y = np.repeat([0, 1], [6, 4])
P = np.array([0.1, 0.1, 0.2, 0.2, 0.3, 0.9, 0.2, 0.6, 0.7, 0.8])


def test_the_histogram_says_how_many_of_each_class_alarm():
    upper, lower = tutorial.score_histogram(P, Y, 0.5, ("rest", "melanoma")).axes
    assert upper.get_title(loc="left") == "rest: 17% of 6 alarm at 0.5"
    assert lower.get_title(loc="left") == "melanoma: 75% of 4 alarm at 0.5"
    dark = sum(patch.get_height() for patch in lower.patches if patch.get_alpha() is None)
    assert dark == 3


def test_curves_have_their_names_and_begin_at_zero():
    figure = tutorial.curves([0, 1, 2], {"train": [2, 1, 0.5], "val": [2, 1.5, 1.8]}, "Loss", "step", synthetic=True)
    (axis,) = figure.axes
    assert axis.get_ylim()[0] == 0
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["train", "val"]
    assert axis.lines[1].get_ydata().tolist() == [2, 1.5, 1.8]


def test_the_line_is_where_the_score_is_zero_if_that_is_in_the_picture():
    points = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    for bias, there in ((-0.25, True), (5.0, False)):
        figure = tutorial.line_between(points, np.array([0, 1, 0, 1]), np.array([1.0, 0.0]), bias, ["nv", "mel"])
        lines = [c for c in figure.axes[0].collections if getattr(c, "levels", None) is not None and not c.filled]
        assert len(lines) == there
        if there:
            (path,) = [path for path in lines[0].get_paths() if len(path.vertices)]
            np.testing.assert_allclose(path.vertices[:, 0], 0.25)
