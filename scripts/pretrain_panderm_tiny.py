"""Pre-trains panderm_tiny, the demo's encoder, on drawn lesions, and writes data_manifests/weights/panderm_tiny.pth.

    python scripts/pretrain_panderm_tiny.py            half an hour on 2 cores
    python scripts/pretrain_panderm_tiny.py --steps 50 --images 200 --out /tmp/tiny.pth

It never sees a class: signs are drawn at random, from no class's recipe and from seeds that no stand-in uses. Of each
picture it sees half of the patches. With `--objective signs` the mean of its patches must tell the signs that were
drawn, and in the last 200 steps its class token, too; with `masked`, PanDerm's own kind of task, it must fill in the
patches that are hidden. The file has the layout of the released large one: the encoder under `encoder.`, and beside it
what only pre-training needs (`mask_token`, `regresser.*`).

An earlier form, in which the class token told the signs, reached in five minutes on one core a weighted F1 of 0.73 with
`signs` and 0.29 with `masked` (a probe on the demo dataset), so the shipped file is of `signs`. It was made in two
sittings: 3,000 steps, then `--begin` with their file, 200 more.
"""

import argparse
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm, trange

import panderm_utils  # noqa: F401  (first, as everywhere)
from panderm_utils import demo
from panderm_utils.data import EVALUATION_MEAN, EVALUATION_STD
from panderm_utils.demo import DEFAULT, draw_signs
from panderm_utils.encoders import build_model
from panderm_utils.manifests import load_encoder_manifest
from panderm_utils.protocols.fine_tune import DEGREES, HUE, shift_hue
from panderm_utils.workspace import REPOSITORY

SEED = 1_000_003  # not demo.SEED: no pre-training image is in a stand-in
SIDE = 240  # pixels of the pool's images, from which 224 are cropped
PATCH = 16
MODALITIES = ("dermoscopic", "dermoscopic", "clinical", "pathology")
ATTRIBUTES = (*DEFAULT, "hair", "tone", "area")


