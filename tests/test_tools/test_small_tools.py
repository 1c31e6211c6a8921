"""The small tools, each run through its main()."""
import importlib.util
import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).resolve().parents[1] / 'data'
sys.path.insert(0, str(DATA))
from toy_parts import toy_config  # noqa: E402

from mmblip2.checkpoints import io  # noqa: E402
from mmblip2.errors import CheckpointError, ConfigError, DataError  # noqa: E402


def load(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / 'tools' / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(path, *args):
    """The tool's main in this process."""
    load(path).main([str(arg) for arg in args])


# ------------------------------------------------------------------------------------------- print_config

def test_config_is_printed_with_bases_and_options_resolved(capsys, tmp_path):
    (tmp_path / 'base.py').write_text('a = dict(b=1, c=2)\n')
    (tmp_path / 'leaf.py').write_text('_base_ = ["base.py"]\na = dict(b=3)\n')
    main('misc/print_config.py', tmp_path / 'leaf.py', '--cfg-options', 'a.c=4', '--out', tmp_path / 'out.py')
    assert Config.fromstring(capsys.readouterr().out, '.py').a == dict(b=3, c=4)
    assert Config.fromfile(tmp_path / 'out.py').a == dict(b=3, c=4)


# ------------------------------------------------------------------------------------------ publish_model

@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / 'work' / 'iter_3.pth'
    io.write_checkpoint(dict(format=io.FORMAT, meta=dict(iter=3, config='x = 1'), state_dict=dict(w=torch.ones(2)),
                             optimizer=dict(state={}), rng=[1], message_hub={}), path)
    return path


@pytest.mark.parametrize('name', ['blip2-opt2.7b.pth', 'blip2-opt2.7b'])
def test_published_file_has_weights_and_meta_only_and_its_hash_in_the_name(checkpoint, tmp_path, capsys, name):
    main('model_converters/publish_model.py', checkpoint.parent, tmp_path / 'out' / name)
    file, = (tmp_path / 'out').iterdir()
    assert file.name == f'blip2-opt2.7b-{sha256(file.read_bytes()).hexdigest()[:8]}.pth'
    assert set(torch.load(file, weights_only=True)) == {'format', 'meta', 'state_dict'}
    published = io.read_checkpoint(file)
    assert published['meta']['iter'] == 3 and torch.equal(published['state_dict']['w'], torch.ones(2))
    assert 'left out: optimizer, rng, message_hub' in capsys.readouterr().out


def test_a_key_that_is_not_there_cannot_be_kept(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match='has no ema, only format'):
        main('model_converters/publish_model.py', checkpoint, tmp_path / 'out.pth', '--save-keys', 'meta', 'ema')


# ------------------------------------------------------------------------------------------- analyze_logs

@pytest.fixture
def log(tmp_path):
    """A work directory with an old and a new run."""
    for number, run in enumerate(('20260101_000000', '20260102_000000')):
        file = tmp_path / 'work' / run / 'vis_data' / 'scalars.json'
        file.parent.mkdir(parents=True)
        lines = [dict(loss=3. + number, time=9., step=20), dict(loss=1.5, time=0.2, step=40),
                 {'caption/CIDEr': 80., 'step': 40}, dict(loss=2., time=0.4, step=60)]
        file.write_text('\n'.join(map(json.dumps, lines)))
        os.utime(file, (number, number))
    return tmp_path / 'work'


def test_values_of_the_newest_run_are_printed(log, capsys):
    main('analysis_tools/analyze_logs.py', 'print', log, '--keys', 'loss', 'caption/CIDEr')
    loss, cider = capsys.readouterr().out.splitlines()
    assert loss.endswith('loss: 3 values, first 4 at 20, last 2 at 60, lowest 1.5 at 40, highest 4 at 20')
    assert 'caption/CIDEr: 1 values, first 80 at 40' in cider


def test_time_leaves_out_the_first_window(log, capsys):
    main('analysis_tools/analyze_logs.py', 'cal_train_time', log)
    assert '0.3000 s an iteration, fastest 0.2000, slowest 0.4000' in capsys.readouterr().out
    main('analysis_tools/analyze_logs.py', 'cal_train_time', log, '--include-outliers')
    assert '3.2000 s an iteration' in capsys.readouterr().out


def test_curves_are_drawn(log, tmp_path):
    out = tmp_path / 'curves.png'
    main('analysis_tools/analyze_logs.py', 'plot_curve', log, log, '--keys', 'loss', '--out', out, '--legend', 'a', 'b')
    assert out.read_bytes()[:4] == b'\x89PNG'


@pytest.mark.parametrize('args, message', [
    (('print', '{log}', '--keys', 'los'), "has no 'los', it has: caption/CIDEr, loss, step, time"),
    (('print', '{log}/..', '--keys', 'caption'), "has no 'caption'"),
    (('print', '{log}/nothing'), 'nothing not found: give a work directory'),
    (('print', '{empty}'), 'has no vis_data/scalars.json below it'),
    (('plot_curve', '{log}', '--legend', 'a', 'b'), r'--legend has 2 names for 1 logs x 1 keys'),
])
def test_wrong_logs_and_keys_are_named(log, tmp_path, args, message):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match=message):
        main('analysis_tools/analyze_logs.py', *[arg.format(log=log, empty=tmp_path / 'empty') for arg in args])


