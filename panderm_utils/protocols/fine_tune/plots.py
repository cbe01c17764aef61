"""The figure of augmented images."""

import numpy as np
from PIL import Image

from panderm_utils.data import EVALUATION_MEAN, EVALUATION_STD


def picture_of(image) -> Image.Image:
    """Returns a normalised tensor [3, H, W] as a PIL image."""
    mean, std = (np.array(values)[:, None, None] for values in (EVALUATION_MEAN, EVALUATION_STD))
    pixels = np.clip(255 * (np.asarray(image) * std + mean), 0, 255).round().astype(np.uint8)
    return Image.fromarray(np.moveaxis(pixels, 0, 2))
