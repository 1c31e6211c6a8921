"""A mix draws by ratio, exactly over a window, and goes through each source in that source's own epochs."""
import re
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch.utils.data import DataLoader, IterableDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from tar_shards import write_shards
from toy_parts import toy_config

from mmblip2.datasets import MixedDataset, SeekableInfiniteSampler, SeekableSampler, TextCorpus, WebShards, samplers
from mmblip2.errors import ConfigError
from mmblip2.registry import DATASETS
from mmblip2.utils.config_check import check_config


@pytest.fixture
def sources(tmp_path):
    """7 and 11 samples in shards and 5 lines of text."""
    for name, sizes in (('a', (3, 4)), ('b', (5, 6))):
        write_shards(tmp_path / name, sizes, start=100 * 'ab'.index(name))
    (tmp_path / 'c.txt').write_text('\n'.join(f'line {i}' for i in range(5)))
    pipeline = [lambda results: results]
    return [WebShards('*.tar', data_root=str(tmp_path / name), shuffle_shards=1, pipeline=pipeline) for name in 'ab'
            ] + [TextCorpus(str(tmp_path / 'c.txt'), pipeline=pipeline)]


def draws(dataset, count, start=0, **kwargs):
    sampler = SeekableInfiniteSampler(dataset, **{'seed': 1, **kwargs})
    sampler.seek(start)
    return list(islice(iter(sampler), count))


def source_of(index):
    return 'a' if index < 7 else 'b' if index < 18 else 'c'


@pytest.mark.parametrize('shuffle', [True, False])
def test_shares_are_exact_over_every_window(sources, shuffle):
    mix = MixedDataset(sources, ratios=(5, 2.5, 2.5), window=20)
    drawn = draws(mix, 200, shuffle=shuffle)
    windows = [drawn[start:start + 20] for start in range(0, 200, 20)]
    assert all(Counter(map(source_of, window)) == dict(a=10, b=5, c=5) for window in windows)
    patterns = {tuple(map(source_of, window)) for window in windows}
    assert len(patterns) == (10 if shuffle else 1)
    if not shuffle:
        assert ''.join(next(iter(patterns))[:8]) == 'abcaabca'


def test_each_source_has_its_own_epochs(sources):
    drawn = draws(MixedDataset(sources, ratios=(3, 1, 1), window=5), 5 * 77)
    for name, size, first in (('a', 7, 0), ('b', 11, 7), ('c', 5, 18)):
        own = [index - first for index in drawn if source_of(index) == name]
        for start in range(0, len(own) - size + 1, size):
            assert sorted(own[start:start + size]) == list(range(size))


@pytest.mark.parametrize('start', [3, 40, 77])
def test_seeking_equals_drawing(sources, start):
    whole = draws(MixedDataset(sources, ratios=(3, 2, 1), window=12), 120)
    rest = draws(MixedDataset(sources, ratios=(3, 2, 1), window=12), 120 - start, start=start)
    assert rest == whole[start:] and rest[0].pos == start


def test_two_processes_together_draw_what_one_draws(sources, monkeypatch):
    mix = MixedDataset(sources, ratios=(3, 2, 1), window=12)
    whole = draws(mix, 60)
    for rank in range(2):
        monkeypatch.setattr(samplers, 'get_dist_info', lambda: (rank, 2))  # noqa: B023
        assert draws(mix, 30) == whole[rank::2]


def test_workers_change_nothing(sources):
    mix = MixedDataset(sources, ratios=(3, 2, 1), window=12)
    seen = []
    for workers in (0, 2):
        loader = DataLoader(mix, 3, sampler=SeekableInfiniteSampler(mix, seed=1), num_workers=workers, collate_fn=list)
        seen.append([(row.get('caption', row.get('target')), row['rng'].random())
                     for batch in islice(iter(loader), 12) for row in batch])
    assert {text.split()[0] for text, _ in seen[0]} == {'number', 'line'}
    assert seen[0] == seen[1]


def test_an_epoch_is_as_many_draws_as_there_are_samples(sources):
    mix = MixedDataset(sources, ratios=(3, 2, 1), window=12)
    sampler = SeekableSampler(mix, seed=1)
    sampler.set_epoch(1)
    assert len(mix) == len(sampler) == 23 and list(sampler) == draws(mix, 23, start=23)


def test_a_mix_of_mixes_keeps_all_ratios(sources):
    inner = dict(type='MixedDataset', datasets=sources[:2], ratios=(3, 1), window=4)
    with DefaultScope.overwrite_default_scope('mmblip2'):
        outer = MixedDataset([inner, sources[2]], ratios=(2, 1), window=12)
    assert Counter(map(source_of, draws(outer, 1200))) == dict(a=600, b=200, c=400)


def test_sources_of_one_size_are_shuffled_differently(tmp_path):
    for name in 'ab':
        (tmp_path / name).write_text('\n'.join(map(str, range(30))))
    drawn = draws(MixedDataset([TextCorpus(str(tmp_path / name)) for name in 'ab'], (1, 1), window=2), 60)
    assert [index for index in drawn if index < 30] != [index - 30 for index in drawn if index >= 30]


@pytest.mark.parametrize('ratios, window, message', [
    ((1, 2), 10, '3 datasets and 2 ratios'),
    ((1, 0, 2), 10, r'ratios of MixedDataset are \[1, 0, 2\]: expected positive numbers; take out'),
    ((1, '2', 2), 10, 'expected positive numbers'),
    ((1, 100, 100), 100, r'ratio 1 of datasets\[0\] is 0.005 of all.*of a window of 100: set window=201 or more'),
])
def test_ratios_are_checked(sources, ratios, window, message):
    with pytest.raises(ConfigError, match=message):
        MixedDataset(sources, ratios, window)


def test_a_stream_cannot_be_mixed_by_number(sources):
    class Stream(IterableDataset):
        metainfo: dict = {}

        def full_init(self):
            pass

        def __len__(self):
            return 1

        def __iter__(self):
            return iter(())

    DATASETS.register_module(name='TestStreamOfMix', module=Stream, force=True)
    with DefaultScope.overwrite_default_scope('mmblip2'), pytest.raises(
            ConfigError, match='cannot mix Stream.*use WebShards'):
        MixedDataset([sources[0], dict(type='TestStreamOfMix')], (1, 1))


@pytest.mark.parametrize('sampler, around, message', [
    ('SeekableInfiniteSampler', None, None),
    ('DefaultSampler', None, 'train_dataloader.sampler: DefaultSampler knows nothing of the ratios of MixedDataset; '
                             'use SeekableInfiniteSampler or SeekableSampler'),
    ('SeekableInfiniteSampler', 'RepeatDataset', 'train_dataloader.dataset.dataset: the ratios of a MixedDataset '
                                                 'inside of RepeatDataset would be lost; make it the outermost'),
])
def test_ratios_that_would_be_lost_are_found_in_the_config(tmp_path, sampler, around, message):
    cfg = toy_config(tmp_path)
    part = dict(type='TextCorpus', ann_file='x.txt')
    inner = dict(type='MixedDataset', datasets=[part], ratios=[1])
    mix = dict(type='MixedDataset', datasets=[part, inner], ratios=(1, 2))
    cfg['train_dataloader'].update(sampler=dict(type=sampler),
                                   dataset=dict(type=around, times=2, dataset=mix) if around else mix)
    if message is None:
        check_config(Config(cfg))
    else:
        with pytest.raises(ConfigError, match=re.escape(message)):
            check_config(Config(cfg))
