"""Preemption and averaged weights."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

DATA = Path(__file__).resolve().parents[1] / 'data'
sys.path.insert(0, str(DATA))
from toy_parts import toy_config  # noqa: E402

from mmblip2.checkpoints import io  # noqa: E402
from mmblip2.engine import Runner  # noqa: E402
from mmblip2.engine.ema import EMAHook  # noqa: E402
from mmblip2.engine.preempt import PreemptHook  # noqa: E402
from mmblip2.errors import CheckpointError, ConfigError  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = dict(train_cfg=dict(by_epoch=True, max_epochs=3),
              default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1)))


def runner_of(work_dir, **changes):
    return Runner.from_cfg(Config(toy_config(work_dir, **changes)))


def weights(runner):
    return {key: value.clone() for key, value in runner.bare_model.state_dict().items()}


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.fixture
def term_at(monkeypatch):
    """Send this process a SIGTERM in an iteration of the training, or in a batch of a validation."""
    def at(iteration, method='after_train_iter'):
        def hook(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter + (method == 'after_train_iter') == iteration and not self.told:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)  # the handler has run
            kept(self, runner, batch_idx, data_batch, outputs)
        kept = getattr(PreemptHook, method)
        monkeypatch.setattr(PreemptHook, method, hook)
    return at


# ------------------------------------------------------------------------------------------ preemption

@pytest.mark.parametrize('told, saved, method, changes', [
    (5, 'iter_5.pth', 'after_train_iter', dict()),
    (8, 'iter_8.pth', 'after_train_iter', dict()),
    (5, 'iter_6.pth', 'after_train_iter', dict(optim_wrapper=dict(
        type='OptimWrapper', accumulative_counts=2, optimizer=dict(type='AdamW', lr=1e-2)))),
    (4, 'iter_4.pth', 'after_val_iter', dict()),
    (7, 'iter_7.pth', 'after_train_iter', EPOCHS),
    (10, 'iter_10.pth', 'after_train_iter', EPOCHS),
    (7, 'iter_7.pth', 'after_train_iter', dict(custom_hooks=[dict(type='EMAHook', momentum=0.3)])),
    (4, 'iter_4.pth', 'after_val_iter', dict(custom_hooks=[dict(type='EMAHook', momentum=0.3)])),
], ids=['plain', 'at an interval', 'accumulation', 'validation', 'inside an epoch', 'end of an epoch', 'average',
        'average in a validation'])
def test_sigterm_saves_exits_with_143_and_loses_nothing(tmp_path, term_at, monkeypatch, told, saved, method, changes):
    if 'by_epoch' in changes.get('train_cfg', {}):
        loader = toy_config('')['train_dataloader']
        changes = {**changes, 'train_dataloader': {**loader, 'sampler': dict(type='SeekableSampler', seed=1)}}
    whole = runner_of(tmp_path / 'whole', **changes)
    whole.train()
    with monkeypatch.context():
        handler = signal.getsignal(signal.SIGTERM)
        term_at(told, method)
        with pytest.raises(SystemExit) as left:
            runner_of(tmp_path / 'cut', **changes).train()
        monkeypatch.undo()
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    assert (tmp_path / 'cut' / 'last_checkpoint').read_text().endswith(saved)
    resumed = runner_of(tmp_path / 'cut', resume=True, **changes)
    resumed.train()
    assert resumed.iter == whole.iter and equal(weights(whole), weights(resumed))
    if changes.get('train_cfg'):  # the file of the preemption goes with the next checkpoint
        assert [path.name for path in (tmp_path / 'cut').glob('*.pth')] == ['epoch_3.pth']


def test_the_newest_file_of_an_epoch_based_run_is_told_by_its_iterations(tmp_path):
    for name, iteration in (('epoch_9.pth', 90), ('iter_85.pth', 85), ('epoch_10.pth', 100)):
        io.write_checkpoint(dict(format=io.FORMAT, meta=dict(iter=iteration), state_dict=dict(w=torch.ones(1))),
                            tmp_path / name)
    assert [path.name for path in io.find_checkpoints(tmp_path)] == ['epoch_10.pth', 'epoch_9.pth', 'iter_85.pth']


def test_a_training_with_workers_comes_to_its_end_quietly(tmp_path):
    """Python tells workers to end by SIGTERM and waits for them; these do not listen to it."""
    Path(tmp_path / 'short.py').write_text(Config(toy_config(tmp_path / 'work', max_iters=4, workers=2)).pretty_text)
    run = subprocess.run([sys.executable, str(ROOT / 'tools/train.py'), str(tmp_path / 'short.py')], text=True,
                         capture_output=True, timeout=240,
                         env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(DATA)])})
    assert run.returncode == 0 and 'Traceback' not in run.stderr, run.stderr[-2000:]


@pytest.mark.slow
def test_sigterm_to_all_processes_of_a_training_with_workers(tmp_path):
    """What a cluster does: the workers of the data loader are told, too, and go on until the training has saved."""
    config = toy_config(tmp_path / 'work', max_iters=4000, workers=2)
    Path(tmp_path / 'long.py').write_text(Config(config).pretty_text)
    with open(tmp_path / 'out.txt', 'w') as out:
        training = subprocess.Popen(
            [sys.executable, str(ROOT / 'tools/train.py'), str(tmp_path / 'long.py')], stdout=out, stderr=out,
            start_new_session=True, env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(DATA)])})
        try:
            deadline = time.monotonic() + 120
            while not list((tmp_path / 'work').glob('iter_*.pth')) and time.monotonic() < deadline:
                assert training.poll() is None, (tmp_path / 'out.txt').read_text()
                time.sleep(0.05)
            os.killpg(training.pid, signal.SIGTERM)
            status = training.wait(timeout=60)
        finally:
            if training.poll() is None:
                os.killpg(training.pid, signal.SIGKILL)
    text = (tmp_path / 'out.txt').read_text()
    assert status == 143 and 'SIGTERM: saved at iteration' in text and 'Traceback' not in text, text
    newest = io.find_checkpoints(tmp_path / 'work')[0]
    assert io.read_checkpoint(newest)['meta']['iter'] == int(newest.stem[5:])


# --------------------------------------------------------------------------------------------- average

def test_average_of_the_weights_is_the_formula_and_is_what_a_test_loads(tmp_path, monkeypatch):
    steps = []
    kept = EMAHook.after_train_iter

    def after(self, runner, batch_idx, data_batch=None, outputs=None):
        kept(self, runner, batch_idx, data_batch, outputs)
        steps.append(runner.bare_model.head.weight.detach().clone())

    monkeypatch.setattr(EMAHook, 'after_train_iter', after)
    hooks = [dict(type='EMAHook', momentum=0.3, begin_iter=2)]
    runner = runner_of(tmp_path, custom_hooks=hooks)
    runner.train()
    expected = steps[1]
    for step in steps[2:]:
        expected = expected + 0.3 * (step - expected)
    saved = io.read_checkpoint(tmp_path)
    torch.testing.assert_close(saved['state_dict']['head.weight'], expected)
    assert torch.equal(saved['raw']['head.weight'], steps[-1])
    assert torch.equal(runner.bare_model.head.weight, steps[-1])
    assert not any(key.startswith('vision') for key in saved['raw'])
    tested = runner_of(tmp_path / 'test', load_from=str(tmp_path))
    metrics = tested.test()
    torch.testing.assert_close(tested.bare_model.head.weight, expected)
    validated = runner.val()  # of the averaged weights, too
    assert validated['toy/mean'] == pytest.approx(metrics['toy/mean'], abs=1e-3)
    assert torch.equal(runner.bare_model.head.weight, steps[-1])


def test_averaged_weights_are_not_trained_on_by_mistake(tmp_path):
    runner_of(tmp_path, custom_hooks=[dict(type='EMAHook')]).train()
    with pytest.raises(CheckpointError, match=r"written with EMAHook.*put dict\(type='EMAHook'\) into custom_hooks"):
        runner_of(tmp_path, resume=True, max_iters=16).train()
    with pytest.raises(ConfigError, match='momentum is 1.0'):
        EMAHook(momentum=1.)


# ---------------------------------------------------------------------------------------- rarer moments

def epochs(**changes):
    loader = toy_config('')['train_dataloader']
    return {**EPOCHS, 'train_dataloader': {**loader, 'sampler': dict(type='SeekableSampler', seed=1)}, **changes}


def test_told_twice_within_seconds_is_told_once(tmp_path, monkeypatch):
    """The cluster tells every process, and torchrun tells its workers again."""
    kept = PreemptHook.after_train_iter

    def tell(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 4:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
        kept(self, runner, batch_idx, data_batch, outputs)

    monkeypatch.setattr(PreemptHook, 'after_train_iter', tell)
    with pytest.raises(SystemExit):
        runner_of(tmp_path).train()
    assert (tmp_path / 'iter_5.pth').is_file()


@pytest.mark.parametrize('duration, expected', [(0.01, 20), (1., 13), (8., 12)], ids=['fast', 'second', 'slow'])
def test_several_processes_stop_within_seconds_however_long_an_iteration_takes(monkeypatch, duration, expected):
    """Told in iteration 11, another process is the slow one; they are killed 30 seconds later."""
    from types import SimpleNamespace

    from mmblip2.engine import preempt
    hook, clock = PreemptHook(), [0.]
    monkeypatch.setattr(preempt, 'time', SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(preempt, 'gather_objects', lambda own: [own, (own[0], duration)])
    monkeypatch.setattr(preempt.signal, 'signal', lambda *_: None)
    monkeypatch.setattr(PreemptHook, 'stop', lambda self, runner: stopped.append(runner.iter))
    stopped = []
    runner = SimpleNamespace(iter=0, accumulation_window=1, world_size=2)
    hook.before_train(runner)
    while not stopped:
        runner.iter += 1
        clock[0] += 0.01
        if runner.iter == 11:
            hook._tell(signal.SIGTERM, None)
        hook.between_iterations(runner)
    assert stopped[0] <= expected and (stopped[0] - 11) * duration < 10


def test_the_validation_that_was_due_comes_after_the_resume(tmp_path, term_at, monkeypatch):
    term_at(4, 'after_val_iter')
    with pytest.raises(SystemExit):
        runner_of(tmp_path).train()
    monkeypatch.undo()
    resumed = runner_of(tmp_path, resume=True)
    seen = []
    kept = resumed.build_val_loop

    def build(loop):
        loop = kept(loop)
        validate = loop.run
        loop.run = lambda: (seen.append(resumed.iter), validate())[1]
        return loop

    resumed.build_val_loop = build
    resumed.train()
    assert seen == [4, 8, 12]


def test_files_of_others_stay(tmp_path):
    io.write_checkpoint(dict(format=io.FORMAT, meta=dict(iter=99), state_dict=dict(w=torch.ones(1))),
                        tmp_path / 'iter_99.pth')
    (tmp_path / 'iter_5.pth.77.part').write_bytes(b'cut off')
    runner_of(tmp_path, **epochs()).train()
    assert sorted(path.name for path in tmp_path.glob('*.pth*')) == ['epoch_3.pth', 'iter_99.pth']


def test_inside_an_epoch_that_cannot_be_sought_nothing_is_saved(tmp_path, term_at):
    loader = toy_config('')['train_dataloader']
    term_at(7)
    with pytest.raises(SystemExit):
        runner_of(tmp_path, **epochs(train_dataloader={**loader, 'sampler': dict(
            type='DefaultSampler', shuffle=True, seed=1)})).train()
    assert [path.name for path in tmp_path.glob('*.pth')] == ['epoch_1.pth']


@pytest.mark.parametrize('batch_size', [2, 10])
def test_another_batch_size_goes_on_at_the_end_of_an_epoch_and_not_inside(tmp_path, batch_size, term_at, monkeypatch):
    runner_of(tmp_path, **epochs(train_cfg=dict(by_epoch=True, max_epochs=1))).train()
    loader = {**epochs()['train_dataloader'], 'batch_size': batch_size}
    resumed = runner_of(tmp_path, resume=True, **epochs(train_dataloader=loader))
    resumed.train()
    assert resumed.iter == 3 * 20 // batch_size and resumed.epoch == 3
    term_at(7)
    with pytest.raises(SystemExit):
        runner_of(tmp_path / 'inside', **epochs()).train()
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=f'an epoch with 4 samples an iteration, now there are {batch_size}'):
        runner_of(tmp_path / 'inside', resume=True, **epochs(train_dataloader=loader)).train()


def test_weights_that_are_no_numbers_never_replace_a_checkpoint(tmp_path):
    from mmengine.hooks import Hook

    class Poison(Hook):
        priority = 'HIGH'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 7:
                with torch.no_grad():
                    runner.bare_model.head.weight.fill_(float('nan'))

    runner = runner_of(tmp_path)
    runner.register_hook(Poison())
    with pytest.raises(FloatingPointError, match='head.weight is not finite at iteration 8: iter_8.pth is not written'):
        runner.train()
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_4.pth']


def test_an_epoch_that_ends_inside_an_accumulation_window_is_refused(tmp_path):
    wrapper = dict(type='OptimWrapper', accumulative_counts=2, optimizer=dict(type='AdamW', lr=1e-2))
    with pytest.raises(ConfigError, match=r'an epoch has 5 iterations, which is no multiple of .*_counts \(2'):
        runner_of(tmp_path, **epochs(optim_wrapper=wrapper)).train()


def test_a_resume_prefers_the_file_of_this_run_to_an_older_one_with_more_iterations(tmp_path):
    for name, age in (('iter_12.pth', 100), ('iter_4.pth', 20), ('iter_8.pth', 10)):
        (tmp_path / name).write_bytes(b'')
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    assert io.find_checkpoints(tmp_path)[0].name == 'iter_12.pth'
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_8.pth'))
    assert [path.name for path in io.find_checkpoints(tmp_path)] == ['iter_8.pth', 'iter_4.pth', 'iter_12.pth']


def test_a_score_that_is_no_number_is_never_the_best(tmp_path, monkeypatch):
    scores = iter([float('nan'), 2., 3.])
    from toy_parts import ToyMetric
    monkeypatch.setattr(ToyMetric, 'compute_metrics', lambda self, results: dict(mean=next(scores)))
    runner_of(tmp_path, default_hooks=dict(checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=4, save_best='toy/mean', rule='greater'))).train()
    assert [path.name for path in tmp_path.glob('best*.pth')] == ['best_toy_mean_iter_12.pth']
