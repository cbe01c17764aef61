"""The figures of masks stand at the numbers, and outlines at the pixels."""

import numpy as np
import pytest
from PIL import Image

from panderm_utils.figures.plots import SYNTHETIC_MARK
from panderm_utils.protocols import segmentation
from panderm_utils.protocols.segmentation.plots import PREDICTED, TRUE
from tests.mask_record import ellipse


def outlines(axis):
    """Returns colour -> the extremes of the outlines drawn in an axis: left, right, top, bottom."""
    found = {}
    for lines in axis.collections:
        points = np.concatenate([path.vertices for path in lines.get_paths()])
        color = "#{:02X}{:02X}{:02X}".format(*(np.round(255 * lines.get_edgecolor()[0, :3])).astype(int))
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        found[color] = [left, right, top, bottom]
    return found


@pytest.mark.parametrize("size", [(60, 80), (1200, 1600)])  # the second is shown at a quarter
def test_contours_are_around_the_masks_also_at_the_border(size):
    true, predicted = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    height, width = size
    true[height // 4 : height // 2, width // 4 : width // 2] = True
    predicted[: height // 2, width // 2 :] = True
    image = Image.new("RGB", (width, height))
    figure = segmentation.mask_contours([image], [true], [predicted])
    (axis,) = [axis for axis in figure.axes if axis.images]
    shown_height, shown_width = axis.images[0].get_array().shape[:2]
    assert max(shown_height, shown_width) <= 400
    at = outlines(axis)
    w, h = shown_width, shown_height
    np.testing.assert_allclose(at[TRUE[0]], [w / 4 - 0.5, w / 2 - 0.5, h / 4 - 0.5, h / 2 - 0.5], atol=0.6)
    np.testing.assert_allclose(at[PREDICTED[0]], [w / 2 - 0.5, w - 0.5, -0.5, h / 2 - 0.5], atol=0.6)
    assert image.size == (width, height)  # the caller's image is left alone


def test_rows_are_groups_with_their_captions_and_empty_masks_have_no_outline():
    masks = [ellipse(40, 50, 0.5, 0.5, 0.2, 0.2), np.zeros((40, 50), bool), np.ones((40, 50), bool)]
    images = [Image.new("RGB", (50, 40)) for _ in masks]
    captions = ["a\nDice 1.000", "b\nDice 0.000", "c\nDice 0.100"]
    figure = segmentation.mask_contours(images, masks, masks[:1] * 3, captions, ["best", "worst", "worst"], True)
    axes = figure.axes
    assert [axis.get_ylabel() for axis in axes] == ["best", "", "worst", ""]
    assert [axis.get_xlabel() for axis in axes] == [captions[0], "", captions[1], captions[2]]
    assert [len(axis.collections) for axis in axes] == [2, 0, 1, 1]
    assert figure.get_supxlabel() == SYNTHETIC_MARK
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["true", "predicted"]
    alone = segmentation.mask_contours(images[:1], masks[:1])
    assert not alone.legends
    assert len(alone.axes[0].collections) == 1
    segmentation.mask_contours([], [], [])


def test_the_distribution_is_sorted_and_its_median_marked():
    dice = [0.9, 0.2, 0.7, 0.8, 0.4]
    figure = segmentation.dice_distribution({"as published": dice, "original size": np.array(dice) / 2})
    curves = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 5]
    np.testing.assert_allclose(curves[0].get_ydata(), sorted(dice))
    np.testing.assert_allclose(curves[0].get_xdata(), [10, 30, 50, 70, 90])
    assert curves[0].get_label() == "as published: median 0.700, 40% below 0.5"
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [(dot.get_xdata()[0], dot.get_ydata()[0]) for dot in dots] == [(50, 0.7), (50, 0.35)]
    assert figure.axes[0].get_title(loc="left") == "Dice of 5 test images, sorted"


def test_size_and_dice_are_points_with_the_medians_of_fifths():
    sizes, dice = np.arange(0, 26), np.linspace(0.4, 0.9, 26)
    correlation = {"value": 0.5, "low": -0.1, "high": 0.8}
    axis = segmentation.dice_against_size(sizes, dice, correlation).axes[0]
    assert len(axis.collections[0].get_offsets()) == 25
    np.testing.assert_allclose(axis.lines[0].get_xdata(), [3, 8, 13, 18, 23])
    np.testing.assert_allclose(axis.lines[0].get_ydata(), dice[[3, 8, 13, 18, 23]])
    title = "Dice and size: Spearman +0.50 [-0.10, +0.80]; images without a lesion: 1"
    assert axis.get_title(loc="left") == title
    assert axis.get_xscale() == "log"
    few = segmentation.dice_against_size(sizes[:5], dice[:5], correlation).axes[0]
    assert not few.lines
