"""BLIP checkpoints (the first BLIP) in the names of three projects, rows theirs to ours.

LAVIS's are those of the original repository: the two differ in the name of the queue's pointer, and both are read.
The parts are BERTs with cross-attention in every layer, so one function gives the rows of all of them.
"""
from collections.abc import Iterable

from ..errors import CheckpointError
from .keymap import Layout, inner, strip

# what a file may lack: momentum encoders and queues matter to training alone
_TRAINING = ('num_steps', 'momentum.*', 'image_queue', 'text_queue', 'image_id_queue', 'queue_ptr')
_QUEUES = {'image_queue': 'image_queue', 'text_queue': 'text_queue', 'queue_ptr': 'queue_ptr'}
_OF_RETRIEVAL = {'idx_queue': 'image_id_queue', **_QUEUES}  # a pre-training there has no ids


# ------------------------------------------------------------------------------------------------ parts

def _bert(theirs, ours):
    """Rows of a BERT that reads text, and images by cross-attention."""
    rows = {f'{theirs}embeddings.{name}.weight': f'{ours}{name}.weight'
            for name in ('word_embeddings', 'position_embeddings')}
    rows[f'{theirs}embeddings.LayerNorm.*'] = f'{ours}embedding_norm.*'
    return {**rows, **inner(f'{theirs}encoder.layer.{{}}.', 'self', f'{ours}layers.{{}}.', (('', 'mlp', 'mlp_norm'), ))}


def _decoder(theirs):
    """Rows of the decoder, a BERT and the head that writes."""
    rows = _bert(f'{theirs}bert.', 'text_decoder.')
    rows.update({f'{theirs}cls.predictions.{name}': f'lm_head.{own}' for name, own in {
        'bias': 'bias', 'transform.dense.*': 'transform.*', 'transform.LayerNorm.*': 'norm.*'}.items()})
    return rows


def _second_names(theirs):
    """The decoder's output layer is its word embedding."""
    return {f'{theirs}cls.predictions.decoder.weight': f'{theirs}bert.embeddings.word_embeddings.weight',
            f'{theirs}cls.predictions.decoder.bias': f'{theirs}cls.predictions.bias'}


def _twin(theirs):
    """Rows of an encoder that reads two images: other cross-attention, all else as in :func:`_bert`."""
    rows = {key: value for key, value in _bert(theirs, 'text_encoder.').items() if '.crossattention.' not in key}
    prefix, ours = f'{theirs}encoder.layer.{{}}.crossattention.', 'text_encoder.layers.{}.'
    for i in range(2):
        for part in ('query', 'key', 'value'):
            rows[f'{prefix}self{i}.{part}.*'] = f'{ours}cross_attention.{i}.{part}.*'
        rows[f'{prefix}output.dense{i}.*'] = f'{ours}cross_attention.{i}.output.*'
    rows[f'{prefix}output.LayerNorm.*'] = f'{ours}cross_attention_norm.*'
    rows[f'{prefix}output.merge_layer.*'] = f'{ours}merge.*'
    return rows


def _vision(theirs, patches, blocks, inside, norm, outside=('cls_token', 'pos_embed'), ours='vision.'):
    """Rows of the vision encoder; ``inside``: their names in a block, in the order of ours."""
    rows = dict(zip((f'{theirs}{name}' for name in outside), (f'{ours}cls_token', f'{ours}pos_embed')))
    rows.update({f'{theirs}{patches}.*': f'{ours}patch_embed.*', f'{theirs}{norm}.*': f'{ours}norm.*'})
    for name, own in zip(inside, ('norm1', 'norm2', 'attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')):
        rows[f'{theirs}{blocks}.{{}}.{name}.*'] = f'{ours}blocks.{{}}.{own}.*'
    return rows


def _layout(name, kind, table, decoder=None, buffers=(), aliases=(), loses=_TRAINING, twice=True):
    return Layout(name, kind if name == 'transformers' else f'BLIP, {kind}', table, vision_norm_eps=1e-6, bias='full',
                  buffers=buffers, aliases={**(_second_names(decoder) if decoder else {}), **dict(aliases)},
                  rows=('idx_queue', 'head.idx_queue'), loses=loses, twice=twice)


