"""Training with divided weights gives what one process gives, and files are the same."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmblip2.engine import fsdp
from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS

DATA = Path(__file__).resolve().parents[1] / 'data'


@pytest.fixture(scope='module')
def runs(tmp_path_factory, opt_folder):
    folder = tmp_path_factory.mktemp('fsdp')
    run = subprocess.run(
        [sys.executable, str(DATA / 'fsdp_run.py'), str(folder), opt_folder], capture_output=True, text=True,
        timeout=900, env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(DATA.parents[1]), str(DATA)])})
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-3000:]
    return folder


def losses(folder):
    return torch.load(folder / 'losses.pth', weights_only=True)['losses']


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize('name', ['1_ddp2', '1_fsdp2', '1_fsdp4', '2_fsdp2', '2_fsdp4'])
def test_the_losses_are_those_of_one_process(runs, name):
    """Eight iterations, four updates with clipped gradients, which differ when anything before them does."""
    expected = losses(runs / f'{name[0]}_one')
    assert (losses(runs / name) - expected).abs().max() < 1e-5
    assert (expected[2:] - expected[:-2]).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize('name', ['one_from_fsdp4', 'ddp2_from_fsdp2', 'fsdp4_from_one', 'fsdp2_from_ddp2'])
def test_each_kind_goes_on_from_the_file_of_another(runs, name):
    assert (losses(runs / name) - losses(runs / '1_one')[4:]).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.dist
def test_files_have_the_same_names_shapes_and_types(runs):
    one, other = (torch.load(runs / name / 'iter_8.pth', weights_only=True) for name in ('1_one', '1_fsdp4'))
    for key in ('state_dict', 'optimizer'):
        assert layout(one[key]) == layout(other[key])
    assert one['meta']['frozen'] == other['meta']['frozen']
    assert one['state_dict']['itc_head.temperature'].shape == ()


def layout(value):
    """A nested value with the shape and type of its tensors instead of their numbers."""
    if isinstance(value, dict):
        return {key: layout(item) for key, item in value.items()}
    return (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else type(value)


@pytest.mark.slow
@pytest.mark.dist
def test_a_resume_after_kills_ends_with_the_same_bits(runs):
    whole, cut = (torch.load(runs / name / 'final.pth', weights_only=True)['weights'] for name in ('1_fsdp2', 'killed'))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.slow
@pytest.mark.dist
def test_averaged_weights_and_an_uneven_validation(runs):
    """The validation right after the resume has the weights of the file, so it says the same."""
    one, other = (torch.load(runs / name / 'losses.pth', weights_only=True) for name in ('ema_one', 'ema_fsdp2'))
    assert (other['losses'] - one['losses'][4:]).abs().max() < 1e-5
    assert [len(said) for said in other['texts']] == [5, 5] and other['texts'][0] == one['texts'][0]
    one, other = (torch.load(runs / name / 'iter_8.pth', weights_only=True) for name in ('ema_one', 'ema_fsdp2'))
    for key in ('raw', 'state_dict'):
        assert layout(one[key]) == layout(other[key])
        assert all(torch.allclose(one[key][name].float(), other[key][name].float(), atol=2e-3) for name in one[key])


@pytest.mark.parametrize('given, message', [
    (dict(fsdp=['vision']), 'fsdp: expected a dict'),
    (dict(fsdp=dict(units=[])), 'fsdp.units: unknown key; known are wrap'),
    (dict(fsdp=dict(wrap='vision')), 'fsdp.wrap: expected a list of names of modules'),
    (dict(fsdp=dict(wrap=['qformer.layers.*'])), "'qformer.layers.*' is not inside vision or language_model"),
    (dict(fsdp=dict(), find_unused_parameters=True), 'find_unused_parameters: does not go with fsdp'),
    (dict(fsdp=dict(), compile=True), 'compile: does not go with fsdp'),
    (dict(fsdp=dict(), optim_wrapper=dict(type='AutocastOptimWrapper', dtype='float16')), "dtype='bfloat16'")])
def test_a_wrong_setting_is_named(given, message):
    with pytest.raises(ConfigError) as error:
        fsdp.check(Config(given))
    assert message in str(error.value)


@pytest.mark.parametrize('wrap, message', [
    (['vision.layers.*'], "no module that is run by its forward is named 'vision.layers.*'"),
    (['language_model'], "no module that is run by its forward is named 'language_model'"),
    (['language_model.model'], 'holds weights that are used outside of it too'),
    (['language_model.model.lm_head'], 'holds weights that are used outside of it too'),
    (['vision', 'vision.blocks.*'], 'name one of them')])
def test_modules_that_cannot_be_divided_alone_are_refused(tiny_parts, wrap, message):
    tiny_parts.pop('tokenizer')
    tiny_parts['qformer'].pop('vocab_size')
    model = MODELS.build(dict(type='Blip2Generation', allow_random=True, **tiny_parts))
    with pytest.raises(ConfigError) as error:
        fsdp.shard(model, wrap)
    assert message in str(error.value)


def test_blip_is_refused(tiny_blip):
    model = MODELS.build(dict(type='BlipRepresentation', queue_size=8, **tiny_blip))
    with pytest.raises(ConfigError, match='momentum encoders.*DDP trains it'):
        fsdp.shard(model)