def test_a_file_that_is_no_log_is_refused(tmp_path):
    file = tmp_path / 'config.json'
    file.write_text('{"a": 1}')
    with pytest.raises(DataError, match='config.json is not a log of scalars: expected lines such as'):
        main('analysis_tools/analyze_logs.py', 'print', file)


# ------------------------------------------------------------------------------------------ vis_scheduler

SCHEDULE = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=4),
            dict(type='CosineAnnealingLR', by_epoch=False, begin=4, eta_min=0.)]


def write(folder, **changes):
    path = folder / 'toy.py'
    Config(toy_config('work', param_scheduler=SCHEDULE, **changes)).dump(path)
    return path


def test_drawn_learning_rates_are_those_of_a_training(tmp_path, monkeypatch):
    from mmblip2.engine import Runner
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(write(tmp_path, max_iters=8, val_dataloader=None, val_cfg=None, val_evaluator=None))
    tool = load('visualizations/vis_scheduler.py')
    drawn, = tool.curves(cfg, list(tool.learning_rates(cfg)), *tool.training_length(cfg, None, 1))
    runner, seen = Runner.from_cfg(cfg), []
    monkeypatch.setattr(runner, 'call_hook', lambda name, call=runner.call_hook, **kwargs: (
        seen.append(runner.optim_wrapper.get_lr()['lr'][0]) if name == 'before_train_iter' else None,
        call(name, **kwargs)))
    runner.train()
    assert len(drawn) == 8 and drawn == pytest.approx(seen)


def test_picture_has_a_curve_for_each_learning_rate(tmp_path, capsys):
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.),
                   paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=0.5)}))
    path = tmp_path / 'pictures' / 'lr.png'
    main('visualizations/vis_scheduler.py', write(tmp_path, optim_wrapper=wrapper), '-s', path)
    body, head, _ = capsys.readouterr().out.splitlines()
    assert path.read_bytes()[:4] == b'\x89PNG'
    assert body.startswith('1: body.0.weight and 3 more: starts at 0.1, highest 1 at iteration 4')
    assert head.startswith('0.5: head.weight and 1 more: starts at 0.05, highest 0.5')


def test_epochs_need_the_size_of_the_data_set(tmp_path, capsys):
    epochs = write(tmp_path, train_cfg=dict(by_epoch=True, max_epochs=2))
    with pytest.raises(ConfigError, match='trains for 2 epochs: give --dataset-size'):
        main('visualizations/vis_scheduler.py', epochs)
    main('visualizations/vis_scheduler.py', epochs, '-d', 33, '-n', 2, '-s', tmp_path / 'lr.png')
    assert 'after 10 iterations' in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------- slurm

def test_slurm_scripts_start_the_tools(tmp_path):
    (tmp_path / 'srun').write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / 'srun').chmod(0o755)
    env = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'GPUS': '4', 'SRUN_ARGS': '--quotatype=auto --x',
           'PYTHON': 'py'}
    script = '; '.join(f'bash "{ROOT}/tools/slurm_{name}.sh" part job "my config.py" "{target}" {rest}' for
                       name, target, rest in (('train', 'work dir', '--amp'), ('test', 'c.pth', '--out m.json')))
    result = subprocess.run(['bash', '-c', script], env=env, capture_output=True, text=True, check=True)
    srun = ['--partition=part', '--job-name=job', '--gres=gpu:4', '--ntasks=4', '--ntasks-per-node=4',
            '--cpus-per-task=5', '--kill-on-bad-exit=1', '--quotatype=auto', '--x', 'py', '-u']
    assert result.stdout.splitlines() == [
        *srun, f'{ROOT}/tools/train.py', 'my config.py', '--work-dir', 'work dir', '--launcher', 'slurm', '--amp',
        *srun, f'{ROOT}/tools/test.py', 'my config.py', 'c.pth', '--launcher', 'slurm', '--out', 'm.json']
