"""Checkpoints, resume, frozen parts and the console of the Runner."""
import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from toy_parts import toy_config

from mmblip2.engine import Runner
from mmblip2.engine.random_state import get_random_state
from mmblip2.errors import CheckpointError, ConfigError


def run(work_dir, test=False, **changes):
    """Train (or test) the toy."""
    runner = Runner.from_cfg(Config(toy_config(work_dir, **changes)))
    runner.result = runner.test() if test else runner.train()
    return runner


def weights(runner):
    return {key: value.clone() for key, value in runner.bare_model.state_dict().items()}


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


class Stop(Exception):
    """A process that dies."""


def stop_after(monkeypatch, iters):
    from mmblip2.engine.hooks import FiniteLossHook
    kept = FiniteLossHook.after_train_iter

    def after(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == iters:
            raise Stop
        kept(self, runner, batch_idx, data_batch, outputs)

    monkeypatch.setattr(FiniteLossHook, 'after_train_iter', after)


EPOCHS = dict(train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=1),
              default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
              param_scheduler=[dict(type='LinearLR', by_epoch=True, begin=0, convert_to_iter_based=True)])


@pytest.mark.parametrize('changes', [
    dict(),
    dict(workers=2),
    dict(optim_wrapper=dict(type='AutocastOptimWrapper', dtype='bfloat16', accumulative_counts=2,
                            clip_grad=dict(max_norm=1.), optimizer=dict(type='AdamW', lr=1e-2))),
    EPOCHS,
    {**EPOCHS, 'default_hooks': dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))},
    {**EPOCHS, 'default_hooks': dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=5)), 'workers': 2},
    {**EPOCHS, 'default_hooks': dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=10)), 'size': 18},
    dict(custom_hooks=[dict(type='EMAHook', momentum=0.3)]),
], ids=['plain', 'two_workers', 'accumulation_bf16', 'epochs', 'inside_an_epoch', 'end_of_an_epoch',
        'end_of_an_epoch_that_the_batch_does_not_divide', 'average'])
def test_resumed_run_ends_with_the_weights_of_the_uninterrupted_run(tmp_path, monkeypatch, changes):
    changes = dict(changes)
    if 'by_epoch' in changes.get('train_cfg', {}):
        loader = toy_config('', workers=changes.get('workers', 0))['train_dataloader']
        loader['dataset'] = dict(type='ToyData', size=changes.pop('size', 20))
        changes = {**changes, 'train_dataloader': {**loader, 'sampler': dict(type='SeekableSampler', seed=1)}}
    whole = run(tmp_path / 'whole', **changes)
    with monkeypatch.context() as patch:
        stop_after(patch, 11)
        with pytest.raises(Stop):
            run(tmp_path / 'cut', **changes)
    resumed = run(tmp_path / 'cut', resume=True, **changes)
    assert resumed.iter == whole.iter
    assert equal(weights(whole), weights(resumed))
    assert whole.optim_wrapper.get_lr() == resumed.optim_wrapper.get_lr()


def test_a_resumed_training_takes_the_weights_as_they_are(tmp_path, monkeypatch):
    """Positions of another image size are for tests and new trainings; the optimizer's state has the old shapes."""
    from toy_parts import ToyModel
    run(tmp_path, max_iters=4)
    asked = []
    monkeypatch.setattr(ToyModel, 'adapt_weights', lambda self, state: asked.append(state) or (state, []),
                        raising=False)
    run(tmp_path, max_iters=6, resume=True)
    assert not asked
    run(tmp_path, test=True, load_from=str(tmp_path / 'iter_4.pth'))
    run(tmp_path / 'new', max_iters=1, load_from=str(tmp_path / 'iter_4.pth'))
    assert len(asked) == 2


def test_validation_changes_no_random_number_of_the_training(tmp_path):
    with_val = run(tmp_path / 'a')
    without = run(tmp_path / 'b', val_cfg=None, val_dataloader=None, val_evaluator=None)
    assert equal(weights(with_val), weights(without))


def test_checkpoint_holds_trained_tensors_only_and_loads_with_weights_only(tmp_path):
    run(tmp_path, max_iters=4)
    checkpoint = torch.load(tmp_path / 'iter_4.pth', weights_only=True)
    assert checkpoint['format'] == 'mmblip2/1'
    assert set(checkpoint['state_dict']) == {
        'scale', 'body.0.weight', 'body.0.bias', 'body.1.weight', 'body.1.bias', 'head.weight', 'head.bias'}
    assert checkpoint['meta']['frozen']['vision']['source'] == 'seed 0'
    assert checkpoint['meta']['iter'] == 4 and checkpoint['meta']['config']['model']['type'] == 'ToyModel'
    assert set(checkpoint['optimizer']['state']) == set(checkpoint['state_dict']) - {'scale'}
    assert set(checkpoint) == {
        'format', 'meta', 'state_dict', 'message_hub', 'rng', 'optimizer', 'param_schedulers'}


