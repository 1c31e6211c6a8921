"""The loop by iterations refuses what it could not resume."""
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from toy_parts import toy_config

from mmblip2.engine import Runner
from mmblip2.errors import ConfigError


def train(tmp_path, **changes):
    runner = Runner.from_cfg(Config(toy_config(tmp_path, **changes)))
    runner.train()
    return runner


def loader(**sampler):
    return {**toy_config('')['train_dataloader'], 'sampler': sampler}


def test_sampler_that_cannot_seek_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="DefaultSampler cannot seek.*use "
                                          "sampler=dict.type='SeekableInfiniteSampler'"):
        train(tmp_path, train_dataloader=loader(type='DefaultSampler', shuffle=True))


def test_data_that_end_too_early_are_an_error(tmp_path):
    with pytest.raises(ConfigError, match='ended at iteration 5 of 12.*SeekableInfiniteSampler'):
        train(tmp_path, train_dataloader=loader(type='SeekableSampler', seed=1))


@pytest.mark.parametrize('cfg', [dict(max_iters=0), dict(max_iters=1.5), dict(max_iters=2, val_interval=0)])
def test_counts_must_be_whole_and_positive(tmp_path, cfg):
    with pytest.raises(ConfigError, match='expected a whole number from 1 on'):
        train(tmp_path, train_cfg=dict(type='SeekIterLoop', **cfg))


def test_validation_runs_at_the_interval_and_at_the_end(tmp_path, monkeypatch):
    from mmblip2.engine.loops import ValLoop
    seen = []
    monkeypatch.setattr(ValLoop, 'run', lambda self: seen.append(self.runner.iter))
    train(tmp_path, train_cfg=dict(type='SeekIterLoop', max_iters=7, val_interval=3, val_begin=4))
    assert seen == [6, 7]


def test_evaluation_has_the_precision_of_the_training(tmp_path):
    wrapper = dict(type='AutocastOptimWrapper', dtype='bfloat16', optimizer=dict(type='SGD', lr=0.01))
    assert train(tmp_path, max_iters=1, optim_wrapper=wrapper).val_loop.autocast == 'bfloat16'
    runner = train(tmp_path, max_iters=1, optim_wrapper=wrapper, val_cfg=dict(autocast='float32'))
    assert runner.val_loop.autocast == 'float32'
