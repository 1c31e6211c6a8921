"""BLIP-2 and InstructBLIP weights in the layout of transformers: ``Blip2ForConditionalGeneration``,
``Blip2ForImageTextRetrieval``, ``InstructBlipForConditionalGeneration`` (the same keys in transformers 4.57 and 5.23).

The key map is data, one row a module; ``{}`` is a layer's number. Epsilons are no weights: a model that shall equal
transformers needs ``vision_norm_eps=1e-6`` (transformers has one epsilon for the vision encoder and the norm after it).
"""
import re

import torch

from ..errors import CheckpointError
from .io import _some
from .vision import BLIP2_INSIDE, BLIP2_OUTSIDE

_LAYER = 'qformer.encoder.layer.{}.'

# transformers -> ours; modules, of which the parameters keep their names, and single parameters
_KEYS = {
    **{f'vision_model.{theirs}': f'vision.{ours}' for theirs, ours in BLIP2_OUTSIDE.items()},
    **{f'vision_model.encoder.layers.{{}}.{theirs}': f'vision.blocks.{{}}.{ours}'
       for theirs, ours in BLIP2_INSIDE.items()},
    'vision_model.post_layernorm': 'vision_norm',
    'query_tokens': 'qformer.queries',
    _LAYER + 'attention.attention.query': 'qformer.layers.{}.attention.query',
    _LAYER + 'attention.attention.key': 'qformer.layers.{}.attention.key',
    _LAYER + 'attention.attention.value': 'qformer.layers.{}.attention.value',
    _LAYER + 'attention.output.dense': 'qformer.layers.{}.attention.output',
    _LAYER + 'attention.output.LayerNorm': 'qformer.layers.{}.attention_norm',
    _LAYER + 'crossattention.attention.query': 'qformer.layers.{}.cross_attention.query',
    _LAYER + 'crossattention.attention.key': 'qformer.layers.{}.cross_attention.key',
    _LAYER + 'crossattention.attention.value': 'qformer.layers.{}.cross_attention.value',
    _LAYER + 'crossattention.output.dense': 'qformer.layers.{}.cross_attention.output',
    _LAYER + 'crossattention.output.LayerNorm': 'qformer.layers.{}.cross_attention_norm',
    _LAYER + 'intermediate_query.dense': 'qformer.layers.{}.query_mlp.fc1',
    _LAYER + 'output_query.dense': 'qformer.layers.{}.query_mlp.fc2',
    _LAYER + 'output_query.LayerNorm': 'qformer.layers.{}.query_norm',
    _LAYER + 'intermediate.dense': 'qformer.layers.{}.text_mlp.fc1',
    _LAYER + 'output.dense': 'qformer.layers.{}.text_mlp.fc2',
    _LAYER + 'output.LayerNorm': 'qformer.layers.{}.text_norm',
    'vision_projection': 'itc_head.vision_proj',
    'text_projection': 'itc_head.text_proj',
    'itm_head': 'itm_head.classifier',
    'language_projection': 'language_projection',
}
# The text embeddings of the Q-Former stand in two places.
_TEXT_KEYS = {
    'blip-2': {
        'qformer.layernorm': 'qformer.embedding_norm',
        'embeddings.word_embeddings': 'qformer.word_embeddings',
        'embeddings.position_embeddings': 'qformer.position_embeddings',
    },
    'instructblip': {
        'qformer.embeddings.layernorm': 'qformer.embedding_norm',
        'qformer.embeddings.word_embeddings': 'qformer.word_embeddings',
        'qformer.embeddings.position_embeddings': 'qformer.position_embeddings',
    },
}
_LANGUAGE = ('language_model.', 'language_model.model.')
_BUFFERS = ('embeddings.position_ids', 'qformer.embeddings.position_ids')  # 0, 1, 2 ... in older files
_QKV_BIAS = re.compile(r'vision\.blocks\.\d+\.attn\.qkv\.bias')
_QV_BIAS = re.compile(r'(vision\.blocks\.\d+\.attn\.)(q_bias|v_bias)')


def from_huggingface(state):
    """Weights of transformers' BLIP-2 or InstructBLIP under our names.

    The bias of the fused attention projection is split; its key part is dropped, because it cannot change a softmax.
    What transformers does not have is not in the result: temperature and ITG head of a ``Blip2Representation``.

    Args:
        state (dict[str, Tensor]): A state dict of one of the three classes above, whole or in part.

    Returns:
        dict[str, Tensor]: The same tensors under the names of ``Blip2Representation`` or ``Blip2Generation``; the
        language model, if there is one, under ``language_model.model.``.

    Raises:
        CheckpointError: A key belongs to none of the three classes.
    """
    table = {**_KEYS, **_TEXT_KEYS['blip-2'], **_TEXT_KEYS['instructblip']}
    renamed, unknown = _rename(state, table, *_LANGUAGE)
    unknown = [key for key in unknown if key not in _BUFFERS]
    if unknown:
        raise CheckpointError(f'{len(unknown)} keys are none of a BLIP-2 or InstructBLIP of transformers '
                              f'({_some(unknown)}): expected a state dict of Blip2ForConditionalGeneration, '
                              'Blip2ForImageTextRetrieval or InstructBlipForConditionalGeneration')
    result = {}
    for key, value in renamed.items():
        if _QKV_BIAS.fullmatch(key):
            query, _, value_ = value.chunk(3)
            result[key.replace('qkv.bias', 'q_bias')], result[key.replace('qkv.bias', 'v_bias')] = query, value_
        else:
            result[key] = value
    return result


def to_huggingface(state, layout='blip-2'):
    """Our weights under the names of transformers.

    Args:
        state (dict[str, Tensor]): State dict of a ``Blip2Representation`` or ``Blip2Generation``, whole or in part.
        layout (str): ``'blip-2'`` or ``'instructblip'``, where the Q-Former's text embeddings stand elsewhere.

    Returns:
        tuple[dict[str, Tensor], list[str]]: The tensors under their new names, and the keys of ``state`` that
        transformers has no place for (temperature, ITG head), which a file in its layout would lose.

    Raises:
        ValueError: For another ``layout``.
    """
    if layout not in _TEXT_KEYS:
        raise ValueError(f"layout {layout!r} is not one of 'blip-2', 'instructblip'")
    merged = {}
    for key, value in state.items():
        found = _QV_BIAS.fullmatch(key)
        if found is None:
            merged[key] = value
        elif found.group(2) == 'q_bias':
            parts = (value, torch.zeros_like(value), state[f'{found.group(1)}v_bias'])
            merged[f'{found.group(1)}qkv.bias'] = torch.cat(parts)
    table = {ours: theirs for theirs, ours in {**_KEYS, **_TEXT_KEYS[layout]}.items()}
    return _rename(merged, table, *reversed(_LANGUAGE))


def _rename(state, table, language_from, language_to):
    """Rename by the table; the tensors with a new name, and the keys without one."""
    renamed, left = {}, []
    for key, value in state.items():
        if key.startswith(language_from):
            renamed[language_to + key[len(language_from):]] = value
            continue
        module, _, parameter = key.rpartition('.')
        for name, rest in ((key, ''), (module, f'.{parameter}')):
            numbers = re.findall(r'\.(\d+)(?=\.)', name)
            found = table.get(re.sub(r'\.\d+(?=\.)', '.{}', name))
            if found is not None:
                renamed[found.format(*numbers) + rest] = value
                break
        else:
            left.append(key)
    return renamed, left
