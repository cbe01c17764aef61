"""A record whose predictions are masks, of a protocol made up here, for tests of what reads records."""

import zlib

import numpy as np

from panderm_utils.manifests import Protocol
from panderm_utils.protocols import segmentation
from panderm_utils.results import begin_run, save_record

PROTOCOL = Protocol(
    name="outlines",
    title="outlining",
    question="Where is the lesion?",
    reproduces="nothing",
    teaches="nothing",
    seconds_an_image=0.0,
    demo_time="no time",
    settings={"replicates": 1000},
    recompute=segmentation.recompute_masks,
    metric="jaccard",
    exhibits=segmentation.study_exhibits,
)


def ellipse(height, width, y, x, high, wide):
    """Returns a mask [H, W] of an ellipse; all in fractions of the image."""
    row, column = np.mgrid[:height, :width]
    return ((row / height - y) / high) ** 2 + ((column / width - x) / wide) ** 2 <= 1


def draw_masks(names, shift=0.05, side=224):
    """Yields name and masks of images of several sizes; the prediction is off by up to `shift` of the image."""
    for name in names:
        number = zlib.crc32(name.encode(errors="surrogatepass"))
        rng = np.random.default_rng(number)
        size, (y, x), (high, wide) = (90 + 10 * (number % 3), 120), rng.uniform(0.4, 0.6, 2), rng.uniform(0.1, 0.3, 2)
        off = shift * rng.random()
        predicted = ellipse(*size, y + off, x, high, wide * (1 + off))
        small = ellipse(side, side, y + off, x, high, wide * (1 + off))
        yield name, segmentation.ImageMasks(ellipse(*size, y, x, high, wide), predicted, small)


def save_mask_record(
    space,
    names,
    dataset="ham10000",
    encoder="panderm_tiny",
    seed=0,
    shift=0.05,
    clusters=None,
    metadata=None,
    protocol=PROTOCOL,
    train=0,
    replicates=60,
    **settings,
):
    """Returns the folder of a record as a notebook leaves it; `train` is the number of training images."""
    run = begin_run(protocol, dataset, encoder, seed, space, replicates=replicates, **settings)
    run.files[segmentation.MASKS_FILE] = segmentation.pack_masks(draw_masks(names, shift))
    predictions = segmentation.score_images(names, run.files[segmentation.MASKS_FILE], clusters)
    metrics = segmentation.evaluate_masks(predictions, 60, seed)
    run.note(size_correlation=segmentation.correlate_with_size(predictions, 60, seed))
    digests = {"rows_sha256": "0" * 64, "csv_sha256": "0" * 64}
    run.note(training_images=train, data={"split_sizes": {"train": train, "val": 0, "test": len(names)}, **digests})
    return save_record(run, metrics, predictions, "jaccard", {"metadata.csv": metadata} if metadata is not None else {})
