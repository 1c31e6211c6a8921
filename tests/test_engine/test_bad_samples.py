"""Bad samples are counted over all processes and workers, listed, and stop the run when there are too many."""
import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from tar_shards import write_shards
from toy_parts import toy_config

from mmblip2.datasets.transforms import LoadImage
from mmblip2.engine import Runner, bad_samples
from mmblip2.engine.bad_samples import BadSamplesHook
from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import TRANSFORMS
from mmblip2.structures import DataSample

BAD = (3, 8, 13)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shards')
    write_shards(folder, (6, 5, 9), {number: dict(json=None) for number in BAD})
    return folder


@TRANSFORMS.register_module()
class CornerOfImage:
    """Four numbers: the corner of the picture, and random numbers of the draw."""

    def __call__(self, results):
        red = LoadImage()(results)['image'].getpixel((0, 0))[0]
        sample = DataSample(sample_idx=results['sample_idx'], text=results['caption'])
        return dict(inputs=torch.tensor([red / 20, *results['rng'].random(3)]).float(), data_samples=sample)


def runner(folder, work_dir, workers=0, max_iters=15, hook=None, checkpoint=4, **changes):
    """A run over the 20 samples, a batch of 4: an epoch has 5 iterations."""
    config = toy_config(work_dir, max_iters, workers, **changes)
    config['train_dataloader']['dataset'] = dict(type='WebShards', shards='*.tar', data_root=str(folder),
                                                 pipeline=[dict(type='CornerOfImage')])
    config['default_hooks'].update(
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=checkpoint),
        bad_samples=dict(type='BadSamplesHook', **(hook or dict(max_bad=100))))
    for key in ('val', 'test'):
        for part in ('dataloader', 'cfg', 'evaluator'):
            config.pop(f'{key}_{part}')
    config['train_cfg'] = dict(type='SeekIterLoop', max_iters=max_iters)
    return Runner.from_cfg(Config(config))


def listed(work_dir):
    path = Path(work_dir, 'bad_samples.jsonl')
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.mark.parametrize('workers', [0, 2])
def test_every_bad_sample_is_listed_with_its_iteration(folder, tmp_path, workers):
    run = runner(folder, tmp_path, workers)
    run.train()
    found = listed(tmp_path)
    assert {line['sample'].split(':')[0] for line in found} == {f'{folder}/00{s}.tar/{n:05d}' for s, n in
                                                                zip((0, 1, 2), BAD)}
    assert len(found) >= 9 and 'it has no caption' in found[0]['sample'], 'three an epoch, and bad replacements'
    assert run.message_hub.runtime_info['bad_samples'] == len(found)
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert log.count('bad sample, replaced by another one: ') == 3, 'each is said once'


def test_too_many_stop_the_run_with_a_list(folder, tmp_path):
    with pytest.raises(DataError, match=r'[56] bad samples among \d+ drawn, allowed is 4: the training stops at '
                                        r'iteration \d+\. All are listed in .*bad_samples.jsonl, the latest '
                                        r'are\n  .*it has no caption(.|\n)*max_bad, and go on with --resume'):
        runner(folder, tmp_path, hook=dict(max_bad=4), checkpoint=1).train()
    stopped = max(int(path.stem[5:]) for path in tmp_path.glob('iter_*.pth'))
    run = runner(folder, tmp_path, resume=True)
    run.train()
    whole = runner(folder, tmp_path / 'whole')
    whole.train()
    assert 0 < stopped < 15 and listed(tmp_path) == listed(tmp_path / 'whole')
    assert all(map(torch.equal, run.model.state_dict().values(), whole.model.state_dict().values()))


def test_a_share_is_of_ten_thousand_samples_at_least(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(bad_samples, '_FEWEST', 20)
    with pytest.raises(DataError, match=r'bad samples among \d+ drawn, allowed is a share of 0.05 of 20'):
        runner(folder, tmp_path, hook=dict(max_bad=0.05)).train()
    runner(folder, tmp_path / 'more', hook=dict(max_bad=0.9)).train()


@pytest.mark.parametrize('max_bad', [-1, 1.0, True, '3'])
def test_the_limit_is_checked(max_bad):
    with pytest.raises(ConfigError, match='max_bad of BadSamplesHook is .*expected a whole number, or a share'):
        BadSamplesHook(max_bad)


def test_a_resume_counts_and_lists_on(folder, tmp_path):
    runner(folder, tmp_path / 'a').train()
    runner(folder, tmp_path / 'b', max_iters=10, checkpoint=4).train()
    for path in tmp_path.glob('b/iter_10.pth'):  # as if it had been killed after its checkpoint at 8
        path.unlink()
    with open(tmp_path / 'b' / 'bad_samples.jsonl', 'a') as file:
        file.write('{"iter": 9, "sample": "of the time after the checkpoint"}\n{"iter": 11, "sam')
    run = runner(folder, tmp_path / 'b', resume=True)
    run.train()
    assert listed(tmp_path / 'a') == listed(tmp_path / 'b')
    assert run.message_hub.runtime_info['bad_samples'] == len(listed(tmp_path / 'a'))


def test_a_resume_with_other_shards_is_warned_of(folder, tmp_path):
    write_shards(tmp_path / 'data', (6, 5))
    runner(tmp_path / 'data', tmp_path / 'work', max_iters=2).train()
    write_shards(tmp_path / 'data', (6, 5, 9))
    runner(tmp_path / 'data', tmp_path / 'work', max_iters=3, resume=True).train()
    logs = ''.join(path.read_text() for path in tmp_path.glob('work/*/*.log'))
    assert 'iter_2.pth: the training data had 11 samples, now there are 20: they come in another order' in logs
