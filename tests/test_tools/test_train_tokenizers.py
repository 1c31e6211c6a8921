"""Laws of the two tokenizers that train_tokenizers.py trains."""
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('transformers')
SCRIPT = Path(__file__).resolve().parents[2] / 'tools' / 'dataset_converters' / 'train_tokenizers.py'
CORPUS = [f'a {size} {color} {shape} at the {place}' for size in ('small', 'large')
          for color in ('red', 'blue') for shape in ('circle', 'star') for place in ('top left', 'center')]
CORPUS += [f'Question: what color is the {shape}? Answer: {color}' for shape in ('circle', 'star')
           for color in ('red', 'blue')] * 3


def _load():
    spec = importlib.util.spec_from_file_location('train_tokenizers', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = _load()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('with a space')
    (root / 'corpus.txt').write_text('\n'.join(CORPUS) + '\n')
    tool.main(['--corpus', str(root / 'corpus.txt'), '--out', str(root / 'tokenizers')])
    return root / 'tokenizers'


@pytest.fixture(scope='module')
def bert(folder):
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(folder / 'bert')


@pytest.fixture(scope='module')
def opt(folder):
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(folder / 'opt')


def test_bert_folder_gives_cls_words_sep_in_lower_case(bert):
    ids = bert('A small RED star')['input_ids']
    assert bert.convert_ids_to_tokens(ids) == ['[CLS]', 'a', 'small', 'red', 'star', '[SEP]']
    assert bert.decode(ids, skip_special_tokens=True) == 'a small red star'
    assert len(bert) <= 400 and bert.unk_token_id not in bert(CORPUS[0])['input_ids']


def test_bert_pads_right_with_id_0_and_truncates_with_sep_at_the_end(bert):
    batch = bert(['a red star', 'a'], padding=True)
    assert bert.pad_token_id == 0 and batch['input_ids'][1][-2:] == [0, 0]
    assert batch['attention_mask'][1] == [1, 1, 1, 0, 0]
    cut = bert('a small red star', max_length=4, truncation=True)['input_ids']
    assert bert.convert_ids_to_tokens(cut) == ['[CLS]', 'a', 'small', '[SEP]']


def test_bert_takes_the_decoder_start_token_of_the_qformer_as_its_next_id(folder):
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder / 'bert')
    size = len(tokenizer)
    tokenizer.add_special_tokens({'bos_token': '[DEC]'})
    assert tokenizer.convert_tokens_to_ids('[DEC]') == size and len(tokenizer) == size + 1


def test_opt_folder_prepends_bos_and_uses_the_ids_of_opt(opt):
    assert (opt.bos_token, opt.bos_token_id, opt.eos_token, opt.eos_token_id) == ('</s>', 2, '</s>', 2)
    assert (opt.pad_token, opt.pad_token_id, opt.unk_token_id) == ('<pad>', 1, 3)
    assert opt('a red star')['input_ids'][0] == 2 and opt('a red star')['input_ids'][-1] != 2
    assert opt('')['input_ids'] == [2]
    assert len(opt) <= 600


def test_opt_newline_is_one_id_even_behind_a_text(opt):
    alone = opt('\n', add_special_tokens=False)['input_ids']
    assert len(alone) == 1
    assert opt('a red star\n')['input_ids'] == opt('a red star')['input_ids'] + alone


@pytest.mark.parametrize('text', ['a red star', 'Question: what color is the star? Answer: red', ' top left',
                                  'never seen: Zürich, "42%" 日本', 'a  b\n'])
def test_opt_round_trips_any_text(opt, text):
    assert opt.decode(opt(text)['input_ids'], skip_special_tokens=True) == text


def test_opt_prompt_words_are_single_tokens_and_prompt_plus_answer_split_at_the_space(opt):
    prompt = opt('Question: what color is the star? Answer:')['input_ids']
    assert opt.convert_ids_to_tokens(prompt) == [
        '</s>', 'Question', ':', 'Ġwhat', 'Ġcolor', 'Ġis', 'Ġthe', 'Ġstar', '?', 'ĠAnswer', ':']
    whole = opt('Question: what color is the star? Answer: red')['input_ids']
    assert whole == prompt + opt(' red', add_special_tokens=False)['input_ids']


def test_second_call_keeps_the_files_and_another_corpus_replaces_them(tmp_path, capsys):
    corpus, out = tmp_path / 'corpus.txt', tmp_path / 'tokenizers'
    corpus.write_text('\n'.join(CORPUS))
    arguments = ['--corpus', str(corpus), '--out', str(out)]
    tool.main(arguments)
    first = {path: path.read_bytes() for path in out.rglob('*.json')}
    times = {path: path.stat().st_mtime_ns for path in first}
    tool.main(arguments)
    assert 'is up to date' in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in first} == times
    corpus.write_text('\n'.join(CORPUS + ['a green hexagon'] * 3))
    tool.main(arguments)
    assert {path: path.read_bytes() for path in out.rglob('*.json')} != first


def test_same_corpus_gives_the_same_bytes_in_every_process(folder, tmp_path):
    corpus = folder.parent / 'corpus.txt'
    command = [sys.executable, str(SCRIPT), '--corpus', str(corpus), '--out', str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for path in folder.rglob('*.json'):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name


def test_words_that_bert_never_met_are_spelled_out(bert):
    tokens = bert.tokenize('jumps?')
    assert tokens == ['j', '##u', '##m', '##p', '##s', '?']


def test_missing_or_empty_corpus_and_a_too_small_vocabulary_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match='is not a file. Expected texts, one a line; .*make_shapes.py'):
        tool.main(['--corpus', str(tmp_path / 'none.txt'), '--out', str(tmp_path / 'out')])
    (tmp_path / 'empty.txt').write_text('\n \n')
    with pytest.raises(SystemExit, match='holds no text'):
        tool.main(['--corpus', str(tmp_path / 'empty.txt'), '--out', str(tmp_path / 'out')])
    with pytest.raises(SystemExit):
        tool.main(['--opt-vocab', '100'])
    assert '--opt-vocab is 100; expected at least 261' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main(['--bert-vocab', '100'])
    assert '--bert-vocab is 100; expected at least 200' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_help_imports_no_heavy_package(tmp_path):
    for name in ('torch', 'transformers', 'tokenizers'):
        (tmp_path / f'{name}.py').write_text('raise SystemExit("a heavy package was imported")')
    done = subprocess.run([sys.executable, str(SCRIPT), '--help'], capture_output=True, text=True, timeout=60,
                          env={'PYTHONPATH': str(tmp_path)})
    assert done.returncode == 0 and '--corpus' in done.stdout
