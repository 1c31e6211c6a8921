"""LoRA and frozen weights of 8 or 4 bits."""
import sys
from importlib.util import find_spec

import pytest
import torch

from mmblip2.checkpoints import io
from mmblip2.errors import ConfigError
from mmblip2.models.algorithms.base import fingerprint
from mmblip2.models.language import adapted
from mmblip2.registry import MODELS
from mmblip2.structures import DataSample

needs_peft = pytest.mark.skipif(find_spec('peft') is None, reason='peft is an optional package')
LORA = dict(r=2, alpha=4, targets=['q_proj', 'v_proj'])


def build(parts, **changes):
    parts = {**parts, 'language_model': {**parts['language_model'], **changes}}
    parts.pop('tokenizer')
    parts['qformer'] = {key: value for key, value in parts['qformer'].items() if key != 'vocab_size'}
    torch.manual_seed(0)
    return MODELS.build(dict(type='Blip2Generation', allow_random=True, frozen=('vision', 'language_model'), **parts))


def samples():
    return [DataSample(prompt='', target='a small red circle') for _ in range(2)]


@pytest.mark.parametrize('settings, packages', [
    (dict(lora=LORA), 'lora of the language model needs peft: pip install peft'),
    (dict(quantize='4bit'), "quantize='4bit' of the language model needs bitsandbytes and accelerate: pip install")])
def test_a_missing_package_is_named_before_anything_is_built(tiny_parts, monkeypatch, settings, packages):
    monkeypatch.setattr(adapted, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match=packages):
        MODELS.build({**tiny_parts['language_model'], **settings})


@pytest.mark.parametrize('settings, message', [
    (dict(lora=8), 'is 8, expected a dict'),
    (dict(lora=dict(rank=8)), "has no setting 'rank'; known are r, alpha, targets"),
    (dict(lora=dict(r=0)), 'lora.r of the language model is 0'),
    (dict(quantize='2bit'), "is '2bit', expected one of 8bit, 4bit")])
def test_a_wrong_setting_is_named(tiny_parts, settings, message):
    with pytest.raises(ConfigError, match=message):
        MODELS.build({**tiny_parts['language_model'], **settings})


def test_a_model_with_random_weights_is_not_quantized(tiny_parts, monkeypatch):
    monkeypatch.setattr(adapted, 'find_spec', lambda name: True)
    with pytest.raises(ConfigError, match='reads a folder of transformers: set model'):
        MODELS.build({**tiny_parts['language_model'], 'quantize': '8bit'})


@pytest.mark.parametrize('quantize', ['8bit', '4bit'])
def test_transformers_is_asked_for_the_bits(tiny_parts, tmp_path, monkeypatch, quantize):
    """With stand-ins for the settings and for what reads the folder: this needs no bitsandbytes."""
    from transformers import AutoModelForCausalLM
    plain = MODELS.build(tiny_parts['language_model'])
    plain.model.save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(adapted, 'find_spec', lambda name: True)
    monkeypatch.setattr('mmblip2.models.language.base.quantization', lambda *settings: settings)
    seen, read = [], AutoModelForCausalLM.from_pretrained

    def stand_in(folder, quantization_config=None, **how):
        seen.append(quantization_config)
        return read(folder, **how)

    monkeypatch.setattr(AutoModelForCausalLM, 'from_pretrained', stand_in)
    part = dict(type='CausalLM', model=str(tmp_path), quantize=quantize, dtype='bfloat16')
    MODELS.build(part)
    assert seen == [(quantize, 'bfloat16')]
    with pytest.raises(ConfigError, match="has quantize=.*put 'language_model' into model.frozen"):
        build({**tiny_parts, 'language_model': part}).__class__(
            MODELS.build(tiny_parts['vision']), build(tiny_parts).qformer, MODELS.build(part), frozen=('vision', ),
            allow_random=True)


