"""Published vision encoders are read by their own names."""
import pytest
import torch
from torch import nn

from mmblip2.checkpoints.vision import to_own_names
from mmblip2.errors import CheckpointError
from mmblip2.models import VisionTransformer

EVA = dict(image_size=8, patch_size=4, width=16, depth=2, num_heads=2)
CLIP = dict(EVA, activation='quick_gelu', pre_norm=True, qkv_bias='full', patch_bias=False, eps=1e-5)


def redrawn(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return module


class OpenAIBlock(nn.Module):
    """A block in the names of OpenAI's CLIP, on torch's own attention."""

    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict(dict(c_fc=nn.Linear(width, 4 * width), c_proj=nn.Linear(4 * width, width)))

    def forward(self, x):
        rows = self.ln_1(x)
        x = x + self.attn(rows, rows, rows)[0]
        hidden = self.mlp['c_fc'](self.ln_2(x))
        return x + self.mlp['c_proj'](hidden * (1.702 * hidden).sigmoid())


class OpenAIVision(nn.Module):

    def __init__(self, depth):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 4, 4, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(16))
        self.positional_embedding = nn.Parameter(torch.zeros(5, 16))
        self.ln_pre, self.ln_post = nn.LayerNorm(16), nn.LayerNorm(16)
        self.transformer = nn.ModuleDict(dict(resblocks=nn.ModuleList(OpenAIBlock(16, 2) for _ in range(depth))))

    def forward(self, images, depth):
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer['resblocks'][:depth]:
            x = block(x)
        return x


@pytest.mark.parametrize('prefix', ['', 'visual.'])
@torch.no_grad()
def test_openai_clip_without_its_last_block(tmp_path, prefix):
    theirs = redrawn(OpenAIVision(3)).eval()
    state = {prefix + key: value for key, value in theirs.state_dict().items()}
    torch.save({**state, 'logit_scale': torch.zeros(()), 'token_embedding.weight': torch.zeros(3, 2)},
               tmp_path / 'clip.pth')
    ours = VisionTransformer(**CLIP, weights=str(tmp_path / 'clip.pth')).eval()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(images), theirs(images, depth=2), atol=1e-5, rtol=0)
    assert ours(images).std() > 0.1


def test_what_was_done_is_said():
    state, notes = to_own_names(OpenAIVision(3).state_dict(), VisionTransformer(**CLIP))
    assert state.keys() == VisionTransformer(**CLIP).state_dict().keys()
    assert notes == ['the file has the names of OpenAI CLIP and 3 blocks, the first 2 are used']


def test_eva_and_blip2_files_of_lavis(tmp_path):
    source = redrawn(VisionTransformer(**EVA))
    lavis = {key.replace('patch_embed.', 'patch_embed.proj.'): value for key, value in source.state_dict().items()}
    blip2 = {f'visual_encoder.{key}': value for key, value in lavis.items()} | {'query_tokens': torch.zeros(1),
                                                                                'ln_vision.weight': torch.zeros(1)}
    lavis['blocks.2.norm1.weight'] = lavis['fc_norm.weight'] = torch.zeros(16)
    for name, state in dict(eva=lavis, blip2=blip2).items():
        torch.save({'model': state}, tmp_path / f'{name}.pth')
        loaded = VisionTransformer(**EVA, weights=str(tmp_path / f'{name}.pth')).state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in source.state_dict().items())


def test_published_positions_are_interpolated_too(tmp_path):
    theirs = redrawn(OpenAIVision(2))
    torch.save(theirs.state_dict(), tmp_path / 'clip.pth')
    large = VisionTransformer(**{**CLIP, 'image_size': 12}, weights=str(tmp_path / 'clip.pth'))
    corners = [1, 3, 7, 9]  # aligned corners keep their positions
    torch.testing.assert_close(large.pos_embed[0, corners], theirs.positional_embedding[1:])


def test_own_names_stay_as_they_are():
    state = VisionTransformer(**EVA).state_dict()
    assert to_own_names(state, VisionTransformer(**EVA)) == (state, [])


@torch.no_grad()
def test_the_bias_of_the_attention_takes_the_form_of_the_model(tmp_path):
    """A bias of the keys adds the same to every score of a query, so both forms give the same tokens."""
    source = redrawn(VisionTransformer(**EVA)).eval()
    state = source.state_dict()
    state = {key.replace('patch_embed.', 'patch_embed.proj.'): value for key, value in state.items()}
    torch.save(state, tmp_path / 'qv.pth')
    for number in range(2):
        query, value = (state.pop(f'blocks.{number}.attn.{name}_bias') for name in 'qv')
        state[f'blocks.{number}.attn.qkv.bias'] = torch.cat([query, torch.randn(16), value])
    torch.save(state, tmp_path / 'full.pth')
    images = torch.randn(2, 3, 8, 8)
    for name in ('qv', 'full'):
        for bias in ('qv', 'full'):
            encoder = VisionTransformer(**EVA, qkv_bias=bias, weights=str(tmp_path / f'{name}.pth')).eval()
            torch.testing.assert_close(encoder(images), source(images), atol=1e-5, rtol=0)


def test_another_architecture_is_refused_by_the_names_of_its_weights(tmp_path):
    torch.save(OpenAIVision(1).state_dict(), tmp_path / 'short.pth')
    with pytest.raises(CheckpointError, match=r'12 missing in the file \(blocks.1'):
        VisionTransformer(**CLIP, weights=str(tmp_path / 'short.pth'))
    torch.save(OpenAIVision(2).state_dict(), tmp_path / 'clip.pth')
    with pytest.raises(CheckpointError, match=r'1 missing in the file \(patch_embed.bias\); 2 unknown to the model '
                                              r'\(pre_norm.weight, pre_norm.bias\)'):
        VisionTransformer(**EVA, weights=str(tmp_path / 'clip.pth'))


def test_only_the_last_block_may_be_left_out(tmp_path):
    for blocks in (2, 3):
        to_own_names(OpenAIVision(blocks).state_dict(), VisionTransformer(**CLIP))
    torch.save(OpenAIVision(4).state_dict(), tmp_path / 'deep.pth')
    with pytest.raises(CheckpointError, match=r'4 blocks \(names of OpenAI CLIP\) and the vision encoder 2: set depth '
                                              'to 3, which leaves out the last one as BLIP-2 does, or to 4'):
        VisionTransformer(**CLIP, weights=str(tmp_path / 'deep.pth'))


@torch.no_grad()
def test_a_vit_of_timm_keeps_its_final_norm_where_the_model_has_one(tmp_path):
    """As BLIP's pre-training starts from DeiT."""
    ours = redrawn(VisionTransformer(**EVA, qkv_bias='full', final_norm=True)).eval()
    state = {key.replace('patch_embed', 'patch_embed.proj'): value for key, value in ours.state_dict().items()}
    head = {'head.weight': torch.zeros(3, 16), 'head.bias': torch.zeros(3)}
    torch.save({'model': {**state, **head}}, tmp_path / 'vit.pth')
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    loaded = VisionTransformer(**EVA, qkv_bias='full', final_norm=True, weights=str(tmp_path / 'vit.pth')).eval()
    assert torch.equal(loaded(images), ours(images))
    without = VisionTransformer(**EVA, qkv_bias='full', weights=str(tmp_path / 'vit.pth')).eval()
    assert torch.equal(ours.norm(without(images)), ours(images))
