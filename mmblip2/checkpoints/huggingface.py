"""BLIP-2 and InstructBLIP checkpoints in the names of transformers (the same keys in transformers 4.57 and 5.23);
those of BLIP are in ``blip.py``.

One table a class. Epsilons are no weights: a model that shall equal transformers needs ``vision_norm_eps=1e-6``
(transformers has one epsilon for the vision encoder and the norm after it).
"""
from collections.abc import Iterable

from ..errors import CheckpointError
from . import blip
from .keymap import Layout, inner, strip
from .vision import BLIP2_INSIDE, BLIP2_OUTSIDE


def _vision(prefix):
    """Rows of ``Blip2VisionModel``."""
    rows = {f'{prefix}embeddings.patch_embedding.*': 'vision.patch_embed.*',
            f'{prefix}post_layernorm.*': 'vision_norm.*'}
    rows.update({f'{prefix}{theirs}': f'vision.{ours}' for theirs, ours in BLIP2_OUTSIDE.items()
                 if ours != 'patch_embed'})
    rows.update({f'{prefix}encoder.layers.{{}}.{theirs}.*': f'vision.blocks.{{}}.{ours}.*'
                 for theirs, ours in BLIP2_INSIDE.items()})
    return rows


def _qformer(prefix, norm, embeddings=None):
    """Rows of ``Blip2QFormerModel`` or ``InstructBlipQFormerModel``; the text embeddings stand in two places."""
    rows = {f'{prefix}{norm}.*': 'qformer.embedding_norm.*', **inner(f'{prefix}encoder.layer.{{}}.', 'attention')}
    if embeddings is not None:
        rows[f'{embeddings}word_embeddings.weight'] = 'qformer.word_embeddings.weight'
        rows[f'{embeddings}position_embeddings.weight'] = 'qformer.position_embeddings.weight'
    return rows


_BLIP2 = {**_vision('vision_model.'), 'query_tokens': 'qformer.queries', **_qformer('qformer.', 'layernorm')}
_INSTRUCT = {**_vision('vision_model.'), 'query_tokens': 'qformer.queries',
             **_qformer('qformer.', 'embeddings.layernorm', 'qformer.embeddings.')}
_GENERATION = {'language_projection.*': 'language_projection.*', 'language_model.**': 'language_model.model.**'}
_BASE = {'language_projection.*': 'language_projection.*', 'language_model.**': 'language_model.model.model.**'}
_RETRIEVAL = {**_BLIP2, **_qformer('qformer.', 'layernorm', 'embeddings.'),
              'vision_projection.*': 'itc_head.vision_proj.*', 'text_projection.*': 'itc_head.text_proj.*',
              'itm_head.*': 'itm_head.classifier.*'}

# our keys that no class of transformers has a place for
_NOWHERE = ('num_steps', 'itc_head.temperature', 'itg_head.*')


def _layout(kind, table):
    return Layout('transformers', kind, table, vision_norm_eps=1e-6, bias='fused',
                  buffers=('embeddings.position_ids', 'qformer.embeddings.position_ids',
                           'language_model.**.rotary_emb.inv_freq'),
                  loses=_NOWHERE, twice=False)


LAYOUTS = {layout.kind: layout for layout in (
    _layout('Blip2ForConditionalGeneration', {**_BLIP2, **_GENERATION}),  # Blip2Model has the same keys
    _layout('Blip2ForImageTextRetrieval', _RETRIEVAL),
    _layout('Blip2TextModelWithProjection', _RETRIEVAL),
    _layout('Blip2VisionModelWithProjection', _RETRIEVAL),
    _layout('Blip2VisionModel', _vision('')),
    _layout('Blip2QFormerModel', _qformer('', 'layernorm')),
    _layout('InstructBlipForConditionalGeneration', {**_INSTRUCT, **_GENERATION}),
    _layout('InstructBlipModel', {**_INSTRUCT, **_BASE}),
    _layout('InstructBlipQFormerModel', _qformer('', 'embeddings.layernorm', 'embeddings.')),
)}


def recognise(keys: Iterable[str], model_type: str | None = None) -> Layout | None:
    """The layout of a file with these keys; None if it is none of BLIP-2 or BLIP in transformers.

    ``model_type``: see :func:`mmblip2.checkpoints.layouts.recognise`.
    """
    keys = strip(keys)
    found = blip.recognise_transformers(keys, model_type)
    kind = _class_of(keys)
    return found or (LAYOUTS[kind] if kind else None)


def _class_of(keys):
    def any_of(*starts):
        return any(key.startswith(starts) for key in keys)

    if 'query_tokens' in keys and any_of('qformer.encoder.layer.'):
        if any_of('qformer.embeddings.'):
            # the language model without its head has one level less
            headless = any_of('language_model.layers.', 'language_model.decoder.layers.')
            return 'InstructBlipModel' if headless else 'InstructBlipForConditionalGeneration'
        if any_of('language_projection.', 'language_model.'):
            return 'Blip2ForConditionalGeneration'
        if any_of('text_projection.') and not any_of('vision_model.'):
            return 'Blip2TextModelWithProjection'
        if any_of('vision_projection.') and not any_of('text_projection.'):
            return 'Blip2VisionModelWithProjection'
        return 'Blip2ForImageTextRetrieval'
    if {'encoder.layer.0.crossattention.attention.key.weight',
            'encoder.layer.0.intermediate_query.dense.weight'} <= keys:
        return 'InstructBlipQFormerModel' if any_of('embeddings.') else 'Blip2QFormerModel'
    if {'post_layernorm.weight', 'encoder.layers.0.self_attn.qkv.weight'} <= keys:  # InstructBlipVisionModel too
        return 'Blip2VisionModel'
    return None


def to_write(keys: Iterable[str], kind: str | None = None) -> Layout:
    """The layout that takes a model of ours with these keys; see :func:`mmblip2.checkpoints.layouts.to_write`."""
    keys = set(keys)
    if kind in blip.TRANSFORMERS or blip.kind_of(keys) is not None:
        return blip.to_write('transformers', keys, kind)
    if kind is None and 'language_projection.weight' not in keys:
        kind = 'Blip2ForImageTextRetrieval'
    elif kind is None:
        reads = 'qformer.word_embeddings.weight' in keys
        kind = 'InstructBlipForConditionalGeneration' if reads else 'Blip2ForConditionalGeneration'
    if kind not in LAYOUTS:
        raise CheckpointError(f'kind is {kind!r}, expected a class of transformers, one of {", ".join(LAYOUTS)}')
    return LAYOUTS[kind]