def draw_pool(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the images uint8 [N, 240, 240, 3] and the signs [N, A] in them, scaled to mean 0 and variance 1."""

    def draw(i: int) -> tuple[np.ndarray, list[float]]:
        rng = np.random.default_rng([SEED, i])
        signs = draw_signs(DEFAULT, rng)
        for sign in signs:  # half of the signs as they mostly are, half anything
            signs[sign] = signs[sign] if rng.random() < 0.5 else float(rng.random())
        modality = MODALITIES[i % len(MODALITIES)]
        sides = demo.SIDES[modality]
        drawn = demo.draw_lesion(signs, rng, sides[rng.integers(len(sides))], modality)
        image = Image.fromarray(drawn.image)
        scale = 256 / min(image.size)  # as the evaluation transform resizes
        image = image.resize([round(scale * side) for side in image.size], Image.Resampling.BILINEAR)
        if rng.random() < 0.75:  # as fine-tuning will show them
            turned = image.rotate(rng.uniform(-DEGREES, DEGREES) * (rng.random() < 0.5), fillcolor=(0, 0, 0))
            image = Image.fromarray(np.moveaxis(shift_hue(turned, rng.uniform(-HUE, HUE)), 0, 2))
        left, top = ((side - SIDE) // 2 for side in image.size)
        return np.asarray(image.crop((left, top, left + SIDE, top + SIDE))), [drawn.attributes[a] for a in ATTRIBUTES]

    pool, signs = np.empty((images, SIDE, SIDE, 3), np.uint8), np.empty((images, len(ATTRIBUTES)), np.float32)
    with ThreadPoolExecutor() as threads:
        for i, (pixels, drawn) in enumerate(tqdm(threads.map(draw, range(images)), total=images, desc="drawing")):
            pool[i], signs[i] = pixels, drawn
    return pool, (signs - signs.mean(0)) / (signs.std(0) + 1e-6)


class PreTraining(nn.Module):
    """The encoder and what it is trained with: a token for hidden patches, and regressors of patches and of signs."""

    def __init__(self):
        super().__init__()
        manifest = load_encoder_manifest("panderm_tiny")
        width = manifest.width
        self.encoder = build_model(manifest)
        self.encoder.pos_embed = nn.Parameter(sine_cosine(width), requires_grad=False)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        outputs = {"patches": 3 * PATCH * PATCH, "signs": len(ATTRIBUTES)}
        heads = {
            k: nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, n))
            for k, n in outputs.items()
        }
        self.regresser = nn.ModuleDict(heads)

    def tell_signs(self, images: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Maps images [N, 3, 224, 224], of which only the patches `seen` are looked at, to their signs [N, 2, A].

        Told twice: from the class token, which linear probing reads, and from the mean of the patches, which
        fine-tuning does.
        """
        x = self._encode((self.encoder.patch_embed(images) + self.encoder.pos_embed[:, 1:])[:, seen])
        read = torch.stack([x[:, 0], x[:, 1:].mean(1)], dim=1)
        return self.regresser["signs"](self.encoder.norm(read))

    def fill_in(self, images: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Maps images [N, 3, 224, 224], of which the patches `hidden` are covered, to those patches [N, H, 768]."""
        x = self.encoder.patch_embed(images)
        x[:, hidden] = self.mask_token.to(x.dtype)
        x = self.encoder.norm(self._encode(x + self.encoder.pos_embed[:, 1:]))
        return self.regresser["patches"](x[:, 1:][:, hidden])

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.encoder.cls_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        for block in self.encoder.blocks:
            x = block(x)
        return x


def batch_of(pool: np.ndarray, rows: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Returns the rows as normalised images [N, 3, 224, 224]: cropped anywhere, flipped, turned and tinted."""
    batch = np.empty((len(rows), 224, 224, 3), np.uint8)
    for place, row in zip(batch, rows, strict=True):
        top, left = rng.integers(0, SIDE - 224 + 1, 2)
        image = np.rot90(pool[row, top : top + 224, left : left + 224], rng.integers(4))
        place[...] = image[:, ::-1] if rng.random() < 0.5 else image
    pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
    tint = torch.from_numpy(rng.normal(1, 0.04, (len(rows), 3, 1, 1)).astype(np.float32))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (EVALUATION_MEAN, EVALUATION_STD))
    return (pixels * tint - mean) / std


def patches_of(images: torch.Tensor) -> torch.Tensor:
    """Returns the patches [N, 196, 768] of images, each scaled to mean 0 and variance 1."""
    patches = functional.unfold(images, PATCH, stride=PATCH).transpose(1, 2)
    return (patches - patches.mean(-1, keepdim=True)) / (patches.std(-1, keepdim=True) + 1e-3)


def train(options: argparse.Namespace) -> PreTraining:
    """First the patches are told of, as PanDerm's alignment is patch by patch; at last the class token too, a little.

    So linear probing, which reads the class token, finds less than fine-tuning, which reads the patches, can reach.
    """
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    pool = draw_pool(options.images)
    model = PreTraining().train()
    if options.begin:
        model.load_state_dict({k: v.float() for k, v in torch.load(options.begin).items() if k != "rd_pos_embed"})
    else:
        descend(model, pool, rng, options, options.steps, options.lr, class_token=False)
    if options.objective == "signs":
        descend(model, pool, rng, options, options.class_steps, options.lr / 10, class_token=True)
    return model


def descend(model, pool, rng, options: argparse.Namespace, steps: int, lr: float, class_token: bool) -> None:
    """Trains for some steps, the learning rate rising, then falling to 0."""
    images, signs = pool
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    warm_up = min(300, steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min((s + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * s / steps))
    )
    running = 0.0
    bar = trange(steps, desc="class token" if class_token else "pre-training", unit="step", mininterval=10)
    for step in bar:
        rows = rng.choice(len(images), options.batch, replace=len(images) < options.batch)
        batch = batch_of(images, rows, rng)
        patches = torch.from_numpy(rng.permutation(196))
        with torch.autocast("cpu", torch.bfloat16):
            if options.objective == "signs":
                # at last, whole pictures, as it will be used
                share = 0.5 if step < 0.85 * steps and not class_token else 1
                guess = model.tell_signs(batch, patches[: int(196 * share)])[:, 0 if class_token else 1 :]
                truth = torch.from_numpy(signs[rows])[:, None].expand_as(guess)
            else:
                hidden = patches[:98]
                guess, truth = model.fill_in(batch, hidden), patches_of(batch)[:, hidden]
        loss = functional.smooth_l1_loss(guess.float(), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        running += (loss.item() - running) * max(0.02, 1 / (step + 1))
        bar.set_postfix(loss=f"{running:.4f}", refresh=False)


def sine_cosine(width: int) -> torch.Tensor:
    """The fixed 2-D sine-cosine table of positions [1, 197, D]; the class token's is zero."""
    y, x = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    omega = 10000 ** -(torch.arange(width // 4) / (width // 4))
    angles = [axis.reshape(-1, 1) * omega for axis in (x, y)]
    table = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, width), table])[None]


def save(model: PreTraining, path: Path) -> None:
    """Writes the state dict in the released large file's layout, in half precision, under a temporary name first."""
    tensors = {key: value.detach().half().contiguous() for key, value in model.state_dict().items()}
    tensors["rd_pos_embed"] = tensors["encoder.pos_embed"].clone()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    torch.save(tensors, temporary)
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", choices=("signs", "masked"), default="signs")
    parser.add_argument("--images", type=int, default=8_000)
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--class-steps", type=int, default=200, help="in which the class token is told of, too")
    parser.add_argument("--begin", type=Path, help="a file of the first part, to go on with the class token")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "data_manifests/weights/panderm_tiny.pth")
    options = parser.parse_args()
    started = time.monotonic()
    save(train(options), options.out)
    minutes, size = (time.monotonic() - started) / 60, options.out.stat().st_size / 1e6
    print(f"{options.out}: {size:.1f} MB after {minutes:.0f} minutes")


if __name__ == "__main__":
    main()
