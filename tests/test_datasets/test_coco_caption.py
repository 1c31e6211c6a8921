import json

import pytest

from mmblip2.datasets import (
    COCOCaption,
    COCORetrieval,
    Flickr30kCaption,
    Flickr30kRetrieval,
    NoCaps,
    VisualGenomeCaption,
    VisualGenomeQA,
)
from mmblip2.datasets.samplers import Draw
from mmblip2.errors import ConfigError, DataError


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


def test_questions_are_no_list_of_images_without_captions(root):
    assert rows(build(root, [dict(image=NAMES[0])], test_mode=True), 'gt_caption') == [([], )]
    with pytest.raises(DataError, match=r"layout that cannot be read: got .*'question'.*expected the COCO layout"):
        build(root, [dict(image=NAMES[0], question='what?', answer=['a'], question_id=1)], test_mode=True)


@pytest.mark.parametrize('content, message', [
    ([dict(image=None, caption='a')], 'an image is named by a text .*: got None'),
    ([dict(image=NAMES[0], image_id=[7], caption='a')], r"got 'COCO_.*' with the image_id \[7\]"),
    (dict(images=[dict(id=7, file_name=None)], annotations=[]), r'ann\.json names an image by None: expected a text')])
def test_images_that_are_named_by_no_text_are_refused(root, content, message):
    with pytest.raises(DataError, match=message):
        build(root, content, test_mode=True)


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


# ------------------------------------------------------------------------- Karpathy's files, NoCaps, Visual Genome

def karpathy_file(*splits):
    return dict(dataset='coco', images=[
        dict(filepath='val', filename=NAMES[i % 2], cocoid=(7, 9)[i % 2], split=split, imgid=i,
             sentences=[dict(raw=f'{split} {k}', tokens=[]) for k in range(2)]) for i, split in enumerate(splits)])


def test_a_split_of_karpathys_file(root):
    content = karpathy_file('train', 'val')
    assert rows(build(root, content, prefix='', split='val', test_mode=True), 'image_id', 'gt_caption', 'img_path') == [
        (9, ['val 0', 'val 1'], f'{root}/val/{NAMES[1]}')]
    assert rows(build(root, content, COCORetrieval, '', split='val'), 'image_id', 'text') == [
        (9, 'val 0'), (9, 'val 1')]
    train = build(root, karpathy_file('train', 'restval'), prefix='', split='train')
    assert rows(train, 'caption') == [('train 0', ), ('train 1', ), ('restval 0', ), ('restval 1', )]


def test_flickr30k_has_no_coco_ids(root):
    content = dict(images=[dict(filename=NAMES[0], split='test', sentences=[dict(raw='one')])])
    dataset = build(root, content, Flickr30kCaption, split='test', test_mode=True)
    assert rows(dataset, 'image_id', 'img_path') == [(7, f'{root}/val/{NAMES[0]}')]
    assert build(root, content, Flickr30kRetrieval, split='test', test_mode=True).texts == ['one']


def test_splits_that_are_missing_or_useless_are_refused(root):
    with pytest.raises(ConfigError, match='has the splits train, val: set split'):
        build(root, karpathy_file('train', 'val'), prefix='')
    with pytest.raises(DataError, match="no split 'test', only train, val"):
        build(root, karpathy_file('train', 'val'), prefix='', split='test')
    with pytest.raises(ConfigError, match="one split only: leave split='val' out"):
        build(root, KARPATHY, prefix='', split='val')


def nocaps(*domains):
    content = coco()
    for image, domain in zip(content['images'], domains):
        image['domain'] = domain
    return content


def test_nocaps_is_an_image_a_row_and_can_be_one_domain(root):
    assert rows(build(root, nocaps(), NoCaps, test_mode=True), 'image_id', 'gt_caption') == [
        (7, ['seven']), (9, ['nine', 'also nine'])]
    content = nocaps('in-domain', 'out-domain')
    assert rows(build(root, content, NoCaps, test_mode=True, domain='out-domain'), 'image_id') == [(9, )]
    test_split = dict(images=content['images'])
    assert rows(build(root, test_split, NoCaps, test_mode=True), 'gt_caption') == [([], ), ([], )]


def test_nocaps_domains_that_do_not_exist_are_refused(root):
    with pytest.raises(ConfigError, match="domain of NoCaps is 'out'"):
        build(root, nocaps(), NoCaps, domain='out')
    with pytest.raises(ConfigError, match='says nothing of domains'):
        build(root, nocaps(), NoCaps, domain='in-domain')


