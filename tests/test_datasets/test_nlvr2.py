"""NLVR2: the published lines, the lists of BLIP, their images, and files of another kind."""
import json

import numpy as np
import pytest
from mmengine.dataset import pseudo_collate
from PIL import Image
from torch.utils.data import DataLoader

from mmblip2.datasets import NLVR2, SeekableSampler
from mmblip2.datasets.nlvr2 import read_statements
from mmblip2.errors import DataError

LINES = [dict(identifier='dev-850-0-0', sentence='There is a dog.', label='True', left_url='x', right_url='y'),
         dict(identifier='dev-850-0-1', sentence='Left, a cat.', label='False'),
         dict(identifier='dev-850-3-0', sentence='There is a dog.', label='True')]
LIST = [dict(images=['dev/dev-850-0-img0.png', 'dev/dev-850-0-img1.png'], sentence='There is a dog.', label='True'),
        dict(images=['dev/dev-850-3-img0.png', 'dev/dev-850-3-img1.png'], sentence='A cat.', label='False')]
NAMES = [f'dev-850-{pair}-img{side}.png' for pair in (0, 3) for side in (0, 1)]
PIPELINE = [dict(type='EachImage', transforms=[dict(type='LoadImage'), dict(type='Resize', scale=8)]),
            dict(type='CleanCaption', max_words=40), dict(type='PackInputs')]
TRAIN_PIPELINE = [
    dict(type='EachImage', transforms=[dict(type='LoadImage'), dict(type='RandomResizedCrop', scale=8),
                                       dict(type='RandomFlip'), dict(type='RandAugment')]),
    dict(type='CleanCaption', max_words=40), dict(type='SwapImages'), dict(type='PackInputs')]


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'dev').mkdir()
    for level, name in enumerate(NAMES):
        pixels = np.random.default_rng(level).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'dev' / name)
    return tmp_path


def build(root, content, lines=True, prefix='dev', **kwargs):
    text = '\n'.join(map(json.dumps, content)) + '\n' if lines else json.dumps(content)
    (root / 'ann.json').write_text(text)
    kwargs.setdefault('pipeline', PIPELINE)
    return NLVR2(ann_file='ann.json', data_root=str(root), data_prefix=dict(img_path=prefix), **kwargs)


def rows(dataset):
    return [dataset.get_data_info(index) for index in range(len(dataset))]


def pair(root, number, folder='dev'):
    return tuple(str(root / folder / f'dev-850-{number}-img{side}.png') for side in (0, 1))


def test_published_lines(root):
    found = rows(build(root, LINES))
    assert [row['img_path'] for row in found] == [pair(root, 0), pair(root, 0), pair(root, 3)]
    assert [row['gt_label'] for row in found] == [1, 0, 1]
    assert [row['identifier'] for row in found] == ['dev-850-0-0', 'dev-850-0-1', 'dev-850-3-0']
    assert found[0]['image_id'] == found[1]['image_id'] != found[2]['image_id']


def test_lists_of_blip(root):
    found = rows(build(root, LIST, lines=False, prefix=''))
    assert [(row['img_path'], row['gt_label'], row['identifier']) for row in found] == [
        (pair(root, 0), 1, 0), (pair(root, 3), 0, 1)]


def test_images_in_numbered_folders_or_all_in_one(root):
    content = [dict(LINES[0], directory=7)]
    assert rows(build(root, content))[0]['img_path'] == pair(root, 0), 'as prepare_nlvr2.py unpacks them'
    (root / 'dev' / '7').mkdir()
    for name in NAMES:
        (root / 'dev' / name).rename(root / 'dev' / '7' / name)
    assert rows(build(root, content))[0]['img_path'] == pair(root, 0, 'dev/7')
    listed = [dict(LIST[0], images=[f'dev/9/{name}' for name in NAMES[:2]])]
    for name in NAMES:
        (root / 'dev' / '7' / name).rename(root / 'dev' / name)
    assert rows(build(root, listed, lines=False, prefix=''))[0]['img_path'] == pair(root, 0)


