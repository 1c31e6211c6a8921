"""The ViT equals transformers' CLIP and BLIP-2 vision encoders on the same random weights, read from their files."""
import pytest
import torch
from torch import nn

from mmblip2.models import VisionTransformer

transformers = pytest.importorskip('transformers')
from transformers import Blip2VisionConfig, Blip2VisionModel, CLIPVisionConfig, CLIPVisionModel  # noqa: E402

SIZES = dict(hidden_size=32, num_attention_heads=4, intermediate_size=48, image_size=24, patch_size=8)
OURS = dict(image_size=24, patch_size=8, width=32, num_heads=4, mlp_width=48)


def redraw(model):
    """Matrices N(0, 0.1) (their default for BLIP-2 is 1e-10), biases and LayerNorms N(0, 0.2) around 0 and 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.1)
            else:
                parameter.normal_(std=0.2).add_(1. if 'norm' in name and name.endswith('weight') else 0.)
    return model.eval()


def images():
    return torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    """Four blocks of CLIP, and our encoder of three of them, filled from the saved file."""
    config = CLIPVisionConfig(**SIZES, num_hidden_layers=4, layer_norm_eps=1e-5, hidden_act='quick_gelu')
    theirs = redraw(CLIPVisionModel(config))
    folder = tmp_path_factory.mktemp('clip')
    theirs.save_pretrained(folder)
    ours = VisionTransformer(**OURS, depth=3, eps=1e-5, activation='quick_gelu', pre_norm=True, qkv_bias='full',
                             patch_bias=False, weights=str(folder / 'model.safetensors')).eval()
    return ours, theirs


@pytest.fixture(scope='module')
def eva(tmp_path_factory):
    """Three blocks of BLIP-2's EVA, and our encoder filled from the saved file."""
    config = Blip2VisionConfig(**SIZES, num_hidden_layers=3, layer_norm_eps=1e-6, initializer_range=0.02)
    theirs = redraw(Blip2VisionModel(config))
    folder = tmp_path_factory.mktemp('eva')
    theirs.save_pretrained(folder)
    ours = VisionTransformer(**OURS, depth=3, eps=1e-6, weights=str(folder / 'model.safetensors')).eval()
    return ours, theirs


def assert_close(ours, theirs):
    assert theirs.std() > 0.1, 'the reference output is too flat to prove anything'
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@torch.no_grad()
def test_clip_without_its_last_block_equals_transformers(clip):
    ours, theirs = clip
    states = theirs(pixel_values=images(), output_hidden_states=True).hidden_states
    assert len(states) == 5
    assert_close(ours(images()), states[-2])
    assert (ours(images()) - states[-1]).abs().max() > 1e-2


@torch.no_grad()
def test_eva_equals_transformers_before_the_norm_and_after(eva):
    ours, theirs = eva
    norm = nn.LayerNorm(32, 1e-6)
    norm.load_state_dict(theirs.post_layernorm.state_dict())
    outputs = theirs(pixel_values=images(), output_hidden_states=True)
    assert_close(ours(images()), outputs.hidden_states[-1])
    assert_close(norm(ours(images())), outputs.last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize('name', ['clip', 'eva'])
def test_another_image_gives_another_output(name, request):
    ours, _ = request.getfixturevalue(name)
    changed = images()
    changed[:, :, 5:9, 5:9] += 1.
    assert (ours(changed) - ours(images())).abs().amax((1, 2)).min() > 1e-2


@torch.no_grad()
def test_interpolated_eva_equals_transformers_on_larger_images(eva, tmp_path):
    _, theirs = eva
    theirs.save_pretrained(tmp_path)
    ours = VisionTransformer(**{**OURS, 'image_size': 40}, depth=3, eps=1e-6,
                             weights=str(tmp_path / 'model.safetensors')).eval()
    larger = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    outputs = theirs(pixel_values=larger, interpolate_pos_encoding=True, output_hidden_states=True)
    assert_close(ours(larger), outputs.hidden_states[-1])


def test_gradients_of_clip_equal_transformers(clip):
    ours, theirs = clip
    pixels = [images().requires_grad_() for _ in range(2)]
    weight = torch.randn(32, generator=torch.Generator().manual_seed(3))
    (ours(pixels[0]) @ weight).square().mean().backward()
    (theirs(pixel_values=pixels[1], output_hidden_states=True).hidden_states[-2] @ weight).square().mean().backward()
    torch.testing.assert_close(pixels[0].grad, pixels[1].grad, atol=1e-5, rtol=1e-4)
    assert pixels[1].grad.std() > 1e-3
