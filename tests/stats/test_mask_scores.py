"""Scores of masks: by hand, against a slow computation from the definitions, and at the edges."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from panderm_utils.stats import masks
from panderm_utils.stats.resampling import MetricError


def mask(*rows):
    return np.array([[cell == "#" for cell in row] for row in rows])


def blobs(seed, size=(41, 57), threshold=0.0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), 4)
    return noise > threshold * noise.std()


def slow_scores(true, predicted):
    """The definitions, pixel by pixel."""
    pixels = list(itertools.product(*map(range, true.shape)))
    a, b = ({p for p in pixels if m[p]} for m in (true, predicted))

    def edge(lesion):
        around = ((-1, 0), (1, 0), (0, -1), (0, 1))
        return [p for p in lesion if any((p[0] + y, p[1] + x) not in lesion for y, x in around)]

    far = [
        [min(np.hypot(p[0] - q[0], p[1] - q[1]) for q in edge(other)) for p in edge(one)]
        for one, other in ((a, b), (b, a))
    ]
    diagonal = (true.shape[0] ** 2 + true.shape[1] ** 2) ** 0.5
    near = [d <= masks.TOLERANCE / 100 * diagonal for part in far for d in part]
    return {
        "jaccard_original": len(a & b) / len(a | b),
        "dice_original": 2 * len(a & b) / (len(a) + len(b)),
        "hd95_original": 100 * max(np.percentile(part, 95) for part in far) / diagonal,
        "surface_dice_original": sum(near) / len(near),
        "sensitivity_original": len(a & b) / len(a),
        "specificity_original": sum(p not in a and p not in b for p in pixels) / (len(pixels) - len(a)),
    }


def test_by_hand():
    true = mask("....", ".##.", ".##.", "....")
    predicted = mask("....", "..##", "..##", "....")
    found = masks.mask_scores(true, predicted)
    # Two of four pixels each in common; every pixel is on its boundary, half of them one pixel from the other one.
    diagonal = 32**0.5
    assert found == pytest.approx(
        {
            "jaccard_original": 2 / 6,
            "dice_original": 0.5,
            "hd95_original": 100 / diagonal,
            "surface_dice_original": 0.5,
            "sensitivity_original": 0.5,
            "specificity_original": 10 / 12,
        }
    )
    assert masks.published_mask_scores(true, predicted) == pytest.approx({"jaccard": 2 / 6, "dice": 0.5})


def test_tolerance_is_one_percent_of_the_diagonal():
    true, near, far = (np.zeros((300, 400), dtype=bool) for _ in range(3))  # a diagonal of 500: 5 pixels
    true[150, 200] = near[150, 205] = far[150, 206] = True
    assert masks.mask_scores(true, near)["surface_dice_original"] == 1
    assert masks.mask_scores(true, far)["surface_dice_original"] == 0
    assert masks.mask_scores(true, far)["hd95_original"] == pytest.approx(1.2)


@pytest.mark.parametrize("seed", range(4))
def test_as_the_definitions_say(seed):
    true, predicted = blobs(seed, threshold=0.4), blobs(seed + 10, threshold=0.8)
    assert masks.mask_scores(true, predicted) == pytest.approx(slow_scores(true, predicted), abs=1e-12)
    nearly = true ^ (ndimage.binary_erosion(true) ^ true) & blobs(seed + 20)
    assert masks.mask_scores(true, nearly) == pytest.approx(slow_scores(true, nearly), abs=1e-12)


def test_a_boundary_is_what_erosion_takes_away_also_at_the_border_of_the_image():
    for seed in range(5):
        lesion = blobs(seed, size=(seed + 1, 9 - seed), threshold=-0.5)
        edge = np.zeros_like(lesion)
        edge[tuple(masks.boundary(lesion).T)] = True
        np.testing.assert_array_equal(edge, lesion & ~ndimage.binary_erosion(lesion))


@pytest.mark.parametrize("score", [masks.mask_scores, masks.published_mask_scores])
def test_overlap_and_distances_are_symmetric_and_perfect_for_equal_masks(score):
    one, other = blobs(1, threshold=1.0), blobs(2, threshold=1.0)
    if score is masks.published_mask_scores:
        one, other = masks.keep_largest(one), masks.keep_largest(other)
    there, back = score(one, other), score(other, one)
    for name in set(there) - {"sensitivity_original", "specificity_original"}:
        assert there[name] == pytest.approx(back[name])
    perfect = {name: float(name not in masks.LOWER_IS_BETTER) for name in there}
    assert score(one, one) == perfect


def test_empty_full_and_one_pixel_masks():
    empty, full = np.zeros((30, 40), dtype=bool), np.ones((30, 40), dtype=bool)
    dot = empty.copy()
    dot[0, 0] = True
    corner = empty.copy()
    corner[-1, -1] = True

    def scores(true, predicted):
        return list(masks.mask_scores(true, predicted).values())  # jaccard, dice, hd95, surface, sens., spec.

    np.testing.assert_array_equal(scores(empty, empty), [1, 1, 0, 1, np.nan, 1])
    np.testing.assert_array_equal(scores(dot, empty), [0, 0, 100, 0, 0, 1])
    np.testing.assert_array_equal(scores(empty, dot), [0, 0, 100, 0, np.nan, 1 - 1 / 1200])
    np.testing.assert_array_equal(scores(full, empty), [0, 0, 100, 0, 0, np.nan])
    np.testing.assert_array_equal(scores(empty, full), [0, 0, 100, 0, np.nan, 0])
    np.testing.assert_array_equal(scores(full, full), [1, 1, 0, 1, 1, np.nan])
    np.testing.assert_array_equal(scores(dot, dot), [1, 1, 0, 1, 1, 1])
    apart = masks.mask_scores(dot, corner)
    assert apart["hd95_original"] == pytest.approx(100 * np.hypot(29, 39) / 50)
    assert apart["dice_original"] == apart["surface_dice_original"] == 0
    assert masks.mask_scores(np.array([[True]]), np.array([[True]]))["dice_original"] == 1


def test_published_postprocessing_keeps_the_largest_component_and_fills_its_holes():
    raw = mask(
        "##......",
        "........",
        "..###...",
        "..#.#...",
        "..##.#..",  # connected by a corner, so its hole is open only diagonally
        "........",
    )
    kept = mask(
        "........",
        "........",
        "..###...",
        "..###...",
        "..##.#..",
        "........",
    )
    np.testing.assert_array_equal(masks.keep_largest(raw), kept)


@pytest.mark.parametrize("seed", range(6))
def test_published_postprocessing_is_that_of_scipy(seed):
    raw = blobs(seed, threshold=0.2)
    components, count = ndimage.label(raw, np.ones((3, 3)))
    sizes = ndimage.sum_labels(raw, components, range(1, count + 1))
    expected = ndimage.binary_fill_holes(components == 1 + np.argmax(sizes))
    np.testing.assert_array_equal(masks.keep_largest(raw), expected)


def test_published_quirks():
    empty, lesion = np.zeros((224, 224), dtype=bool), np.zeros((224, 224), dtype=bool)
    lesion[50:106, 60:172] = True  # an eighth of the image
    assert masks.published_mask_scores(lesion, empty) == pytest.approx({"jaccard": 1 / 8, "dice": 2 / 9})
    centre = empty.copy()
    centre[112, 112] = True
    assert masks.published_mask_scores(empty, centre) == {"jaccard": 1, "dice": 1}
    assert masks.published_mask_scores(empty, empty)["jaccard"] == 1 / 224**2  # both quirks at once
    assert not empty.any()  # the caller's arrays are left alone


def test_masks_that_cannot_be_scored_are_refused():
    lesion = np.zeros((4, 5), dtype=bool)
    with pytest.raises(MetricError, match=r"\[4, 5\] and \[5, 4\]: resize"):
        masks.mask_scores(lesion, lesion.T)
    with pytest.raises(MetricError, match=r"got bool \[4, 5\] and uint8 \[4, 5\]: convert"):
        masks.published_mask_scores(lesion, lesion.astype(np.uint8))
    with pytest.raises(MetricError, match="bool"):
        masks.mask_scores(lesion[0], lesion[0])
