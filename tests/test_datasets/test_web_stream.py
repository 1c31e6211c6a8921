"""A stream gives every sample of every shard, dealt out to all workers, and resumes from whole shards."""
import sys
from collections import Counter
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from tar_shards import write_shards
from web_streams import Traced, config, numbers, read_without_package

from mmblip2.datasets import web_stream
from mmblip2.datasets.web_stream import StreamLoader
from mmblip2.engine import Runner
from mmblip2.errors import ConfigError, DataError
from mmblip2.utils import config_check

SIZES = (5, 3, 4, 6, 2)


@pytest.fixture
def folder(tmp_path):
    write_shards(tmp_path, SIZES)
    return tmp_path


@pytest.fixture(autouse=True)
def without_package(monkeypatch, request):
    if 'by_webdataset' not in request.node.name:
        read_without_package(monkeypatch)


def build(folder, urls=None, **kwargs):
    return Traced(urls or f'{folder}/{{000..004}}.tar', **{
        'samples': 20, 'pipeline': [dict(type='NumberOfImage')], 'shuffle': 1, 'seed': 3, **kwargs})


@pytest.mark.parametrize('shuffle', [1, 7])
def test_every_sample_comes_once_an_epoch(folder, shuffle):
    drawn = numbers(islice(iter(build(folder, shuffle=shuffle)), 60))
    if shuffle == 1:
        assert all(sorted(drawn[start:start + 20]) == list(range(20)) for start in (0, 20, 40))
        assert drawn[:20] != drawn[20:40] != drawn[40:]
    assert set(Counter(drawn).values()) <= {2, 3, 4} and drawn == numbers(
        islice(iter(build(folder, shuffle=shuffle)), 60)), 'and the same again'
    assert max(abs(a - b) for a, b in zip(drawn, drawn[1:])) > 1


def test_samples_have_one_or_several_captions(tmp_path):
    write_shards(tmp_path, (2, ), dict.fromkeys((0, 1), dict(json=b'{"caption": ["a", "b", "c"]}')))
    drawn = {}
    for count in (None, 2):
        stream = build(tmp_path, f'{tmp_path}/000.tar', captions_per_image=count)
        texts = [item['data_samples'].text for item in islice(iter(stream), 60)]
        drawn[count] = set(texts) if count is None else set(map(tuple, texts))
    assert drawn == {None: set('abc'), 2: {(a, b) for a in 'abc' for b in 'abc' if a != b}}
    with pytest.raises(ConfigError, match="captions_per_image of WebStream is '2': expected a whole number from 1 on"):
        build(tmp_path, captions_per_image='2')


def test_processes_share_the_shards(folder, monkeypatch):
    drawn = []
    for rank in range(2):
        monkeypatch.setattr(web_stream, 'get_dist_info', lambda: (rank, 2))  # noqa: B023
        stream = build(folder)
        samples = list(islice(iter(stream), 25))
        assert {sample['data_samples'].stream_at[0] for sample in samples} == {rank}
        turns = [sample['data_samples'].stream_at[1] for sample in samples]
        drawn += [(rank + 2 * turn, number) for turn, number in zip(turns, numbers(samples))]
    first_epoch = [number for shard, number in drawn if shard < 5]
    assert sorted(first_epoch) == list(range(20)), 'together they read each shard once'


@pytest.mark.parametrize('shuffle', [1, 4])
@pytest.mark.parametrize('consumed', [1, 4, 11, 33])
def test_a_resume_leaves_none_out_and_repeats_what_is_not_through(folder, consumed, shuffle):
    whole = list(islice(iter(build(folder, shuffle=shuffle)), 100))
    stream = build(folder, shuffle=shuffle)
    stream.seek(1)
    stream.note([item['data_samples'] for item in islice(iter(stream), consumed)])
    position = stream.position(1, stream.turns)
    other = build(folder, shuffle=shuffle)
    message = other.seek(1, position)
    assert 'resumed from whole shards' in message and 'none is left out' in message
    rest = numbers(islice(iter(other), 100 - consumed))
    again = position['turns'][0]
    assert [item['data_samples'].stream_at[1] for item in whole[:consumed]][-1] == again
    later = min(item['data_samples'].question_id for item in whole[consumed:])
    assert again <= later <= again + (shuffle == 1), 'of no shard before it a sample is still to come'
    if shuffle == 1:
        start = [item['data_samples'].stream_at[1] for item in whole].index(again)
        assert start <= consumed and rest == numbers(whole)[start:start + len(rest)]


def test_a_resume_with_other_workers_begins_with_the_earliest_shard(folder):
    stream = build(folder)
    position = dict(slots=2, turns=[3, 1])  # global numbers 6 and 3
    assert 'from number 3 on are read again' in stream.seek(3, position)
    assert [stream._turn_of(slot, 3) for slot in range(3)] == [1, 1, 1], 'global numbers 3, 4, 5'
    assert stream.position(3, {1: 4})['turns'] == [1, 4, 1]


