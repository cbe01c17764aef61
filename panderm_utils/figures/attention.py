"""The figure of what an encoder looks at: images, and maps over their patches."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from panderm_utils.figures.plots import GREY, finish_figure, style, wrap

COLUMNS = 7  # panels in a line; an image with more has further lines
SIDE = 1.45  # of a panel, in inches
OPACITY = 0.65  # of a map over its image


def attention_maps(
    pictures: Sequence[Image.Image], maps: Mapping[str, Sequence[np.ndarray]], synthetic: bool = False
) -> Figure:
    """Draws each image, and beside it its maps, in lines of at most seven panels.

    Under a map of numbers is its highest value as a multiple of its mean, as colours are scaled for each map: without
    it, a nearly flat map would look as sharp as any.

    Args:
        pictures: The images as the encoder sees them; see `data.resize_and_crop`.
        maps: Title -> a map for each image: numbers [h, w], drawn over the grey image, or colours [h, w, 3] in 0..1.
    """
    panels = [[("image", None), *((title, found[i]) for title, found in maps.items())] for i in range(len(pictures))]
    columns = min(COLUMNS, 1 + len(maps))
    lines = -(-(1 + len(maps)) // columns)
    with style():
        size = (SIDE * columns + 0.2, (SIDE + 0.3) * lines * len(pictures) + 0.4)
        figure, axes = plt.subplots(lines * len(pictures), columns, figsize=size, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for i, (picture, parts) in enumerate(zip(pictures, panels, strict=True)):
            for axis, (title, values) in zip(axes[lines * i : lines * (i + 1)].flat, parts, strict=False):
                _draw(axis, picture, values)
                if i == 0 or lines > 1:
                    axis.set_title(wrap(title, 16), fontsize=8, fontweight="normal", loc="center")
        return finish_figure(figure, synthetic)


def _draw(axis, picture: Image.Image, values: np.ndarray | None) -> None:
    whole = (0, picture.width, picture.height, 0)
    if values is None:
        axis.imshow(picture)
    elif values.ndim == 3:
        axis.imshow(values, extent=whole)
    else:
        axis.imshow(ImageOps.grayscale(picture), cmap="gray")
        axis.imshow(values, extent=whole, cmap="inferno", alpha=OPACITY)
        mean = float(np.mean(values))
        text = f"max {np.max(values) / mean:.1f} × mean" if mean > 0 else "zero everywhere"
        axis.text(0.5, -0.03, text, fontsize=6, color=GREY, ha="center", va="top", transform=axis.transAxes)
