import json
import re

import pytest

from mmblip2 import datasets
from mmblip2.datasets.files import describe, parse_image_id, read_json
from mmblip2.errors import ConfigError, DataError


@pytest.mark.parametrize('image_id, image, expected', [
    ('coco_391895', 'val2014/COCO_val2014_000000391895.jpg', 391895),
    ('000123', 'x.jpg', 123),
    (7, 'x.jpg', 7),
    ('1000268201_693b08cb0e', 'images/1000268201_693b08cb0e.jpg', '1000268201_693b08cb0e'),
    ('flickr_5', 'x.jpg', 'flickr_5'),
    (None, 'val2014/COCO_val2014_000000391895.jpg', 391895),
    (None, 'val2017/000000391895.jpg', 391895),
    (None, 'images/1000268201_693b08cb0e.jpg', '1000268201_693b08cb0e'),
])
def test_image_ids_match_the_official_ground_truth_where_there_is_one(image_id, image, expected):
    parsed = parse_image_id(image_id, image, 'a.json')
    assert parsed == expected and type(parsed) is type(expected)


def test_missing_file_is_named_with_its_setting():
    with pytest.raises(DataError, match="file 'no.json' not found: check question_file and data_root"):
        read_json('no.json', 'question_file')


@pytest.mark.parametrize('content', [b'{"a": ', b'\xff\xfe\x00'])
def test_file_that_is_not_json_is_named(tmp_path, content):
    (tmp_path / 'a.json').write_bytes(content)
    with pytest.raises(DataError, match=r'a\.json is not a JSON file: '):
        read_json(str(tmp_path / 'a.json'))


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / 'a.json').write_bytes(b'\xef\xbb\xbf[1]')
    assert read_json(str(tmp_path / 'a.json')) == [1]


def test_values_are_described_in_a_few_words():
    assert describe([{'a': 1}, 2]) == "a list of 2, the first of which is an object with keys ['a']"
    assert describe([]) == 'an empty list' and describe(None) == 'None'
    assert describe('x' * 99) == "'" + 'x' * 59


COCO = dict(images=[dict(id=7, file_name='7.jpg')], annotations=[dict(image_id=7, caption='a')])
ASKED = [dict(image='7.jpg', question='x?', answer='y', question_id=1, image_id=7)]
OFFICIAL = dict(questions=[dict(question_id=1, image_id=7, question='x?')])


@pytest.mark.parametrize('value', [[1], {}, None, 1.5, True], ids=repr)
@pytest.mark.parametrize('kind, content, path, key', [
    ('COCOCaption', COCO, ('images', 0), 'id'), ('COCOCaption', COCO, ('annotations', 0), 'image_id'),
    ('COCOVQA', OFFICIAL, ('questions', 0), 'question_id'), ('COCOVQA', OFFICIAL, ('questions', 0), 'image_id'),
    ('COCOVQA', ASKED, (0, ), 'question_id'),
    ('AOKVQA', [dict(image_id=7, question_id='a', question='x', direct_answers=['y'])], (0, ), 'image_id'),
    ('GQA', {'5': dict(imageId=7, question='x', answer='y')}, ('5', ), 'imageId'),
    ('TextVQA', dict(data=[dict(question_id=1, image_id='7', question='x', answers=['y'])]), ('data', 0),
     'question_id'),
    ('VisualGenomeQA', [dict(id=7, qas=[dict(qa_id=1, image_id=7, question='x', answer='y')])], (0, 'qas', 0), 'qa_id'),
    ('VisualGenomeCaption', [dict(id=7, regions=[dict(image_id=7, phrase='x')])], (0, 'regions', 0), 'image_id'),
    ('NLVR2', [dict(images=['a', 'b'], sentence='x', label='True', identifier=3)], (0, ), 'identifier')])
