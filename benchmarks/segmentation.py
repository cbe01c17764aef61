"""Times segmentation against the naive way, in interleaved pairs, and prints the goals.

    python -m benchmarks.segmentation                  all goals (about half an hour on 2 cores)
    python -m benchmarks.segmentation --parts masks
    python -m benchmarks.segmentation --quick          fewer masks, three pairs, no steps: indicative only

The naive step is float32 with unfused attention and AdamW's for-loop. The naive distances between outlines are read off
a distance transform of the whole image, as they are mostly written; both must agree to 1e-9. The host may stall for
seconds, so single pairs vary: read the medians.
"""

import argparse
import sys
import warnings

from benchmarks.measuring import Pairs, conclude, describe_machine, timed, unfuse_attention
from benchmarks.steps import KINDS, compare_steps, print_peak

# isort: split
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch.nn import functional

from panderm_utils.encoders import choose_device
from panderm_utils.manifests import load_encoder_manifest
from panderm_utils.protocols import segmentation
from panderm_utils.protocols.training import BatchGradients, make_accelerator, make_optimizer
from panderm_utils.stats import TOLERANCE

BATCH, CHANNELS = 8, 256  # the published decoder, of 1,024 channels, takes a minute a step on 2 cores
MEMORY_BATCH = 32  # checkpointing saves activations; in small batches they are less than weights and optimizer
STEP_GOALS = {"fp32": 1.0, "fp32 checkpointed": 0.7, "bf16": 1.8, "bf16 checkpointed": 1.2}
MASKS, HEIGHT, WIDTH = 1000, 768, 1024
SECONDS = 5  # for the evaluation of MASKS


class Step:
    """A training step of a segmentation model on random images; `kind` is one of KINDS."""

    def __init__(
        self,
        kind: str,
        encoder: str = "panderm_base",
        batch: int = BATCH,
        device: str = "cpu",
        channels: int = CHANNELS,
    ):
        recipe = segmentation.SegmentationRecipe(batch_size=batch, channels=channels)
        self.naive, device = kind == "naive", choose_device(device)
        self.model = segmentation.SegmentationModel(load_encoder_manifest(encoder), channels).to(device).train()
        self.images = torch.randn(batch, 3, 224, 224, device=device)
        self.masks = (torch.rand(batch, 224, 224, device=device) > 0.5).long()
        if self.naive:
            unfuse_attention(self.model.backbone)
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=False, foreach=False)
            return
        self.model.set_grad_checkpointing("checkpointed" in kind)
        task = segmentation.SegmentationTraining(self.model, None, None, recipe, Path())
        accelerator = make_accelerator(device, KINDS[kind], [], Path())
        model, self.optimizer = accelerator.prepare(
            self.model, make_optimizer(task.parameter_groups(self.model), recipe)
        )
        self.gradients = BatchGradients(accelerator, model, task.loss, recipe.seed, batch, batch)

    def __call__(self) -> None:
        if self.naive:
            logits = functional.interpolate(self.model(self.images), 224, mode="bilinear")
            functional.cross_entropy(logits, self.masks).backward()
        else:
            self.gradients(self.images, self.masks, 0, 0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.images.is_cuda:
            torch.cuda.synchronize()


def draw_masks(count: int):
    """Yields name and masks of lesions with a wavy edge, whose prediction is a little larger or smaller."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    angle, distance = np.arctan2(y - HEIGHT / 2, x - WIDTH / 2), np.hypot(y - HEIGHT / 2, x - WIDTH / 2)
    for number in range(count):
        rng = np.random.default_rng(number)
        waves = sum(rng.normal(0, 0.06) * np.cos(k * angle + rng.uniform(0, 6)) for k in range(2, 9))
        edge = rng.uniform(120, 250) * (1 + waves)
        true, predicted = distance < edge, distance < edge * rng.uniform(0.9, 1.1)
        yield f"{number}.jpg", segmentation.ImageMasks(true, predicted, segmentation.shrink_mask(predicted))


def naive_distances(true: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Returns the 95% Hausdorff distance and surface Dice from distance transforms of the whole image."""
    edges = [mask & ~binary_erosion(mask) for mask in (true, predicted)]
    percent = 100 / np.hypot(*true.shape)
    found = [percent * distance_transform_edt(~edges[1 - i])[edges[i]] for i in (0, 1)]
    near = sum(np.count_nonzero(distances <= TOLERANCE) for distances in found)
    return max(np.percentile(distances, 95) for distances in found), near / sum(map(len, found))


def compare_masks(count: int, pairs: int) -> None:
    """Compares the evaluation of masks, with intervals, against one with distance transforms of a tenth of them."""
    names = [f"{i}.jpg" for i in range(count)]
    content = segmentation.pack_masks(draw_masks(count))
    segmentation.score_images(names[:2], segmentation.pack_masks(draw_masks(2)))  # imports
    archive, tenth, measured = segmentation.MaskArchive(content), names[: count // 10], Pairs()

    def naively() -> list[tuple[float, float]]:
        return [naive_distances(masks.true, masks.predicted) for masks in map(archive.read, tenth)]

    def ours():
        table = segmentation.score_images(names, content)
        segmentation.evaluate_masks(table)
        return table

    for _ in range(pairs):
        expected, naive = timed(naively)
        found, seconds = timed(ours)
        columns = ["hd95_original", "surface_dice_original"]
        np.testing.assert_allclose(found[columns].to_numpy()[: len(tenth)], expected, rtol=0, atol=1e-9)
        print(measured.add(10 * naive, seconds), flush=True)
    seconds = np.median(measured.ours) * MASKS / count
    title = f"evaluation of {MASKS:,} masks, {WIDTH} x {HEIGHT}"
    conclude(title, seconds, SECONDS, "s", True, f"masks.zip {len(content) / count * MASKS / 1e6:.1f} MB")
    measured.conclude(f"{title}, against distance transforms alone", 3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a fifth of the masks, three pairs, no steps")
    parser.add_argument("--pairs", type=int, help="interleaved pairs per goal (default: 5, quick: 3)")
    parser.add_argument("--parts", nargs="+", choices=("masks", "steps"), help="which parts (default: all)")
    parser.add_argument("--peak", choices=KINDS, help="print the peak memory in GB of two steps and exit")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.peak:
        print_peak(Step(options.peak, batch=MEMORY_BATCH))
        sys.exit()
    pairs = options.pairs or (3 if options.quick else 5)
    parts = options.parts or (("masks",) if options.quick else ("masks", "steps"))
    print(f"{describe_machine()}; {pairs} pairs", flush=True)
    if "masks" in parts:
        compare_masks(MASKS // 5 if options.quick else MASKS, pairs)
    if "steps" in parts:
        title = f"panderm_base, {CHANNELS} channels, batch {BATCH}, memory of batch {MEMORY_BATCH}"
        compare_steps("segmentation", title, Step, STEP_GOALS, 0.6, pairs)
