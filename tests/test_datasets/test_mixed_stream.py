"""Streams by ratio: shares are exact, each stream goes through its own epochs and resumes as it would alone."""
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from mmengine.config import Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from tar_shards import write_shards
from web_streams import Traced, config, numbers, read_without_package

from mmblip2.datasets import MixedDataset, MixedStream
from mmblip2.engine import Runner
from mmblip2.errors import ConfigError, DataError
from mmblip2.utils import config_check

SIZES = ((5, 3, 4), (6, 2))


@pytest.fixture(autouse=True)
def without_package(monkeypatch):
    read_without_package(monkeypatch)


@pytest.fixture
def folders(tmp_path):
    for name, sizes in zip('ab', SIZES):
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, sizes)
    return tmp_path / 'a', tmp_path / 'b'


def stream(folder, **kwargs):
    return Traced(f'{folder}/{{000..00{len(list(folder.glob("*.tar"))) - 1}}}.tar', **{
        'samples': 10, 'pipeline': [dict(type='NumberOfImage')], 'shuffle': 1, **kwargs})


def build(folders, ratios=(3, 1), window=8, **kwargs):
    return MixedStream([stream(folder) for folder in folders], ratios, window, **{'seed': 3, **kwargs})


def owners(packed):
    return [item['data_samples'].stream_at[2] for item in packed]


def test_shares_are_exact_and_each_stream_goes_through_its_epochs(folders):
    drawn = list(islice(iter(build(folders)), 64))
    found = owners(drawn)
    assert all(Counter(found[start:start + 8]) == {0: 6, 1: 2} for start in range(0, 64, 8))
    assert len({tuple(found[start:start + 8]) for start in range(0, 64, 8)}) > 1, 'in random order'
    for owner, sizes in enumerate(SIZES):
        mine = numbers([item for item in drawn if item['data_samples'].stream_at[2] == owner])
        whole = sum(sizes)
        assert sorted(mine[:whole]) == list(range(whole))
    assert numbers(drawn) == numbers(islice(iter(build(folders)), 64)), 'and the same again'
    assert numbers(drawn) != numbers(islice(iter(build(folders, seed=4)), 64))


def test_a_resume_is_that_of_each_stream(folders):
    before = build(folders)
    before.seek(1)
    before.note([item['data_samples'] for item in islice(iter(before), 43)])
    position = before.position(1, before.turns)
    after = build(folders)
    text = after.seek(1, position)
    assert text.count('resumed from whole shards') == 2
    turns = [at['turns'][0] for at in position['streams']]
    assert min(turns) > 0
    for owner, first in enumerate(turns):
        begun = next(item for item in iter(after) if item['data_samples'].stream_at[2] == owner)['data_samples']
        assert begun.stream_at[1] == first and begun.sample_idx == 0, 'it begins with the shard that was not through'


def test_a_checkpoint_of_other_streams_is_refused(folders):
    mixed = build(folders)
    mixed.seek(1)
    of_mix = mixed.position(1, {})
    alone = stream(folders[0], seed=3)
    alone.seek(1)
    with pytest.raises(DataError, match='the position of 1 streams, the config mixes 2'):
        mixed.seek(1, alone.position(1, {}))
    with pytest.raises(DataError, match='the position of 2 streams, the config has one'):
        alone.seek(1, of_mix)


def test_seeds_of_their_own_stay(folders):
    parts = [stream(folders[0], seed=7), stream(folders[1])]
    MixedStream(parts, (1, 1), seed=3)
    assert parts[0].seed == 7 and parts[1].seed not in (None, 3)


@pytest.mark.parametrize('kwargs, message', [
    (dict(ratios=(1, )), 'MixedStream has 2 streams and 1 ratios'),
    (dict(ratios=(1, 0)), r'ratios of MixedStream are \[1, 0\]: expected positive numbers'),
    (dict(ratios=(1000, 1)), r'ratio 1 of streams\[1\] is .* set window=1001 or more')])
def test_ratios_are_checked(folders, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        build(folders, **kwargs)


def test_kinds_are_not_mixed(folders):
    with pytest.raises(ConfigError, match=r'streams\[0\] of MixedStream is a list: expected a WebStream'):
        MixedStream([[1, 2]], (1, ))
    with pytest.raises(ConfigError, match='MixedDataset cannot mix WebStream.*or MixedStream'):
        MixedDataset([dict(type='mmblip2.WebStream', urls='a.tar', samples=1)], (1, ))


def mixed_config(folders, work_dir, *args, **kwargs):
    cfg = config(folders[0], work_dir, *args, **kwargs)
    one = cfg.train_dataloader.dataset
    parts = [dict(one, urls=f'{folder}/{{000..00{len(sizes) - 1}}}.tar') for folder, sizes in zip(folders, SIZES)]
    cfg.train_dataloader.dataset = dict(type='MixedStream', streams=parts, ratios=(3, 1), window=4)
    return Config(cfg.to_dict())


@pytest.mark.parametrize('workers', [0, 2])
def test_a_training_resumes(folders, tmp_path, workers):
    first = Runner.from_cfg(mixed_config(folders, tmp_path / 'work', workers, max_iters=4))
    first.train()
    at = first.message_hub.runtime_info['stream_position']
    assert [part['slots'] for part in at['streams']] == [max(workers, 1)] * 2 and max(at['streams'][0]['turns']) > 0
    second = Runner.from_cfg(mixed_config(folders, tmp_path / 'work', workers, resume=True))
    second.train()
    logs = ''.join(path.read_text() for path in (tmp_path / 'work').glob('*/*.log'))
    assert '2 streams by ratio: a stream of 3 shards' in logs and logs.count('begins its shard again') == 2
    assert second.iter == 9


def test_parts_are_checked_before_anything_is_built(folders, tmp_path):
    cfg = mixed_config(folders, tmp_path)
    config_check.check_config(cfg)
    cfg.train_dataloader.dataset.streams[1].shufle = 3
    with pytest.raises(ConfigError, match=r'dataset\.streams\[1\].*shufle'):
        config_check.check_config(cfg)


def test_without_the_package_the_start_says_what_to_install(folders, tmp_path, monkeypatch):
    cfg = mixed_config(folders, tmp_path)
    monkeypatch.setattr(config_check, 'find_spec', lambda name: None if name == 'webdataset' else True)
    with pytest.raises(ConfigError, match='pip install webdataset'):
        config_check.check_config(cfg)