def test_frozen_parts_are_byte_equal_after_training(tmp_path):
    from toy_parts import ToyModel
    fresh = ToyModel()
    runner = run(tmp_path, max_iters=4)
    assert torch.equal(runner.bare_model.vision.weight, fresh.vision.weight)
    assert not torch.equal(runner.bare_model.head.weight, fresh.head.weight)


def test_resume_takes_the_newest_whole_file_and_says_why_others_were_passed_over(tmp_path, capsys):
    run(tmp_path, max_iters=8)
    newest = tmp_path / 'iter_8.pth'
    newest.write_bytes(newest.read_bytes()[:1000])
    (tmp_path / 'last_checkpoint').write_text('')
    capsys.readouterr()
    runner = run(tmp_path, max_iters=9, resume=True)
    out = capsys.readouterr().out
    assert f'passed over: {newest} is' in out and 'broken' in out
    assert f'resumed from {tmp_path / "iter_4.pth"} at iteration 4' in out
    assert runner.iter == 9


def test_resume_with_broken_files_only_does_not_start_from_scratch(tmp_path):
    (tmp_path / 'iter_4.pth').write_bytes(b'')
    with pytest.raises(CheckpointError, match='no whole checkpoint in .*iter_4.pth is .*Remove these files'):
        run(tmp_path, resume=True)


def test_resume_passes_over_files_of_other_programs(tmp_path, capsys):
    run(tmp_path, max_iters=4)
    torch.save(dict(state_dict=dict(w=torch.ones(1))), tmp_path / 'iter_9.pth')
    (tmp_path / 'iter_8.pth.123.part').write_bytes(b'a save that was cut off')
    capsys.readouterr()
    assert run(tmp_path, max_iters=6, resume=True).iter == 6
    out = capsys.readouterr().out
    assert f'passed over: {tmp_path / "iter_9.pth"} holds weights only' in out and 'iter_4.pth at iteration 4' in out


def test_resume_without_the_files_of_an_earlier_run_does_not_start_from_scratch(tmp_path):
    (tmp_path / 'last_checkpoint').write_text('/gone/iter_4.pth')
    with pytest.raises(CheckpointError, match="names '/gone/iter_4.pth', which is not there.*remove last_checkpoint"):
        run(tmp_path, resume=True)
    run(tmp_path / 'other', max_iters=4)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'other' / 'iter_4.pth'))  # moved, and the pointer with it
    assert run(tmp_path, max_iters=6, resume=True).iter == 6


def test_resume_without_any_checkpoint_says_so(tmp_path, capsys):
    run(tmp_path, max_iters=1, resume=True)
    assert 'no checkpoint in' in capsys.readouterr().out


@pytest.mark.parametrize('changes, message', [
    (dict(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9))),
     'trained with AdamW, CosineAnnealingLR, the config has SGD, CosineAnnealingLR'),
    (dict(param_scheduler=[dict(type='LinearLR', by_epoch=False)]), 'the config has AdamW, LinearLR'),
    ({**EPOCHS, 'param_scheduler': [dict(type='CosineAnnealingLR', by_epoch=False)]}, 'counts iterations.*epochs'),
], ids=['optimizer', 'schedule', 'loop'])
def test_a_resume_with_another_way_of_training_is_refused(tmp_path, changes, message):
    run(tmp_path, max_iters=4)
    with pytest.raises(CheckpointError, match=message):
        run(tmp_path, max_iters=8, resume=True, **changes)


def test_resume_ignores_load_from(tmp_path, capsys):
    run(tmp_path / 'a', max_iters=4)
    run(tmp_path / 'b', max_iters=4)
    runner = run(tmp_path / 'b', max_iters=5, resume=True, load_from=str(tmp_path / 'a' / 'iter_4.pth'))
    assert runner.iter == 5
    assert f'resumed from {tmp_path / "b" / "iter_4.pth"}' in capsys.readouterr().out


@pytest.mark.parametrize('test', [False, True], ids=['resume', 'test'])
def test_other_frozen_part_is_refused(tmp_path, test):
    run(tmp_path, max_iters=4)
    path = str(tmp_path / 'iter_4.pth')
    given = dict(load_from=path) if test else dict(resume=path)
    with pytest.raises(CheckpointError, match="frozen part 'vision' differs.*from seed 1, expected .* from "
                                              "seed 0"):
        run(tmp_path, test=test, model=dict(type='ToyModel', frozen_seed=1), **given)
    with pytest.raises(CheckpointError, match="with a frozen 'vision' .*no frozen part of that name"):
        run(tmp_path, test=test, model=dict(type='ToyModel', freeze=False), **given)


