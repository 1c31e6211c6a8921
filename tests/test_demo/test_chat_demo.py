"""chat_demo.py: a dialogue from arguments and one that is typed."""
import importlib.util
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmblip2.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo(monkeypatch):
    """The module; it leaves nothing behind in sys.path and sys.modules."""
    monkeypatch.setattr(sys, 'path', list(sys.path))
    spec = importlib.util.spec_from_file_location('chat_demo', ROOT / 'demo' / 'chat_demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop('image_demo', None)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / 'photo.png'
    Image.new('RGB', (20, 30), (200, 30, 30)).save(path)
    return path


@pytest.fixture
def run(demo, tiny_generator, capsys, monkeypatch):
    """Function (arguments, typed=lines) -> what was printed, and the prompts that the language model read."""
    model = tiny_generator([dict(type='CaptionPrompt', prompt='a photo of')])
    monkeypatch.setattr(demo, 'model_arguments', lambda args, step: dict(model=model))

    def call(*arguments, typed=()):
        read, lines = [], iter(typed)
        model.language_model.generate = lambda prefix, prompts, **kwargs: read.append(prompts[0]) or [f'A{len(read)}']

        def type_in(prompt):
            line = next(lines, None)
            if line is None:
                raise EOFError
            return line
        monkeypatch.setattr('builtins.input', type_in)
        demo.main([*map(str, arguments)])
        return capsys.readouterr().out.splitlines(), read
    return call


def test_questions_from_arguments(run, photo, tmp_path):
    out, read = run(photo, '--question', 'what is it?', '--question', 'why?', '--show-dir', tmp_path / 'shown',
                    '--model', 'x')
    assert out == ['what is it? A1', 'why? A2', f'picture: {tmp_path / "shown" / "photo.png"}']
    assert read == ['Question: what is it? Answer:', 'Question: what is it? Answer: A1. Question: why? Answer:']
    with Image.open(tmp_path / 'shown' / 'photo.png') as picture:
        assert picture.height > 30 + 4 * 18


def test_the_quickstart_reads_one_question_at_a_time(run, photo):
    _, read = run(photo, '--question', 'what is it?', '--question', 'why?')
    assert read == ['Question: what is it? Answer:', 'Question: why? Answer:']
    _, read = run(photo, '--question', 'what is it?', '--question', 'why?', '--max-turns', '1')
    assert read[1].startswith('Question: what is it?')


def test_turns_that_no_longer_fit_are_told(run, photo):
    out, _ = run(photo, '--question', 'is it a red star?', '--question', 'is it a blue star?', '--model', 'x',
                 '--max-context', '40')
    assert out == ['is it a red star? A1', 'is it a blue star? A2  (1 earlier turns not read)']


def test_a_typed_dialogue_goes_on_after_mistakes(run, photo, tmp_path):
    other = tmp_path / 'other.png'
    Image.new('RGB', (9, 9)).save(other)
    out, read = run(photo, '--model', 'x', '--show-dir', tmp_path / 'shown', typed=[
        'what is it?', '', 'why?', ':help', '...', ':image nowhere.png', ':image', ':reset', 'and now?',
        f':image {other}', 'what is that?', ':quit', 'never read'])
    assert read == ['Question: what is it? Answer:', 'Question: what is it? Answer: A1. Question: why? Answer:',
                    'Question: and now? Answer:', 'Question: what is that? Answer:']
    text = '\n'.join(out)
    assert 'no command :help' in text and 'question 2 is empty' in text and 'nowhere.png): no such file' in text
    assert [line for line in out if line[:1] == 'A'] == ['A1', 'A2', 'A3', 'A4']
    names = sorted(path.name for path in (tmp_path / 'shown').iterdir())
    assert names == ['other.png', 'photo.png', 'photo_1.png']  # a wrong name ended no dialogue


def test_the_end_of_the_input_ends_the_dialogue(run, photo):
    out, read = run(photo, '--model', 'x', typed=['what is it?'])
    assert len(read) == 1 and out[0].startswith('ask about the image')


def test_a_wrong_question_of_a_script_is_an_error(run, photo):
    with pytest.raises(DataError, match='question 0 is empty'):
        run(photo, '--question', ' ')
