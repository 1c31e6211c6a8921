import json

import pytest

from mmblip2.datasets import COCOCaption, COCORetrieval
from mmblip2.errors import DataError


@pytest.fixture
def root(tmp_path):
    for name in ('val/COCO_val2014_000000000007.jpg', 'val/COCO_val2014_000000000009.jpg'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


NAMES = ['COCO_val2014_000000000007.jpg', 'COCO_val2014_000000000009.jpg']


def coco(**changes):
    return dict(dict(
        images=[dict(id=7, file_name=NAMES[0], coco_url=f'http://host/val/{NAMES[0]}'),
                dict(id=9, file_name=NAMES[1], coco_url=f'http://host/val/{NAMES[1]}')],
        annotations=[dict(id=1, image_id=9, caption='nine'), dict(id=2, image_id=7, caption='seven'),
                     dict(id=3, image_id=9, caption='also nine')]), **changes)


def build(root, content, kind=COCOCaption, prefix='val', **kwargs):
    (root / 'ann.json').write_text(json.dumps(content))
    return kind('ann.json', data_root=str(root), data_prefix=dict(img_path=prefix), **kwargs)


def rows(dataset, *keys):
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    return [tuple(info[key] for key in keys) for info in infos]


KARPATHY = [dict(image=f'val/{NAMES[0]}', caption='seven', image_id='coco_7'),
            dict(image=f'val/{NAMES[1]}', caption=['nine', 'also nine'])]


@pytest.mark.parametrize('content, prefix', [(coco(), 'val'), (KARPATHY, '')])
def test_both_layouts_give_the_same_rows(root, content, prefix):
    train = rows(build(root, content, prefix=prefix), 'image_id', 'caption', 'img_path')
    folder = f'{root}/val/'
    assert train == [(7, 'seven', folder + NAMES[0]), (9, 'nine', folder + NAMES[1]),
                     (9, 'also nine', folder + NAMES[1])]
    test = rows(build(root, content, prefix=prefix, test_mode=True), 'image_id', 'gt_caption')
    assert test == [(7, ['seven']), (9, ['nine', 'also nine'])]


def test_one_caption_a_row_is_grouped_by_image_in_test_mode(root):
    content = [dict(image=NAMES[index], caption=caption) for index, caption in ((0, 'a'), (1, 'b'), (0, 'c'))]
    grouped = rows(build(root, content, test_mode=True), 'image_id', 'gt_caption')
    assert grouped == [(7, ['a', 'c']), (9, ['b'])]


def test_images_below_their_split_are_found_from_the_url(root):
    assert rows(build(root, coco(), prefix=''), 'img_path')[0] == (f'{root}/val/{NAMES[0]}', )
    only_url = coco(images=[dict(id=image['id'], coco_url=image['coco_url']) for image in coco()['images']])
    assert rows(build(root, only_url, prefix=''), 'img_path')[0] == (f'{root}/val/{NAMES[0]}', )


def test_an_empty_url_is_no_place_of_an_image(root):
    content = coco(images=[dict(image, coco_url='') for image in coco()['images']])
    assert rows(build(root, content), 'img_path')[0] == (f'{root}/val/{NAMES[0]}', )


def test_split_without_captions_is_for_testing_only(root):
    content = coco()
    del content['annotations']
    assert rows(build(root, content, test_mode=True), 'gt_caption') == [([], ), ([], )]
    with pytest.raises(DataError, match='has a layout that cannot be read'):
        build(root, content)


def test_images_without_references_are_left_out_of_scoring(root):
    content = coco(annotations=coco()['annotations'][:1])
    assert rows(build(root, content, test_mode=True), 'image_id') == [(9, )]


@pytest.mark.parametrize('content, got', [
    (dict(data=1), "an object with keys ['data']"),
    ([dict(img='a')], "a list of 1, the first of which is an object with keys ['img']"),
    (dict(images=[1], annotations=[]), "an object with keys ['images', 'annotations']"),
    (coco(annotations=[dict(image_id=7)]),
     "a list of 1, the first of which is an object with keys ['image_id']"),
    (coco(images=[dict(id=7), dict(id=9)]), "a list of 2, the first of which is an object with keys ['id']"),
    ([dict(image='a', caption=3)], "an object with keys ['image', 'caption']"),
    ([dict(image='a')], "an object with keys ['image']"),
    (3, '3'),
])
@pytest.mark.parametrize('kind', [COCOCaption, COCORetrieval])
def test_other_layouts_are_described_with_those_accepted(root, content, got, kind):
    with pytest.raises(DataError) as error:
        build(root, content, kind)
    message = str(error.value)
    assert f'ann.json has a layout that cannot be read: got {got}, expected the COCO layout' in message
    assert 'or the list of LAVIS [{"image", "caption"' in message


def test_annotation_of_an_unlisted_image_is_named(root):
    annotations = coco()['annotations'] + [dict(id=44, image_id=5, caption='five')]
    with pytest.raises(DataError, match=r'1 of 4 annotations in .*ann\.json refer to an image id that is not '
                                        'among its 2 images; the first is annotation id 44 with image_id 5'):
        build(root, coco(annotations=annotations))
