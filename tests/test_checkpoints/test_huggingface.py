"""The names of transformers: its own classes, of the real sizes on the meta device and small ones as they are saved."""
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from key_lists import assert_same, ours, shapes

from mmblip2.checkpoints import layouts
from mmblip2.errors import CheckpointError

transformers = pytest.importorskip('transformers')

REAL = dict(
    opt=dict(model_type='opt', vocab_size=50272, hidden_size=2560, word_embed_proj_dim=2560, ffn_dim=10240,
             num_hidden_layers=32, num_attention_heads=32),
    t5=dict(model_type='t5', vocab_size=32128, d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_heads=32,
            feed_forward_proj='gated-gelu', tie_word_embeddings=False),
    llama=dict(model_type='llama', vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
               num_attention_heads=32))
SMALL = dict(
    opt=dict(REAL['opt'], vocab_size=30, hidden_size=8, word_embed_proj_dim=8, ffn_dim=12, num_hidden_layers=2,
             num_attention_heads=2, max_position_embeddings=16),
    t5=dict(REAL['t5'], vocab_size=30, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2),
    llama=dict(REAL['llama'], vocab_size=30, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
               num_attention_heads=2, num_key_value_heads=2))
VISION = dict(image_size=28, patch_size=14, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
              intermediate_size=24, initializer_range=0.02)
QFORMER = dict(vocab_size=50, hidden_size=12, num_hidden_layers=3, num_attention_heads=2, intermediate_size=20,
               max_position_embeddings=40, encoder_hidden_size=16)

# class, language model or whether the Q-Former has its text half; the layout that it is taken for, our config
CLASSES = [
    ('Blip2ForConditionalGeneration', 'opt', 'Blip2ForConditionalGeneration', 'blip2-opt2.7b_stage2'),
    ('Blip2ForConditionalGeneration', 't5', 'Blip2ForConditionalGeneration', 'blip2-flan-t5xl_stage2'),
    ('Blip2ForConditionalGeneration', 'llama', 'Blip2ForConditionalGeneration', None),
    ('Blip2Model', 'opt', 'Blip2ForConditionalGeneration', 'blip2-opt2.7b_stage2'),
    ('Blip2Model', 't5', 'Blip2ForConditionalGeneration', 'blip2-flan-t5xl_stage2'),
    ('Blip2ForImageTextRetrieval', True, 'Blip2ForImageTextRetrieval', 'blip2_vit-g_stage1'),
    ('Blip2TextModelWithProjection', True, 'Blip2TextModelWithProjection', 'blip2_vit-g_stage1'),
    ('Blip2VisionModelWithProjection', True, 'Blip2VisionModelWithProjection', 'blip2_vit-g_stage1'),
    ('Blip2VisionModelWithProjection', False, 'Blip2VisionModelWithProjection', 'blip2_vit-g_stage1'),
    ('Blip2VisionModel', None, 'Blip2VisionModel', 'blip2_vit-g_stage1'),
    ('Blip2QFormerModel', True, 'Blip2QFormerModel', 'blip2_vit-g_stage1'),
    ('Blip2QFormerModel', False, 'Blip2QFormerModel', 'blip2-opt2.7b_stage2'),
    ('InstructBlipForConditionalGeneration', 'llama', 'InstructBlipForConditionalGeneration',
     'instructblip-vicuna7b_8xb16_caption-flickr30k'),
    ('InstructBlipForConditionalGeneration', 't5', 'InstructBlipForConditionalGeneration',
     'instructblip-flan-t5xl_8xb16_caption-flickr30k'),
    ('InstructBlipModel', 'llama', 'InstructBlipModel', 'instructblip-vicuna7b_8xb16_caption-flickr30k'),
    ('InstructBlipModel', 'opt', 'InstructBlipModel', None),
    ('InstructBlipVisionModel', None, 'Blip2VisionModel', 'blip2_vit-g_stage1'),
    ('InstructBlipQFormerModel', None, 'InstructBlipQFormerModel', 'instructblip-vicuna7b_8xb16_caption-flickr30k'),
]
# our keys that the classes have no part for
_TEXT = ('qformer.word_embeddings.*', 'qformer.position_embeddings.*')
_VISION, _LANGUAGE, _HEADS = ('vision.*', 'vision_norm.*'), ('language_*', ), ('itc_head.*', 'itm_head.*')
LACKS = {
    'Blip2TextModelWithProjection': (*_VISION, 'itc_head.vision_proj.*', 'itm_head.*'),
    'Blip2VisionModelWithProjection': (*_TEXT, 'qformer.layers.*.text_*', 'itc_head.text_proj.*', 'itm_head.*'),
    'Blip2VisionModel': ('qformer.*', *_LANGUAGE, *_HEADS),
    'Blip2QFormerModel': (*_VISION, 'qformer.queries', *_TEXT, *_LANGUAGE, *_HEADS),
    'InstructBlipModel': ('language_model.model.lm_head.*', ),
    'InstructBlipQFormerModel': (*_VISION, 'qformer.queries', *_LANGUAGE, *_HEADS)}
IDS = [f'{name}-{what}' for name, what, _, _ in CLASSES]


def build(name, what, small=False):
    """One of their models; of the real size on the meta device."""
    kind = 'InstructBlip' if name.startswith('Instruct') else 'Blip2'
    vision, qformer = (VISION, QFORMER) if small else ({}, dict(vocab_size=30523))
    if isinstance(what, bool):
        qformer = dict(qformer, use_qformer_text_input=what)
    if name.endswith('VisionModel'):
        config = getattr(transformers, f'{kind}VisionConfig')(**vision)
    elif name.endswith('QFormerModel'):
        config = getattr(transformers, f'{kind}QFormerConfig')(**qformer)
    else:
        sizes = dict(num_query_tokens=3) if small else dict(num_query_tokens=32)
        if kind == 'Blip2':
            sizes['image_text_hidden_size'] = 6 if small else 256
        language = (SMALL if small else REAL)[what if isinstance(what, str) else 'opt']
        config = getattr(transformers, f'{kind}Config')(vision_config=vision, qformer_config=qformer,
                                                        text_config=language, image_token_index=29, **sizes)
    with torch.device('cpu' if small else 'meta'):
        return getattr(transformers, name)(config)


