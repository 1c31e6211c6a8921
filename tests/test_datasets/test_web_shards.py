"""Shards are a data set like any other: every sample once an epoch, wherever one begins, whoever reads."""
import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from tar_shards import picture, write_shards, write_tar

from mmblip2.datasets import Draw, SeekableInfiniteSampler, SeekableSampler, WebShards, samplers, tar_files
from mmblip2.datasets.web_shards import expand_braces, find_shards
from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import DATASETS

PIPELINE = [dict(type='LoadImage'), dict(type='CleanCaption'), dict(type='PackInputs')]
SIZES = (7, 5, 0, 9, 4, 6)


@pytest.fixture
def folder(tmp_path):
    """31 samples in 6 shards."""
    write_shards(tmp_path, SIZES)
    return tmp_path


def build(folder, shards='*.tar', **kwargs):
    return WebShards(shards, data_root=str(folder), **{'pipeline': PIPELINE, **kwargs})


def number_of(packed):
    """The number in the picture."""
    red, green, _ = packed['inputs'][:, 0, 0].tolist()
    return red + 256 * green


def draws(dataset, count, seed=3, start=0):
    sampler = SeekableInfiniteSampler(dataset, seed=seed)
    sampler.seek(start)
    return list(islice(iter(sampler), count))


def test_samples_are_read_by_number(folder):
    dataset = build(folder)
    assert len(dataset) == sum(SIZES)
    for index in (0, 6, 7, 11, 12, 30):
        packed = dataset[index]
        assert number_of(packed) == index and packed['data_samples'].text == f'number {index}'
        assert packed['data_samples'].sample_idx == index and 'replaced' not in packed['data_samples']
    assert dataset.get_data_info(12)['img_path'] == f'{folder}/003.tar/00012.png'
    assert dataset.get_data_info(-1)['image_id'] == f'{folder}/005.tar/00030.png'


@pytest.mark.parametrize('group', [1, 2, 64])
def test_every_sample_comes_once_an_epoch(folder, group):
    dataset = build(folder, shuffle_shards=group)
    epochs = np.array(draws(dataset, 31 * 3)).reshape(3, 31).tolist()
    assert all(sorted(epoch) == list(range(31)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])
    assert draws(dataset, 31, seed=4) != epochs[0]
    first = [list(dict.fromkeys(np.searchsorted(np.cumsum(SIZES), epoch, 'right').tolist())) for epoch in epochs]
    assert group > 1 or first[0] != first[1] != first[2], 'the shards, too, are in another order'


def test_few_shards_are_in_use_at_a_time(folder):
    order = draws(build(folder, shuffle_shards=2), 31)
    shards = np.searchsorted(np.cumsum(SIZES), order, 'right').tolist()
    last = {shard: position for position, shard in enumerate(shards)}
    together = [set(shards[shards.index(shard):last[shard] + 1]) for shard in last]
    assert max(map(len, together)) == 2, 'while a shard is drawn from, at most one other is'


@pytest.mark.parametrize('start', [0, 5, 31, 40])
def test_seeking_equals_drawing(folder, start):
    whole = draws(build(folder, shuffle_shards=2), 80)
    rest = draws(build(folder, shuffle_shards=2), 80 - start, start=start)
    assert rest == whole[start:] and [draw.pos for draw in rest] == list(range(start, 80))


def test_three_processes_together_draw_what_one_draws(folder, monkeypatch):
    dataset = build(folder, shuffle_shards=2)
    whole = draws(dataset, 60)
    for rank in range(3):
        monkeypatch.setattr(samplers, 'get_dist_info', lambda: (rank, 3))  # noqa: B023
        assert draws(dataset, 20) == whole[rank::3]


def test_epochs_of_equal_length_are_those_orders_with_their_start_again(folder, monkeypatch):
    dataset = build(folder, shuffle_shards=2)
    epoch = draws(dataset, 62)[31:]
    parts = []
    for rank in range(2):
        monkeypatch.setattr(samplers, 'get_dist_info', lambda: (rank, 2))  # noqa: B023
        sampler = SeekableSampler(dataset, seed=3)
        sampler.set_epoch(1)
        parts.append(list(sampler))
    assert len(parts[0]) == len(parts[1]) == 16
    assert [row for pair in zip(*parts) for row in pair] == [*epoch, epoch[0]]


def test_workers_change_nothing(folder):
    change = {4: dict(png=b'no image'), 20: dict(json=json.dumps(dict(caption=['x', 'y', 'z'])).encode())}
    write_shards(folder, SIZES, change)
    seen = []
    for workers in (0, 2):
        dataset = build(folder, pipeline=[dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=8),
                                          dict(type='PackInputs')])
        loader = DataLoader(dataset, 4, sampler=SeekableInfiniteSampler(dataset, seed=1), num_workers=workers,
                            collate_fn=pseudo_collate)
        batches = list(islice(iter(loader), 9))
        seen.append([(s.text, s.get('replaced'), image.tolist()) for batch in batches
                     for s, image in zip(batch['data_samples'], batch['inputs'])])
    assert seen[0] == seen[1]
    assert any(replaced for _, replaced, _ in seen[0]) and {text for text, _, _ in seen[0]} & {'x', 'y', 'z'}