def test_checkpoint_of_another_architecture_names_first_shapes(tmp_path):
    run(tmp_path, max_iters=4, model=dict(type='ToyModel', freeze=False))
    with pytest.raises(CheckpointError, match=r'does not fit the model: .*vision.weight: \(8, 4\) in the '
                                              r'file, '
                                              r'\(6, 4\) in the model.*another architecture'):
        run(tmp_path, test=True, model=dict(type='ToyModel', freeze=False, width=6),
            load_from=str(tmp_path / 'iter_4.pth'))


def test_test_refuses_a_file_without_all_weights(tmp_path):
    run(tmp_path, max_iters=4)
    checkpoint = torch.load(tmp_path / 'iter_4.pth', weights_only=True)
    del checkpoint['state_dict']['head.bias']
    checkpoint['state_dict']['tail.bias'] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / 'less.pth')
    with pytest.raises(CheckpointError, match=r'1 missing in the file \(head.bias\); 1 unknown to the model '
                                              r'\(tail.bias\)'):
        run(tmp_path, test=True, load_from=str(tmp_path / 'less.pth'))


def test_test_equals_last_validation(tmp_path):
    trained = run(tmp_path, max_iters=4)
    last = trained.val_loop.run()
    tested = run(tmp_path, test=True, load_from=str(tmp_path / 'iter_4.pth'))
    assert tested.result == last and last['toy/count'] == 6


@pytest.mark.parametrize('patience, lines', [(0., 2), (1e9, 0)])
def test_a_slow_validation_says_where_it_is(tmp_path, capsys, patience, lines):
    run(tmp_path, train_cfg=dict(type='SeekIterLoop', max_iters=4, val_interval=4),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=50, patience=patience)))
    assert len(re.findall(r'INFO - val [12]/2', capsys.readouterr().out)) == lines


def test_old_files_go_only_after_the_new_one_is_whole(tmp_path, monkeypatch):
    hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=1))
    from mmblip2.checkpoints import io
    seen = []
    kept = io.write_checkpoint

    def write(checkpoint, path):
        kept(checkpoint, path)
        seen.append(sorted(file.name for file in tmp_path.glob('iter_*.pth')))

    monkeypatch.setattr(io, 'write_checkpoint', write)
    run(tmp_path, max_iters=6, default_hooks=hooks)
    assert seen == [['iter_2.pth'], ['iter_2.pth', 'iter_4.pth'], ['iter_4.pth', 'iter_6.pth']]
    assert [file.name for file in tmp_path.glob('*.pth')] == ['iter_6.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_6.pth')


def test_best_checkpoint_is_a_link_and_survives_a_resume(tmp_path):
    hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4, save_best='toy/mean',
                                 rule='greater', max_keep_ckpts=1))
    run(tmp_path, max_iters=4, default_hooks=hooks)
    best = tmp_path / 'best_toy_mean_iter_4.pth'
    assert best.stat().st_ino == (tmp_path / 'iter_4.pth').stat().st_ino
    run(tmp_path, max_iters=8, default_hooks=hooks, resume=True)
    assert len(list(tmp_path.glob('best_*.pth'))) == 1


BEST = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=1, rule='less',
                            save_best='toy/mean'))


def test_a_copied_work_dir_takes_nothing_from_the_original(tmp_path):
    run(tmp_path / 'a', max_iters=4, default_hooks=BEST)
    before = {path.name for path in (tmp_path / 'a').iterdir()}
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')
    runner = run(tmp_path / 'b', max_iters=8, default_hooks=BEST, resume=True)
    assert {path.name for path in (tmp_path / 'a').iterdir()} == before
    assert runner.resumed_from == tmp_path / 'b' / 'iter_4.pth'
    assert [path.name for path in (tmp_path / 'b').glob('best_*')] == ['best_toy_mean_iter_8.pth']


def test_a_file_system_without_links_gets_a_copy(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, 'no links here')

    monkeypatch.setattr(os, 'link', link)
    run(tmp_path, max_iters=4, default_hooks=BEST)
    best = tmp_path / 'best_toy_mean_iter_4.pth'
    assert best.read_bytes() == (tmp_path / 'iter_4.pth').read_bytes() and best.stat().st_nlink == 1


def test_what_a_kill_left_behind_goes_with_the_resume(tmp_path, monkeypatch):
    """The new checkpoint is written, the old one not yet removed; the record of the best one is torn."""
    kept = Path.unlink

    def unlink(self, missing_ok=False):
        if self.name == 'iter_2.pth':
            raise Stop
        kept(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'unlink', unlink)
        with pytest.raises(Stop):
            run(tmp_path, default_hooks=BEST)
    assert sorted(path.name for path in tmp_path.glob('iter_*')) == ['iter_2.pth', 'iter_4.pth']
    (tmp_path / 'best.json').write_text('')
    run(tmp_path, max_iters=4, default_hooks=BEST, resume=True)
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['best_toy_mean_iter_4.pth', 'iter_4.pth']
    assert json.loads((tmp_path / 'best.json').read_text())['toy/mean']['iter'] == 4