@needs_peft
def test_only_the_matrices_are_trained_and_saved(tiny_parts):
    bare, model = build(tiny_parts), build(tiny_parts, lora=LORA)
    model.train()
    language = model.language_model
    trained = {name for name, p in language.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2 and all('lora_' in name for name in trained)
    saved = {key for key in io.saved_state(model) if key.startswith('language_model.')}
    assert saved == {f'language_model.{name}' for name in trained}
    assert fingerprint(language) == fingerprint(bare.language_model), 'the same frozen part as without'
    before = {name: p.clone() for name, p in language.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.)
    images = torch.randn(2, 3, 16, 16)
    for _ in range(2):  # in the first step one of the two matrices is zero
        model.loss(images, samples())['loss_lm'].backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, p in language.named_parameters() if not torch.equal(p, before[name])}
    assert changed == trained


@needs_peft
def test_a_checkpoint_brings_them_back_and_merging_changes_no_loss(tiny_parts, tmp_path):
    model, images = build(tiny_parts, lora=LORA).eval(), torch.randn(2, 3, 16, 16)
    for p in adapted.lora_parameters(model.language_model.model):
        p.data.normal_()
    loss = model.loss(images, samples())['loss_lm']
    assert (loss - build(tiny_parts).eval().loss(images, samples())['loss_lm']).abs() > 1e-4
    io.write_checkpoint(dict(format=io.FORMAT, meta=dict(frozen=io.frozen_record(model)),
                             state_dict=io.saved_state(model)), tmp_path / 'iter_1.pth')
    again = build(tiny_parts, lora=LORA).eval()
    io.load_strict(again, io.read_checkpoint(tmp_path / 'iter_1.pth'), 'iter_1.pth')
    assert torch.equal(again.loss(images, samples())['loss_lm'], loss)
    again.language_model.merge_lora()
    assert not adapted.lora_parameters(again.language_model)
    assert torch.allclose(again.loss(images, samples())['loss_lm'], loss, atol=1e-5)
    again.language_model.model.save_pretrained(tmp_path / 'merged')
    again.language_model.tokenizer.save_pretrained(tmp_path / 'merged')
    merged = MODELS.build(dict(type='CausalLM', model=str(tmp_path / 'merged')))
    prefix = torch.randn(2, 3, 16)
    assert torch.equal(merged.eval().loss(prefix, [''] * 2, ['a star'] * 2)[0],
                       again.language_model.loss(prefix, [''] * 2, ['a star'] * 2)[0])


@needs_peft
def test_lora_outside_of_a_frozen_part_and_unknown_layers_are_refused(tiny_parts):
    with pytest.raises(ConfigError, match='lora.targets of the language model.*Name linear layers of OPTForCausalLM'):
        build(tiny_parts, lora=dict(targets=['query']))
    language = MODELS.build({**tiny_parts['language_model'], 'lora': LORA})
    model = build(tiny_parts)
    with pytest.raises(ConfigError, match="has lora.*put 'language_model' into model.frozen"):
        type(model)(model.vision, model.qformer, language, frozen=('vision', ), allow_random=True)


@pytest.mark.skipif(find_spec('bitsandbytes') is None or sys.platform != 'linux', reason='bitsandbytes is optional')
@pytest.mark.parametrize('quantize', ['8bit', '4bit'])
def test_bitsandbytes_on_this_machine(tiny_parts, tmp_path, quantize):
    plain = MODELS.build({**tiny_parts['language_model'], 'config': dict(
        tiny_parts['language_model']['config'], hidden_size=64, word_embed_proj_dim=64, ffn_dim=128)})
    plain.model.save_pretrained(tmp_path)
    plain.tokenizer.save_pretrained(tmp_path)
    part = MODELS.build(dict(type='CausalLM', model=str(tmp_path), quantize=quantize)).eval()
    prefix = torch.randn(2, 3, 64)
    assert {p.dtype for name, p in part.named_parameters() if name.endswith('q_proj.weight')} == {
        torch.int8 if quantize == '8bit' else torch.uint8}
    with torch.no_grad():
        found, expected = (float(each.loss(prefix, [''] * 2, ['a star'] * 2)[0]) for each in (part, plain.eval()))
    assert abs(found - expected) < 0.05 * expected
