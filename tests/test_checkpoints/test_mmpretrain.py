"""The names of mmpretrain: whole key sets of its two kinds of BLIP-2, both ways, and the values behind the names."""
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from key_lists import SMALL_MMPRETRAIN, assert_same, drawn, empty, mmpretrain, ours, shapes

from mmblip2.checkpoints import layouts
from mmblip2.errors import CheckpointError

FILES = {'retrieval': ('blip2_8xb32_retrieval', mmpretrain('retrieval')),
         'caption': ('blip2-opt2.7b_8xb32_caption', mmpretrain('caption'))}
BUFFER = 'multimodal_backbone.bert.embeddings.position_ids'


@pytest.mark.parametrize('kind', FILES)
def test_whole_key_sets_of_the_published_models(kind):
    config, expected = FILES[kind]
    state = ours(config)
    mine = {key: value for key, value in state.items() if not key.startswith('language_model.')}
    file, left = layouts.to_write('mmpretrain', state).from_ours(mine)
    assert shapes(file) == expected
    assert left == [key for key in mine if key == 'num_steps']

    layout = layouts.recognise(expected)
    converted = layout.to_ours(empty(expected))
    assert shapes(converted.state) == {key: shape for key, shape in shapes(mine).items() if key != 'num_steps'}
    assert sorted(converted.dropped) == sorted(key for key in expected if key == BUFFER or '.decoder.' in key)
    assert layout.name == 'mmpretrain' and layout.vision_norm_eps == 1e-5


def small_file(kind):
    """A file of mmpretrain with random values."""
    positions = 130 if kind == 'retrieval' else 512  # without text a model of ours says nothing of their number
    return drawn(mmpretrain(kind, **dict(SMALL_MMPRETRAIN, positions=positions)))


def in_lavis(key, projection):
    """Name in LAVIS, by hand."""
    for old, new in (('ln_vision_backbone', 'ln_vision'), ('vision_backbone.patch_embed.projection',
                                                           'vision_backbone.patch_embed.proj'),
                     ('vision_backbone.layers', 'vision_backbone.blocks'), ('vision_backbone', 'visual_encoder'),
                     ('.ln1.', '.norm1.'), ('.ln2.', '.norm2.'), ('ffn.layers.0.0', 'mlp.fc1'),
                     ('ffn.layers.1.', 'mlp.fc2.'), ('multimodal_backbone', 'Qformer'), ('vision_neck.fc', projection),
                     ('text_neck.fc', 'text_proj'), ('multimodal_head.fc', 'itm_head')):
        key = key.replace(old, new)
    return key


@pytest.mark.parametrize('kind, projection', [('retrieval', 'vision_proj'), ('caption', 'opt_proj')])
def test_values_in_lavis_are_those_of_a_table_written_by_hand(kind, projection):
    """vision_neck.fc is another layer in retrieval than in captioning."""
    file = small_file(kind)
    found = layouts.recognise(file).to_ours(file).state
    language = dict(language='opt') if kind == 'caption' else {}
    theirs, left = layouts.to_write('LAVIS', found, **language).from_ours(found)
    assert not left
    assert_same(theirs, {in_lavis(key, projection): value for key, value in file.items()})


@pytest.mark.parametrize('kind', FILES)
def test_there_and_back_is_exact_and_nothing_is_copied(kind):
    file = small_file(kind)
    found = layouts.recognise(file).to_ours(file)
    memory = {value.untyped_storage().data_ptr() for value in file.values()}
    assert {value.untyped_storage().data_ptr() for value in found.state.values()} <= memory
    back, left = layouts.to_write('mmpretrain', found.state).from_ours(found.state)
    assert not left
    assert_same(back, file)


@pytest.mark.parametrize('witness', ['temp', 'text_neck.fc.weight', 'multimodal_head.fc.bias'])
def test_one_head_tells_retrieval_from_captioning(witness):
    retrieval, caption = mmpretrain('retrieval'), mmpretrain('caption')
    assert layouts.recognise(caption).kind == 'caption or VQA'
    assert layouts.recognise([*caption, witness]).kind == 'retrieval' == layouts.recognise(retrieval).kind


def test_a_vision_encoder_or_text_without_a_place_is_refused():
    for config in ('blip2_vit-l_stage1', 'instructblip-vicuna7b_8xb16_caption-flickr30k'):
        state = ours(config, small=True)
        with pytest.raises(CheckpointError, match=r'mmpretrain .* has no place for 2 keys of this model'):
            layouts.to_write('mmpretrain', state).from_ours(state)