# --------------------------------------------------------------- LAVIS, and the original repository

_TIMM = ('norm1', 'norm2', 'attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2')
_IN_LAVIS = _vision('visual_encoder.', 'patch_embed.proj', 'blocks', _TIMM, 'norm')
_HEADS = {'vision_proj.*': 'itc_head.vision_proj.*', 'text_proj.*': 'itc_head.text_proj.*',
          'itm_head.*': 'itm_head.classifier.*'}
_MOMENTUM = {
    **_vision('visual_encoder_m.', 'patch_embed.proj', 'blocks', _TIMM, 'norm', ours='momentum.vision.'),
    **_bert('text_encoder_m.', 'momentum.text_encoder.'),
    'vision_proj_m.*': 'momentum.vision_proj.*', 'text_proj_m.*': 'momentum.text_proj.*'}
_REPRESENTATION = {**_IN_LAVIS, **_bert('text_encoder.', 'text_encoder.'), **_HEADS, 'temp': 'itc_head.temperature',
                   **_MOMENTUM}
_POSITIONS = tuple(f'{name}.embeddings.position_ids' for name in ('text_encoder', 'text_encoder_m',
                                                                  'text_decoder.bert'))
# The original ties the decoder to the encoder after it tied the output layer to the decoder's embedding: in a
# pre-training the output layer is a table of its own, which a captioner that loads the file takes for its embedding.
_OUTPUT, _INPUT = 'text_decoder.cls.predictions.decoder.weight', 'text_decoder.bert.embeddings.word_embeddings.weight'
_OF_PRETRAINING = {_OUTPUT if theirs == _INPUT else theirs: ours for theirs, ours in _decoder('text_decoder.').items()}

LAVIS = {kind: _layout('LAVIS', kind, table, decoder, _POSITIONS, **settings) for kind, table, decoder, settings in (
    ('caption', {**_IN_LAVIS, **_decoder('text_decoder.')}, 'text_decoder.', {}),
    ('VQA', {**_IN_LAVIS, **_bert('text_encoder.', 'text_encoder.'), **_decoder('text_decoder.')}, 'text_decoder.', {}),
    # the authors' model for matching alone has no temperature
    ('retrieval', {'ptr_queue': 'queue_ptr', **_REPRESENTATION, **_OF_RETRIEVAL}, None, dict(
        loses=(*_TRAINING, 'itc_head.temperature'))),
    ('pre-training', {**_REPRESENTATION, **_QUEUES, **_OF_PRETRAINING}, None, dict(aliases={
        _INPUT: 'text_encoder.embeddings.word_embeddings.weight',
        'text_decoder.cls.predictions.decoder.bias': 'text_decoder.cls.predictions.bias'})),
    ('NLVR2', {**_IN_LAVIS, **_twin('text_encoder.'), 'cls_head.{}.*': 'head.{}.*'}, None, {}),
)}


def recognise_lavis(keys: Iterable[str]) -> Layout | None:
    """The layout of LAVIS or the original repository of a file with these keys, or None."""
    keys = strip(keys)
    encoder = any(key.startswith('text_encoder.encoder.layer.0.crossattention.') for key in keys)
    decoder = 'text_decoder.bert.encoder.layer.0.crossattention.self.key.weight' in keys
    if not any(key.startswith('visual_encoder.') for key in keys) or not (encoder or decoder):
        return None
    if 'cls_head.0.weight' in keys:
        return LAVIS['NLVR2']
    if not decoder:
        return LAVIS['retrieval']
    if not encoder:
        return LAVIS['caption']
    return LAVIS['pre-training' if 'itm_head.weight' in keys or 'vision_proj.weight' in keys else 'VQA']


# ------------------------------------------------------------------------------------------- mmpretrain

_MM_INSIDE = ('ln1', 'ln2', 'attn.qkv', 'attn.proj', 'ffn.layers.0.0', 'ffn.layers.1')