@pytest.mark.parametrize('pointer', [b'\xff\xfe\x00\x81', bytes(40), b'x' * 5000, b'iter_2.pth'])
def test_a_torn_pointer_does_not_stop_a_resume(tmp_path, pointer):
    run(tmp_path, max_iters=2)
    (tmp_path / 'last_checkpoint').write_bytes(pointer)
    (tmp_path / 'iter_9.pth').symlink_to(tmp_path / 'gone.pth')
    assert run(tmp_path, max_iters=3, resume=True).resumed_from.name == 'iter_2.pth'


def test_unknown_save_best_names_what_there_is(tmp_path):
    hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4, save_best='toy/men',
                                 rule='greater'))
    with pytest.raises(ConfigError, match="save_best is 'toy/men'.*it gives toy/mean, toy/count"):
        run(tmp_path, max_iters=4, default_hooks=hooks)


def test_checkpoint_inside_an_accumulation_window_is_refused(tmp_path):
    wrapper = dict(type='OptimWrapper', accumulative_counts=3, optimizer=dict(type='SGD', lr=0.1))
    with pytest.raises(ConfigError, match=r'interval \(4\) is no multiple of .*accumulative_counts '
                                          r'\(3\).*use 6'):
        run(tmp_path, optim_wrapper=wrapper)


def test_nan_loss_stops_before_the_next_checkpoint_and_saves_the_batch(tmp_path):
    with pytest.raises(FloatingPointError, match='not finite at iteration 4 .*loss_fit nan.*torch.load.".*rank0.pth", '
                                                 'weights_only=True. gives its inputs and samples'):
        run(tmp_path, model=dict(type='ToyModel', poison=4))
    assert not list(tmp_path.glob('iter_*.pth'))
    listed = json.loads((tmp_path / 'nonfinite_batch_rank0.json').read_text())['samples']
    batch = torch.load(tmp_path / 'nonfinite_batch_rank0.pth', weights_only=True)
    assert [sample['sample_idx'] for sample in batch['samples']] == [row['sample_idx'] for row in listed]
    assert torch.stack(batch['inputs']).shape == (4, 4)


def test_schedule_without_end_ends_with_the_training(tmp_path):
    runner = run(tmp_path, max_iters=12)
    assert runner.optim_wrapper.get_lr()['lr'][0] == pytest.approx(0., abs=2e-4)


def test_run_shorter_than_the_warm_up_is_possible(tmp_path):
    schedule = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=50),
                dict(type='CosineAnnealingLR', by_epoch=False, begin=50)]
    runner = run(tmp_path, max_iters=4, param_scheduler=schedule)
    assert 1e-3 < runner.optim_wrapper.get_lr()['lr'][0] < 2e-3


def test_console_has_at_most_sixteen_lines_before_the_first_iteration(tmp_path, capsys):
    run(tmp_path, max_iters=4)
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if 'train 2/4' in line)
    text = '\n'.join(lines[:first])
    assert first <= 16, text
    assert 'vision: Linear 40, frozen, from seed 0' in text
    assert 'batch 4 = 4 x 1 processes x 1 accumulated' in text
    assert 'img/s' in lines[first] and 'left 0:00:0' in lines[first] and 'lr ' in lines[first]
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'Config:' in log and '\ntransformers: ' in log


def test_missing_launcher_variables_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ConfigError, match='--launcher pytorch: RANK, .*dist_train.sh'):
        run(tmp_path, launcher='pytorch')


def test_random_state_round_trip_is_plain(tmp_path):
    import random

    import numpy as np

    from mmblip2.engine.random_state import set_random_state
    state = get_random_state()
    torch.save(state, tmp_path / 'state.pth')
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    set_random_state(torch.load(tmp_path / 'state.pth', weights_only=True))
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == drawn


def test_the_local_backend_has_every_logged_value(tmp_path):
    run(tmp_path, max_iters=6, visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]))
    file, = tmp_path.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row['iter'] for row in rows if 'loss_fit' in row] == [2, 4, 6]
    assert all(row['samples_per_second'] > 0 for row in rows if 'loss_fit' in row)
    assert [row['step'] for row in rows if 'toy/mean' in row] == [4, 6], 'a curve, not all at 0'


def test_whole_numbers_of_a_validation_are_on_the_console(tmp_path, capsys):
    run(tmp_path, max_iters=4)
    assert re.search('val: toy/mean .*, toy/count 6', capsys.readouterr().out)
