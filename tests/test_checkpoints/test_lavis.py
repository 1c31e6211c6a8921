"""The names of LAVIS: whole key sets of the published models, both ways, and the values behind the names."""
import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from key_lists import SMALL_BERT, SMALL_TEXT, SMALL_VISION, assert_same, clip, drawn, empty, eva, lavis, ours, shapes

from mmblip2.checkpoints import layouts
from mmblip2.checkpoints.vision import to_own_names
from mmblip2.errors import CheckpointError
from mmblip2.models import VisionTransformer

# config, our parts that LAVIS trains there and therefore writes, the language model's name, and the keys of the file
FILES = {
    'stage 1, ViT-g': ('blip2_vit-g_stage1', False, None, lavis()),
    'stage 1, ViT-L': ('blip2_vit-l_stage1', False, None, lavis(vision=1024)),
    'retrieval, ViT-g': ('blip2_vit-g_16xb14_retrieval-coco', True, None, lavis() | eva()),
    'retrieval, ViT-L': ('blip2_vit-l_16xb14_retrieval-coco', True, None, lavis(vision=1024) | clip()),
    'stage 2, OPT-2.7B': ('blip2-opt2.7b_stage2', False, 'opt', lavis(language=('opt_proj', 2560), text=False)),
    'stage 2, OPT-6.7B': ('blip2-opt6.7b_stage2', False, 'opt', lavis(language=('opt_proj', 4096), text=False)),
    'stage 2, T5-XL': ('blip2-flan-t5xl_stage2', False, 't5', lavis(language=('t5_proj', 2048), text=False)),
    'caption, OPT-2.7B': ('blip2-opt2.7b_16xb16_caption-coco', True, 'opt',
                          lavis(language=('opt_proj', 2560), text=False) | eva()),
    'InstructBLIP, Vicuna': ('instructblip-vicuna7b_8xb16_caption-flickr30k', False, 'llm',
                             lavis(language=('llm_proj', 4096))),
    'InstructBLIP, T5-XL': ('instructblip-flan-t5xl_8xb16_caption-flickr30k', False, 't5',
                            lavis(language=('t5_proj', 2048))),
}
BUFFER = 'Qformer.bert.embeddings.position_ids'


def written(state, with_vision):
    """Our tensors that LAVIS writes."""
    return {key: value for key, value in state.items()
            if not key.startswith('language_model.') and (with_vision or not key.startswith('vision.'))}


@pytest.mark.parametrize('name', FILES)
def test_whole_key_sets_of_the_published_models(name):
    config, with_vision, language, expected = FILES[name]
    state = ours(config)
    mine = written(state, with_vision)
    file, left = layouts.to_write('LAVIS', state, language=language).from_ours(mine)
    assert shapes(file) == expected
    assert left == [key for key in mine if key == 'num_steps']

    layout = layouts.recognise(expected)
    converted = layout.to_ours(empty(expected))
    assert shapes(converted.state) == {key: shape for key, shape in shapes(mine).items() if key != 'num_steps'}
    assert sorted(converted.dropped) == sorted(key for key in expected if key == BUFFER or '.decoder.' in key)
    assert layout.name == 'LAVIS' and layout.vision_norm_eps == 1e-5


def small_file(kind):
    """A file of LAVIS with random values."""
    keys = {'stage 1': lavis(**SMALL_TEXT), 'retrieval': lavis(**SMALL_TEXT) | eva(**SMALL_VISION),
            'retrieval, CLIP': lavis(**SMALL_TEXT) | clip(**SMALL_VISION),
            'OPT': lavis(language=('opt_proj', 8), text=False, **SMALL_BERT) | eva(**SMALL_VISION),
            'InstructBLIP': lavis(language=('llm_proj', 8), **SMALL_TEXT)}
    return drawn(keys[kind])


@pytest.mark.parametrize('kind, language', [('stage 1', None), ('retrieval', None), ('retrieval, CLIP', None),
                                            ('OPT', 'opt'), ('InstructBLIP', 'llm')])
