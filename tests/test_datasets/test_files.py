import pytest

from mmblip2.datasets.files import describe, parse_image_id, read_json
from mmblip2.errors import DataError


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
    parsed = parse_image_id(image_id, image)
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
