import json
import pickle

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from PIL import Image
from torch.utils.data import DataLoader

from mmblip2.datasets import COCOCaption, Draw, SeekableInfiniteSampler, TextCorpus
from mmblip2.datasets.base import derange, missing_files
from mmblip2.errors import ConfigError, DataError

PIPELINE = [dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=8), dict(type='RandomFlip'),
            dict(type='CleanCaption'), dict(type='PackInputs')]


@pytest.fixture
def root(tmp_path):
    """Five images of different grey in two folders, a list with two captions each."""
    items = []
    for index in range(5):
        name = f'{"ab"[index % 2]}/{index}.png'
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
            tmp_path / name)
        items.append(dict(image=name, image_id=10 + index, caption=[f'Caption {index}.', f'other {index}']))
    (tmp_path / 'list.json').write_text(json.dumps(items))
    return tmp_path


def build(root, **kwargs):
    return COCOCaption(**dict(dict(ann_file='list.json', data_root=str(root)), **kwargs))


def rewrite(root, change):
    items = json.loads((root / 'list.json').read_text())
    (root / 'list.json').write_text(json.dumps(change(items)))


def raw(dataset):
    return [dataset.get_data_info(index) for index in range(len(dataset))]


@pytest.mark.parametrize('count', [2, 3, 10, 101])
def test_derangement_moves_everything_and_is_fixed(count):
    order = derange(count)
    assert sorted(order) == list(range(count)) and all(place != value for place, value in enumerate(order))
    assert derange(count) == order


def test_images_are_exchanged_between_images_not_between_rows(root):
    rows, shuffled = raw(build(root)), raw(build(root, shuffle_images=True))
    shown = {}
    for row, other in zip(rows, shuffled):
        assert other['img_path'] != row['img_path']
        assert (other['caption'], other['image_id']) == (row['caption'], row['image_id'])
        assert shown.setdefault(row['img_path'], other['img_path']) == other['img_path']
    assert sorted(shown.values()) == sorted(shown)


def test_exchange_stays_within_indices(root):
    shuffled = raw(build(root, shuffle_images=True, indices=4))
    assert {row['image_id'] for row in shuffled} == {10, 11}
    assert {row['img_path'][-7:] for row in shuffled} == {'a/0.png', 'b/1.png'}


def test_exchange_needs_two_images(root):
    with pytest.raises(DataError, match='needs at least two different images, .*list.json has 1'):
        build(root, shuffle_images=True, indices=2)


def test_same_draw_gives_the_same_sample_whatever_came_before(root):
    dataset = build(root, pipeline=PIPELINE)
    first = dataset[Draw(3, seed=1, pos=50)]
    np.random.seed(0)
    dataset[0]
    again, other = dataset[Draw(3, seed=1, pos=50)], dataset[Draw(3, seed=1, pos=51)]
    assert torch.equal(first['inputs'], again['inputs']) and not torch.equal(first['inputs'], other['inputs'])
    assert type(first['data_samples'].sample_idx) is int and first['data_samples'].sample_idx == 3


def test_plain_index_follows_numpys_global_state_in_training_and_the_index_in_test(root):
    def drawn(dataset):
        np.random.seed(0)
        return [dataset[index]['inputs'] for index in (1, 1)]

    pipeline = [dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=8), dict(type='PackInputs')]
    first, second = drawn(build(root, pipeline=pipeline)), drawn(build(root, pipeline=pipeline))
    assert torch.equal(first[0], second[0]) and not torch.equal(first[0], first[1])
    np.random.seed(3)
    state = np.random.get_state()[1].copy()
    dataset = build(root, pipeline=pipeline, test_mode=True)
    assert torch.equal(dataset[1]['inputs'], dataset[1]['inputs'])
    assert np.array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize('serialize', [True, False])
def test_number_of_workers_does_not_change_the_data(root, serialize):
    dataset = build(root, pipeline=PIPELINE, serialize_data=serialize)

    def batches(workers):
        sampler = SeekableInfiniteSampler(dataset, seed=4)
        loader = DataLoader(dataset, 3, sampler=sampler, num_workers=workers, collate_fn=pseudo_collate)
        iterator = iter(loader)
        return [next(iterator) for _ in range(5)]

    for ours, theirs in zip(batches(0), batches(2)):
        assert all(map(torch.equal, ours['inputs'], theirs['inputs']))
        assert [s.text for s in ours['data_samples']] == [s.text for s in theirs['data_samples']]


def test_lazy_init_reads_nothing_until_needed(root):
    dataset = COCOCaption(ann_file='no.json', lazy_init=True)
    with pytest.raises(DataError, match="annotation file 'no.json' not found: check ann_file and data_root"):
        dataset.full_init()
    dataset = build(root, lazy_init=True)
    dataset.full_init()
    assert len(dataset) == 10


def test_indices_and_subsets_of_mmengine_work(root):
    assert [row['caption'] for row in raw(build(root, indices=[9, 0]))] == ['other 4', 'Caption 0.']
    assert [row['caption'] for row in raw(build(root).get_subset([9, 0]))] == ['other 4', 'Caption 0.']
    dataset = build(root)
    dataset.get_subset_(3)
    assert len(dataset) == 3


