"""image_demo.py: each task from the command line, pictures where asked, clear errors without the quickstart."""
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmblip2.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'demo' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


demo = load('image_demo')


@pytest.fixture
def photos(tmp_path):
    """A folder with two images."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    for name, color in (('a', (200, 30, 30)), ('b', (30, 30, 200))):
        Image.new('RGB', (20, 30), color).save(folder / f'{name}.png')
    return folder


@pytest.fixture
def run(capsys, monkeypatch):
    """Function (model, arguments) -> printed lines."""
    def call(model, *arguments):
        monkeypatch.setattr(demo, 'model_arguments', lambda args, step: dict(model=model))
        demo.main([*map(str, arguments)])
        return capsys.readouterr().out.splitlines()
    return call


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_captions(run, tiny_generator, photos, tmp_path):
    from mmblip2 import inference_model
    model = tiny_generator([dict(type='CaptionPrompt', prompt='a photo of')])
    lines = run(model, photos, '--show-dir', tmp_path / 'shown', '--batch-size', '2')
    expected = [f'{photos / name}: {inference_model(model, photos / name)["pred_caption"]}'.splitlines()
                for name in ('a.png', 'b.png')]
    assert lines == [*expected[0], *expected[1], f'pictures: {tmp_path / "shown"}']
    assert names(tmp_path / 'shown') == ['a.png', 'b.png']
    two = run(model, photos / 'a.png', '--num-captions', '2', '--prompt', 'two')
    assert sum(line.startswith(str(photos)) for line in two) == 2
    sampled = [run(model, photos / 'a.png', '--sample', '--seed', seed, '--top-p', '0.9') for seed in (0, 0, 1, 2, 3)]
    assert sampled[0] == sampled[1] and any(lines != sampled[0] for lines in sampled)


def test_answers(run, tiny_generator, photos, tmp_path):
    model = tiny_generator([dict(type='VQAPrompt')], reads_text=True)
    lines = run(model, photos, '--question', 'what is it?', '--show-dir', tmp_path / 'shown')
    assert lines[0].startswith(f'{photos / "a.png"}: what is it? ') and names(tmp_path / 'shown') == ['a.png', 'b.png']


def test_searches_and_comparisons(run, representation, photos, tmp_path):
    texts = ['a red circle', 'two stars', 'a blue square']
    lines = run(representation, photos / 'a.png', '--texts', *texts, '--topk', '2', '--show-dir', tmp_path / 'i2t')
    assert len(lines) == 3 and all(line.split('  ')[-1] in texts for line in lines[:2])
    assert names(tmp_path / 'i2t') == ['a.png']
    found = run(representation, photos, '--find', 'a red circle', '--show-dir', tmp_path / 't2i')
    assert sorted(line.split()[-1] for line in found[:2]) == [str(photos / name) for name in ('a.png', 'b.png')]
    assert len(names(tmp_path / 't2i')) == 1
    compared = run(representation, photos / 'a.png', photos / 'b.png', '--texts', *texts[:2], '--task', 'matching',
                   '--show-dir', tmp_path / 'itm')
    assert [line.split('  ')[-1] for line in compared[:4]] == texts[:2] * 2 and '%' in compared[0]
    assert len(names(tmp_path / 'itm')) == 4


@pytest.mark.parametrize('arguments, message', [
    (['--task', 'vqa'], '--task vqa needs --question'),
    (['--task', 'retrieval'], '--task retrieval needs --texts or --find'),
    (['--texts', 'a', '--find', 'b'], '--task retrieval needs --texts or --find, not both'),
    (['--texts', 'a', '--question', 'b?'], '--texts is for --task retrieval or matching, this is vqa'),
    (['--template', '{}'], '--template is for --task vqa, this is caption'),
    (['--texts', 'a', '--sample', '--seed', '1'], 'writes no text: leave do_sample, seed out'),
    (['--question', 'a?', '--num-captions', '2'], '--num-captions is for --task caption, this is vqa'),
    (['--topk', '3'], '--topk is for --task retrieval, this is caption'),
    (['--texts', 'a', '--task', 'matching', '--topk', '3'], '--topk is for --task retrieval, this is matching'),
    (['--dtype', 'int8'], 'invalid choice'),
])
def test_arguments_that_nothing_would_read_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        demo.parse_args(['a.png', *arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_the_weights_of_the_quickstart_are_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = demo.parse_args(['a.png', '--device', 'cpu'])
    with pytest.raises(ConfigError, match='no weights in work_dirs/quickstart/stage2, seen from .*: run `make demo`'):
        demo.model_arguments(args, 'stage2')
    with pytest.raises(DataError, match='test image of the quickstart .* is not there, .*: run `make demo` once'):
        demo.main([])
    (tmp_path / 'work_dirs/quickstart/stage2').mkdir(parents=True)
    (tmp_path / 'work_dirs/quickstart/stage2/last_checkpoint').touch()
    assert demo.model_arguments(args, 'stage2') == dict(model='work_dirs/quickstart/stage2', device='cpu')
    args = demo.parse_args(['a.png', '--model', 'name', '--pretrained', 'x.pth', '--dtype', 'bfloat16'])
    assert demo.model_arguments(args, 'vqa') == dict(model='name', pretrained='x.pth', dtype='bfloat16')


@pytest.mark.parametrize('name', ['image_demo', 'chat_demo'])
def test_help_and_a_missing_quickstart_are_said_without_torch(tmp_path, name):
    """Both are one message and take no seconds."""
    code = ('import runpy, sys; sys.argv = sys.argv[1:]\n'
            'try:\n    runpy.run_path(sys.argv[0], run_name="__main__")\n'
            'finally:\n    print("torch" in sys.modules)')
    for arguments, said in ((['--help'], '--question'), (['a.png'], 'run `make demo`')):
        found = subprocess.run([sys.executable, '-c', code, str(ROOT / 'demo' / f'{name}.py'), *arguments],
                               cwd=tmp_path, capture_output=True, text=True)
        assert found.stdout.splitlines()[-1] == 'False' and said in found.stdout + found.stderr
        assert found.returncode == (0 if '--help' in arguments else 2) and 'Traceback' not in found.stderr