def test_ids_of_another_type_are_named_with_their_file(tmp_path, kind, content, path, key, value):
    content = json.loads(json.dumps(content))
    item = content
    for step in path:
        item = item[step]
    item[key] = value
    (tmp_path / 'bad.json').write_text(json.dumps(content))
    file = dict(question_file='bad.json') if kind == 'COCOVQA' else dict(ann_file='bad.json')
    shown = {'imageId': 'image_id', 'qa_id': 'question_id'}.get(key, key)
    with pytest.raises(DataError, match=rf"bad\.json: '{shown}' of entry 0 is {re.escape(repr(value))} "
                                        r'\(\w+\), expected a whole number or a text'):
        getattr(datasets, kind)(data_root=str(tmp_path), test_mode=True, **file)


def test_image_ids_as_texts_fit_templates_of_numbers(tmp_path):
    (tmp_path / '000000000007.jpg').touch()
    file = tmp_path / 'a.json'
    for image_id in (7, '7', 'seven'):
        file.write_text(json.dumps([dict(image_id=image_id, question_id='a', question='x', direct_answers=['y'])]))
        if image_id != 'seven':
            assert datasets.AOKVQA(ann_file=str(file), data_prefix=dict(img_path=str(tmp_path)))[0][
                'img_path'].endswith('/000000000007.jpg')
            continue
        with pytest.raises(DataError, match="a.json: image_id 'seven' does not fit image_template '{:012d}.jpg'"):
            datasets.AOKVQA(ann_file=str(file), data_prefix=dict(img_path=str(tmp_path)))


KARPATHY = dict(images=[dict(filename='7.jpg', split='val', sentences=[dict(raw='x')])])


@pytest.mark.parametrize('kind, content, options', [
    ('COCOCaption', dict(images=[dict(KARPATHY['images'][0], filename=None)]), dict(split='val')),
    ('COCOCaption', dict(images=[dict(KARPATHY['images'][0], split=[1])]), dict(split='val')),
    ('COCOCaption', dict(images=[dict(KARPATHY['images'][0], sentences=[dict(raw=1.5)])]), dict(split='val')),
    ('COCOCaption', dict(images=[dict(KARPATHY['images'][0], cocoid=[1])]), dict(split='val')),
    ('COCOCaption', dict(images=[dict(id=7, coco_url=None)], annotations=[]), {}),
    ('COCOCaption', [dict(image=None, caption='x')], {}),
    ('ImageTextPairs', [dict(image='7.jpg', caption='x', image_id=[1])], {}),
    ('VisualGenomeCaption', [dict(id=7, regions=[dict(image_id=7, phrase=[1])])], {}),
    ('NLVR2', [dict(images=None, sentence='x', label='True')], {}),
    ('NoCaps', [dict(image='7.jpg', caption='x')], dict(domain='in-domain')),
    ('COCOVQA', None, {})])
def test_values_of_another_type_are_errors_that_name_the_file(tmp_path, kind, content, options):
    (tmp_path / 'bad.json').write_text(json.dumps(content))
    if kind == 'COCOVQA':
        (tmp_path / 'bad.json').write_text(json.dumps(dict(annotations=[dict(question_id=1, answers=[
            dict(answer=None)])])))
        (tmp_path / 'questions.json').write_text(json.dumps(OFFICIAL))
        options = dict(question_file='questions.json', ann_file='bad.json')
    (tmp_path / '7.jpg').touch()
    with pytest.raises((DataError, ConfigError), match=r'bad\.json'):
        getattr(datasets, kind)(**{'ann_file': 'bad.json', **options}, data_root=str(tmp_path), test_mode=True)


def test_fields_that_are_not_needed_may_be_anything(tmp_path):
    (tmp_path / '7.jpg').touch()
    for name, content, kind in (('a.json', dict(COCO, images=[dict(COCO['images'][0], coco_url=None)]), 'COCOCaption'),
                                ('b.json', {'5': dict(imageId='7', question='x', answer='y', types=1.5)}, 'GQA')):
        (tmp_path / name).write_text(json.dumps(content))
        assert len(getattr(datasets, kind)(ann_file=name, data_root=str(tmp_path), test_mode=True)) == 1