def test_data_set_can_be_pickled(root):
    assert raw(pickle.loads(pickle.dumps(build(root)))) == raw(build(root))


def test_absolute_paths_need_no_root(root):
    dataset = COCOCaption(ann_file=str(root / 'list.json'), data_prefix=dict(img_path=str(root)))
    assert raw(dataset)[0]['img_path'] == str(root / 'a/0.png')


def test_missing_images_are_counted_before_the_work_starts(root):
    (root / 'a/2.png').unlink()
    (root / 'b/3.png').unlink()
    with pytest.raises(DataError) as error:
        build(root)
    message = str(error.value)
    assert f'2 of 5 images listed in {root}/list.json not found' in message
    assert f'the first is {root}/a/2.png (image id 12)' in message
    assert 'check data_root and data_prefix' in message
    dataset = build(root, filter_cfg=dict(missing_image=True))
    assert {row['image_id'] for row in raw(dataset)} == {10, 11, 14}
    assert len(build(root, indices=4)) == 4


def test_missing_folder_means_missing_images(root):
    with pytest.raises(DataError, match=r"5 of 5 images .* now img_path='.*/nowhere'"):
        build(root, data_prefix=dict(img_path='nowhere'))
    assert missing_files([str(root / 'a/0.png'), str(root / 'c/0.png')]) == [str(root / 'c/0.png')]


@pytest.mark.parametrize('test_mode', [False, True])
def test_broken_image_is_an_error_in_training_too(root, test_mode):
    (root / 'a/0.png').write_bytes((root / 'a/0.png').read_bytes()[:100])
    dataset = build(root, pipeline=PIPELINE, test_mode=test_mode)
    with pytest.raises(DataError, match=r'cannot read image .*a/0\.png \(sample 0\)'):
        dataset[0]


def test_broken_image_is_named_from_a_worker_too(root):
    (root / 'a/0.png').write_bytes(b'no image')
    loader = DataLoader(build(root, pipeline=PIPELINE), num_workers=1, collate_fn=pseudo_collate)
    with pytest.raises(DataError, match=r'cannot read image .*a/0\.png'):
        next(iter(loader))


def test_transform_that_returns_none_is_an_error(root):
    with pytest.raises(DataError, match='a transform returned None for sample 1 of'):
        build(root, pipeline=[lambda results: None])[1]


def test_empty_captions_are_counted(root):
    def change(items):
        items[1]['caption'] = ['...', 'fine']
        items[3]['caption'] = ' '
        return items

    rewrite(root, change)
    for test_mode in (False, True):
        with pytest.raises(DataError, match=r'2 empty texts in .*, the first is \w+ of image id 11: mend'):
            build(root, test_mode=test_mode)
    dropped = dict(filter_cfg=dict(empty_caption=True))
    assert len(build(root, **dropped)) == 7
    assert [row['gt_caption'] for row in raw(build(root, test_mode=True, **dropped))][1:3] == [
        ['fine'], ['Caption 2.', 'other 2']]


def test_empty_data_set_is_refused(root):
    with pytest.raises(DataError, match='COCOCaption is empty: no sample of .* is left with indices=0'):
        build(root, indices=0)
    rewrite(root, lambda items: [])
    with pytest.raises(DataError, match='COCOCaption is empty'):
        build(root)


def test_one_id_for_two_images_is_refused(root):
    def change(items):
        items[1]['image_id'] = 10
        return items

    rewrite(root, change)
    with pytest.raises(DataError, match=r'image id 10 of .* for two images, .*a/0\.png and .*b/1\.png'):
        build(root)


def test_misspelt_settings_are_refused(root):
    with pytest.raises(ConfigError, match="data_prefix of COCOCaption has one key, img_path: got {'img': ''"):
        build(root, data_prefix=dict(img=''))
    with pytest.raises(ConfigError, match=r"filter_cfg of COCOCaption has unknown keys \['missing'\]"):
        build(root, filter_cfg=dict(missing=True))


def test_text_corpus_has_one_text_a_line_and_no_images(tmp_path):
    (tmp_path / 'corpus.txt').write_text('one two \n\n Three.\n')
    dataset = TextCorpus('corpus.txt', data_root=str(tmp_path), pipeline=[dict(type='PackInputs')])
    packed = [dataset[index] for index in range(2)]
    assert [list(item) for item in packed] == [['data_samples']] * 2
    assert [(item['data_samples'].prompt, item['data_samples'].target) for item in packed] == [
        ('', 'one two'), ('', 'Three.')]
    with pytest.raises(DataError, match='shuffle_images needs at least two different images'):
        TextCorpus('corpus.txt', data_root=str(tmp_path), shuffle_images=True)


def test_missing_and_empty_corpus_are_refused(tmp_path):
    with pytest.raises(DataError, match="annotation file .*corpus.txt' not found"):
        TextCorpus('corpus.txt', data_root=str(tmp_path))
    (tmp_path / 'corpus.txt').write_text('\n')
    with pytest.raises(DataError, match='TextCorpus is empty'):
        TextCorpus('corpus.txt', data_root=str(tmp_path))
