"""What checkpoints of other projects hold, written out from the descriptions of their files and not from our key maps.

The first functions give {key: shape}; their sizes default to those of the published models. Tests put this folder on
sys.path and import it.
"""
from functools import cache
from pathlib import Path

import torch


def linear(name, out, width):
    return {f'{name}.weight': (out, width), f'{name}.bias': (out, )}


def norm(name, width):
    return {f'{name}.weight': (width, ), f'{name}.bias': (width, )}


# ------------------------------------------------------------------------------------------------ LAVIS

def eva(width=1408, depth=39, mlp=6144, image=364, patch=14):
    """EVA-ViT-g in LAVIS: queries and values have a bias, no norm at the end."""
    keys = {'visual_encoder.cls_token': (1, 1, width),
            'visual_encoder.pos_embed': (1, (image // patch)**2 + 1, width),
            'visual_encoder.patch_embed.proj.weight': (width, 3, patch, patch),
            'visual_encoder.patch_embed.proj.bias': (width, )}
    for i in range(depth):
        block = f'visual_encoder.blocks.{i}'
        keys |= {**norm(f'{block}.norm1', width), **norm(f'{block}.norm2', width),
                 f'{block}.attn.q_bias': (width, ), f'{block}.attn.v_bias': (width, ),
                 f'{block}.attn.qkv.weight': (3 * width, width), **linear(f'{block}.attn.proj', width, width),
                 **linear(f'{block}.mlp.fc1', mlp, width), **linear(f'{block}.mlp.fc2', width, mlp)}
    return keys


def clip(width=1024, depth=23, mlp=4096, image=364, patch=14):
    """CLIP ViT-L in LAVIS: a norm before the blocks, none after them, no bias of the patches."""
    keys = {'visual_encoder.class_embedding': (width, ),
            'visual_encoder.positional_embedding': ((image // patch)**2 + 1, width),
            'visual_encoder.conv1.weight': (width, 3, patch, patch), **norm('visual_encoder.ln_pre', width)}
    for i in range(depth):
        block = f'visual_encoder.transformer.resblocks.{i}'
        keys |= {f'{block}.attn.in_proj_weight': (3 * width, width), f'{block}.attn.in_proj_bias': (3 * width, ),
                 **linear(f'{block}.attn.out_proj', width, width), **norm(f'{block}.ln_1', width),
                 **norm(f'{block}.ln_2', width), **linear(f'{block}.mlp.c_fc', mlp, width),
                 **linear(f'{block}.mlp.c_proj', width, mlp)}
    return keys


def bert(prefix='Qformer', vision=1408, text=True, heads=True, width=768, layers=12, mlp=3072, vocab=30523,
         positions=512):
    """The Q-Former as a BERT: with or without its text half, and the head that writes text."""
    keys = {f'{prefix}.bert.embeddings.position_ids': (1, positions),
            **norm(f'{prefix}.bert.embeddings.LayerNorm', width)}
    if text:
        keys[f'{prefix}.bert.embeddings.word_embeddings.weight'] = (vocab, width)
        keys[f'{prefix}.bert.embeddings.position_embeddings.weight'] = (positions, width)
    for i in range(layers):
        layer = f'{prefix}.bert.encoder.layer.{i}'
        attentions = {'attention': width, 'crossattention': vision} if i % 2 == 0 else {'attention': width}
        for name, seen in attentions.items():
            keys |= {**linear(f'{layer}.{name}.self.query', width, width),
                     **linear(f'{layer}.{name}.self.key', width, seen),
                     **linear(f'{layer}.{name}.self.value', width, seen),
                     **linear(f'{layer}.{name}.output.dense', width, width),
                     **norm(f'{layer}.{name}.output.LayerNorm', width)}
        for end in ('_query', '') if text else ('_query', ):
            keys |= {**linear(f'{layer}.intermediate{end}.dense', mlp, width),
                     **linear(f'{layer}.output{end}.dense', width, mlp),
                     **norm(f'{layer}.output{end}.LayerNorm', width)}
    if heads:
        head = f'{prefix}.cls.predictions'
        keys |= {f'{head}.bias': (vocab, ), **linear(f'{head}.transform.dense', width, width),
                 **norm(f'{head}.transform.LayerNorm', width), **linear(f'{head}.decoder', vocab, width)}
    return keys


def lavis(vision=1408, queries=32, width=768, contrast=256, language=None, **bert_sizes):
    """Without the vision encoder. ``language``: the projection's name and its width; None for stage 1."""
    keys = {'query_tokens': (1, queries, width), **norm('ln_vision', vision)}
    if language is None:
        return keys | {'temp': (), **linear('vision_proj', contrast, width), **linear('text_proj', contrast, width),
                       **linear('itm_head', 2, width), **bert(vision=vision, width=width, **bert_sizes)}
    name, hidden = language
    return keys | {**linear(name, hidden, width), **bert(vision=vision, width=width, heads=False, **bert_sizes)}


# ------------------------------------------------------------------------------------------- mmpretrain

def mmpretrain(kind, vision=1408, depth=39, vision_mlp=6144, image=364, patch=14, queries=32, width=768, contrast=256,
               hidden=2560, **bert_sizes):
    """``kind``: 'retrieval' or 'caption' (and VQA)."""
    keys = {'vision_backbone.cls_token': (1, 1, vision),
            'vision_backbone.pos_embed': (1, (image // patch)**2 + 1, vision),
            'vision_backbone.patch_embed.projection.weight': (vision, 3, patch, patch),
            'vision_backbone.patch_embed.projection.bias': (vision, ),
            **norm('ln_vision_backbone', vision), 'query_tokens': (1, queries, width)}
    for i in range(depth):
        layer = f'vision_backbone.layers.{i}'
        keys |= {**norm(f'{layer}.ln1', vision), **norm(f'{layer}.ln2', vision),
                 f'{layer}.attn.q_bias': (vision, ), f'{layer}.attn.v_bias': (vision, ),
                 f'{layer}.attn.qkv.weight': (3 * vision, vision), **linear(f'{layer}.attn.proj', vision, vision),
                 **linear(f'{layer}.ffn.layers.0.0', vision_mlp, vision),
                 **linear(f'{layer}.ffn.layers.1', vision, vision_mlp)}
    retrieval = kind == 'retrieval'
    keys |= bert('multimodal_backbone', vision=vision, text=retrieval, heads=retrieval, width=width, **bert_sizes)
    if retrieval:
        return keys | {'temp': (), **linear('vision_neck.fc', contrast, width),
                       **linear('text_neck.fc', contrast, width), **linear('multimodal_head.fc', 2, width)}
    return keys | linear('vision_neck.fc', hidden, width)


# ------------------------------------------------------------------------------------ our models, values

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'blip2'
SMALL = dict(
    vision=dict(image_size=28, width=16, depth=3, num_heads=2, mlp_width=24),
    qformer=dict(vision_width=16, num_layers=3, width=12, num_heads=2, mlp_width=20, num_query=3, max_positions=130),
    opt=dict(vocab_size=30, hidden_size=8, word_embed_proj_dim=8, ffn_dim=12, num_hidden_layers=2,
             num_attention_heads=2, max_position_embeddings=64),
    t5=dict(vocab_size=30, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_decoder_layers=2, num_heads=2),
    llama=dict(vocab_size=30, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2))
# the same sizes as the functions above call them
SMALL_BERT = dict(vision=16, queries=3, width=12, contrast=6, layers=3, mlp=20)
SMALL_TEXT = dict(SMALL_BERT, vocab=50, positions=130)
SMALL_VISION = dict(width=16, depth=3, mlp=24, image=28)
SMALL_MMPRETRAIN = dict(SMALL_TEXT, vision_mlp=24, depth=3, image=28, hidden=8)


@cache
def ours(config, small=False):
    """State dict of the model of ``configs/blip2/<config>.py`` on the meta device; ``small``: with tiny sizes."""
    from mmengine.config import Config

    from mmblip2.utils.meta import build_on_meta
    model = Config.fromfile(str(CONFIGS / f'{config}.py')).model.to_dict()
    if small:
        model['vision'].update(SMALL['vision'])
        model['qformer'].update(SMALL['qformer'])
        if model['qformer'].get('vocab_size'):
            model['qformer']['vocab_size'] = 50
        if 'language_model' in model:
            language = model['language_model']['config']
            language.update(SMALL[language['model_type']])
        else:
            model['embed_dim'] = 6
    return build_on_meta(model).state_dict()


def shapes(state):
    """{key: shape}."""
    return {key: tuple(value.shape) for key, value in state.items()}


def empty(keys):
    """Tensors of these shapes without values."""
    return {key: torch.empty(shape, device='meta') for key, shape in keys.items()}


TIED = {'cls.predictions.decoder.weight': 'bert.embeddings.word_embeddings.weight',
        'cls.predictions.decoder.bias': 'cls.predictions.bias'}


def drawn(keys, seed=0):
    """A file with these keys: random tensors, tied where they are tied, positions 0, 1, 2 ..."""
    generator = torch.Generator().manual_seed(seed)
    state = {key: torch.randn(shape, generator=generator) for key, shape in keys.items()}
    for key in state:
        for second, first in TIED.items():
            if key.endswith(second):
                state[key] = state[key.removesuffix(second) + first]
        if key.endswith('position_ids'):
            state[key] = torch.arange(keys[key][1])[None]
    return state


def assert_same(one, other):
    """Equal keys, types and values."""
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    for key, value in one.items():
        assert value.dtype == other[key].dtype and torch.equal(value, other[key]), key