# ------------------------------------------------------------------------------------------------------ captions

def rows(folder, members, **kwargs):
    write_tar(folder / 'x.tar', {f'1.{ending}': content for ending, content in members.items()})
    return build(folder, 'x.tar', test_mode=True, **kwargs).get_data_info(0)['gt_caption']


@pytest.mark.parametrize('members, captions', [
    (dict(txt=b' a cat \n'), ['a cat']),
    (dict(txt='\ufeffein Kätzchen'.encode()), ['ein Kätzchen']),
    (dict(json=b'{"caption": "a dog", "url": "x"}'), ['a dog']),
    (dict(json=b'{"caption": ["a", "b", "", "a"]}', txt=b'b'), ['a', 'b', 'a']),
    (dict(json=b'["a", "b"]'), ['a', 'b']),
    (dict(json=b'{"caption": "a dog"}', txt=b'a dog'), ['a dog']),
    (dict(json=b'{"url": "x"}', txt=b'a dog'), ['a dog']),
    (dict(json=b'{"caption": null}', txt=b'a dog'), ['a dog']),
])
def test_captions_are_those_of_every_layout(tmp_path, members, captions):
    assert rows(tmp_path, {'jpg': picture(1, 'jpg'), **members}) == captions


def test_captions_of_the_web_and_of_a_model_are_mixed(tmp_path):
    members = {'webp': picture(1, 'webp'), 'json': b'{"caption": "IMG 3", "synthetic": ["a cat", "a red cat"]}'}
    key = ['json.synthetic', 'json.caption']
    assert rows(tmp_path, members, caption_key=key) == ['a cat', 'a red cat', 'IMG 3']
    assert rows(tmp_path, members, caption_key=key, max_captions=2) == ['a cat', 'a red cat']
    training = build(tmp_path, 'x.tar', caption_key=key)
    drawn = [training[Draw(0, 1, pos)]['data_samples'].text for pos in range(300)]
    assert {text: 70 < drawn.count(text) < 130 for text in drawn} == {'a cat': True, 'a red cat': True, 'img 3': True}
    assert drawn == [training[Draw(0, 1, pos)]['data_samples'].text for pos in range(300)]


def test_several_different_captions_are_drawn(tmp_path):
    write_shards(tmp_path, (1, ), {0: dict(json=b'{"caption": ["a", "b", "c"]}')})
    training = build(tmp_path, captions_per_image=2)
    drawn = [training[Draw(0, 1, pos)]['data_samples'].text for pos in range(60)]
    assert {tuple(texts) for texts in drawn} == {(a, b) for a in 'abc' for b in 'abc' if a != b}
    with pytest.raises(ConfigError, match='captions_per_image of WebShards is 0: expected a whole number from 1 on'):
        build(tmp_path, captions_per_image=0)


def test_evaluation_sees_all_captions_and_the_annotated_id(folder):
    write_shards(folder, SIZES, {0: dict(json=b'{"caption": ["A.", "b"], "image_id": "coco_17"}')})
    dataset = build(folder, test_mode=True)
    row = dataset[0]['data_samples']
    assert (row.image_id, row.gt_caption, row.texts) == (17, ['A.', 'b'], ['a', 'b'])
    assert dataset.texts[:3] == ['a', 'b', 'number 1'] and dataset.text_to_image[:4] == [0, 0, 1, 2]
    exchanged = build(folder, test_mode=True, shuffle_images=True)
    numbers = [number_of(exchanged[i]) for i in range(31)]
    assert sorted(numbers) == list(range(31)) and all(i != number for i, number in enumerate(numbers))
    assert exchanged[3]['data_samples'].gt_caption == ['number 3']


def test_subsets(folder):
    assert [number_of(item) for item in map(build(folder, indices=[30, 2]).__getitem__, range(2))] == [30, 2]
    dataset = build(folder, indices=10, test_mode=True)
    assert len(dataset) == len(dataset.texts) == 10 and sorted(draws(dataset, 10)) == list(range(10))
    assert dataset.get_subset([4]).texts == ['number 4'] and len(dataset) == 10
    dataset.get_subset_(-2)
    assert dataset.texts == ['number 8', 'number 9']


# --------------------------------------------------------------------------------------------------- bad samples

BAD = {
    'an image that is none': (dict(png=b'no image'), 'cannot read image .*00003.png .*UnidentifiedImageError'),
    'half an image': (dict(png=picture(3)[:40]), 'cannot read image'),
    'an empty image': (dict(png=b''), r'the file is empty \(0 bytes\)'),
    'no image': (dict(png=None), "it has no image, only .'json'.: expected one of .* .image_key"),
    'no text': (dict(json=None), 'it has no caption, or an empty one: its members are .*png.*caption_key'),
    'empty text': (dict(json=b'{"caption": " . "}'), 'it has no caption, or an empty one'),
    'wrong JSON': (dict(json=b'{"caption": '), 'its .json cannot be read: Expecting value'),
    'no UTF-8': (dict(json=b'{"caption": "\xff"}'), 'its .json cannot be read: .*utf-8'),
    'another type': (dict(json=b'{"caption": 5}'), 'its json.caption is 5: expected a text or a list of texts'),
}


