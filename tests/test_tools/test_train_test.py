"""tools/train.py and tools/test.py as a user starts them: another folder, paths with spaces, several
processes."""
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).resolve().parents[1] / 'data'
sys.path.insert(0, str(DATA))
from toy_parts import toy_config  # noqa: E402

from mmblip2.errors import MMBlip2Error  # noqa: E402

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1', 'PYTHONPATH': str(DATA),
       'CUDA_VISIBLE_DEVICES': '', 'PYTHON': sys.executable}


def call(*args, cwd, expect=0):
    result = subprocess.run([str(arg) for arg in args], cwd=cwd, env=ENV, capture_output=True, text=True,
                            timeout=300)
    assert result.returncode == expect, result.stdout + result.stderr
    return result


def tool(name, *args, cwd, expect=0):
    return call(sys.executable, ROOT / 'tools' / f'{name}.py', *args, cwd=cwd, expect=expect)


def main(name, *args):
    """The tool's main in this process."""
    import importlib.util
    spec = importlib.util.spec_from_file_location(f'tools_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(arg) for arg in args])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a space in its name, a config, and a finished training in its default work dir."""
    folder = tmp_path_factory.mktemp('with space')
    config = toy_config('')
    del config['work_dir']
    config['test_dataloader'] = json.loads(json.dumps(config['test_dataloader']))
    config['test_dataloader']['dataset']['size'] = 7
    Config(config).dump(folder / 'toy config.py')
    tool('train', 'toy config.py', '--amp', '--cfg-options', 'train_cfg.max_iters=4', cwd=folder)
    return folder


@pytest.fixture
def checkpoint(folder):
    return folder / 'work_dirs' / 'toy config' / 'iter_4.pth'


@pytest.mark.parametrize('name', ['train', 'test'])
def test_help_answers_without_torch(tmp_path, name):
    (tmp_path / 'torch.py').write_text('raise SystemExit("torch was imported")')
    start = time.time()
    command = [sys.executable, str(ROOT / 'tools' / f'{name}.py'), '--help']
    result = subprocess.run(command, capture_output=True, text=True, env={**ENV, 'PYTHONPATH': str(tmp_path)})
    assert result.returncode == 0 and '--cfg-options' in result.stdout and time.time() - start < 20


def test_training_writes_into_the_default_work_dir(checkpoint):
    assert torch.load(checkpoint, weights_only=True)['meta']['iter'] == 4
    assert 'loss_scaler' in torch.load(checkpoint, weights_only=True)['optimizer']


def test_metrics_and_predictions_are_written(folder, checkpoint, monkeypatch):
    monkeypatch.chdir(folder)
    main('test', 'toy config.py', checkpoint, '--out', 'out/metrics.json', '--dump', 'out/pred.json')
    metrics = json.loads((folder / 'out' / 'metrics.json').read_text())
    records = json.loads((folder / 'out' / 'pred.json').read_text())
    assert metrics['toy/count'] == 7
    assert [record['sample_idx'] for record in records] == list(range(7))
    mean = sum(float(record['pred_text']) for record in records) / 7
    assert metrics['toy/mean'] == pytest.approx(mean)
    main('test', 'toy config.py', checkpoint, '--out', 'out/again.json', '--out-item', 'pred')
    assert json.loads((folder / 'out' / 'again.json').read_text()) == records


def test_resume_flag_takes_the_newest_or_the_given_file(folder, checkpoint, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    shared = ('--amp', '--no-validate', '--cfg-options', 'train_cfg.max_iters=5')
    main('train', 'toy config.py', '--resume', '--work-dir', checkpoint.parent, *shared)
    out = capsys.readouterr().out
    assert f'resumed from {checkpoint} at iteration 4' in out and 'val: ' not in out
    main('train', 'toy config.py', '--resume', checkpoint, '--work-dir', 'other', *shared)
    assert f'resumed from {checkpoint} at iteration 4' in capsys.readouterr().out
    (checkpoint.parent / 'iter_5.pth').unlink()


@pytest.mark.parametrize('name, args, message', [
    ('train', ['toy config.py', '--cfg-options', 'model.widht=3'], "'widht' is not in model"),
    ('train', ['toy config.py', '--cfg-options', '+model.widht=3'], "model.widht: ToyModel has no argument "
                                                                    "'widht'"),
    ('train', ['toy config.py', '--auto-scale-lr'], 'has no auto_scale_lr.base_batch_size'),
    ('train', ['toy config.py', '--resume', 'none.pth'], 'checkpoint none.pth not found'),
    ('train', ['toy config.py', '--work-dir', 'new', '--cfg-options', '+load_from=none.pth', '+model.widht=3'],
     "has no argument 'widht'; did you mean 'width'?\n  load_from: checkpoint none.pth not found"),
    ('test', ['toy config.py', 'none.pth'], 'checkpoint none.pth not found'),
    ('test', ['toy config.py', 'toy config.py'], 'toy config.py is no checkpoint'),
])
def test_mistakes_are_told(folder, monkeypatch, name, args, message):
    monkeypatch.chdir(folder)
    with pytest.raises(MMBlip2Error) as error:
        main(name, *args)
    assert message in str(error.value)


def test_dump_of_unknown_kind_is_refused(capsys):
    with pytest.raises(SystemExit):
        main('test', 'a.py', 'a.pth', '--dump', 'a.txt')
    assert 'a.txt: predictions are written as .json or .pkl' in capsys.readouterr().err


def test_pictures_are_drawn_by_a_hook_that_a_fresh_process_finds(folder, checkpoint):
    result = tool('test', 'toy config.py', checkpoint, '--show-dir', 'pictures', '--interval', '0', cwd=folder,
                  expect=2)
    assert 'PredictionVisualizationHook: interval must be 1 or more, got 0' in result.stderr


def test_mistake_ends_with_one_message_and_code_two(folder):
    result = tool('train', 'none.py', cwd=folder, expect=2)
    assert result.stderr.startswith('ConfigError: config file none.py not found: ') and result.stderr.count('\n') == 1


def test_two_processes_train_and_test_as_one(folder, monkeypatch):
    """Two ranks with batch 2 see the data of one rank with batch 4; the test counts every sample once."""
    # SGD: Adam's first steps turn the rounding noise of a vanishing gradient into whole steps.
    options = ['--cfg-options', '+model.dropout=0.', 'train_dataloader.batch_size=2', 'train_cfg.max_iters=4',
               'optim_wrapper.optimizer.type=SGD']
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        monkeypatch.setitem(ENV, 'PORT', str(probe.getsockname()[1]))
    call('bash', ROOT / 'tools' / 'dist_train.sh', 'toy config.py', 2, '--work-dir', 'two', *options,
         cwd=folder)
    options[2] = 'train_dataloader.batch_size=4'
    tool('train', 'toy config.py', '--work-dir', 'one', *options, cwd=folder)
    two, one = (torch.load(folder / name / 'iter_4.pth', weights_only=True) for name in ('two', 'one'))
    assert len(two['rng']) == 2
    for key, value in one['state_dict'].items():
        assert torch.allclose(value, two['state_dict'][key], atol=1e-5), key
    call('bash', ROOT / 'tools' / 'dist_test.sh', 'toy config.py', 'two/iter_4.pth', 2, '--dump', 'two.json',
         '--out', 'two_metrics.json', cwd=folder)
    tool('test', 'toy config.py', 'two/iter_4.pth', '--dump', 'one.json', '--out', 'one_metrics.json',
         cwd=folder)
    records = [json.loads((folder / name).read_text()) for name in ('two.json', 'one.json')]
    assert [[record['sample_idx'] for record in run] for run in records] == [list(range(7))] * 2
    values = [[float(record['pred_text']) for record in run] for run in records]
    assert values[0] == pytest.approx(values[1], abs=1.1e-3)  # three digits are written; batches differ
    assert json.loads((folder / 'two_metrics.json').read_text()) == pytest.approx(
        json.loads((folder / 'one_metrics.json').read_text()), abs=1.1e-3)


@pytest.mark.parametrize('name, count', [('dist_train.sh', 2), ('dist_test.sh', 3)])
def test_launch_scripts_say_what_they_need(tmp_path, name, count):
    result = call('bash', ROOT / 'tools' / name, cwd=tmp_path, expect=2)
    assert f'bash tools/{name} CONFIG' in result.stderr