def test_there_and_back_is_exact_and_nothing_is_copied(kind, language):
    file = small_file(kind)
    found = layouts.recognise(file).to_ours(file)
    memory = {value.untyped_storage().data_ptr() for value in file.values()}
    assert {value.untyped_storage().data_ptr() for value in found.state.values()} <= memory
    back, left = layouts.to_write('LAVIS', found.state, language=language).from_ours(found.state)
    assert not left
    assert_same(back, file)


def in_transformers(key):
    """Name in transformers, by hand."""
    for old, new in (('visual_encoder.cls_token', 'vision_model.embeddings.class_embedding'),
                     ('visual_encoder.pos_embed', 'vision_model.embeddings.position_embedding'),
                     ('visual_encoder.patch_embed.proj', 'vision_model.embeddings.patch_embedding'),
                     ('visual_encoder.blocks', 'vision_model.encoder.layers'),
                     ('ln_vision', 'vision_model.post_layernorm'),
                     ('norm1', 'layer_norm1'), ('norm2', 'layer_norm2'), ('.attn.qkv', '.self_attn.qkv'),
                     ('.attn.proj', '.self_attn.projection'),
                     ('Qformer.bert.embeddings.LayerNorm', 'qformer.layernorm'),
                     ('Qformer.bert.embeddings.', 'embeddings.'), ('Qformer.bert', 'qformer'),
                     ('attention.self', 'attention.attention'), ('vision_proj.', 'vision_projection.'),
                     ('text_proj.', 'text_projection.'), ('opt_proj', 'language_projection')):
        key = key.replace(old, new)
    return key


@pytest.mark.parametrize('kind', ['retrieval', 'OPT'])
def test_values_in_transformers_are_those_of_a_table_written_by_hand(kind):
    file = small_file(kind)
    found = layouts.recognise(file).to_ours(file).state
    theirs, left = layouts.to_write('transformers', found).from_ours(found)
    expected = {in_transformers(key): value for key, value in file.items()
                if key not in ('temp', BUFFER) and not key.startswith('Qformer.cls.') and '_bias' not in key}
    for key in file:
        if key.endswith('q_bias'):
            query, value = file[key], file[key.replace('q_bias', 'v_bias')]
            expected[in_transformers(key).replace('.attn.q_bias', '.self_attn.qkv.bias')] = torch.cat(
                [query, torch.zeros(16), value])
    assert_same(theirs, expected)
    assert {key.split('.')[0] for key in left} == ({'itc_head', 'itg_head'} if kind == 'retrieval' else set())


def test_clip_is_the_one_that_vision_encoders_read():
    file = small_file('retrieval, CLIP')
    encoder = VisionTransformer(image_size=28, width=16, depth=3, num_heads=2, mlp_width=24, activation='quick_gelu',
                                pre_norm=True, qkv_bias='full', patch_bias=False)
    alone = {key: value for key, value in file.items() if key.startswith('visual_encoder.')}
    expected, _ = to_own_names(alone, encoder)
    assert expected.keys() == encoder.state_dict().keys()
    found = layouts.recognise(file).to_ours(file).state
    assert_same({key.removeprefix('vision.'): value for key, value in found.items() if key.startswith('vision.')},
                expected)


def test_heads_have_the_values_of_their_namesakes():
    file = small_file('stage 1')
    found = layouts.recognise(file).to_ours(file).state
    for theirs, mine in (('temp', 'itc_head.temperature'), ('vision_proj.bias', 'itc_head.vision_proj.bias'),
                         ('text_proj.bias', 'itc_head.text_proj.bias'),
                         ('itm_head.weight', 'itm_head.classifier.weight'),
                         ('Qformer.cls.predictions.bias', 'itg_head.bias'),
                         ('Qformer.cls.predictions.transform.dense.weight', 'itg_head.transform.weight'),
                         ('Qformer.cls.predictions.transform.LayerNorm.weight', 'itg_head.norm.weight')):
        assert found[mine] is file[theirs]


LEAKS = {'opt': ['opt_model.lm_head.weight'],
         't5': ['t5_model.encoder.embed_tokens.weight', 't5_model.decoder.embed_tokens.weight']}


