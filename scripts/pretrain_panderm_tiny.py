"""Pre-trains panderm_tiny, the demo's encoder, on drawn lesions, and writes data_manifests/weights/panderm_tiny.pth.

    python scripts/pretrain_panderm_tiny.py            from the beginning; run again, it goes on where it stopped
    python scripts/pretrain_panderm_tiny.py --steps 50 --images 200 --out /tmp/tiny.pth

It never sees a class: signs are drawn at random, not from any class's recipe, with seeds that no stand-in uses, and so
are cameras. Of each image it sees a quarter of the patches, in the end all of them, and predicts three things that the
drawing knows: the strength of each sign, from the class token and from the mean of the patches; where each sign is, in
each patch seen; and, as PanDerm's own task is to regress hidden patches, where it is in hidden ones, from the class
token alone. The file has the layout of the released large one: the encoder under `encoder.`, besides parts that only
pre-training needs (`mask_token`, `regresser.*`).

Values were chosen on stand-ins of other seeds (`panderm_utils.demo.stand_ins.SEED`). But that the weight of the class
token and the size of features needed a choice was seen on those that the demo draws, test splits included.

The shipped file was made by the first command with OMP_NUM_THREADS=1, in 20 minutes on two cores, of which three were
for drawing.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

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
PATCH, GRID = 16, 14
SIDES = ((225, 300), (192, 256), (168, 224), (224, 224))
MODALITIES = ("dermoscopic", "dermoscopic", "clinical", "pathology")
ATTRIBUTES = (*DEFAULT_SIGNS, "hair", "tone", "area")
UNSEEN = ("softness", "colours", "cysts", "vessels", "scale", "hair", "tone")  # in a tile of pathology
LAYERS = ("network", "globules", "streaks", "veil", "scar", "lacunae", "scale", "cysts", "vessels", "mask")
WARM_UP = 200  # steps
EVERY = 100  # steps after which the state is kept
# Weight of the signs read from the class token, of 2. As in an encoder that learns from hidden patches alone, the class
# token, which linear probing reads, then holds less than the patches, which fine-tuning reads.
CLASS_TOKEN = 0.05
# Features begin twice as large as a new layer norm makes them: the penalty of the published probe grows as the features
# become fewer, and with 96 of them it would hide much of what they hold.
NORM = 2.0
DECAY = 0.2  # the last part of the steps, in which the learning rate falls to 0 and more patches are seen


def draw_pool(images: int, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns drawn images uint8 [N, 224, 224, 3], their attributes [N, A] and the layers of each patch [N, 14, 14, L].

    Attributes and layers are scaled to mean 0 and variance 1; not a number where there is nothing to see. The pool is
    kept in `folder`.
    """
    names = [folder / f"{name}-{images}.npy" for name in ("layers", "attributes", "images")]  # the last is written last
    if not names[-1].exists():
        folder.mkdir(parents=True, exist_ok=True)
        pool = np.empty((images, 224, 224, 3), np.uint8)
        attributes, layers = np.empty((images, len(ATTRIBUTES))), np.empty((images, GRID, GRID, len(LAYERS)))
        with ThreadPoolExecutor() as threads:
            drawn = tqdm(threads.map(draw, range(images)), total=images, desc="drawing", mininterval=10)
            for i, one in enumerate(drawn):
                pool[i], attributes[i], layers[i] = one
        for path, array in zip(names, (scaled(layers), scaled(attributes), pool), strict=True):
            with replacing(path) as new, new.open("wb") as file:
                np.save(file, array)
    return tuple(np.load(path, mmap_mode="r" if path == names[-1] else None) for path in names[::-1])


def draw(i: int) -> tuple[np.ndarray, list[float], np.ndarray]:
    """Returns one image of the pool, its attributes and its layers."""
    rng = np.random.default_rng([SEED, i])
    signs = draw_signs(DEFAULT_SIGNS, rng)
    for sign in signs:  # half of the signs typical, half uniform
        signs[sign] = signs[sign] if rng.random() < 0.5 else float(rng.random())
    modality = MODALITIES[i % len(MODALITIES)]
    size = SIDES[rng.integers(len(SIDES))]
    drawn = demo.draw_lesion(signs, rng, size, modality, camera=demo.draw_camera(modality, rng))
    side = rng.uniform(0.8, 0.92) * min(size)  # the evaluation transform keeps 7/8 of the shorter side
    top, left = (rng.uniform(-0.04, 0.04) * min(size) + (n - side) / 2 for n in size)
    box = (max(0, left), max(0, top), min(size[1], left + side), min(size[0], top + side))
    image = Image.fromarray(drawn.image).resize((224, 224), Image.Resampling.BILINEAR, box)
    maps = {**drawn.layers, "mask": drawn.mask.astype(np.float32)}
    layers = np.full((GRID, GRID, len(LAYERS)), np.nan if modality == "pathology" else 0, np.float32)
    for name, layer in maps.items():
        coarse = Image.fromarray(layer).resize((GRID, GRID), Image.Resampling.BOX, box)
        layers[..., LAYERS.index(name)] = np.asarray(coarse)
    unseen = UNSEEN if modality == "pathology" else ()
    return np.asarray(image), [np.nan if a in unseen else drawn.attributes[a] for a in ATTRIBUTES], layers


