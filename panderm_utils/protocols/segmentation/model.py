"""The segmentation model: a vision transformer, a feature pyramid from four of its blocks, and an UPerNet decoder.

| part | what it is | from |
|---|---|---|
| backbone | maps of the patch tokens after four blocks, each through the encoder's one final norm | timm |
| pyramid | the four maps at 4, 2, 1 and 1/2 times the patch grid: 56, 28, 14 and 7 pixels for patches of 16 | here |
| decoder | UPerNet: pooled context (1, 2, 3, 6), top-down sums, all levels fused | segmentation_models_pytorch |
| classifier | two numbers for each pixel of the finest level: background, lesion | torch |

Symbols: N images, D the encoder's width, C the decoder's channels.
"""

import math
from pathlib import Path

import pandas as pd
import torch
from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from panderm_utils.encoders import LOADING_COLUMNS, build_model, digest_of, load_encoder, read_tensors
from panderm_utils.manifests import EncoderManifest, load_encoder_manifest
from panderm_utils.protocols.segmentation.masks import SIDE
from panderm_utils.protocols.segmentation.recipe import SegmentationRecipe
from panderm_utils.protocols.training import TrainingError, read_facts

LEVELS = 4
# What a checkpoint holds of its encoder's manifest.
ENCODER_FACTS = ("name", "title", "architecture", "layout", "licence", "timm_name", "width", "depth", "heads", "color")