@pytest.mark.parametrize('change, message', BAD.values(), ids=BAD)
def test_a_bad_sample_is_replaced_in_training_and_an_error_in_evaluation(tmp_path, change, message):
    write_shards(tmp_path, (4, 4), {3: change})
    dataset = build(tmp_path)
    packed = dataset[Draw(3, 7, 11)]
    note, = packed['data_samples'].replaced
    assert note.startswith(f'{tmp_path}/000.tar/00003: ')
    assert number_of(packed) != 3 and packed['data_samples'].sample_idx == number_of(packed)
    assert number_of(dataset[Draw(3, 7, 11)]) == number_of(packed)
    assert len({number_of(dataset[Draw(3, 7, pos)]) for pos in range(40)}) == 7, 'by another one at each draw'
    with pytest.raises(DataError, match=message):
        build(tmp_path, test_mode=True)[3]
    assert build(tmp_path).problem(3).startswith(note[:60]) and build(tmp_path).problem(2) is None


def test_a_set_of_bad_samples_is_an_error(tmp_path):
    write_shards(tmp_path, (3, ), {i: dict(json=None) for i in range(3)})
    with pytest.raises(DataError, match=r'20 samples of .*\*\.tar, drawn one after the other, are bad; the first: '
                                        r'.*000.tar/00001: it has no caption'):
        build(tmp_path)[Draw(1, 0, 0)]


def test_a_mistake_in_the_pipeline_is_no_bad_sample(folder):
    with pytest.raises(ConfigError, match='misplace patch_labels'):
        build(folder, pipeline=[lambda results: dict(results, patch_labels=1),
                                dict(type='RandomResizedCrop', scale=8)])[0]


def test_a_cut_shard_is_an_error_unless_allowed(folder):
    path = folder / '003.tar'
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(DataError, match=r'1 of 6 shards are cut off or damaged, the first is .*003.tar at byte \d+, '
                                        r'after \d whole samples: copy them again, or set allow_cut=True'):
        build(folder)
    dataset = build(folder, allow_cut=True)
    whole = tar_files.open_tar(str(path)).summary.samples
    assert 0 < whole < 9 and len(dataset) == 31 - 9 + whole
    assert number_of(dataset[12 + whole - 1]) == 12 + whole - 1 and number_of(dataset[12 + whole]) == 21


def test_a_shard_that_changes_under_a_run_stops_it(folder):
    dataset = build(folder)
    write_shards(folder, (8, ))
    with pytest.raises(DataError, match='000.tar had 7 samples when the run began and has 8 now.*--resume'):
        dataset[Draw(0, 0, 0)]
    assert len(build(folder)) == 32


# -------------------------------------------------------------------------------------------------------- shards

def test_names_of_shards(folder):
    assert expand_braces('{a,b}/{08..10}.tar') == [f'{x}/{n}.tar' for x in 'ab' for n in ('08', '09', '10')]
    assert find_shards(['{004..005}.tar', '00[01].tar'], str(folder)) == [
        f'{folder}/{n}.tar' for n in ('004', '005', '000', '001')]
    with pytest.raises(ConfigError, match=r'\{5..3\} in .* runs backwards'):
        expand_braces('{5..3}.tar')
    with pytest.raises(DataError, match='000.tar twice'):
        find_shards(['*.tar', '000.tar'], str(folder))
    with pytest.raises(DataError, match=r'no file is called .*x\*\.tar: check shards and data_root'):
        find_shards('x*.tar', str(folder))
    for stream in ('pipe:cat x.tar', 's3://bucket/x.tar', 'https://host/x.tar'):
        with pytest.raises(ConfigError, match='is a stream.*WebStream'):
            build(folder, stream)


def test_missing_shards_are_named(folder):
    with pytest.raises(DataError, match=r'2 of 8 shards cannot be used: shard .*006.tar cannot be opened \(No'):
        build(folder, '{000..007}.tar')


@pytest.mark.parametrize('kwargs, message', [
    (dict(ann_file='x'), 'WebShards has no ann_file'), (dict(shuffle_shards=0), 'shuffle_shards of WebShards is 0'),
    (dict(max_captions=0), 'max_captions is 0')])
def test_arguments_are_checked(folder, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        build(folder, **kwargs)


def test_empty_shards_are_an_error(tmp_path):
    write_shards(tmp_path, (0, 0))
    with pytest.raises(DataError, match='WebShards is empty: 2 shards of .* have no sample'):
        build(tmp_path)


def test_it_is_built_from_a_config_and_listed_for_tools(folder):
    dataset = DATASETS.build(dict(type='WebShards', shards='*.tar', data_root=str(folder), lazy_init=True))
    paths = [row['img_path'] for row in dataset.load_data_list()]
    assert len(paths) == 31 and paths[:2] == [f'{folder}/000.tar/0000{i}.png' for i in (0, 1)]