def scaled(values: np.ndarray) -> np.ndarray:
    """Returns values [N, ..., A] with mean 0 and variance 1 along the last axis."""
    axes = tuple(range(values.ndim - 1))
    return ((values - np.nanmean(values, axes)) / (np.nanstd(values, axes) + 1e-6)).astype(np.float32)


class PreTraining(nn.Module):
    """The encoder with its pre-training parts: a token for hidden patches, and regressors of signs and of layers."""

    def __init__(self):
        super().__init__()
        manifest = load_encoder_manifest("panderm_tiny")
        width = manifest.width
        self.encoder = build_model(manifest)
        self.encoder.pos_embed = nn.Parameter(sine_cosine(width), requires_grad=False)
        nn.init.constant_(self.encoder.norm.weight, NORM)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        outputs = {"signs": len(ATTRIBUTES), "layers": len(LAYERS), "hidden": len(LAYERS)}
        heads = {k: nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, n)) for k, n in outputs.items()}
        self.regresser = nn.ModuleDict(heads)

    def forward(self, patches: torch.Tensor, seen: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns the predicted signs [N, 2, A], and layers of the patches seen [N, S, L] and hidden [N, H, L].

        Two predictions of the signs: one from the class token, which linear probing uses, one from the mean of the
        patches, which fine-tuning uses.

        Args:
            patches: The pixels of the patches seen, [N, S, 768].
            seen, hidden: The patches' places, [S] and [H].
        """
        encoder, places = self.encoder, self.encoder.pos_embed[:, 1:]
        weight = encoder.patch_embed.proj.weight.flatten(1)
        x = functional.linear(patches, weight, encoder.patch_embed.proj.bias) + places[:, seen]
        x = torch.cat([encoder.cls_token.expand(len(x), -1, -1), x], dim=1)
        for block in encoder.blocks:
            x = block(x)
        read = encoder.norm(torch.cat([x, x[:, 1:].mean(1, keepdim=True)], dim=1))
        asked = read[:, :1] + self.mask_token + places[:, hidden]
        signs = self.regresser["signs"](torch.stack([read[:, 0], read[:, -1]], dim=1))
        return signs, self.regresser["layers"](read[:, 1:-1]), self.regresser["hidden"](asked)


class Batches(Dataset):
    """The batch of each step from `first` on, drawn with the step's own random state."""

    def __init__(self, pool: tuple[np.ndarray, ...], options: argparse.Namespace, first: int):
        self.pool, self.options, self.first = pool, options, first

    def __len__(self) -> int:
        return self.options.steps - self.first

    def __getitem__(self, index: int):
        """Returns the patches [N, S, 768] seen, their places [S], those of the hidden ones [H], and the targets."""
        step, options = self.first + index, self.options
        rng, left = np.random.default_rng([SEED, 0, step]), progress_of(step, options.steps)
        count = 49 if left > 0.9 else 98 if left > 0.15 else 196
        places = rng.permutation(GRID**2)
        seen, hidden = places[:count], places[-49:]
        rows = np.sort(rng.choice(options.images, options.batch, replace=options.images < options.batch))
        patches, targets = batch_of(self.pool, rows, seen, hidden, rng)
        return patches, torch.from_numpy(seen), torch.from_numpy(hidden), targets


def batch_of(pool, rows: np.ndarray, seen: np.ndarray, hidden: np.ndarray, rng: np.random.Generator):
    """Returns the patches [N, S, 768] of randomly turned, flipped and tinted images, and the three targets."""
    images, attributes, layers = pool
    pixels, maps = np.empty((len(rows), GRID**2, PATCH, PATCH, 3), np.uint8), np.empty((len(rows), *layers.shape[1:]))
    for i, row in enumerate(rows):
        turns, flip = rng.integers(4), 1 - 2 * rng.integers(2)
        image, places = images[row], layers[row]
        if rng.random() < 0.5:
            image, places = as_fine_tuned(image, places, rng)
        image = np.rot90(image, turns)[:, ::flip].reshape(GRID, PATCH, GRID, PATCH, 3)
        pixels[i] = image.swapaxes(1, 2).reshape(GRID**2, PATCH, PATCH, 3)
        maps[i] = np.rot90(places, turns)[:, ::flip]
    x = torch.from_numpy(pixels[:, seen]).float() / 255
    tint, gamma = (
        np.exp(rng.normal(0, 0.05, (len(rows), 1, 1, 1, 3))),
        np.exp(rng.normal(0, 0.1, (len(rows), 1, 1, 1, 1))),
    )
    x = (x * torch.from_numpy(tint).float()) ** torch.from_numpy(gamma).float()
    x = (x - torch.tensor(EVALUATION_MEAN)) / torch.tensor(EVALUATION_STD)
    maps = torch.from_numpy(maps.reshape(len(rows), GRID**2, -1)).float()
    signs = torch.from_numpy(attributes[rows])[:, None].expand(-1, 2, -1)
    return x.permute(0, 1, 4, 2, 3).flatten(2), (signs, maps[:, seen], maps[:, hidden])


def as_fine_tuned(image: np.ndarray, layers: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image uint8 [224, 224, 3], rotated and tinted as fine-tuning does, and its layers [14, 14, L].

    Corners are black, and their layers not a number.
    """
    angle, hue = rng.uniform(-DEGREES, DEGREES), rng.uniform(-HUE, HUE)
    shifted = shift_hue(Image.fromarray(image).rotate(angle), hue)
    turned = [
        Image.fromarray(layer).rotate(angle, Image.Resampling.BILINEAR, fillcolor=np.nan)
        for layer in layers.transpose(2, 0, 1)
    ]
    return np.moveaxis(shifted, 0, 2), np.stack(turned, axis=2)


def progress_of(step: int, steps: int) -> float:
    """Returns 1 before the last part of the training, and in it what is left of it."""
    return min(1.0, (steps - step) / (DECAY * steps))


def train(options: argparse.Namespace) -> PreTraining:
    """Returns the trained model; goes on from `options.work`, where its state is kept.

    Until the last fifth nothing depends on the number of steps, so that a training can be ended early or late.
    """
    torch.manual_seed(SEED)
    pool = draw_pool(options.images, options.work)
    model = PreTraining().train()
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98))
    state, first = options.work / "state.pt", 0
    if state.exists():
        kept = torch.load(state)
        model.load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
        first = kept["step"]
    running = None
    batches = DataLoader(Batches(pool, options, first), batch_size=None, num_workers=1)  # made while the model learns
    bar = tqdm(batches, "pre-training", initial=first, total=options.steps, unit="step", mininterval=20)
    for step, (patches, seen, hidden, targets) in enumerate(bar, first):
        for group in optimiser.param_groups:
            group["lr"] = options.lr * min((step + 1) / WARM_UP, progress_of(step, options.steps))
        losses = []
        for predicted, target in zip(model(patches, seen, hidden), targets, strict=True):
            loss = functional.smooth_l1_loss(predicted, target.nan_to_num(), reduction="none")
            if not losses:  # signs: [N, 2, A], from the class token and from the mean of the patches
                loss = loss * torch.tensor([CLASS_TOKEN, 2 - CLASS_TOKEN])[:, None]
            losses.append(loss[~target.isnan()].mean())
        optimiser.zero_grad()
        sum(losses).backward()
        nn.utils.clip_grad_norm_(trained, 3.0)
        optimiser.step()
        now = np.array([loss.item() for loss in losses])
        running = now if running is None else running + 0.02 * (now - running)
        bar.set_postfix_str(" ".join(f"{value:.3f}" for value in running), refresh=False)
        if (step + 1) % EVERY == 0:
            with replacing(state) as new:
                torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}, new)
    return model


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
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=6_500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--work", type=Path, default=REPOSITORY / "outputs/pretraining", help="pool and state")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "data_manifests/weights/panderm_tiny.pth")
    options = parser.parse_args()
    started = time.monotonic()
    save(train(options), options.out)
    minutes, size = (time.monotonic() - started) / 60, options.out.stat().st_size / 1e6
    print(f"{options.out}: {size:.1f} MB after {minutes:.0f} minutes")


if __name__ == "__main__":
    main()
