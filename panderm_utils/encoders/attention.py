"""What a vision transformer attends to in one image, as arrays.

Symbols: L blocks, H heads, T tokens (the class token, perhaps registers, then h x w patches), D the width. timm's fused
attention never forms the weights, so timm's own AttentionExtract sees nothing; here each block computes them explicitly
for one forward pass, with the same result to rounding.

Such maps show where a model mixes in information, not why it decides; a random encoder has them too.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from panderm_utils.data import evaluation_transform
from panderm_utils.encoders.loading import Encoder
from panderm_utils.messages import UserError

COLOURS_CUT = 1  # percent of the patches at each end of a colour's range, so that one patch cannot use it up


class AttentionError(UserError):
    """The model has no attention over patches, or no class of that number; the message says what to use instead."""


@dataclass(frozen=True, eq=False)
class Attention:
    """The attention in one image; made by `attend`.

    Attributes:
        weights: `[L, H, T, T]` float32; the row of a token says how much it takes from each token, and sums to 1.
        gradients: The score's gradient by each weight, or None.
        patches: The patch tokens after the last norm `[h, w, D]`.
        pooled: Whether the model's output is read from the mean of the patch tokens, as after fine-tuning, instead of
            the class token. Maps are of the token or tokens that are read.
        output: The model's output [K]: logits or features.
    """

    weights: np.ndarray = field(repr=False)
    gradients: np.ndarray | None = field(repr=False)
    patches: np.ndarray = field(repr=False)
    pooled: bool
    output: np.ndarray = field(repr=False)

    def heads(self, block: int = -1) -> np.ndarray:
        """Returns the attention of each head in one block, by default the last, to the patches: [H, h, w]."""
        return np.stack([self._read(head) for head in self.weights[block]])

    def rollout(self) -> np.ndarray:
        """Returns the attention rollout [h, w]: how much reaches the output from each patch through all blocks.

        The heads' mean, averaged with the identity for the residual connection, multiplied over the blocks
        (Abnar and Zuidema 2020, https://doi.org/10.18653/v1/2020.acl-main.385).
        """
        total = identity = np.eye(self.weights.shape[-1], dtype=np.float64)
        for mean in self.weights.mean(axis=1, dtype=np.float64):
            total = (mean + identity) / 2 @ total
        return self._read(total)

    def towards_score(self) -> np.ndarray:
        """Returns the gradient-weighted attention [h, w]: where attention raises the score.

        Over the blocks R <- R + A R from the identity, where A is the heads' mean of the positive part of
        weight x gradient (Chefer et al. 2021, https://doi.org/10.1109/ICCV48922.2021.00045).

        Raises:
            AttentionError: `attend` was called without `towards`.
        """
        if self.gradients is None:
            raise AttentionError("no gradients were computed; write attend(model, image, towards=3), a class's number")
        identity = np.eye(self.weights.shape[-1])
        total = identity
        for weights, gradients in zip(self.weights, self.gradients, strict=True):
            mean = np.maximum(weights * gradients, 0).mean(axis=0, dtype=np.float64)
            total = total + mean @ total
        return self._read(total - identity)

    def _read(self, matrix: np.ndarray) -> np.ndarray:
        """Returns what the tokens that are read take from each patch [h, w], from a matrix [T, T]."""
        height, width, _ = self.patches.shape
        first = len(matrix) - height * width
        rows = matrix[first:].mean(axis=0) if self.pooled else matrix[0]
        return rows[first:].reshape(height, width)


def attend(model: nn.Module, image: Image.Image | Tensor, towards: int | np.ndarray | None = None) -> Attention:
    """Returns the attention of a vision transformer in one image, computed in float32.

    Args:
        model: An encoder, or any timm vision transformer with global attention, such as a fine-tuned model.
        image: A PIL image, or a tensor [3, 224, 224] that is already normalised.
        towards: The score for `Attention.towards_score`: the number of an output, such as a class of a fine-tuned
            model; or weights over all outputs, such as a row of a linear probe's for an encoder's features.

    Raises:
        AttentionError: The model is no such transformer, as a ResNet; or it has no output `towards`.
    """
    network = model.model if isinstance(model, Encoder) else model
    name = model.name if isinstance(model, Encoder) else type(model).__name__
    if not (hasattr(network, "forward_intermediates") and hasattr(network, "num_prefix_tokens")):
        raise AttentionError(f"{name} ({type(network).__name__}) has no attention over patches; {_remedy()}")
    tensor = image if isinstance(image, Tensor) else evaluation_transform()(image)
    device = next(network.parameters()).device
    tensor = tensor.detach()[None].to(device, torch.float32).requires_grad_(towards is not None)
    with _explicit_attention(network) as found, torch.set_grad_enabled(towards is not None):
        tokens, (patches,) = network.forward_intermediates(tensor, indices=1, norm=True)
        output = network.forward_head(tokens)[0]
    _, _, height, width = patches.shape
    size = network.num_prefix_tokens + height * width
    if not found or {weights.shape[-2:] for weights in found} != {(size, size)}:
        raise AttentionError(f"{name} ({type(network).__name__}) has no attention between all patches; {_remedy()}")
    gradients = None
    if towards is not None:
        gradients = _stack(torch.autograd.grad(_score(output, towards, name), found))
    pooled = network.num_prefix_tokens == 0 or network.global_pool != "token"
    features = patches[0].permute(1, 2, 0)
    return Attention(_stack(found), gradients, _array(features), pooled, _array(output))


def patch_colours(found: Sequence[Attention]) -> list[np.ndarray]:
    """Returns the patch tokens of images as colours [h, w, 3] in 0..1: their first three principal components.

    The components are of all images together, so that a colour means the same in each.
    """
    tokens = [one.patches.reshape(-1, one.patches.shape[-1]) for one in found]
    together = np.concatenate(tokens).astype(np.float64)
    mean = together.mean(axis=0)
    components = np.linalg.svd(together - mean, full_matrices=False)[2][:3]
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    components = components * np.sign(largest)  # a component's sign is arbitrary
    planes = [(part - mean) @ components.T for part in tokens]
    low, high = np.percentile(np.concatenate(planes), [COLOURS_CUT, 100 - COLOURS_CUT], axis=0)
    scaled = [np.clip((plane - low) / np.maximum(high - low, 1e-12), 0, 1) for plane in planes]
    return [part.reshape(*one.patches.shape[:2], -1) for part, one in zip(scaled, found, strict=True)]


@contextlib.contextmanager
def _explicit_attention(network: nn.Module) -> Iterator[list[Tensor]]:
    """Yields a list that each block's attention [1, H, T, T] is added to; the model is in eval mode meanwhile."""
    found: list[Tensor] = []
    layers = [module for module in network.modules() if hasattr(module, "attn_drop") and hasattr(module, "fused_attn")]
    fused, training = [layer.fused_attn for layer in layers], network.training
    hooks = [layer.attn_drop.register_forward_hook(lambda *call: found.append(call[-1])) for layer in layers]
    network.eval()
    try:
        for layer in layers:
            layer.fused_attn = False
        yield found
    finally:
        for layer, value, hook in zip(layers, fused, hooks, strict=True):
            layer.fused_attn = value
            hook.remove()
        network.train(training)


def _score(output: Tensor, towards: int | np.ndarray, name: str) -> Tensor:
    if np.ndim(towards) == 0 and 0 <= int(towards) < len(output):
        return output[int(towards)]
    if np.shape(towards) == tuple(output.shape):
        return output @ torch.as_tensor(towards, dtype=output.dtype, device=output.device)
    raise AttentionError(
        f"towards has the value or shape {towards if np.ndim(towards) == 0 else np.shape(towards)}, {name} has"
        f" {len(output)} outputs: give the number of one of them (from 0), or one weight for each"
    )


def _stack(blocks: Sequence[Tensor]) -> np.ndarray:
    return _array(torch.cat(list(blocks)))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _remedy() -> str:
    return "choose a vision transformer, such as panderm_tiny, dinov2_large or timm:vit_base_patch16_224"