REGIONS = [dict(id=3, regions=[dict(region_id=1, image_id=3, phrase='a dog', x=0), dict(image_id=3, phrase='a tree')]),
           dict(id=4, regions=[dict(image_id=4, phrase='one cat')]), dict(id=5, regions=[])]


@pytest.mark.parametrize('places', [('VG_100K/3.jpg', 'VG_100K_2/4.jpg'), ('3.jpg', '4.jpg')])
def test_visual_genome_regions_are_captions_of_images_in_two_folders_or_one(root, places):
    for place in places:
        (root / place).parent.mkdir(exist_ok=True)
        (root / place).touch()
    train = build(root, REGIONS, VisualGenomeCaption, prefix='')
    assert rows(train, 'image_id', 'caption', 'img_path') == [
        (3, 'a dog', f'{root}/{places[0]}'), (3, 'a tree', f'{root}/{places[0]}'),
        (4, 'one cat', f'{root}/{places[1]}')]
    assert rows(build(root, REGIONS, VisualGenomeCaption, prefix='', test_mode=True), 'gt_caption') == [
        (['a dog', 'a tree'], ), (['one cat'], )]


@pytest.mark.parametrize('folder', ['', 'image/', '/export/visual-genome/image/'])
def test_images_of_lavis_lists_of_visual_genome_are_found_by_name(root, folder):
    for name in ('VG_100K/3.jpg', 'VG_100K_2/4.jpg', 'other/5.jpg'):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    images = [f'{folder}3.jpg', f'{folder}4.jpg', 'other/5.jpg']
    expected = [f'{root}/{name}' for name in ('VG_100K/3.jpg', 'VG_100K_2/4.jpg', 'other/5.jpg')]
    captions = build(root, [dict(image=image, caption='x') for image in images], VisualGenomeCaption, prefix='')
    asked = build(root, [dict(image=image, question='x', answer='y') for image in images], VisualGenomeQA, prefix='')
    assert [captions.get_data_info(i)['img_path'] for i in range(3)] == expected
    assert [asked.get_data_info(i)['img_path'] for i in range(3)] == expected


def test_visual_genome_lists_of_lavis_and_other_files(root):
    assert rows(build(root, KARPATHY, VisualGenomeCaption, prefix=''), 'caption')[0] == ('seven', )
    with pytest.raises(DataError, match=r'expected the official layout \[\{"id", "regions"'):
        build(root, dict(a=1), VisualGenomeCaption)


def test_draws_take_one_caption_of_an_image_each(root):
    dataset = build(root, coco(), draw_caption=True, pipeline=[dict(type='CaptionPrompt'), dict(type='PackInputs')])
    drawn = [{dataset[Draw(index, 1, pos)]['data_samples'].target for pos in range(20)} for index in range(2)]
    assert drawn == [{'seven'}, {'nine', 'also nine'}]
    evaluated = build(root, coco(), draw_caption=True, test_mode=True).get_data_info(1)
    assert evaluated['gt_caption'] == ['nine', 'also nine']


def test_draws_take_several_different_captions_of_an_image(root):
    dataset = build(root, coco(), captions_per_image=2, pipeline=[
        dict(type='CleanCaption'), dict(type='CaptionPrompt'), dict(type='PackInputs')])
    assert len(dataset) == 2
    drawn = [{tuple(dataset[Draw(index, 1, pos)]['data_samples'].target) for pos in range(20)} for index in range(2)]
    assert drawn == [{('seven', )}, {('nine', 'also nine'), ('also nine', 'nine')}]
    assert dataset[Draw(1, 1, 3)]['data_samples'].target == dataset[Draw(1, 1, 3)]['data_samples'].target
    one = build(root, coco(), captions_per_image=1, pipeline=[dict(type='CaptionPrompt'), dict(type='PackInputs')])
    assert {tuple(one[Draw(1, 1, pos)]['data_samples'].target) for pos in range(20)} == {('nine', ), ('also nine', )}


@pytest.mark.parametrize('count', [0, True, 2.0, '5'])
def test_captions_per_image_is_a_number_from_1_on(root, count):
    with pytest.raises(ConfigError, match=f'captions_per_image of COCOCaption is {count!r}: expected a whole number'):
        build(root, coco(), captions_per_image=count)