class SegmentationModel(nn.Module):
    """Maps images [N, 3, 224, 224] to logits [N, 2, H, W] (background, lesion) at a quarter of the size: H = W = 56.

    Made by `load_segmentation_model` or `load_segmented`. Patches of 14 give 64 pixels instead of 56.

    Attributes:
        encoder: Manifest of the encoder that the backbone was initialised from.
        blocks: The numbers, from 0, of the blocks that feed the pyramid.
        weights, digest: File that it was read from, if any, and its SHA-256.
        loading: One row per group of tensors: `group`, `tensors`, `parameters`, `status`, `why`.
        facts: Training facts in a checkpoint of ours; empty before training.
    """

    def __init__(
        self,
        encoder: EncoderManifest,
        channels: int = SegmentationRecipe.channels,
        drop_path: float = SegmentationRecipe.drop_path,
        frozen: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        self.backbone = build_model(encoder, 0.0 if frozen else drop_path)
        if not hasattr(self.backbone, "blocks") or not hasattr(self.backbone, "forward_intermediates"):
            raise TrainingError(
                f"{encoder.name}: has no maps of patch tokens; choose a vision transformer, such as panderm_large, "
                "dinov2_large or timm:vit_base_patch16_224"
            )
        if encoder.architecture == "beit":
            self.backbone.pos_embed.requires_grad_(False)  # a fixed sine-cosine table
        if frozen:
            self.backbone.requires_grad_(False)
        depth, width = len(self.backbone.blocks), self.backbone.num_features
        self.blocks = pyramid_blocks(depth)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed GPUs
            self.pyramid = nn.ModuleList(
                [
                    nn.Sequential(_double(width), nn.BatchNorm2d(width), nn.GELU(), _double(width)),
                    _double(width),
                    nn.Identity(),
                    nn.MaxPool2d(2),
                ]
            )
            # the first two are placeholders for maps at full and half size, which UPerNet does not use
            self.decoder = UPerNetDecoder([3, 0, *[width] * LEVELS], decoder_channels=channels)
            initialize_decoder(self.decoder)
            self.classifier = nn.Conv2d(channels, 2, 1)
        # the published decoder has no norm of its input, the library's has
        self.decoder.feature_norms = nn.ModuleList(nn.Identity() for _ in range(LEVELS))
        self.encoder, self.frozen, self.channels = encoder, frozen, channels
        self.weights, self.digest = None, None
        self.loading, self.facts = pd.DataFrame(columns=LOADING_COLUMNS), {}

    def forward(self, images: Tensor) -> Tensor:
        features = self.decoder([None, None, *self.levels(images)])
        return self.classifier(features)

    def levels(self, images: Tensor) -> list[Tensor]:
        """Returns the pyramid of images: [N, D, 56, 56], [N, D, 28, 28], [N, D, 14, 14], [N, D, 7, 7]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.backbone.forward_intermediates(images, indices=self.blocks, norm=True, intermediates_only=True)
        return [level(features) for level, features in zip(self.pyramid, maps, strict=True)]

    def train(self, mode: bool = True) -> "SegmentationModel":
        """Sets training mode; a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Sets whether the backbone's activations are recomputed; the decoder's batch norms would count twice."""
        self.backbone.set_grad_checkpointing(enable and not self.frozen)

    def __repr__(self) -> str:
        trained = sum(value.numel() for value in self.parameters() if value.requires_grad)
        return f"SegmentationModel({self.encoder.name}: {trained:,} trained parameters, blocks {self.blocks})"


def pyramid_blocks(depth: int) -> list[int]:
    """Returns the blocks, from 0, that feed the pyramid: 7, 11, 15 and 23 of 24, and in proportion of others."""
    if depth < LEVELS:
        raise TrainingError(f"an encoder of {depth} blocks is too shallow; the pyramid needs {LEVELS}")
    shares = (8 / 24, 12 / 24, 16 / 24, 1)
    return [min(math.ceil(depth * share) - 1, depth - LEVELS + level) for level, share in enumerate(shares)]


def _double(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)


def load_segmentation_model(
    name: str | EncoderManifest,
    recipe: SegmentationRecipe,
    weights: str | Path | None = None,
    weights_root: str | Path | None = None,
) -> SegmentationModel:
    """Returns the initial model for segmentation, from an encoder's weights.

    Args:
        name: An encoder of data_manifests/encoders.yaml, "timm:<model name>", or a manifest; a vision transformer.
        recipe: Its drop path, decoder width, seed, and whether the encoder is frozen.
        weights, weights_root: As in `load_encoder`.

    Raises:
        TrainingError: Not a vision transformer. EncoderError: the weights are missing or invalid.
    """
    manifest = name if isinstance(name, EncoderManifest) else load_encoder_manifest(name)
    model = SegmentationModel(manifest, recipe.channels, recipe.drop_path, recipe.frozen, recipe.seed)
    encoder = load_encoder(manifest, weights, "cpu", weights_root=weights_root)
    model.backbone.load_state_dict(encoder.model.state_dict(), strict=True)
    model.weights, model.digest = encoder.weights, encoder.digest
    parts = {"pyramid": model.pyramid, "decoder": model.decoder, "classifier": model.classifier}
    new = [(part, *_count(module), "new", f"drawn from seed {recipe.seed}") for part, module in parts.items()]
    model.loading = pd.concat([encoder.loading, pd.DataFrame(new, columns=LOADING_COLUMNS)], ignore_index=True)
    return model


def load_segmented(path: str | Path) -> SegmentationModel:
    """Returns a trained segmentation model from our `best.safetensors`, in eval mode.

    Raises:
        TrainingError: The file is missing, or is no segmentation model. EncoderError: it is damaged.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise TrainingError(f"{path}: there is no such file; write the best.safetensors of a segmentation run here")
    with digest_of(path) as digest:
        tensors, facts = read_tensors(path, None), read_facts(path)
    if "channels" not in facts:
        remedy = "write the best.safetensors of a segmentation run here"
        raise TrainingError(f"{path}: not a segmentation model of this package ({len(tensors)} tensors); {remedy}")
    manifest = EncoderManifest(**facts["encoder_manifest"])
    model = SegmentationModel(manifest, facts["channels"], frozen=facts["frozen"])
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise TrainingError(
            f"{path}: does not fit {manifest.name} with {facts['channels']} channels: {error}"
        ) from error
    model.weights, model.digest, model.facts = path, digest, facts
    return model.eval()


@torch.no_grad()
def pyramid_table(model: SegmentationModel) -> pd.DataFrame:
    """Returns one row per level of the pyramid, finest first: the block it is from, how it is made, and its size."""
    weight = next(model.parameters())
    maps = model.eval().levels(torch.zeros(1, 3, SIDE, SIDE, device=weight.device))
    how = (
        "transposed convolution, batch norm, GELU, transposed convolution",
        "transposed convolution",
        "as it is",
        "maximum of 2 x 2",
    )
    rows = [
        {
            "after block": block + 1,
            "how": text,
            "channels": level.shape[1],
            "size": f"{level.shape[2]} x {level.shape[3]}",
        }
        for block, text, level in zip(model.blocks, how, maps, strict=True)
    ]
    return pd.DataFrame(rows, index=pd.Index(range(1, LEVELS + 1), name="level"))


def describe(model: SegmentationModel) -> dict:
    """Returns the facts about the model's origin for a record, JSON-serializable."""
    return {
        "title": model.encoder.title,
        "weights": str(model.weights) if model.weights else None,
        "digest": model.digest,
        "blocks": model.blocks,
        "channels": model.channels,
        "trained_parameters": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "tensors": model.loading.groupby("status", sort=False)["tensors"].sum().to_dict(),
    }


def _count(module: nn.Module) -> tuple[int, int]:
    tensors = module.state_dict().values()
    return len(tensors), sum(value.numel() for value in tensors)
