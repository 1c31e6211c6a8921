"""BLIP-2 checkpoints in the names of mmpretrain: ``Blip2Retrieval``, ``Blip2Caption`` and ``Blip2VQA``; those of
BLIP are in ``blip.py``.

One table for retrieval and one for caption and VQA, because ``vision_neck.fc`` is the contrastive projection of the
images in the first and the projection to the language model in the second. The language model is never in a file.
"""
from collections.abc import Iterable

from . import blip
from .keymap import Layout, inner, strip

_SHARED = {
    'vision_backbone.cls_token': 'vision.cls_token',
    'vision_backbone.pos_embed': 'vision.pos_embed',
    'vision_backbone.patch_embed.projection.*': 'vision.patch_embed.*',
    **{f'vision_backbone.layers.{{}}.{theirs}.*': f'vision.blocks.{{}}.{ours}.*' for theirs, ours in {
        'ln1': 'norm1', 'ln2': 'norm2', 'attn': 'attn', 'attn.qkv': 'attn.qkv', 'attn.proj': 'attn.proj',
        'ffn.layers.0.0': 'mlp.fc1', 'ffn.layers.1': 'mlp.fc2'}.items()},
    'ln_vision_backbone.*': 'vision_norm.*',
    'query_tokens': 'qformer.queries',
    'multimodal_backbone.bert.embeddings.LayerNorm.*': 'qformer.embedding_norm.*',
    **inner('multimodal_backbone.bert.encoder.layer.{}.', 'self'),
}
_RETRIEVAL = {
    'multimodal_backbone.bert.embeddings.word_embeddings.weight': 'qformer.word_embeddings.weight',
    'multimodal_backbone.bert.embeddings.position_embeddings.weight': 'qformer.position_embeddings.weight',
    'multimodal_backbone.cls.predictions.bias': 'itg_head.bias',
    'multimodal_backbone.cls.predictions.transform.dense.*': 'itg_head.transform.*',
    'multimodal_backbone.cls.predictions.transform.LayerNorm.*': 'itg_head.norm.*',
    'vision_neck.fc.*': 'itc_head.vision_proj.*',
    'text_neck.fc.*': 'itc_head.text_proj.*',
    'temp': 'itc_head.temperature',
    'multimodal_head.fc.*': 'itm_head.classifier.*',
}
_GENERATION = {
    'vision_neck.fc.*': 'language_projection.*',
    'text_backbone.**': 'language_model.model.**',
}
_ALIASES = {
    'multimodal_backbone.cls.predictions.decoder.weight': 'multimodal_backbone.bert.embeddings.word_embeddings.weight',
    'multimodal_backbone.cls.predictions.decoder.bias': 'multimodal_backbone.cls.predictions.bias',
}
_BUFFERS = ('multimodal_backbone.bert.embeddings.position_ids', )

RETRIEVAL = Layout('mmpretrain', 'retrieval', {**_SHARED, **_RETRIEVAL}, vision_norm_eps=1e-5, buffers=_BUFFERS,
                   aliases=_ALIASES)
GENERATION = Layout('mmpretrain', 'caption or VQA', {**_SHARED, **_GENERATION}, vision_norm_eps=1e-5, buffers=_BUFFERS)


def recognise(keys: Iterable[str]) -> Layout | None:
    """The layout of a file with these keys; None if it is none of BLIP-2 or BLIP in mmpretrain."""
    keys = strip(keys)
    if 'query_tokens' not in keys or not any(key.startswith('multimodal_backbone.bert.') for key in keys):
        return blip.recognise_mmpretrain(keys)
    heads = ('temp', 'text_neck.', 'multimodal_head.')  # only retrieval has them
    return RETRIEVAL if any(key.startswith(heads) for key in keys) else GENERATION


def to_write(keys: Iterable[str]) -> Layout:
    """The layout that takes a model of ours with these keys; see :func:`mmblip2.checkpoints.layouts.to_write`."""
    keys = set(keys)
    if blip.kind_of(keys) is not None:
        return blip.to_write('mmpretrain', keys)
    return GENERATION if 'language_projection.weight' in keys else RETRIEVAL
