"""Times the parts of fine-tuning against the naive way, in interleaved pairs, and prints the goals.

    python -m benchmarks.finetune                     all goals (about 15 minutes on 2 cores)
    python -m benchmarks.finetune --parts images views
    python -m benchmarks.finetune --quick             fewer images, three pairs, no steps: indicative only

The naive way is the published one: every epoch decodes, resizes and augments each file with torchvision's transforms;
each test-time view is resized separately; the training step is float32 with unfused attention and AdamW's for-loop.
Images are read in one process with one thread, as in a loader's worker, so that ratios compare work, and the two ways
must agree bit for bit. The host may stall for seconds, so single pairs vary: read the medians.
"""

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

from benchmarks.measuring import Pairs, describe_machine, draw_images, timed, unfuse_attention
from benchmarks.steps import KINDS, compare_steps, print_peak

# isort: split
import torch
from PIL import Image
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy
from torchvision import transforms

from panderm_utils.data import ImageCopies, open_image
from panderm_utils.encoders import choose_device
from panderm_utils.manifests import load_encoder_manifest
from panderm_utils.protocols.fine_tune import (
    FineTuneModel,
    FineTuneRecipe,
    MixedLoss,
    TrainingImages,
    parameter_groups,
    tta_views,
)
from panderm_utils.protocols.training import (
    IMAGE,
    VIEWS,
    BatchGradients,
    generator_for,
    make_accelerator,
    make_optimizer,
)

MEAN = (0.485, 0.456, 0.406)
IMAGE_CASES = {  # width, height, suffix: (images, goal)
    (600, 450, "jpg"): (200, 2.2),
    (1500, 1500, "jpg"): (40, 7),
    (1500, 1500, "png"): (20, 15),
}
CLASSES, BATCH = 7, 16
STEP_GOALS = {"fp32": 1.1, "fp32 checkpointed": 0.8, "bf16": 2.8, "bf16 checkpointed": 1.4}
VIEW_CASES = {(600, 450, "jpg"): (40, 1.1), (1500, 1500, "jpg"): (20, 1.8)}


def published_training_transform() -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.Resize(256),
            transforms.RandomResizedCrop(224, scale=(0.75, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.RandomRotation(45),
            transforms.ColorJitter(hue=0.2),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, (0.228, 0.224, 0.225)),
        ]
    )


def published_view() -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.Resize(246, antialias=True),
            transforms.CenterCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.RandomApply([transforms.RandomRotation((0, 270))], p=0.3),
            transforms.RandomApply([transforms.ColorJitter(saturation=0.25, hue=0.25)], p=0.3),
            transforms.Normalize(MEAN, (0.229, 0.224, 0.225)),
        ]
    )


def compare_training_images(folder: Path, width: int, height: int, suffix: str, count: int, goal: float, pairs: int):
    """Compares an epoch with copies of the decoded training images against one that decodes each file."""
    paths = draw_images(folder, count, width, height, suffix)
    cached = TrainingImages(paths, [0] * count, seed=0, cache=ImageCopies(folder / "copies"))
    plain, published = TrainingImages(paths, [0] * count, seed=0), published_training_transform()
    time.sleep(2.5)  # files this recent are not copied, as their times cannot reveal a change yet
    _, first = timed(lambda: [cached[i] for i in range(count)])
    assert len(cached.copies) >= count

    def naively(epoch: int) -> list[torch.Tensor]:
        images = []
        for i, path in enumerate(paths):
            torch.set_rng_state(generator_for(IMAGE, 0, epoch, i, 0).get_state())
            images.append(published(Image.open(path).convert("RGB")))
        return images

    measured, without_copies = Pairs(), Pairs()
    for epoch in range(1, pairs + 1):
        cached.set_epoch(epoch)
        plain.set_epoch(epoch)
        expected, naive = timed(naively, epoch)
        found, ours = timed(lambda: [cached[i][1] for i in range(count)])
        _, uncached = timed(lambda: [plain[i][1] for i in range(count)])
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), "not bit-equal"
        measured.add(naive, ours)
        without_copies.add(uncached, ours)
    detail = f"{measured.per_image(count)}, first epoch {1000 * first / count:.1f} ms; bit-equal; "
    detail += f"to this package without copies {median(without_copies.ratios):.2f}"
    measured.conclude(f"training images, {width} x {height} {suffix.upper()}", goal, detail)


