"""Published vision encoders in the names of ``VisionTransformer``: the key maps as data.

Known layouts: transformers (``CLIPVisionModel``, ``CLIPModel``, ``Blip2VisionModel`` and what contains it), OpenAI's
CLIP (LAVIS's ``clip_vit_L.pth``), and timm's names, which LAVIS has, too (``eva_vit_g.pth``, ``visual_encoder.*``,
DeiT). What lies behind the last block of the model (a head, the text half, one further block, the one that BLIP-2
drops, and a final norm unless the model has one, as BLIP's) is left out.
"""
import re
from typing import NamedTuple

import torch

from mmblip2.errors import CheckpointError


class _Layout(NamedTuple):
    """Names of one project. A key with '@0', '@1', '@2' is a third of the fused projection."""
    name: str
    marker: str  # a key that only this layout has; what stands before it is the encoder's prefix
    blocks: str  # list of the blocks
    outside: dict[str, str]
    inside: dict[str, str]


# transformers' Blip2VisionModel, outside and inside its blocks; one name of ours for each of theirs
BLIP2_OUTSIDE = {'embeddings.class_embedding': 'cls_token', 'embeddings.position_embedding': 'pos_embed',
                 'embeddings.patch_embedding': 'patch_embed'}
BLIP2_INSIDE = {'layer_norm1': 'norm1', 'layer_norm2': 'norm2', 'mlp.fc1': 'mlp.fc1', 'mlp.fc2': 'mlp.fc2',
                'self_attn.qkv': 'attn.qkv', 'self_attn.projection': 'attn.proj'}

_LAYOUTS = (
    _Layout(  # Blip2VisionModel, and what CLIP calls otherwise
        'transformers', 'embeddings.patch_embedding.weight', 'encoder.layers',
        {'embeddings.position_embedding.weight': 'pos_embed', **BLIP2_OUTSIDE, 'pre_layrnorm': 'pre_norm'},
        {**BLIP2_INSIDE, 'self_attn.out_proj': 'attn.proj', 'self_attn.q_proj': 'attn.qkv@0',
         'self_attn.k_proj': 'attn.qkv@1', 'self_attn.v_proj': 'attn.qkv@2'}),
    _Layout(
        'OpenAI CLIP', 'ln_pre.weight', 'transformer.resblocks',
        {'class_embedding': 'cls_token', 'positional_embedding': 'pos_embed', 'conv1': 'patch_embed',
         'ln_pre': 'pre_norm'},
        {'ln_1': 'norm1', 'ln_2': 'norm2', 'mlp.c_fc': 'mlp.fc1', 'mlp.c_proj': 'mlp.fc2',
         'attn.in_proj_weight': 'attn.qkv.weight', 'attn.in_proj_bias': 'attn.qkv.bias',
         'attn.out_proj': 'attn.proj'}),
    _Layout(
        'LAVIS', 'patch_embed.proj.weight', 'blocks',
        {'cls_token': 'cls_token', 'pos_embed': 'pos_embed', 'patch_embed.proj': 'patch_embed', 'norm': 'norm'},
        {name: name for name in ('norm1', 'norm2', 'attn', 'mlp.fc1', 'mlp.fc2')}),
)


def to_own_names(state: dict[str, torch.Tensor], encoder) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Rename the weights of a published vision encoder.

    Args:
        state: Tensors by name. A state dict in the names of ``VisionTransformer`` is returned as it is.
        encoder (VisionTransformer): What will take the weights; decides on the number of blocks and on the form
            of the attention's bias.

    Returns:
        tuple: Tensors by our names, and what was done, one note a line (none for our own names).

    Raises:
        CheckpointError: The file has two or more blocks more than the encoder.
    """
    found = next(((layout, key[:-len(layout.marker)]) for layout in _LAYOUTS for key in state
                  if key == layout.marker or key.endswith(f'.{layout.marker}')), None)
    if found is None:
        return state, []
    layout, prefix = found
    block = re.compile(re.escape(layout.blocks) + r'\.(\d+)\.(.+)')
    renamed, blocks = {}, 0
    for key, value in state.items():
        if not key.startswith(prefix):
            continue
        inside = block.fullmatch(key[len(prefix):])
        if inside is None:
            name = _rename(key[len(prefix):], layout.outside)
        else:
            number = int(inside.group(1))
            blocks = max(blocks, number + 1)
            name = _rename(inside.group(2), layout.inside) if number < len(encoder.blocks) else None
            name = name and f'blocks.{number}.{name}'
        if name is not None:
            renamed[name] = value
    if blocks > len(encoder.blocks) + 1:
        raise CheckpointError(
            f'the file has {blocks} blocks (names of {layout.name}) and the vision encoder {len(encoder.blocks)}: set '
            f'depth to {blocks - 1}, which leaves out the last one as BLIP-2 does, or to {blocks}')
    renamed = _fuse_thirds(renamed)
    for key in renamed.keys() & {'cls_token', 'pos_embed'}:
        renamed[key] = renamed[key].reshape(1, -1, renamed[key].size(-1))
    own = encoder.state_dict()
    renamed = {key: value for key, value in renamed.items() if not key.startswith('norm.') or key in own}
    for number in range(len(encoder.blocks)):
        _fit_bias(renamed, f'blocks.{number}.attn.', own)
    note = f'the file has the names of {layout.name} and {blocks} blocks'
    if blocks > len(encoder.blocks):
        note += f', the first {len(encoder.blocks)} are used'
    return renamed, [note]


def _rename(key, names):
    """Our name of ``key``, or None for what we do not have."""
    for theirs, ours in names.items():
        if key == theirs or key.startswith(f'{theirs}.'):
            return ours + key[len(theirs):]
    return None


def _fuse_thirds(state):
    """Put separate projections of queries, keys and values into one."""
    fused = {}
    for key, value in state.items():
        if '@' not in key:
            fused[key] = value
        elif '@0' in key:
            thirds = [state.get(key.replace('@0', f'@{part}')) for part in range(3)]
            if all(third is not None for third in thirds):
                fused[key.replace('@0', '')] = torch.cat(thirds)
    return fused


def _fit_bias(state, prefix, own):
    """Turn the bias of one attention into the form of the model; a bias of the keys changes no softmax."""
    full, query, value = (prefix + name for name in ('qkv.bias', 'q_bias', 'v_bias'))
    if full in state and query in own:
        state[query], _, state[value] = state.pop(full).chunk(3)
    elif {query, value} <= state.keys() and full in own:
        bias = state.pop(query)
        state[full] = torch.cat([bias, torch.zeros_like(bias), state.pop(value)])
