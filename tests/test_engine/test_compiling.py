"""Compiled layers: the same losses and gradients at every text length, bad settings refused."""
import copy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from toy_parts import toy_config

from mmblip2.engine import Runner, compiling
from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS
from mmblip2.structures import DataSample

TEXTS = [('two green stars', 'a red circle'), ('a star', 'a cross'), ('two green stars above one cross', 'a star')]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(parts, stage):
    parts['qformer']['dropout'] = 0.
    if stage == 1:
        parts.pop('language_model')
        return MODELS.build(dict(type='Blip2Representation', embed_dim=8, allow_random=True, **parts)).train()
    parts.pop('tokenizer')
    parts['qformer'].pop('vocab_size')
    return MODELS.build(dict(type='Blip2Generation', allow_random=True, **parts)).train()


def steps(model):
    """Losses of three batches with texts of other lengths, and the summed gradients."""
    losses = []
    for texts in TEXTS:
        samples = [DataSample(text=text, prompt='a photo of', target=text) for text in texts]
        found = model.loss(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), samples)
        losses.append(sum(value for key, value in found.items() if key.startswith('loss')))
        losses[-1].backward()
    return torch.stack(losses).detach(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('stage', [1, 2])
def test_losses_and_gradients_are_those_of_the_uncompiled_model(tiny_parts, stage):
    """As torch traces them; the code that is generated is another test's."""
    model = build(tiny_parts, stage)
    fast = copy.deepcopy(model)
    names = compiling.compile_modules(fast, dict(backend='eager'))
    assert {name.split('.')[0] for name in names} == {'vision', 'qformer', *(('language_model', ) * (stage == 2))}
    torch._dynamo.utils.counters.clear()
    (expected, gradients), (found, theirs) = steps(model), steps(fast)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(theirs[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] > 0, 'nothing was compiled'
    assert list(fast.state_dict()) == list(model.state_dict())


@pytest.mark.skipif(not compiling.cpp_compiler(), reason='no C++ compiler: graphs for a CPU cannot be compiled')
def test_generated_code_has_the_same_output(tiny_parts, monkeypatch):
    monkeypatch.setattr('torch._inductor.config.compile_threads', 1)
    model = build(tiny_parts, 1)
    fast = copy.deepcopy(model)
    assert compiling.compile_modules(fast, dict(modules='vision.blocks.0.m*')) == ['vision.blocks.0.mlp']
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fast.encode_image(images).patches, model.encode_image(images).patches, atol=1e-5,
                               rtol=1e-5)


def test_a_training_compiles_the_named_modules_and_learns_the_same(tmp_path):
    model = dict(type='ToyModel', dropout=0.)  # compiled, other random numbers would drop
    plain = Runner.from_cfg(Config(toy_config(tmp_path / 'a', model=model)))
    fast = Runner.from_cfg(Config(toy_config(tmp_path / 'b', model=model,
                                             compile=dict(modules=['body'], backend='aot_eager'))))
    torch._dynamo.utils.counters.clear()
    for runner in (plain, fast):
        runner.train()
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] > 0
    torch.testing.assert_close(fast.bare_model.state_dict(), plain.bare_model.state_dict(), atol=1e-5, rtol=1e-5)


def test_a_validation_runs_uncompiled():
    module = nn.Linear(2, 2)
    module.compile(backend='aot_eager')
    torch._dynamo.utils.counters.clear()
    with compiling.uncompiled():
        module(torch.ones(1, 2))
    if hasattr(torch.compiler, 'set_stance'):
        assert not torch._dynamo.utils.counters['stats']['unique_graphs']


@pytest.mark.parametrize('compile, message', [
    (dict(modules=['bodi']), r"compile\.modules: no module is named 'bodi'; the parts of the model are vision, body"),
    (dict(backnd='eager'), "compile has no setting 'backnd': expected modules, backend"),
    (dict(backend='inducter'), r"compile\.backend is 'inducter', expected one of .*inductor"),
    (dict(backend='aot_eager'), r'compile: ToyModel has no list of layers: name modules in compile=dict\(modules'),
], ids=['module', 'setting', 'backend', 'nothing'])
def test_bad_settings_are_refused_before_the_first_iteration(tmp_path, compile, message):
    with pytest.raises(ConfigError, match=message):
        Runner.from_cfg(Config(toy_config(tmp_path, compile=compile))).train()


def test_without_a_compiler_it_is_said_at_once(monkeypatch):
    monkeypatch.setattr(compiling, 'cpp_compiler', lambda: None)
    with pytest.raises(ConfigError, match=r'compile needs a C\+\+ compiler on a CPU, and there is none: install g\+\+'):
        compiling.compile_modules(nn.Linear(1, 1), True)
