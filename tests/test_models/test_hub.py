"""What a user reads whose Hugging Face folder or hub name cannot be read."""
import os

import pytest

from mmblip2.errors import ConfigError
from mmblip2.models.hub import cannot_read
from mmblip2.models.tokenizers import BertTokenizer


def test_a_folder_without_the_files_is_listed(tmp_path):
    assert cannot_read(str(tmp_path), 'a and b') == 'expected a and b in that folder, which holds nothing'
    for i in range(9):
        (tmp_path / f'{i}.txt').touch()
    assert cannot_read(str(tmp_path), 'a').endswith('0.txt, 1.txt, 2.txt, 3.txt, 4.txt, 5.txt, 6.txt, 7.txt ...')


@pytest.mark.parametrize('path', ['no/such/folder', '/nowhere', './nowhere', 'data/opt 2'])
def test_a_path_is_not_taken_for_a_hub_name(path):
    assert cannot_read(path, 'a and b') == 'there is no such folder; expected one with a and b'


@pytest.mark.parametrize('name', ['gpt2', 'google/flan-t5-xl', 'facebook/opt-2.7b'])
def test_a_hub_name_without_network_names_the_files_and_their_places(name):
    text = cannot_read(name, 'a and b')
    assert f'get a and b of {name} on a machine with network' in text and 'give that folder instead' in text
    cached = os.path.join('hub', 'models--' + name.replace('/', '--'))
    assert text.endswith(f'{cached} from there to here')


def test_bert_tokenizer_says_it_too():
    with pytest.raises(ConfigError, match=r"no BERT tokenizer could be read from 'bert-base-uncased': .* get "
                                          'tokenizer.json and tokenizer_config.json of bert-base-uncased on'):
        BertTokenizer('bert-base-uncased')
