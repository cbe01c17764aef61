"""Attention maps against timm's own AttentionExtract, finite differences, closed forms and scikit-learn."""

import panderm_utils  # noqa: F401  first of all: makes torchvision, and so timm, importable

# isort: split
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.decomposition import PCA
from timm.layers import set_fused_attn
from timm.utils import AttentionExtract

from panderm_utils.encoders.attention import Attention, AttentionError, attend, patch_colours
from panderm_utils.encoders.loading import build_model, load_encoder
from panderm_utils.manifests import load_encoder_manifest
from panderm_utils.protocols.fine_tune.model import load_finetune_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("panderm_tiny", device="cpu")


@pytest.fixture(scope="module")
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((300, 260), Image.Resampling.BICUBIC)


def test_the_weights_are_those_that_timm_extracts_from_explicit_attention(encoder, picture):
    found = attend(encoder, picture)
    set_fused_attn(False)
    try:
        explicit = build_model(load_encoder_manifest("panderm_tiny"))
    finally:
        set_fused_attn(True)
    explicit.load_state_dict(encoder.model.state_dict())
    with torch.no_grad():
        blocks = AttentionExtract(explicit, method="hook")(encoder.transform(picture)[None])
    np.testing.assert_allclose(found.weights, torch.cat(list(blocks.values())).numpy(), atol=1e-6)
    np.testing.assert_allclose(found.weights.sum(axis=-1), 1, atol=1e-5)
    assert found.weights.shape == (4, 2, 197, 197)
    np.testing.assert_array_equal(found.heads(), found.weights[-1, :, 0, 1:].reshape(2, 14, 14))


def test_the_output_is_the_model_s_and_the_model_is_left_as_it_was(encoder, picture):
    image = encoder.transform(picture)
    before = encoder(image[None])
    np.testing.assert_allclose(attend(encoder, image, towards=0).output, before[0].numpy(), atol=1e-5)
    assert torch.equal(encoder(image[None]), before)
    assert all(block.attn.fused_attn and not block.attn.attn_drop._forward_hooks for block in encoder.model.blocks)
    tuned = load_finetune_model("panderm_tiny", 3).train()
    attend(tuned, image)
    assert tuned.training


def test_gradients_are_those_of_finite_differences(encoder, picture):
    model = build_model(load_encoder_manifest("panderm_tiny")).double().eval()
    model.load_state_dict(encoder.model.state_dict())
    weights = np.random.default_rng(0).standard_normal(96)
    image = encoder.transform(picture)
    found = attend(encoder, image, towards=weights)
    for block in model.blocks:
        block.attn.fused_attn = False
    for block, head, row, column in ((3, 0, 0, 17), (3, 1, 0, 100), (1, 1, 50, 3), (0, 0, 20, 20)):
        scores = []
        for step in (1e-4, -1e-4):

            def shift(module, given, output, step=step, at=(0, head, row, column)):
                output = output.clone()
                output[at] += step
                return output

            hook = model.blocks[block].attn.attn_drop.register_forward_hook(shift)
            with torch.no_grad():
                scores.append(model(image[None].double())[0].numpy() @ weights)
            hook.remove()
        expected = (scores[0] - scores[1]) / 2e-4
        assert found.gradients[block, head, row, column] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def small(pooled, gradients=None):
    """Returns the attention of two blocks and two heads over the class token and 1 x 2 patches."""
    weights = np.random.default_rng(1).dirichlet(np.ones(3), (2, 2, 3)).astype(np.float32)
    return Attention(weights, gradients, np.zeros((1, 2, 4), np.float32), pooled, np.zeros(1, np.float32))


@pytest.mark.parametrize("pooled", [False, True])
def test_rollout_and_gradient_weighted_attention_follow_their_formulas(pooled):
    def read(matrix):
        return matrix[1:, 1:].mean(axis=0)[None] if pooled else matrix[:1, 1:]

    one, identity = small(pooled), np.eye(3)
    first, second = one.weights.mean(axis=1)
    expected = (second @ first + first + second + identity) / 4
    np.testing.assert_allclose(one.rollout(), read(expected), rtol=1e-6)
    gradients = np.random.default_rng(2).standard_normal((2, 2, 3, 3)).astype(np.float32)
    first, second = np.maximum(one.weights * gradients, 0).mean(axis=1)
    expected = first + second + second @ first
    np.testing.assert_allclose(small(pooled, gradients).towards_score(), read(expected), rtol=1e-5)
    with pytest.raises(AttentionError, match="towards=3"):
        one.towards_score()


def test_a_fine_tuned_model_is_read_from_its_patches_and_towards_a_class(picture):
    tuned = load_finetune_model("panderm_tiny", 3)
    found = attend(tuned, picture, towards=2)
    assert found.pooled
    assert found.output.shape == (3,)
    np.testing.assert_allclose(found.heads()[1].ravel(), found.weights[-1, 1, 1:, 1:].mean(axis=0), rtol=1e-6)
    assert found.towards_score().max() > 0
    assert not found.gradients[-1, :, 0].any()  # nothing reads the class token after the last block


@pytest.mark.parametrize(
    ("name", "blocks", "heads", "side"),
    [
        ("vit_tiny_patch16_224", 12, 3, 14),
        ("vit_small_patch14_dinov2", 12, 6, 16),
        ("vit_small_patch14_reg4_dinov2", 12, 6, 16),
        ("eva02_tiny_patch14_224", 12, 3, 16),
    ],
)
def test_other_vision_transformers_work_too(picture, name, blocks, heads, side):
    model = timm.create_model(name, num_classes=0, **({"dynamic_img_size": True} if "dinov2" in name else {}))
    found = attend(model, picture)
    assert found.weights.shape[:2] == (blocks, heads)
    assert found.heads().shape == (heads, side, side)
    assert found.patches.shape[:2] == (side, side)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "xcit_nano_12_p16_224"])
def test_a_model_without_attention_between_patches_is_refused_with_a_remedy(picture, name):
    with pytest.raises(AttentionError, match="choose a vision transformer, such as panderm_tiny"):
        attend(timm.create_model(name), picture)


@pytest.mark.parametrize("towards", [96, -1, np.zeros(3)])
def test_an_output_that_is_not_there_is_refused(encoder, picture, towards):
    with pytest.raises(AttentionError, match="has 96 outputs"):
        attend(encoder, picture, towards=towards)


def test_colours_are_the_principal_components_of_all_images_together(encoder, picture):
    found = [attend(encoder, picture), attend(encoder, picture.rotate(90, expand=True))]
    first, second = patch_colours(found)
    assert first.shape == second.shape == (14, 14, 3)
    assert 0 == min(first.min(), second.min()) < max(first.max(), second.max()) == 1
    tokens = np.concatenate([one.patches.reshape(-1, 96) for one in found]).astype(np.float64)
    planes = PCA(3).fit_transform(tokens)
    colours = np.concatenate([first.reshape(-1, 3), second.reshape(-1, 3)])
    for plane, colour in zip(planes.T, colours.T, strict=True):
        inside = (colour > 0) & (colour < 1)
        assert inside.mean() > 0.9
        assert abs(np.corrcoef(plane[inside], colour[inside])[0, 1]) == pytest.approx(1, abs=1e-9)
    (same, _) = patch_colours(found)
    np.testing.assert_array_equal(same, first)