@pytest.mark.parametrize('language', LEAKS)
def test_leaked_second_names_of_a_frozen_embedding(language):
    file = drawn(lavis(language=(f'{language}_proj', 8), text=False, **SMALL_BERT))
    table = torch.randn(30, 8)
    file.update(dict.fromkeys(LEAKS[language], table))
    found = layouts.recognise(file).to_ours(file)
    assert found.dropped == [BUFFER, *LEAKS[language]]
    assert not any(key.startswith('language_model.') for key in found.state)


def test_a_whole_language_model_is_no_leak():
    file = drawn(lavis(language=('opt_proj', 8), text=False, **SMALL_BERT))
    file['opt_model.model.decoder.embed_tokens.weight'] = file['opt_model.lm_head.weight'] = torch.randn(30, 8)
    found = layouts.recognise(file).to_ours(file)
    assert found.dropped == [BUFFER]
    assert found.state['language_model.model.lm_head.weight'] is file['opt_model.lm_head.weight']
    assert 'language_model.model.model.decoder.embed_tokens.weight' in found.state


def test_leaked_names_with_two_values_are_refused():
    file = drawn(lavis(language=('t5_proj', 8), text=False, **SMALL_BERT))
    file.update((key, torch.randn(30, 8)) for key in LEAKS['t5'])
    with pytest.raises(CheckpointError, match=r't5_model.encoder.embed_tokens.weight, .*differ, and are one tensor'):
        layouts.recognise(file).to_ours(file)


def test_buffers_of_vicuna_are_dropped():
    file = drawn(lavis(language=('llm_proj', 8), **SMALL_TEXT))
    file['llm_model.model.layers.0.self_attn.rotary_emb.inv_freq'] = torch.ones(4)
    found = layouts.recognise(file).to_ours(file)
    assert found.dropped == [BUFFER, 'llm_model.model.layers.0.self_attn.rotary_emb.inv_freq']


@pytest.mark.parametrize('second, first', [
    ('Qformer.cls.predictions.decoder.weight', 'Qformer.bert.embeddings.word_embeddings.weight'),
    ('Qformer.cls.predictions.decoder.bias', 'Qformer.cls.predictions.bias')])
def test_a_head_that_is_not_tied_is_refused(second, first):
    file = small_file('stage 1')
    file[second] = file[second].clone()
    assert second in layouts.recognise(file).to_ours(file).dropped, 'the same values in other memory are no fault'
    file[second].view(-1)[3] += 1e-3
    with pytest.raises(CheckpointError, match=re.escape(f'{second} and {first} differ')):
        layouts.recognise(file).to_ours(file)
    del file[first]
    with pytest.raises(CheckpointError, match=re.escape(f'{second} is a second name of {first}')):
        layouts.recognise(file).to_ours(file)


def test_positions_in_another_order_are_refused():
    file = small_file('stage 1')
    file[BUFFER] = file[BUFFER].flip(1)
    with pytest.raises(CheckpointError, match=r'position_ids is not 0, 1, 2 \.\.\.'):
        layouts.recognise(file).to_ours(file)


def test_the_name_of_the_language_model_must_be_said():
    state = ours('blip2-opt2.7b_stage2', small=True)
    with pytest.raises(CheckpointError, match="say which with language='opt', 't5' or 'llm'"):
        layouts.to_write('LAVIS', state)
    with pytest.raises(CheckpointError, match="language is 'vicuna', and LAVIS calls its .* 'opt', 't5', 'llm'"):
        layouts.to_write('LAVIS', state, language='vicuna')


def test_text_for_opt_is_refused():
    """LAVIS's OPT model would not read the question that the Q-Former was trained with."""
    state = written(ours('blip2-opt2.7b_16xb8_vqa-vqav2', small=True), with_vision=True)
    with pytest.raises(CheckpointError, match='has no place for .* keys of this model .qformer.word_embeddings.weight'):
        layouts.to_write('LAVIS', state, language='opt').from_ours(state)
