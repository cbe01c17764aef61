"""Times feature extraction against the naive way, in interleaved pairs, and prints the goals.

    python -m benchmarks.features            all goals; ViT-B on 100 images (about an hour on 2 cores)
    python -m benchmarks.features --quick    the small encoder on 100 images, three pairs: indicative only
    python -m benchmarks.features --base-images 1000    ViT-B on all images (several hours)

The naive way is the published one: PIL and torchvision's transforms in a DataLoader with as many workers, unfused
attention, float32, the last batch padded to full size. The 600 x 450 JPEGs are drawn into a temporary folder. The host
may stall for seconds, so single pairs vary: read the medians.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np

from benchmarks.measuring import Pairs, describe_machine, draw_images, timed, unfuse_attention

# isort: split
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.steps import without_emulation
from panderm_utils.encoders import Encoder, extract_files, load_encoder
from panderm_utils.manifests import EncoderManifest

BATCH = 64


def make_encoder(width: int, heads: int, precision: str = "fp32") -> Encoder:
    """Returns a random ViT of 12 blocks on the CPU; the same weights for every precision."""
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


def make_naive_encoder(width: int, heads: int) -> Encoder:
    """Returns the same in float32, with unfused attention."""
    encoder = make_encoder(width, heads)
    unfuse_attention(encoder.model)
    return encoder


class NaiveFiles(Dataset):
    """A dataset of image files with torchvision's transforms."""

    def __init__(self, paths: list[Path]):
        self.paths = paths
        normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.228, 0.224, 0.225))
        resize = [transforms.Resize(256), transforms.CenterCrop(224)]
        self.transform = transforms.Compose([*resize, transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


@torch.no_grad()
def extract_naively(
    model: torch.nn.Module, paths: list[Path], batch_size: int, workers: int, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Returns features [N, D]; the last batch is padded with zeros, whose features are dropped."""
    features = []
    for images in DataLoader(NaiveFiles(paths), batch_size=batch_size, num_workers=workers):
        count = len(images)
        padding = torch.zeros(batch_size - count, *images.shape[1:])
        features.append(model(torch.cat([images, padding]).to(device))[:count].cpu())
    return torch.cat(features).numpy()


def compare(paths: list[Path], width: int, heads: int, goals: dict[str, float], pairs: int, workers: int) -> None:
    """Prints the median ratio and the agreement with the naive features for each precision in `goals`."""
    naive_encoder = make_naive_encoder(width, heads)
    ours = {precision: make_encoder(width, heads, precision) for precision in goals}
    measured = {precision: Pairs() for precision in goals}
    for pair in range(pairs):
        naive, seconds = timed(extract_naively, naive_encoder.model, paths, BATCH, workers)
        line = f"  pair {pair + 1}: naive {seconds:.1f} s"
        for precision, encoder in ours.items():
            found = extract_files(encoder, paths, batch_size=BATCH, num_workers=workers)
            measured[precision].add(seconds, found.seconds)
            line += f", {precision} {found.seconds:.1f} s = {seconds / found.seconds:.2f}"
            if precision == "fp32":
                agreement = f"largest difference {np.abs(found.x - naive).max():.1e} (goal 1e-5)"
            else:
                cosine = (found.x * naive).sum(1) / np.linalg.norm(found.x, axis=1) / np.linalg.norm(naive, axis=1)
                agreement = f"smallest cosine {cosine.min():.6f} (goal 0.9999)"
            line += f", {agreement}" if pair == 0 else ""
        print(line, flush=True)
    for precision, goal in goals.items():
        measured[precision].conclude(f"{len(paths):,} JPEGs, ViT {width} x 12, {precision}", goal)


def compare_small(
    title: str, paths: list[Path], batch_size: int, goal: float, pairs: int, workers: int, cache: Path | None = None
) -> None:
    """Prints the median ratio for the small encoder; with a cache, of a second extraction to the naive way."""
    naive_encoder, encoder, measured = make_naive_encoder(192, 3), make_encoder(192, 3), Pairs()
    if cache:
        extract_files(encoder, paths, cache=cache, batch_size=batch_size, num_workers=workers)
    for _ in range(pairs):
        _, seconds = timed(extract_naively, naive_encoder.model, paths, batch_size, workers)
        found = extract_files(encoder, paths, cache=cache, batch_size=batch_size, num_workers=workers)
        assert found.computed == (0 if cache else len(paths))
        measured.add(seconds, found.seconds)
    measured.conclude(f"{title}, ViT 192 x 12, fp32", goal)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small encoder on 100 images, three pairs")
    parser.add_argument("--pairs", type=int, help="interleaved pairs per goal (default: 5, quick: 3)")
    parser.add_argument("--images", type=int, help="JPEGs to draw (default: 1,000, quick: 100)")
    parser.add_argument("--base-images", type=int, help="how many of these for ViT-B (default: 100, quick: none)")
    parser.add_argument("--workers", type=int, default=1, help="workers of both ways (default: 1, as for 2 cores)")
    options = parser.parse_args()
    pairs, workers = options.pairs or (3 if options.quick else 5), options.workers
    count = options.images or (100 if options.quick else 1000)
    base = (0 if options.quick else 100) if options.base_images is None else options.base_images
    warnings.simplefilter("ignore")
    print(describe_machine())
    print(f"{workers} workers, {pairs} pairs, {count:,} images; ViT-B on {base}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw_images(Path(folder), count)
        compare(drawn, 192, 3, without_emulation({"fp32": 1.1, "bf16": 2.2}), pairs, workers)
        compare_small("60 images at batch size 1,000", drawn[:60], 1000, 8, pairs, workers)
        compare_small(f"{count:,} JPEGs from the cache", drawn, BATCH, 100, pairs, workers, Path(folder) / "cache")
        if base:
            compare(drawn[:base], 768, 12, without_emulation({"fp32": 0.95, "bf16": 1.6}), pairs, workers)
