"""BLIP-2 and InstructBLIP checkpoints in the names of LAVIS; those of BLIP are in ``blip.py``.

One table a vision encoder and a language model. A file of LAVIS holds what was trained, so the vision encoder is there
only where it was trained too, and the language model never; yet the second names of a language model's tied embeddings
leak into it.
"""
from collections.abc import Iterable

from ..errors import CheckpointError
from . import blip
from .keymap import Layout, inner, strip

_VISION = {
    'eva': {
        'visual_encoder.cls_token': 'vision.cls_token',
        'visual_encoder.pos_embed': 'vision.pos_embed',
        'visual_encoder.patch_embed.proj.*': 'vision.patch_embed.*',
        **{f'visual_encoder.blocks.{{}}.{name}.*': f'vision.blocks.{{}}.{name}.*'
           for name in ('norm1', 'norm2', 'attn', 'attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')},
    },
    'clip': {
        'visual_encoder.class_embedding': 'vision.cls_token',
        'visual_encoder.positional_embedding': 'vision.pos_embed',
        'visual_encoder.conv1.*': 'vision.patch_embed.*',
        'visual_encoder.ln_pre.*': 'vision.pre_norm.*',
        **{f'visual_encoder.transformer.resblocks.{{}}.{theirs}': f'vision.blocks.{{}}.{ours}' for theirs, ours in {
            'ln_1.*': 'norm1.*', 'ln_2.*': 'norm2.*', 'mlp.c_fc.*': 'mlp.fc1.*', 'mlp.c_proj.*': 'mlp.fc2.*',
            'attn.in_proj_weight': 'attn.qkv.weight', 'attn.in_proj_bias': 'attn.qkv.bias',
            'attn.out_proj.*': 'attn.proj.*'}.items()},
    },
}
_SHARED = {
    'ln_vision.*': 'vision_norm.*',
    'query_tokens': 'qformer.queries',
    'Qformer.bert.embeddings.word_embeddings.weight': 'qformer.word_embeddings.weight',
    'Qformer.bert.embeddings.position_embeddings.weight': 'qformer.position_embeddings.weight',
    'Qformer.bert.embeddings.LayerNorm.*': 'qformer.embedding_norm.*',
    **inner('Qformer.bert.encoder.layer.{}.', 'self'),
    'Qformer.cls.predictions.bias': 'itg_head.bias',
    'Qformer.cls.predictions.transform.dense.*': 'itg_head.transform.*',
    'Qformer.cls.predictions.transform.LayerNorm.*': 'itg_head.norm.*',
    'vision_proj.*': 'itc_head.vision_proj.*',
    'text_proj.*': 'itc_head.text_proj.*',
    'temp': 'itc_head.temperature',
    'itm_head.*': 'itm_head.classifier.*',
}
_ALIASES = {
    'Qformer.cls.predictions.decoder.weight': 'Qformer.bert.embeddings.word_embeddings.weight',
    'Qformer.cls.predictions.decoder.bias': 'Qformer.cls.predictions.bias',
}
_TEXT = ('qformer.word_embeddings', 'qformer.position_embeddings', 'qformer.layers.{}.text_', 'itg_head.')
# second names of a tied embedding: they stay in a file from which the frozen embedding itself was taken out
_TIED = {
    'opt': ('opt_model.lm_head.weight', ),
    't5': ('t5_model.encoder.embed_tokens.weight', 't5_model.decoder.embed_tokens.weight'),
    'llm': (),
}


def layout(vision: str = 'eva', language: str | None = None, leaks: tuple[str, ...] = ()) -> Layout:
    """Names of one kind of file.

    Args:
        vision: 'eva' or 'clip'.
        language: 'opt', 't5' or 'llm' (Vicuna); None for stage 1 and retrieval.
        leaks: See :class:`Layout`.
    """
    table = {**_VISION[vision], **_SHARED}
    if language == 'opt':  # its Q-Former reads no text, while InstructBLIP's does
        table = {theirs: ours for theirs, ours in table.items() if not ours.startswith(_TEXT)}
    if language:
        table[f'{language}_proj.*'] = 'language_projection.*'
        table[f'{language}_model.**'] = 'language_model.model.**'
    return Layout(
        'LAVIS', f'with {language}_proj' if language else 'stage 1 or retrieval', table, vision_norm_eps=1e-5,
        bias='full' if vision == 'clip' else 'split',
        buffers=('Qformer.bert.embeddings.position_ids', 'llm_model.**.rotary_emb.inv_freq'), aliases=_ALIASES,
        leaks=leaks, flat={'visual_encoder.class_embedding': 1, 'visual_encoder.positional_embedding': 2})


def recognise(keys: Iterable[str]) -> Layout | None:
    """The layout of a file with these keys; None if it is none of BLIP-2 or BLIP in LAVIS."""
    keys = strip(keys)
    if not any(key.startswith(('Qformer.bert.', 'ln_vision.')) for key in keys):
        return blip.recognise_lavis(keys)
    language = next((kind for kind in _TIED
                     if any(key.startswith((f'{kind}_proj.', f'{kind}_model.')) for key in keys)), None)
    held = {key for key in keys if key.startswith(f'{language}_model.')}
    tied = _TIED[language] if language else ()
    clip = any(key.startswith(('visual_encoder.transformer.', 'visual_encoder.conv1.')) for key in keys)
    return layout('clip' if clip else 'eva', language, tied if held <= set(tied) else ())


def to_write(keys: Iterable[str], language: str | None = None) -> Layout:
    """The layout that takes a model of ours with these keys; see :func:`mmblip2.checkpoints.layouts.to_write`."""
    keys = set(keys)
    if blip.kind_of(keys) is not None:
        return blip.to_write('LAVIS', keys)
    if language not in (None, *_TIED):
        raise CheckpointError(f'language is {language!r}, and LAVIS calls its language models '
                              f'{", ".join(map(repr, _TIED))}')
    if language is None and 'language_projection.weight' in keys:
        raise CheckpointError("LAVIS names the projection after the language model: say which with language='opt', "
                              "'t5' or 'llm' (Vicuna)")
    return layout('clip' if 'vision.pre_norm.weight' in keys else 'eva', language)
