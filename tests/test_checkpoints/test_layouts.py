"""Recognition of files by their keys, and what holds for every layout."""
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from key_lists import (
    SMALL_MMPRETRAIN,
    SMALL_TEXT,
    SMALL_VISION,
    assert_same,
    clip,
    drawn,
    eva,
    lavis,
    mmpretrain,
    ours,
    shapes,
)

from mmblip2.checkpoints import layouts
from mmblip2.errors import CheckpointError


@pytest.mark.parametrize('config', ['blip2_vit-l_stage1', 'blip2-opt2.7b_stage2', 'blip2-opt2.7b_16xb8_vqa-vqav2'])
def test_our_own_names_are_none_of_the_others(config):
    state = ours(config, small=True)
    assert layouts.recognise(state) is None
    assert layouts.recognise([f'module.{key}' for key in state]) is None
    for part in ('vision', 'qformer', 'language_model'):  # a part alone, with and without its name
        alone = [key for key in state if key.startswith(f'{part}.')]
        assert layouts.recognise(alone) is None
        assert layouts.recognise([key.removeprefix(f'{part}.') for key in alone]) is None


def test_what_is_no_blip2_is_none_of_them():
    for alone in (eva(), clip()):
        assert layouts.recognise(alone) is None
        assert layouts.recognise([key.removeprefix('visual_encoder.') for key in alone]) is None
    assert layouts.recognise([]) is None
    assert layouts.recognise(['vision_model.embeddings.class_embedding', 'vision_model.pre_layrnorm.weight',
                              'vision_model.encoder.layers.0.self_attn.q_proj.weight',
                              'vision_model.post_layernorm.weight']) is None, 'CLIP'
    assert layouts.recognise(['visual_encoder.blocks.0.norm1.weight', 'temp', 'vision_proj.weight', 'itm_head.weight',
                              'text_encoder.bert.encoder.layer.6.crossattention.self.query.weight']) is None, 'ALBEF'
    assert layouts.recognise(['vision_backbone.layers.0.ln1.weight', 'vision_neck.weight', 'multimodal_head.fc.weight',
                              'multimodal_backbone.encoder.layer.0.output.dense.weight']) is None, 'ALBEF-like'
    assert layouts.recognise(['bert.encoder.layer.0.attention.self.query.weight', 'cls.predictions.bias']) is None


@pytest.mark.parametrize('file', [lavis(**SMALL_TEXT) | clip(**SMALL_VISION),
                                  mmpretrain('retrieval', **SMALL_MMPRETRAIN)], ids=['LAVIS', 'mmpretrain'])
def test_the_prefix_of_a_parallel_wrapper_is_taken_off(file):
    file = drawn(file)
    wrapped = {f'module.{key}': value for key, value in file.items()}
    layout = layouts.recognise(wrapped)
    assert layout == layouts.recognise(file)
    assert_same(layout.to_ours(wrapped).state, layout.to_ours(file).state)


def test_unknown_keys_are_named_with_the_layout():
    file = drawn(lavis(**SMALL_TEXT))
    file.update({f'adapter.{i}.weight': torch.zeros(1) for i in range(7)})
    layout = layouts.recognise(file)
    with pytest.raises(CheckpointError, match=r'7 of \d+ keys are unknown in a file of LAVIS \(stage 1 or retrieval\) '
                                              r'\(adapter.0.weight, .* and 2 more\)'):
        layout.to_ours(file)


@pytest.mark.parametrize('config, names', [
    ('blip2_vit-g_16xb14_retrieval-coco', ['LAVIS', 'mmpretrain', 'transformers']),
    ('blip2_vit-l_16xb14_retrieval-coco', ['LAVIS']),
    ('blip2-opt2.7b_16xb16_caption-coco', ['LAVIS', 'mmpretrain', 'transformers']),
    ('blip2-flan-t5xl_stage2', ['LAVIS', 'transformers']),
    ('instructblip-vicuna7b_8xb16_caption-flickr30k', ['LAVIS', 'transformers'])])
def test_our_weights_come_back_exactly_from_every_layout(config, names):
    state = drawn(shapes(ours(config, small=True)))
    language = next((kind for kind in ('opt', 't5') if kind in config), 'llm')
    for name in names:
        what = dict(language=language) if name == 'LAVIS' and 'language_projection.bias' in state else {}
        file, left = layouts.to_write(name, state, **what).from_ours(state)
        back = layouts.recognise(file).to_ours(file)
        assert layouts.recognise(file).name == name
        assert_same(back.state, {key: value for key, value in state.items() if key not in left})


def test_both_biases_of_an_attention_are_needed_for_one_tensor():
    state = drawn(shapes(ours('blip2_vit-g_stage1', small=True)))
    layout = layouts.to_write('transformers', state)
    for lost in ('q_bias', 'v_bias'):
        part = {key: value for key, value in state.items() if key != f'vision.blocks.1.attn.{lost}'}
        with pytest.raises(CheckpointError, match=r'vision.blocks.1.attn.[qv]_bias is without the other bias'):
            layout.from_ours(part)


def test_a_bias_in_one_tensor_is_split_for_a_layout_with_two():
    state = drawn(shapes(ours('blip2_vit-g_stage1', small=True)))
    whole = {key: value for key, value in state.items() if '_bias' not in key}
    biases = torch.arange(48.)
    whole.update({f'vision.blocks.{i}.attn.qkv.bias': biases + i for i in range(3)})
    for name, block in (('LAVIS', 'visual_encoder.blocks'), ('mmpretrain', 'vision_backbone.layers')):
        file, _ = layouts.to_write(name, whole).from_ours(whole)
        assert torch.equal(file[f'{block}.2.attn.q_bias'], biases[:16] + 2)
        assert torch.equal(file[f'{block}.2.attn.v_bias'], biases[32:] + 2)


def test_an_unknown_project_is_refused():
    with pytest.raises(CheckpointError, match="layout 'lavis' is unknown, expected one of LAVIS, mmpretrain, transf"):
        layouts.to_write('lavis', [])
