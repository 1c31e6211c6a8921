"""What a user reads whose Hugging Face folder or hub name cannot be read."""
import json
import os

import pytest
import torch

from mmblip2.errors import ConfigError
from mmblip2.models.hub import cannot_read, refuse_code
from mmblip2.models.language import CausalLM
from mmblip2.models.tokenizers import BertTokenizer
from mmblip2.models.vision.adapters import HFVisionEncoder
from mmblip2.registry import MODELS
from mmblip2.structures import DataSample

WRITES_A_MARKER = '''from pathlib import Path
Path({marker!r}).touch()
from transformers import PretrainedConfig
class OwnConfig(PretrainedConfig):
    model_type = 'own'
def generate(model, *args, **kwargs):
    return None
'''


@pytest.fixture
def with_code(tmp_path):
    """A folder whose code writes a file when it is run, and that file."""
    marker, folder = tmp_path / 'the code was run', tmp_path / 'own'
    (folder / 'custom_generate').mkdir(parents=True)
    for file in ('own.py', 'custom_generate/generate.py'):
        (folder / file).write_text(WRITES_A_MARKER.format(marker=str(marker)))
    auto = dict(AutoConfig='own.OwnConfig', AutoTokenizer=['own.OwnConfig', None])
    (folder / 'config.json').write_text(json.dumps(dict(model_type='own', auto_map=auto)))
    (folder / 'tokenizer_config.json').write_text(json.dumps(dict(tokenizer_class='Own', auto_map=auto)))
    return str(folder), marker


def test_code_of_a_model_folder_is_never_run(with_code, opt_folder):
    folder, marker = with_code
    asked = 'trust_remote_code=True would run code of a model repository, which mmblip2 never does: leave it out'
    for build, message in (
            (lambda: CausalLM(model=folder, tokenizer=opt_folder, config=dict(trust_remote_code=True)), asked),
            (lambda: HFVisionEncoder(config=dict(model_type='vit', trust_remote_code=True)), asked),
            (lambda: CausalLM(model=folder, tokenizer=opt_folder), 'could not be loaded'),
            (lambda: HFVisionEncoder(model=folder), 'could not be built'),
            (lambda: CausalLM(config=dict(model_type='opt'), tokenizer=folder), 'no tokenizer could be loaded'),
            (lambda: BertTokenizer(folder), 'no BERT tokenizer')):
        with pytest.raises(ConfigError, match=message):
            build()
        assert not marker.exists()


def test_nobody_is_asked_whether_code_may_run(with_code, opt_folder, monkeypatch):
    folder, marker = with_code
    monkeypatch.setattr('builtins.input', lambda *_: 'y')
    for build in (lambda: CausalLM(model=folder, tokenizer=opt_folder), lambda: HFVisionEncoder(model=folder),
                  lambda: CausalLM(config=dict(model_type='opt'), tokenizer=folder), lambda: BertTokenizer(folder)):
        with pytest.raises(ConfigError):
            build()
        assert not marker.exists()


def test_generation_runs_no_code_of_a_folder(with_code, tiny_parts):
    folder, marker = with_code
    tiny_parts.pop('tokenizer')
    tiny_parts['qformer'].pop('vocab_size')
    given = dict(custom_generate=folder, trust_remote_code=True)
    config = dict(type='Blip2Generation', allow_random=True, **tiny_parts)
    with pytest.raises(ConfigError, match='generation of the model: custom_generate=.* would run code of a model'):
        MODELS.build(dict(config, generation=given))
    model = MODELS.build(config).eval()
    with pytest.raises(ConfigError, match='generate of the language model: custom_generate=.* would run code'):
        model.language_model.generate(None, ['a'], **given)
    model.generation.update(given)
    with pytest.raises(ConfigError, match='custom_generate'):
        model.predict(torch.zeros(1, 3, 16, 16), [DataSample(prompt='a')])
    assert not marker.exists()


@pytest.mark.parametrize('settings', [
    dict(trust_remote_code=True), dict(custom_generate='a/b'), dict(auto_map={}), dict(code_revision='main'),
    dict(text_config=dict(auto_map={})), dict(attn_implementation='org/kernel')])
def test_settings_that_run_code_are_refused_by_name(settings):
    with pytest.raises(ConfigError, match=r'config: (trust_rem|custom_gen|auto_map|code_rev|attn_).* leave it out'):
        refuse_code(settings, 'config')
    refuse_code(dict(id2label={0: 'a'}, text_config=dict(hidden_size=3), attn_implementation='eager'), 'config')


def test_a_folder_without_the_files_is_listed(tmp_path):
    assert cannot_read(str(tmp_path), 'a and b') == 'expected a and b in that folder, which holds nothing'
    for i in range(9):
        (tmp_path / f'{i}.txt').touch()
    assert cannot_read(str(tmp_path), 'a').endswith('0.txt, 1.txt, 2.txt, 3.txt, 4.txt, 5.txt, 6.txt, 7.txt ...')


@pytest.mark.parametrize('path', ['no/such/folder', '/nowhere', './nowhere', 'data/opt 2'])
def test_a_path_is_not_taken_for_a_hub_name(path, monkeypatch):
    monkeypatch.setenv('MMBLIP2_WEIGHTS', '/of my own')
    said = cannot_read(path, 'a and b')
    assert said.startswith('there is no such folder; expected one with a and b; looked in /')
    assert said.endswith(', /of my own')


@pytest.mark.parametrize('name', ['gpt2', 'google/flan-t5-xl', 'facebook/opt-2.7b'])
def test_a_hub_name_without_network_names_the_files_and_their_places(name):
    text = cannot_read(name, 'a and b')
    assert f'run `hf download {name} --local-dir {name.split("/")[-1]}`, which gets a and b, copy the folder' in text
    assert 'give its path instead of the name' in text
    cached = os.path.join('hub', 'models--' + name.replace('/', '--'))
    assert f'{cached} from there to here; looked in ' in text


def test_bert_tokenizer_says_it_too():
    with pytest.raises(ConfigError, match=r"no BERT tokenizer could be read from 'bert-base-uncased': .* run `hf "
                                          'download bert-base-uncased --local-dir bert-base-uncased`, which gets '
                                          'tokenizer.json .*vocab.json and merges.txt, vocab.txt or tokenizer.model'):
        BertTokenizer('bert-base-uncased')