@pytest.mark.parametrize('name, what, kind, config', [row for row in CLASSES if row[3]],
                         ids=[name for name, row in zip(IDS, CLASSES) if row[3]])
def test_whole_key_sets_of_the_real_models(name, what, kind, config):
    theirs, state = build(name, what).state_dict(), ours(config)
    layout = layouts.recognise(theirs)
    assert (layout.name, layout.kind, layout.vision_norm_eps) == ('transformers', kind, 1e-6)
    found = layout.to_ours(theirs)
    assert not found.dropped and not found.notes
    assert {key: shape for key, shape in shapes(state).items() if key in found.state} == shapes(found.state)
    missing = {key for key in state if key not in found.state}
    patterns = (*layout.loses, *LACKS.get(kind, ()))
    assert missing <= {key for key in state if any(fnmatch(key, pattern) for pattern in patterns)}

    back, left = layouts.to_write('transformers', state, kind=kind).from_ours(found.state)
    assert shapes(back) == shapes(theirs) and not left


@pytest.mark.parametrize('config, kind', [
    ('blip2_vit-g_16xb14_retrieval-coco', 'Blip2ForImageTextRetrieval'),
    ('blip2-opt2.7b_stage2', 'Blip2ForConditionalGeneration'),
    ('blip2-opt2.7b_16xb8_vqa-vqav2', 'InstructBlipForConditionalGeneration'),
    ('instructblip-flan-t5xl_8xb16_caption-flickr30k', 'InstructBlipForConditionalGeneration')])
def test_the_class_to_write_is_told_by_our_keys(config, kind):
    state = ours(config, small=True)
    layout = layouts.to_write('transformers', state)
    assert layout.kind == kind
    file, left = layout.from_ours(state)
    assert layouts.recognise(file) is layout
    heads = {'num_steps', 'itc_head.temperature', 'itg_head.bias', 'itg_head.transform.weight',
             'itg_head.transform.bias', 'itg_head.norm.weight', 'itg_head.norm.bias'}
    assert set(left) == (heads if kind == 'Blip2ForImageTextRetrieval' else set())
    assert shapes(layout.to_ours(file).state) == {key: s for key, s in shapes(state).items() if key not in left}


@pytest.mark.parametrize('name, what, kind, config', CLASSES, ids=IDS)
def test_there_and_back_is_exact_for_what_is_saved(name, what, kind, config, tmp_path):
    from safetensors.torch import load_file
    theirs = build(name, what, small=True)
    theirs.save_pretrained(tmp_path)
    file = load_file(tmp_path / 'model.safetensors')
    generator = torch.Generator().manual_seed(0)
    for key, value in file.items():
        value.normal_(generator=generator)
        if key.endswith('qkv.bias'):  # the keys' part, which transformers starts with zero, means nothing
            value[len(value) // 3:2 * len(value) // 3] = 0
    layout = layouts.recognise(file)
    assert layout.kind == kind
    found = layout.to_ours(file)
    assert not found.dropped and not found.notes
    memory = {value.untyped_storage().data_ptr() for value in file.values()}
    assert {value.untyped_storage().data_ptr() for value in found.state.values()} <= memory
    back, left = layout.from_ours(found.state)
    assert not left
    assert_same(back, file)


def test_language_model_without_its_head_is_one_level_deeper():
    file = build('InstructBlipModel', 'llama', small=True).state_dict()
    whole = build('InstructBlipForConditionalGeneration', 'llama', small=True).state_dict()
    deep, flat = (layouts.recognise(state).to_ours(state).state for state in (file, whole))
    assert flat.keys() - deep.keys() == {'language_model.model.lm_head.weight'} and not deep.keys() - flat.keys()


def test_buffers_of_older_files_are_dropped():
    file = build('InstructBlipForConditionalGeneration', 'llama', small=True).state_dict()
    buffers = {'qformer.embeddings.position_ids': torch.arange(40)[None],
               'language_model.model.layers.1.self_attn.rotary_emb.inv_freq': torch.ones(2)}
    found = layouts.recognise(file).to_ours({**file, **buffers})
    assert found.dropped == list(buffers) and found.state.keys() == layouts.recognise(file).to_ours(file).state.keys()


def test_a_bias_of_the_keys_is_left_out_and_said():
    file = build('Blip2VisionModel', None, small=True).state_dict()
    bias = file['encoder.layers.1.self_attn.qkv.bias']
    bias.copy_(torch.arange(48))
    found = layouts.recognise(file).to_ours(file)
    assert found.notes == ["the keys' part of 1 attention biases is not zero; it is left out, because it changes no "
                           'softmax']
    assert torch.equal(found.state['vision.blocks.1.attn.q_bias'], bias[:16])
    assert torch.equal(found.state['vision.blocks.1.attn.v_bias'], bias[32:])


def test_unknown_classes_and_vision_encoders_are_refused():
    state = ours('blip2_vit-l_stage1', small=True)
    with pytest.raises(CheckpointError, match="kind is 'Blip2', expected a class of transformers, one of Blip2For"):
        layouts.to_write('transformers', state, kind='Blip2')
    with pytest.raises(CheckpointError, match=r'has no place for 2 keys of this model \(vision.pre_norm.weight, '):
        layouts.to_write('transformers', state).from_ours(state)