def _mm_vision(theirs, ours='vision.'):
    return _vision(theirs, 'patch_embed.projection', 'layers', _MM_INSIDE, 'ln1', ours=ours)


MMPRETRAIN = {kind: _layout('mmpretrain', kind, table, decoder, buffers, **settings)
              for kind, table, decoder, buffers, settings in (
    ('caption', {**_mm_vision('visual_encoder.'), **_decoder('seq_gen_head.decoder.')}, 'seq_gen_head.decoder.',
     ('seq_gen_head.decoder.bert.embeddings.position_ids', ), {}),
    ('VQA', {**_mm_vision('vision_backbone.'), **_bert('multimodal_backbone.', 'text_encoder.'),
             **_decoder('vqa_head.decoder.')}, 'vqa_head.decoder.',
     ('multimodal_backbone.embeddings.position_ids', 'vqa_head.decoder.bert.embeddings.position_ids'), {}),
    ('retrieval', {
        **_mm_vision('vision_backbone.'), **_mm_vision('vision_backbone_m.', 'momentum.vision.'),
        **_bert('text_backbone.', 'text_encoder.'), **_bert('text_backbone_m.', 'momentum.text_encoder.'),
        'vision_neck.*': 'itc_head.vision_proj.*', 'text_neck.*': 'itc_head.text_proj.*',
        'vision_neck_m.*': 'momentum.vision_proj.*', 'text_neck_m.*': 'momentum.text_proj.*',
        'multimodal_head.fc.*': 'itm_head.classifier.*', 'temp': 'itc_head.temperature',
        **{f'head.{theirs}': ours for theirs, ours in _OF_RETRIEVAL.items()}}, None,
     ('text_backbone.embeddings.position_ids', 'text_backbone_m.embeddings.position_ids'),
     dict(aliases={'head.temp': 'temp'})),
    ('NLVR2', {**_mm_vision('vision_backbone.'), **_twin('multimodal_backbone.'), 'head.{}.*': 'head.{}.*'}, None,
     ('multimodal_backbone.embeddings.position_ids', ), {}),
)}
_MM_WITNESS = {
    'caption': 'seq_gen_head.decoder.bert.encoder.layer.0.crossattention.self.key.weight',
    'VQA': 'vqa_head.decoder.bert.encoder.layer.0.crossattention.self.key.weight',
    'retrieval': 'text_backbone.encoder.layer.0.crossattention.self.key.weight',
    'NLVR2': 'multimodal_backbone.encoder.layer.0.crossattention.self0.key.weight'}


def recognise_mmpretrain(keys: Iterable[str]) -> Layout | None:
    """The layout of mmpretrain of a file with these keys, or None."""
    keys = strip(keys)
    kind = next((kind for kind, key in _MM_WITNESS.items() if key in keys), None)
    return MMPRETRAIN[kind] if kind else None


# ----------------------------------------------------------------------------------------- transformers

_HF_INSIDE = ('layer_norm1', 'layer_norm2', 'self_attn.qkv', 'self_attn.projection', 'mlp.fc1', 'mlp.fc2')


def _hf_vision(theirs):
    return _vision(theirs, 'embeddings.patch_embedding', 'encoder.layers', _HF_INSIDE, 'post_layernorm',
                   ('embeddings.class_embedding', 'embeddings.position_embedding'))


_HF_POOLER = {'pooler.dense.*': 'pooler.*'}
_IN_HF = _hf_vision('vision_model.')
TRANSFORMERS = {kind: _layout('transformers', kind, table, decoder, _POSITIONS + more, twice=False, loses=loses)
                for kind, table, decoder, more, loses in (
    ('BlipForConditionalGeneration', {**_IN_HF, **_decoder('text_decoder.')}, 'text_decoder.', (), _TRAINING),
    ('BlipForQuestionAnswering', {**_IN_HF, **_bert('text_encoder.', 'text_encoder.'), **_decoder('text_decoder.')},
     'text_decoder.', (), _TRAINING),
    ('BlipForImageTextRetrieval', {**_IN_HF, **_bert('text_encoder.', 'text_encoder.'), **_HEADS}, None, (),
     (*_TRAINING, 'itc_head.temperature', 'text_decoder.*', 'lm_head.*')),
    ('BlipModel', {
        **_IN_HF, **_bert('text_model.', 'text_encoder.'),
        **{f'text_model.{theirs}': ours for theirs, ours in _HF_POOLER.items()},
        'visual_projection.weight': 'vision_projection.weight', 'text_projection.weight': 'text_projection.weight',
        'logit_scale': 'logit_scale'}, None, ('text_model.embeddings.position_ids', ), ()),
    ('BlipTextModel', {**_bert('', 'text_encoder.'), **_HF_POOLER}, None, ('embeddings.position_ids', ), ()),
    ('BlipVisionModel', _hf_vision(''), None, (), ()),
)}


