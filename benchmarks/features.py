"""Times feature extraction against the naive way, in interleaved pairs of one run, and prints each goal beside it.

    python -m benchmarks.features            all rows of the goals; ViT-B on 100 images (about an hour on 2 cores)
    python -m benchmarks.features --quick    the small encoder on 100 images, three pairs: a look, not a result
    python -m benchmarks.features --base-images 1000    ViT-B on all images (several hours)

The naive way is the published one: PIL and torchvision's transforms in a DataLoader of as many workers, attention
written out, float32, the last batch padded to the full size. The JPEGs, 600 x 450, are drawn into a temporary folder.
The host may stall for seconds, so single pairs swing: read the medians.
"""

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np

os.environ["TQDM_DISABLE"] = "1"  # before tqdm is imported
import panderm_utils  # noqa: F401  (first, as everywhere)

# isort: split
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from panderm_utils.encoders import Encoder, load_encoder
from panderm_utils.features import extract_files
from panderm_utils.manifests import EncoderManifest

BATCH = 64
PIXELS = (600, 450)


def draw_jpegs(folder: Path, count: int) -> list[str]:
    """Draws skin-like JPEGs of about 100 kB: smooth colour and fine noise."""
    rng = np.random.default_rng(0)
    paths = [str(folder / f"{i:04d}.jpg") for i in range(count)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(90, 230, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(PIXELS, Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = smooth + rng.integers(-12, 13, (*smooth.shape[:2], 1), dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def make_encoder(width: int, heads: int, precision: str = "fp32") -> Encoder:
    """A random ViT of 12 blocks on the CPU; the same weights for every precision."""
    manifest = EncoderManifest(
        name=f"vit_{width}",
        title=f"random ViT, {width} wide",
        architecture="beit",
        layout="none",
        licence="MIT",
        width=width,
        depth=12,
        heads=heads,
        num_features=width,
    )
    return load_encoder(manifest, device="cpu", precision=precision)


class NaiveFiles(Dataset):
    """Image files through torchvision's transforms."""

    def __init__(self, paths: list[str]):
        self.paths = paths
        normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.228, 0.224, 0.225))
        resize = [transforms.Resize(256), transforms.CenterCrop(224)]
        self.transform = transforms.Compose([*resize, transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


@torch.no_grad()
def extract_naively(model: torch.nn.Module, paths: list[str], batch_size: int, workers: int) -> np.ndarray:
    """Features [N, D]; a short batch is filled up to `batch_size` with zeros, whose features are dropped."""
    features = []
    for images in DataLoader(NaiveFiles(paths), batch_size=batch_size, num_workers=workers):
        count = len(images)
        padding = torch.zeros(batch_size - count, *images.shape[1:])
        features.append(model(torch.cat([images, padding]))[:count])
    return torch.cat(features).numpy()


def timed(call, *arguments, **options) -> tuple:
    started = time.perf_counter()
    result = call(*arguments, **options)
    return result, time.perf_counter() - started


def compare(paths: list[str], width: int, heads: int, goals: dict[str, float], pairs: int, workers: int) -> None:
    """Prints the median ratio and the agreement with the naive features for each precision in `goals`."""
    naive_encoder = make_encoder(width, heads)
    for block in naive_encoder.model.blocks:
        block.attn.fused_attn = False
    ours = {precision: make_encoder(width, heads, precision) for precision in goals}
    ratios = {precision: [] for precision in goals}
    for pair in range(pairs):
        naive, seconds = timed(extract_naively, naive_encoder.model, paths, BATCH, workers)
        told = f"  pair {pair + 1}: naive {seconds:.1f} s"
        for precision, encoder in ours.items():
            found = extract_files(encoder, paths, batch_size=BATCH, num_workers=workers)
            ratios[precision].append(seconds / found.seconds)
            told += f", {precision} {found.seconds:.1f} s = {ratios[precision][-1]:.2f}"
            if precision == "fp32":
                agreement = f"largest difference {np.abs(found.x - naive).max():.1e} (goal 1e-5)"
            else:
                cosine = (found.x * naive).sum(1) / np.linalg.norm(found.x, axis=1) / np.linalg.norm(naive, axis=1)
                agreement = f"smallest cosine {cosine.min():.6f} (goal 0.9999)"
            told += f", {agreement}" if pair == 0 else ""
        print(told, flush=True)
    for precision, goal in goals.items():
        print(f"{len(paths):,} JPEGs, ViT {width} x 12, {precision}: {verdict(ratios[precision], goal)}", flush=True)


def compare_small(paths: list[str], pairs: int, workers: int) -> None:
    """60 images where the batch size is 1,000."""
    naive_encoder, encoder, ratios = make_encoder(192, 3), make_encoder(192, 3), []
    for block in naive_encoder.model.blocks:
        block.attn.fused_attn = False
    for _ in range(pairs):
        _, seconds = timed(extract_naively, naive_encoder.model, paths[:60], 1000, workers)
        ratios.append(seconds / extract_files(encoder, paths[:60], batch_size=1000, num_workers=workers).seconds)
    print(f"60 images at batch size 1,000, ViT 192 x 12, fp32: {verdict(ratios, 8)}", flush=True)


def compare_cached(paths: list[str], folder: Path, pairs: int, workers: int) -> None:
    """A second extraction against the first, naive one."""
    naive_encoder, encoder, ratios = make_encoder(192, 3), make_encoder(192, 3), []
    for block in naive_encoder.model.blocks:
        block.attn.fused_attn = False
    extract_files(encoder, paths, cache=folder, batch_size=BATCH, num_workers=workers)
    for _ in range(pairs):
        _, seconds = timed(extract_naively, naive_encoder.model, paths, BATCH, workers)
        again = extract_files(encoder, paths, cache=folder, batch_size=BATCH, num_workers=workers)
        assert again.computed == 0
        ratios.append(seconds / again.seconds)
    print(f"{len(paths):,} JPEGs from the cache, ViT 192 x 12, fp32: {verdict(ratios, 100)}", flush=True)


def verdict(ratios: list[float], goal: float) -> str:
    middle = median(ratios)
    pairs = " ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"median ratio {middle:.2f} (goal {goal}: {'reached' if middle >= goal else 'missed'}; pairs {pairs})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small encoder on 100 images, three pairs")
    parser.add_argument("--pairs", type=int, help="interleaved pairs a row (default: 5, quick 3)")
    parser.add_argument("--images", type=int, help="JPEGs to draw (default: 1,000, quick 100)")
    parser.add_argument("--base-images", type=int, help="of these, how many for ViT-B (default: 100, quick none)")
    parser.add_argument("--workers", type=int, default=1, help="of both ways (default: 1, what 2 cores get)")
    given = parser.parse_args()
    pairs = given.pairs or (3 if given.quick else 5)
    count = given.images or (100 if given.quick else 1000)
    base = (0 if given.quick else 100) if given.base_images is None else given.base_images
    warnings.simplefilter("ignore")
    print(
        f"{torch.get_num_threads()} threads, {given.workers} workers, {pairs} pairs, {count:,} images; ViT-B on {base}"
    )
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw_jpegs(Path(folder), count)
        compare(drawn, 192, 3, {"fp32": 1.1, "bf16": 1.6}, pairs, given.workers)
        compare_small(drawn, pairs, given.workers)
        compare_cached(drawn, Path(folder) / "cache", pairs, given.workers)
        if base:
            compare(drawn[:base], 768, 12, {"fp32": 0.95, "bf16": 1.6}, pairs, given.workers)