def test_bad_samples_and_broken_shards_are_noted_with_the_next_one(folder):
    write_shards(folder, SIZES, {3: dict(json=None), 9: dict(png=b'none')})
    (folder / '001.tar').write_bytes(b'nothing' * 100)
    notes = []
    stream = iter(build(folder))
    drawn = [next(stream) for _ in range(30)]
    for item in drawn:
        notes += item['data_samples'].get('replaced', [])
    assert not set(numbers(drawn)) & {3, 5, 6, 7, 9}
    assert any('000.tar/00003: it has no caption' in note for note in notes)
    assert any('002.tar/00009: ' in note and 'Unidentified' in note for note in notes)
    assert any('001.tar: DataError: ' in note and 'what is behind its 0 samples is left out' in note for note in notes)


def test_a_stream_without_samples_ends_with_a_message(folder):
    with pytest.raises(DataError, match='10 shards in a row have no sample, the last is .*none.tar: check urls'):
        next(iter(build(folder, f'{folder}/none.tar')))
    write_shards(folder, (150, ), {number: dict(json=None) for number in range(150)})
    with pytest.raises(DataError, match='100 samples in a row are bad; the first: .*it has no caption'):
        next(iter(build(folder, f'{folder}/000.tar')))


@pytest.mark.parametrize('kwargs, message', [
    (dict(samples=0), 'samples of WebStream is 0'), (dict(shuffle=0.5), 'shuffle of WebStream is 0.5'),
    (dict(pipeline=[lambda results: results]), 'has to end with PackInputs')])
def test_arguments_are_checked(folder, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        next(iter(build(folder, **kwargs)))


def test_without_the_package_the_start_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr(web_stream, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match='pip install webdataset'):
        build(folder)


def test_a_stream_takes_no_sampler(folder):
    with pytest.raises(ConfigError, match='leave sampler out'):
        StreamLoader(dict(dataset=dict(type='WebStream', urls='x', samples=1), batch_size=2,
                          sampler=dict(type='SeekableInfiniteSampler')))


# -------------------------------------------------------------------------------------------------------- a training

@pytest.mark.parametrize('workers', [0, 2])
def test_a_training_resumes_from_whole_shards_and_says_so(folder, tmp_path, workers):
    first = Runner.from_cfg(config(folder, tmp_path / 'work', workers, max_iters=4))
    first.train()
    slots = max(workers, 1)
    at = first.message_hub.runtime_info['stream_position']
    assert at['slots'] == slots and max(at['turns']) > 0
    log = next((tmp_path / 'work').glob('*/*.log')).read_text()
    assert 'a stream of 5 shards, about 20 samples: a resume of this run will begin with whole shards' in log
    second = Runner.from_cfg(config(folder, tmp_path / 'work', workers, resume=True))
    second.train()
    logs = ''.join(path.read_text() for path in (tmp_path / 'work').glob('*/*.log'))
    assert f'resumed from whole shards: each of the {slots} workers begins its shard again' in logs
    after = second.message_hub.runtime_info['stream_position']
    assert second.iter == 9 and all(b >= a for a, b in zip(at['turns'], after['turns'])) and at != after


def test_what_a_stream_cannot_do_is_found_before_anything_is_built(folder, tmp_path):
    cfg = config(folder, tmp_path)
    config_check.check_config(cfg)
    cfg.train_dataloader.sampler = dict(type='SeekableInfiniteSampler')
    cfg.train_cfg = dict(max_epochs=2)
    with pytest.raises(ConfigError, match='(?s)2 problems.*leave sampler out.*training by iterations'):
        config_check.check_config(cfg)


@pytest.mark.skipif(find_spec('webdataset') is None, reason='needs the package webdataset')
def test_pipes_are_read_by_webdataset(folder):
    drawn = numbers(islice(iter(build(folder, f'pipe:cat {folder}/{{000..004}}.tar')), 40))
    assert sorted(drawn) == sorted([*range(20), *range(20)])
    (folder / '001.tar').write_bytes((folder / '001.tar').read_bytes()[:4000])
    notes = []
    commands = [f'pipe:cat {folder}/000.tar', f'pipe:cat {folder}/001.tar', f'pipe:cat {folder}/none.tar 2>/dev/null',
                f'pipe:cat {folder}/002.tar; exit 3']
    for item in islice(iter(build(folder, commands)), 60):
        notes += item['data_samples'].get('replaced', [])
    for name in ('001.tar', 'none.tar', '002.tar'):
        assert any(note.startswith('pipe:cat') and name in note and 'is left out' in note for note in notes), name
    assert not [note for note in notes if '000.tar' in note]
