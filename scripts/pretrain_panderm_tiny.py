"""Pre-trains panderm_tiny, the demo's encoder, on drawn lesions, and writes data_manifests/weights/panderm_tiny.pth.

    python scripts/pretrain_panderm_tiny.py            half an hour on 2 cores
    python scripts/pretrain_panderm_tiny.py --steps 50 --images 200 --out /tmp/tiny.pth

It never sees a class: signs are drawn at random, not from any class's recipe, with seeds that no stand-in uses. It sees
half of each image's patches. With `--objective signs` it predicts the drawn signs from the mean of its patches, and in
the last 200 steps from its class token; with `masked`, PanDerm's kind of task, it predicts the hidden patches. The file
has the layout of the released large one: the encoder under `encoder.`, besides parts that only pre-training needs
(`mask_token`, `regresser.*`).

An earlier version, which predicted signs from the class token, reached a weighted F1 of 0.73 with `signs` and 0.29 with
`masked` after five minutes on one core (a probe on the demo dataset), so the shipped file uses `signs`. It was made in
two parts: 3,000 steps, then 200 more with `--begin` and their file.
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

import panderm_utils  # noqa: F401  (must be first)
from panderm_utils import demo
from panderm_utils.data import EVALUATION_MEAN, EVALUATION_STD
from panderm_utils.demo import DEFAULT_SIGNS, draw_signs
from panderm_utils.disk import replacing
from panderm_utils.encoders import build_model
from panderm_utils.manifests import load_encoder_manifest
from panderm_utils.protocols.fine_tune import DEGREES, HUE, shift_hue
from panderm_utils.workspace import REPOSITORY

SEED = 1_000_003  # differs from the stand-ins' seed, so they share no image
SIDE = 240  # pixels of the pool's images, cropped to 224
PATCH = 16
MODALITIES = ("dermoscopic", "dermoscopic", "clinical", "pathology")
ATTRIBUTES = (*DEFAULT_SIGNS, "hair", "tone", "area")


def draw_pool(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns drawn images uint8 [N, 240, 240, 3] and their signs [N, A], scaled to mean 0 and variance 1."""

    def draw(i: int) -> tuple[np.ndarray, list[float]]:
        rng = np.random.default_rng([SEED, i])
        signs = draw_signs(DEFAULT_SIGNS, rng)
        for sign in signs:  # half of the signs typical, half uniform
            signs[sign] = signs[sign] if rng.random() < 0.5 else float(rng.random())
        modality = MODALITIES[i % len(MODALITIES)]
        sides = demo.SIDES[modality]
        drawn = demo.draw_lesion(signs, rng, sides[rng.integers(len(sides))], modality)
        image = Image.fromarray(drawn.image)
        scale = 256 / min(image.size)  # as the evaluation transform resizes
        image = image.resize([round(scale * side) for side in image.size], Image.Resampling.BILINEAR)
        if rng.random() < 0.75:  # as fine-tuning augments images
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
    """The encoder with its pre-training parts: a token for hidden patches, and regressors of patches and of signs."""

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

    def predict_signs(self, images: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Returns two predictions of the signs, [N, 2, A], from the patches `seen` of images [N, 3, 224, 224].

        One is from the class token, which linear probing uses, one from the mean of the patches, which fine-tuning
        uses.
        """
        x = self._encode((self.encoder.patch_embed(images) + self.encoder.pos_embed[:, 1:])[:, seen])
        read = torch.stack([x[:, 0], x[:, 1:].mean(1)], dim=1)
        return self.regresser["signs"](self.encoder.norm(read))

    def predict_patches(self, images: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Returns predictions [N, H, 768] of the patches `hidden` of images [N, 3, 224, 224]."""
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
    """Returns the rows as normalised images [N, 3, 224, 224], randomly cropped, flipped, rotated and tinted."""
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
    """Returns the images' patches [N, 196, 768], each scaled to mean 0 and variance 1."""
    patches = functional.unfold(images, PATCH, stride=PATCH).transpose(1, 2)
    return (patches - patches.mean(-1, keepdim=True)) / (patches.std(-1, keepdim=True) + 1e-3)


def train(options: argparse.Namespace) -> PreTraining:
    """Returns the model, trained on the patches first, as PanDerm aligns patch by patch, then on the class token.

    The class token gets little training, so linear probing, which uses it, scores lower than fine-tuning can, which
    uses the patches.
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
    """Trains for `steps` steps with warm-up and cosine decay of the learning rate to 0."""
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
                # finally whole images, as in later use
                fraction = 0.5 if step < 0.85 * steps and not class_token else 1
                predicted = model.predict_signs(batch, patches[: int(196 * fraction)])[:, 0 if class_token else 1 :]
                target = torch.from_numpy(signs[rows])[:, None].expand_as(predicted)
            else:
                hidden = patches[:98]
                predicted, target = model.predict_patches(batch, hidden), patches_of(batch)[:, hidden]
        loss = functional.smooth_l1_loss(predicted.float(), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        running += (loss.item() - running) * max(0.02, 1 / (step + 1))
        bar.set_postfix(loss=f"{running:.4f}", refresh=False)


def sine_cosine(width: int) -> torch.Tensor:
    """Returns the fixed 2-D sine-cosine position embedding [1, 197, D]; the class token's is zero."""
    y, x = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    omega = 10000 ** -(torch.arange(width // 4) / (width // 4))
    angles = [axis.reshape(-1, 1) * omega for axis in (x, y)]
    table = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)
    return torch.cat([torch.zeros(1, width), table])[None]


def save(model: PreTraining, path: Path) -> None:
    """Writes the state dict atomically, in half precision and in the layout of the released large file."""
    tensors = {key: value.detach().half().contiguous() for key, value in model.state_dict().items()}
    tensors["rd_pos_embed"] = tensors["encoder.pos_embed"].clone()
    with replacing(path) as new:
        torch.save(tensors, new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", choices=("signs", "masked"), default="signs")
    parser.add_argument("--images", type=int, default=8_000)
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--class-steps", type=int, default=200, help="final steps, on the class token")
    parser.add_argument("--begin", type=Path, help="a file of the first part, to continue with the class token")
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