def recognise_transformers(keys: Iterable[str], model_type: str | None = None) -> Layout | None:
    """The layout of transformers of a file with these keys, or None.

    Args:
        keys: Of the file.
        model_type: What config.json says, if there is one: the keys of ``BlipVisionModel`` are those of
            ``Blip2VisionModel``.
    """
    keys = strip(keys)
    end = 'encoder.layer.0.crossattention.self.key.weight'
    if f'text_model.{end}' in keys:
        return TRANSFORMERS['BlipModel']
    if end in keys and 'encoder.layer.0.intermediate.dense.weight' in keys:
        return TRANSFORMERS['BlipTextModel']
    if model_type == 'blip_vision_model':
        return TRANSFORMERS['BlipVisionModel']
    if 'vision_model.post_layernorm.weight' not in keys:
        return None
    encoder, decoder = f'text_encoder.{end}' in keys, f'text_decoder.bert.{end}' in keys
    kind = {(True, True): 'BlipForQuestionAnswering', (False, True): 'BlipForConditionalGeneration',
            (True, False): 'BlipForImageTextRetrieval'}.get((encoder, decoder))
    return TRANSFORMERS[kind] if kind else None


# ----------------------------------------------------------------------------------------------- writing

def kind_of(keys: Iterable[str]) -> str | None:
    """What a model of ours with these keys is: 'caption', 'VQA', 'retrieval', 'pre-training', 'NLVR2'; None if it is
    no BLIP."""
    keys = set(keys)
    encoder, decoder = ('text_encoder.word_embeddings.weight' in keys), ('text_decoder.word_embeddings.weight' in keys)
    if any(key.startswith('text_encoder.layers.0.cross_attention.0.') for key in keys):
        return 'NLVR2'
    if 'itm_head.classifier.weight' in keys and encoder:
        return 'pre-training' if decoder else 'retrieval'
    if decoder:
        return 'VQA' if encoder else 'caption'
    return 'features' if encoder else None


def other_decoder(wanted: Iterable[str], keys: Iterable[str]) -> list[str]:
    """Why a file with ``keys`` cannot fill a model with the keys ``wanted`` although it has all of them, in a list."""
    if (kind_of(wanted), kind_of(keys)) != ('caption', 'VQA'):
        return []
    return ['the text decoder of the file reads questions, that of the model images']


_CLASSES = {'caption': 'BlipForConditionalGeneration', 'VQA': 'BlipForQuestionAnswering',
            'retrieval': 'BlipForImageTextRetrieval', 'pre-training': 'BlipForImageTextRetrieval'}


def to_write(project: str, keys: Iterable[str], kind: str | None = None) -> Layout:
    """The layout that takes a model of ours with these keys; see :func:`mmblip2.checkpoints.layouts.to_write`.

    Raises:
        CheckpointError: The project has no such model.
    """
    ours = kind_of(keys)
    if project == 'transformers':
        if kind is None and ours == 'features':
            kind = 'BlipModel' if 'logit_scale' in set(keys) else 'BlipTextModel'
        found = TRANSFORMERS.get(kind or _CLASSES.get(ours or '', ''))
    else:
        found = (LAVIS if project == 'LAVIS' else MMPRETRAIN).get(ours or '')
    if found is None:
        raise CheckpointError(f'{project} has no BLIP for {ours}')
    return found
