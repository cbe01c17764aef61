"""The figure of attention maps."""

import numpy as np
from PIL import Image

from panderm_utils.figures.attention import attention_maps


def test_each_image_has_its_maps_beside_it_with_their_peaks_in_lines_of_seven():
    pictures = [Image.new("RGB", (224, 224), colour) for colour in ("red", "blue")]
    maps = {f"head {h}": [np.eye(14) + h, np.ones((14, 14))] for h in range(1, 8)}
    maps["colours"] = [np.zeros((14, 14, 3))] * 2
    maps["nothing"] = [np.zeros((14, 14))] * 2
    figure = attention_maps(pictures, maps, synthetic=True)
    lines = np.array(figure.axes, dtype=object).reshape(4, 7)
    titles = [axis.get_title() for axis in lines[:2].flat]
    assert titles == ["image", *(f"head {h}" for h in range(1, 8)), "colours", "nothing", "", "", "", ""]
    peaks = [[text.get_text() for text in axis.texts] for axis in lines.flat]
    assert peaks[0] == []
    assert peaks[1] == [f"max {2 / (1 + 1 / 14):.1f} × mean"]
    assert peaks[8] == []
    assert peaks[9] == ["zero everywhere"]
    assert peaks[15] == ["max 1.0 × mean"]
    np.testing.assert_array_equal(lines[2, 0].images[0].get_array()[0, 0], (0, 0, 255))
    assert lines[0, 1].images[1].get_extent() == [0, 224, 224, 0]
    assert [len(axis.images) for axis in lines[1]] == [2, 1, 2, 0, 0, 0, 0]
    assert "synthetic demo data" in str([text.get_text() for text in figure.texts]) + figure._supxlabel.get_text()