def test_a_sample_has_both_images_and_a_clean_sentence(root):
    packed = build(root, LINES)[1]
    assert packed['inputs'].shape == (2, 3, 8, 8)
    for image, path in zip(packed['inputs'], pair(root, 0)):
        expected = np.array(Image.open(path).resize((8, 8), Image.Resampling.BICUBIC))
        assert np.array_equal(image.permute(1, 2, 0), expected)
    sample = packed['data_samples']
    assert (sample.text, sample.gt_label, sample.identifier) == ('left, a cat', 0, 'dev-850-0-1')


def test_number_of_workers_does_not_change_the_pairs(root):
    def batches(workers):
        dataset = build(root, LINES, pipeline=TRAIN_PIPELINE)
        loader = DataLoader(dataset, 2, sampler=SeekableSampler(dataset, seed=1), num_workers=workers,
                            collate_fn=pseudo_collate)
        return [(image.tolist(), sample.text) for batch in loader
                for image, sample in zip(batch['inputs'], batch['data_samples'])]
    assert batches(0) == batches(1)


def test_images_can_be_exchanged(root):
    found = rows(build(root, LINES, shuffle_images=True))
    before = {path for number in (0, 3) for path in pair(root, number)}
    assert {path for row in found for path in row['img_path']} == before
    for row, number in zip(found, (0, 0, 3)):
        assert all(new != old for new, old in zip(row['img_path'], pair(root, number)))


def test_missing_images_are_named_or_dropped(root):
    (root / 'dev' / NAMES[3]).unlink()
    with pytest.raises(DataError, match=r'1 of 4 images listed in .*ann.json not found, the first is .*3-img1.png'):
        build(root, LINES)
    assert len(build(root, LINES, filter_cfg=dict(missing_image=True))) == 2


def test_a_split_without_labels_is_for_the_test(root):
    unknown = [{key: value for key, value in line.items() if key != 'label'} for line in LINES]
    assert all('gt_label' not in row for row in rows(build(root, unknown, test_mode=True)))
    with pytest.raises(DataError, match=r"3 of 3 sentences in .* have no label, the first is 'dev-850-0-0'"):
        build(root, unknown)
    with pytest.raises(DataError, match='2 of 3 sentences in .* have no label'):
        build(root, [LINES[0], *unknown[1:]], test_mode=True)


@pytest.mark.parametrize('content, lines, message', [
    ([dict(LIST[0], images=['a.png'])], False, r"images of item 0 are \['a.png'\], expected the names of two"),
    ([dict(LIST[0], images=['a.png', 'b.png', 'c.png'])], False, 'images of item 0 are .*expected the names of two'),
    ([dict(LIST[0], images='a.png')], False, 'expected the names of two'),
    ([dict(LINES[0], label='maybe')], True, 'label of item 0 is \'maybe\', expected "True" or "False"'),
    ([LINES[0], LINES[0]], True, 'identifiers that occur twice'),
    ([dict(identifier='dev-1-1-1', text='x')], True, r'layout that cannot be read: .*expected lines {"identifier"'),
    ([dict(identifier='7', sentence='x')], True, 'layout that cannot be read'),
    ([dict(sentence='x', label='True')], True, r'or the list of BLIP \[{"images" \(two\)')])
def test_other_files_are_refused(root, content, lines, message):
    with pytest.raises(DataError, match=message):
        build(root, content, lines)


def test_a_file_that_is_no_json_is_refused(tmp_path):
    (tmp_path / 'a.json').write_text('one\ntwo\n')
    with pytest.raises(DataError, match='a.json is not JSON, and neither are its lines'):
        read_statements(str(tmp_path / 'a.json'))
    (tmp_path / 'a.json').write_bytes(b'\x89PNG\xff')
    with pytest.raises(DataError, match='a.json is not JSON'):
        read_statements(str(tmp_path / 'a.json'))
    with pytest.raises(DataError, match='not found: check ann_file'):
        read_statements(str(tmp_path / 'b.json'))
