import json

import pytest

from mmblip2.datasets import COCORetrieval
from mmblip2.datasets.samplers import Draw
from mmblip2.errors import DataError


@pytest.fixture
def root(tmp_path):
    items = []
    for index, captions in enumerate([['A dog.', 'dog'], ['a cat'], ['x', 'y', 'z', 'X!', 'x', 'w']]):
        (tmp_path / f'{index}.jpg').touch()
        items.append(dict(image=f'{index}.jpg', caption=captions, image_id=f'id{index}'))
    (tmp_path / 'ann.json').write_text(json.dumps(items))
    return tmp_path


def build(root, **kwargs):
    return COCORetrieval('ann.json', data_root=str(root), **kwargs)


def test_training_has_one_row_a_caption(root):
    dataset = build(root)
    rows = [dataset.get_data_info(index) for index in range(len(dataset))]
    pairs = [(row['image_id'], row['text']) for row in rows]
    assert pairs[:3] == [('id0', 'A dog.'), ('id0', 'dog'), ('id1', 'a cat')]
    assert len(rows) == 9
    with pytest.raises(DataError, match='gallery of texts in test mode only: set test_mode=True'):
        _ = dataset.texts


def test_gallery_has_all_captions_and_their_images(root):
    dataset = build(root, test_mode=True)
    assert len(dataset) == 3
    assert dataset.texts == ['A dog.', 'dog', 'a cat', 'x', 'y', 'z', 'X!', 'x', 'w']
    assert dataset.text_to_image == [0, 0, 1, 2, 2, 2, 2, 2, 2]
    assert dataset.get_data_info(1)['texts'] == ['a cat']


def test_gallery_texts_are_those_of_the_samples(root):
    dataset = build(root, test_mode=True, pipeline=[dict(type='CleanCaption'), dict(type='PackInputs')])
    samples = [dataset[index]['data_samples'] for index in range(3)]
    assert dataset.texts == sum((sample.texts for sample in samples), [])
    assert dataset.texts[0] == 'a dog' and [sample.image_id for sample in samples] == ['id0', 'id1', 'id2']


@pytest.mark.parametrize('serialize', [True, False])
def test_gallery_follows_subsets(root, serialize):
    dataset = build(root, test_mode=True, indices=[1, 0], serialize_data=serialize)
    assert dataset.texts == ['a cat', 'A dog.', 'dog']
    dataset = build(root, test_mode=True, serialize_data=serialize)
    assert len(dataset.texts) == 9
    assert dataset.get_subset([1]).texts == ['a cat']
    dataset.get_subset_(1)
    assert dataset.texts == ['A dog.', 'dog'] and dataset.text_to_image == [0, 0]


def test_gallery_stays_when_images_are_exchanged(root):
    plain, shuffled = build(root, test_mode=True), build(root, test_mode=True, shuffle_images=True)
    assert shuffled.texts == plain.texts and shuffled.text_to_image == plain.text_to_image
    for index in range(3):
        assert shuffled.get_data_info(index)['img_path'] != plain.get_data_info(index)['img_path']


def test_images_without_captions_leave_the_gallery(root):
    items = json.loads((root / 'ann.json').read_text())
    items[0]['caption'] = []
    (root / 'ann.json').write_text(json.dumps(items))
    assert build(root, test_mode=True).text_to_image == [0, 1, 1, 1, 1, 1, 1]


def test_draws_take_one_caption_of_an_image_each(root):
    dataset = build(root, draw_caption=True, pipeline=[dict(type='CleanCaption'), dict(type='PackInputs')])
    assert len(dataset) == 3
    drawn = [[dataset[Draw(index, 1, pos)]['data_samples'] for pos in range(40)] for index in range(3)]
    texts = [{sample.text for sample in samples} for samples in drawn]
    assert texts == [{'a dog', 'dog'}, {'a cat'}, {'x', 'y', 'z', 'w'}]
    assert {sample.image_id for sample in drawn[2]} == {'id2'}
    assert dataset[Draw(2, 1, 7)]['data_samples'].text == drawn[2][7].text
    assert len(build(root, draw_caption=True, test_mode=True).texts) == 9