def compare_views(folder: Path, width: int, height: int, suffix: str, count: int, goal: float, pairs: int):
    """Compares five test-time views of each file, resized once, against resizing for each view."""
    paths = draw_images(folder, count, width, height, suffix)
    to_tensor, published = transforms.ToTensor(), published_view()

    def naively() -> list[torch.Tensor]:
        views = []
        for i, path in enumerate(paths):
            torch.set_rng_state(generator_for(VIEWS, 0, i).get_state())
            image = to_tensor(Image.open(path).convert("RGB"))
            views.append(torch.stack([published(image) for _ in range(5)]))
        return views

    measured = Pairs()
    for _ in range(pairs):
        expected, naive = timed(naively)
        found, ours = timed(lambda: [tta_views(open_image(path), 5, 0, i) for i, path in enumerate(paths)])
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), "not bit-equal"
        measured.add(naive, ours)
    title = f"five views from file, {width} x {height} {suffix.upper()}"
    measured.conclude(title, goal, f"{measured.per_image(count)}; bit-equal")


class Step:
    """A training step of a model with relative position bias on random images; `kind` is one of KINDS."""

    def __init__(self, kind: str, encoder: str = "panderm_base", batch: int = BATCH, device: str = "cpu"):
        self.naive, recipe, device = kind == "naive", FineTuneRecipe(), choose_device(device)
        self.model = FineTuneModel(load_encoder_manifest(encoder), CLASSES).to(device).train()
        self.images = torch.randn(batch, 3, 224, 224, device=device)
        self.labels = torch.arange(batch, device=device) % CLASSES
        if self.naive:
            unfuse_attention(self.model)
            self.optimizer = torch.optim.AdamW(
                parameter_groups(self.model, recipe), lr=1e-6, fused=False, foreach=False
            )
            self.mixup = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=CLASSES)
            self.criterion = SoftTargetCrossEntropy()
            return
        self.model.set_grad_checkpointing("checkpointed" in kind)
        accelerator = make_accelerator(device, KINDS[kind], [], Path())
        model, self.optimizer = accelerator.prepare(
            self.model, make_optimizer(parameter_groups(self.model, recipe), recipe)
        )
        self.gradients = BatchGradients(accelerator, model, MixedLoss(recipe, CLASSES), recipe.seed, batch, batch)

    def __call__(self) -> None:
        if self.naive:
            images, target = self.mixup(self.images.clone(), self.labels)
            self.criterion(self.model(images), target).backward()
        else:
            self.gradients(self.images, self.labels, 0, 0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.images.is_cuda:
            torch.cuda.synchronize()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a fifth of the images, three pairs, no steps")
    parser.add_argument("--pairs", type=int, help="interleaved pairs per goal (default: 7, quick: 3)")
    parser.add_argument("--parts", nargs="+", choices=("images", "views", "steps"), help="which parts (default: all)")
    parser.add_argument("--peak", choices=KINDS, help="print the peak memory in GB of two steps and exit")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.peak:
        print_peak(Step(options.peak))
        sys.exit()
    pairs = options.pairs or (3 if options.quick else 7)
    parts = options.parts or (("images", "views") if options.quick else ("images", "views", "steps"))
    divisor, threads = 5 if options.quick else 1, torch.get_num_threads()
    print(f"{describe_machine()}; {pairs} pairs", flush=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for part, compare, cases in (
            ("images", compare_training_images, IMAGE_CASES),
            ("views", compare_views, VIEW_CASES),
        ):
            for (width, height, suffix), (count, goal) in cases.items() if part in parts else ():
                compare(Path(folder), width, height, suffix, count // divisor, goal, pairs)
    torch.set_num_threads(threads)
    if "steps" in parts:
        compare_steps("finetune", f"ViT-B, batch {BATCH}", Step, STEP_GOALS, 0.6, pairs)
