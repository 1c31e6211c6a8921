"""Folders that one release of transformers wrote and another one reads."""
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers

from mmblip2 import compat
from mmblip2.compat import mismatched_tensors, obey_newer_config, read_tokenizer
from mmblip2.errors import ConfigError
from mmblip2.models.language import CausalLM


def test_rotary_base_of_transformers_5_is_read_by_every_version(opt_folder, tmp_path):
    """transformers 4.57 alone would take the default, 10000."""
    torch.manual_seed(0)
    written = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(
        'llama', vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, rope_theta=50., initializer_range=1.)).eval()
    written.save_pretrained(tmp_path)
    file = tmp_path / 'config.json'
    config = json.loads(file.read_text())
    for key in ('rope_theta', 'rope_scaling'):
        config.pop(key, None)
    config['rope_parameters'] = dict(rope_theta=50., rope_type='default')
    file.write_text(json.dumps(config))
    ids = torch.arange(20)[None]
    read = CausalLM(model=str(tmp_path), tokenizer=opt_folder).eval().model
    torch.testing.assert_close(read(input_ids=ids).logits, written(input_ids=ids).logits)
    config['rope_parameters']['rope_theta'] = 10000.
    file.write_text(json.dumps(config))
    read = CausalLM(model=str(tmp_path), tokenizer=opt_folder).eval().model
    assert (read(input_ids=ids).logits - written(input_ids=ids).logits).abs().max() > 1e-2, 'the base has no effect'


def test_tokenizer_of_transformers_5_is_read_by_every_version(opt_folder, tmp_path):
    own = read_tokenizer(opt_folder)
    shutil.copytree(opt_folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / 'tokenizer_config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), 'tokenizer_class': 'TokenizersBackend'}))
    text = 'two green stars\n'
    read = read_tokenizer(str(tmp_path))
    assert read(text).input_ids == own(text).input_ids and read.eos_token == own.eos_token == '</s>'
    file.write_text(json.dumps({**json.loads(file.read_text()), 'tokenizer_class': 'NoSuchTokenizer'}))
    (tmp_path / 'tokenizer.json').unlink()
    with pytest.raises((ValueError, OSError)):
        read_tokenizer(str(tmp_path))


PLAIN = dict(rope_theta=50., rope_type='default')


@pytest.mark.parametrize('version, tie, theta', [('4.57.6', False, 50.), ('5.0.0', True, 10000.)])
def test_only_an_old_transformers_is_told_what_a_new_one_wrote(monkeypatch, version, tie, theta):
    monkeypatch.setattr(compat, '_transformers_version', lambda: version)
    config = SimpleNamespace(tie_word_embeddings=True, rope_theta=10000., scale_decoder_outputs=False,
                             rope_parameters=PLAIN)
    obey_newer_config(config, 'the folder')
    assert (config.tie_word_embeddings, config.rope_theta) == (tie, theta)


def test_an_old_config_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(compat, '_transformers_version', lambda: '4.57.6')
    config = SimpleNamespace(tie_word_embeddings=True, rope_theta=7.)
    obey_newer_config(config, 'the folder')
    assert vars(config) == dict(tie_word_embeddings=True, rope_theta=7.)


@pytest.mark.parametrize('rope', [dict(PLAIN, rope_type='linear', factor=2.), dict(PLAIN, partial_rotary_factor=0.5),
                                  dict(full_attention=PLAIN, sliding_attention=PLAIN)])
def test_rotary_positions_that_4_57_has_no_words_for_are_refused(monkeypatch, rope):
    monkeypatch.setattr(compat, '_transformers_version', lambda: '4.57.6')
    with pytest.raises(ConfigError, match='the folder was written by transformers 5, and transformers 4.57.6 cannot '
                                          'read its rope_parameters .*: install transformers>=5'):
        obey_newer_config(SimpleNamespace(rope_theta=10000., rope_parameters=rope), 'the folder')


@pytest.mark.parametrize('entries, in_file', [
    (['weight', 'bias'], 'another shape'), ([('weight', torch.Size([2, 9]), torch.Size([2, 3])),
                                             ('bias', torch.Size([9]), torch.Size([2]))], '(9,)')])
def test_tensors_of_another_shape_are_named_in_both_formats(entries, in_file):
    found = mismatched_tensors(torch.nn.Linear(3, 2), dict(mismatched_keys=entries))
    assert found[0] == ('bias', in_file, '(2,)') and [key for key, *_ in found] == ['bias', 'weight']
