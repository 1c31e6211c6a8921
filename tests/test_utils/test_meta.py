"""Models are built for their shapes alone, from the config alone."""
import json

import pytest
import torch
from torch import nn

from mmblip2.errors import ConfigError
from mmblip2.utils.meta import build_on_meta, count_parameters

VISION = dict(type='VisionTransformer', image_size=16, patch_size=8, width=16, depth=2, num_heads=2, weights='nowhere')
QFORMER = dict(type='QFormer', vision_width=16, num_layers=2, width=16, num_heads=2, num_query=3, max_positions=32)
OPT = dict(model_type='opt', vocab_size=90, hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=2,
           num_attention_heads=2, max_position_embeddings=64)


def stage2(**language_model):
    return dict(type='Blip2Generation', vision=VISION, qformer=QFORMER,
                language_model=dict(dict(type='CausalLM'), **language_model), frozen=('vision', 'language_model'))


def test_neither_weights_nor_tokenizers_nor_bert_are_touched():
    cfg = dict(type='Blip2Representation', vision=VISION, qformer=dict(QFORMER, vocab_size=100, bert='nowhere'),
               tokenizer=dict(type='BertTokenizer', path='nowhere'))
    model = build_on_meta(cfg)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.qformer.word_embeddings.num_embeddings == 100 and len(model.tokenizer) == 100
    assert cfg['vision']['weights'] == 'nowhere', 'the config is not changed'


@pytest.mark.parametrize('source', [dict(model='no/such-model', config=OPT), dict(config=OPT, tokenizer='nowhere')])
def test_language_model_is_built_from_its_config(source):
    model = build_on_meta(stage2(**source))
    assert model.language_model.model.get_input_embeddings().weight.shape == (90, 16)
    assert model.language_projection.out_features == 16


def test_counts_are_those_of_the_real_model(tiny_parts):
    from mmblip2.registry import MODELS
    cfg = dict(type='Blip2Generation', allow_random=True, **tiny_parts)
    real = MODELS.build(cfg)
    cfg['language_model']['config']['vocab_size'] = real.language_model.model.config.vocab_size
    assert count_parameters(build_on_meta(cfg)) == count_parameters(real)


def test_a_local_folder_gives_the_architecture_and_the_vocabulary(tmp_path, opt_folder):
    folder = tmp_path / 'lm'
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(dict(
        OPT, _model_name_or_path='made by a converter', architectures=['OPTForCausalLM'], dtype='bfloat16',
        transformers_version='4.40.0', of_another_program=dict(a=1))))
    model = build_on_meta(stage2(model=str(folder)))
    assert model.language_model.hidden_size == 16
    without = {key: value for key, value in OPT.items() if key != 'vocab_size'}
    from transformers import AutoTokenizer
    rows = build_on_meta(stage2(config=without, tokenizer=opt_folder)).language_model.model.get_input_embeddings()
    assert rows.num_embeddings == len(AutoTokenizer.from_pretrained(opt_folder))


def test_the_folder_of_a_flan_t5_has_an_output_layer_of_its_own(tmp_path):
    t5 = dict(model_type='t5', vocab_size=90, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    for tied in (True, False):
        (tmp_path / 'config.json').write_text(json.dumps(dict(t5, tie_word_embeddings=tied)))
        model = build_on_meta(stage2(model=str(tmp_path), type='Seq2SeqLM')).language_model.model
        assert (model.lm_head.weight is model.shared.weight) == tied


@pytest.mark.parametrize('vision', [
    dict(backbone='ConvNeXt', arch=dict(depths=[1, 1, 1, 2], channels=[4, 4, 8, 16]), gap_before_final_norm=False),
    dict(backbone='ResNet', depth=18, base_channels=2, stem_channels=2, drop_path_rate=0.1)])
def test_backbones_of_mmpretrain_that_read_numbers_out_of_tensors_are_counted_too(vision):
    pytest.importorskip('mmpretrain')
    vision = dict(vision, type='MMPretrainBackbone', image_size=32)
    cfg = dict(type='Blip2Generation', qformer=QFORMER, language_model=dict(type='CausalLM', config=OPT),
               vision=vision, frozen=('language_model',))
    from mmblip2.registry import MODELS
    real = MODELS.build(vision)
    assert real.embed_dim == 16
    assert all(parameter.device.type == 'cpu' for parameter in real.parameters())
    model = build_on_meta(cfg)
    assert all(parameter.is_meta for parameter in model.parameters())
    counts = count_parameters(real)
    assert count_parameters(model)['parts']['vision'] == dict(trainable=counts['trainable'], frozen=counts['frozen'])


def test_a_module_of_another_package_may_read_numbers_out_of_tensors_too():
    vision = dict(type='FeatureMapEncoder', module=dict(type=f'{__name__}.ReadsNumbers'), image_size=8)
    model = build_on_meta(dict(stage2(config=OPT), vision=vision))
    assert model.vision.embed_dim == 16 and model.vision.module.weight.is_meta


class ReadsNumbers(nn.Conv2d):
    """As packages that spread their drop rates over the layers."""

    def __init__(self):
        super().__init__(3, int(torch.linspace(4, 16, 3)[-1].item()), 4)


def test_what_is_said_nowhere_is_an_error():
    with pytest.raises(ConfigError, match='architecture of CausalLM no/such-model is unknown .* config=dict'):
        build_on_meta(stage2(model='no/such-model'))
    without = {key: value for key, value in OPT.items() if key != 'vocab_size'}
    with pytest.raises(ConfigError, match='vocabulary size of CausalLM is unknown: config has no vocab_size, and there '
                                          'is no tokenizer in nowhere'):
        build_on_meta(stage2(config=without, tokenizer='nowhere'))


def test_the_stand_in_reads_no_text():
    model = build_on_meta(stage2(config=OPT, tokenizer='nowhere'))
    with pytest.raises(ConfigError, match="built without its tokenizer files and cannot read 'a dog'"):
        model.language_model.tokenizer('a dog')


def test_parts_are_counted_with_tied_parameters_once():
    model = nn.Module()
    model.scale = nn.Parameter(torch.ones(3))
    model.first, model.second = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    model.second.weight = model.first.weight
    model.first.bias.requires_grad_(False)
    assert count_parameters(model) == dict(trainable=7, frozen=2, total=9, parts={
        '': dict(trainable=3, frozen=0), 'first': dict(trainable=4, frozen=2)})
