"""Activation checkpointing by name: the same gradients, fewer kept activations, also behind a frozen part."""
import copy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from toy_parts import toy_config

from mmblip2.engine import Runner
from mmblip2.engine.activation_checkpointing import turn_on_activation_checkpointing
from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS
from mmblip2.structures import DataSample


def gradients(model):
    torch.manual_seed(0)
    samples = [DataSample(), DataSample()]
    for sample, text in zip(samples, ('two green stars', 'a red circle')):
        sample.text, sample.image_id, sample.sample_idx = text, text, 0
    losses = model.loss(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), samples)
    sum(value for key, value in losses.items() if key.startswith('loss')).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_stage_1_behind_a_frozen_encoder_has_the_same_gradients(tiny_parts):
    tiny_parts.pop('language_model')
    tiny_parts['qformer']['dropout'] = 0.1
    model = MODELS.build(dict(type='Blip2Representation', embed_dim=8, allow_random=True, frozen=('vision', ),
                              **tiny_parts)).train()
    saving = copy.deepcopy(model)
    turn_on_activation_checkpointing(saving, ['qformer.layers.*'])
    expected, found = gradients(model), gradients(saving)
    assert expected.keys() == found.keys() and all(value is not None for value in found.values())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=name)


def test_activations_are_computed_again_once_and_not_without_gradients():
    calls = []

    class Block(nn.Linear):
        def forward(self, x):
            calls.append(torch.is_grad_enabled())
            return super().forward(x).relu()

    model = nn.Sequential(Block(2, 2), Block(2, 2))
    turn_on_activation_checkpointing(model, ['*'])
    model(torch.ones(1, 2)).sum().backward()
    assert len(calls) == 4
    with torch.no_grad():
        model(torch.ones(1, 2))
    assert len(calls) == 6


def test_a_name_that_no_module_has_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"no module is named 'bodi'; the parts of the model are vision, body, head"):
        Runner.from_cfg(Config(toy_config(tmp_path, activation_checkpointing='bodi'))).train()


def test_a_config_turns_it_on(tmp_path):
    plain = Runner.from_cfg(Config(toy_config(tmp_path / 'a')))
    plain.train()
    saving = Runner.from_cfg(Config(toy_config(tmp_path / 'b', activation_checkpointing=['body'])))
    saving.train()
    assert 'partial' in repr(saving.bare_model.body.forward)
    for key, value in plain.bare_model.state_dict().items():
        torch.testing.assert_close(saving.bare_model.state_dict()[key], value)


@pytest.mark.parametrize('patterns', [['layers'], ['layers*'], ['layers', 'layers.*'], ['*']])
def test_a_list_of_modules_is_not_taken_for_its_modules(patterns):
    calls = []

    class Block(nn.Linear):
        def forward(self, x):
            calls.append(1)
            return super().forward(x).relu()

    model = nn.Module()
    model.layers = nn.ModuleList([Block(2, 2), Block(2, 2)])
    if patterns == ['layers']:
        with pytest.raises(ConfigError, match="no module is named 'layers'"):
            turn_on_activation_checkpointing(model, patterns)
        return
    turn_on_activation_checkpointing(model, [patterns[-1]])
    x = torch.ones(1, 2, requires_grad=True)
    for layer in model.layers:
        x = layer(x)
    x.sum().backward()
    assert len(calls) == 4
