import json
import sys

import numpy as np
import pytest

from mmblip2.datasets import Draw, ImageTextPairs
from mmblip2.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path):
    for name in ('a.jpg', 'b.jpg'):
        (tmp_path / name).touch()
    return tmp_path


def build(root, name, content, **kwargs):
    (root / name).write_text(content)
    return ImageTextPairs(name, data_root=str(root), pipeline=[lambda results: results], **kwargs)


ITEMS = [dict(image='a.jpg', caption='one, "two"'), dict(image='b.jpg', caption='three')]
FORMS = {
    'x.json': json.dumps(ITEMS),
    'x.jsonl': '\n'.join(map(json.dumps, ITEMS)) + '\n\n',
    'x.csv': 'image,caption\na.jpg,"one, ""two"""\nb.jpg,three\n',
    'x.tsv': 'caption\timage\r\none, "two"\ta.jpg\r\nthree\tb.jpg\r\n',
}


@pytest.mark.parametrize('name', FORMS)
def test_every_format_gives_the_same_rows(root, name):
    dataset = build(root, name, FORMS[name])
    assert [(dataset[i]['image_id'], dataset[i]['img_path'], dataset[i]['caption']) for i in range(2)] == [
        ('a.jpg', f'{root}/a.jpg', 'one, "two"'), ('b.jpg', f'{root}/b.jpg', 'three')]
    assert build(root, name, FORMS[name], test_mode=True)[1]['gt_caption'] == ['three']


def test_parquet_gives_the_same_rows(root):
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet
    table = pyarrow.Table.from_pylist([dict(image='a.jpg', caption=['one, "two"', 'x'], image_id=4, width=3),
                                       dict(image='b.jpg', caption=['three'], image_id=7, width=3)])
    parquet.write_table(table, root / 'x.parquet')
    dataset = ImageTextPairs('x.parquet', data_root=str(root), pipeline=[lambda results: results], test_mode=True)
    assert [(dataset[i]['image_id'], dataset[i]['img_path'], dataset[i]['gt_caption']) for i in range(2)] == [
        (4, f'{root}/a.jpg', ['one, "two"', 'x']), (7, f'{root}/b.jpg', ['three'])]
    with pytest.raises(DataError, match="no column 'url', only"):
        ImageTextPairs('x.parquet', data_root=str(root), image_key='url')
    (root / 'x.parquet').write_bytes(b'PAR1 torn')
    with pytest.raises(DataError, match='no Parquet file, or broken'):
        ImageTextPairs('x.parquet', data_root=str(root))


def test_parquet_without_pyarrow_says_what_to_install(root, monkeypatch):
    (root / 'x.parquet').touch()
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(ConfigError, match='pip install pyarrow'):
        ImageTextPairs('x.parquet', data_root=str(root))


def test_one_of_several_captions_is_drawn_by_position(root):
    dataset = build(root, 'x.json', json.dumps([dict(image='a.jpg', caption=['x', 'y', 'z'], image_id=5)]))
    drawn = [dataset[Draw(0, seed=1, pos=pos)]['caption'] for pos in range(300)]
    assert {caption: 80 < drawn.count(caption) < 120 for caption in drawn} == dict(x=True, y=True, z=True)
    np.random.seed(0)
    assert drawn == [dataset[Draw(0, seed=1, pos=pos)]['caption'] for pos in range(300)]
    assert dataset[0]['image_id'] == 5


def test_several_different_captions_of_a_row_are_drawn(root):
    items = json.dumps([dict(image='a.jpg', caption=['x', 'y', 'z'])])
    dataset = build(root, 'x.json', items, captions_per_image=2)
    drawn = {tuple(dataset[Draw(0, seed=1, pos=pos)]['caption']) for pos in range(100)}
    assert drawn == {('x', 'y'), ('y', 'x'), ('x', 'z'), ('z', 'x'), ('y', 'z'), ('z', 'y')}
    with pytest.raises(ConfigError, match='captions_per_image of ImageTextPairs is -1: expected a whole number from 1'):
        build(root, 'x.json', items, captions_per_image=-1)


def test_several_columns_are_several_captions(root):
    content = 'file,c1,c2\na.jpg,x,y\nb.jpg,z,\n'
    dataset = build(root, 'x.csv', content, image_key='file', caption_key=['c1', 'c2'], test_mode=True)
    assert [dataset[index]['gt_caption'] for index in range(2)] == [['x', 'y'], ['z']]


def test_missing_column_is_named(root):
    with pytest.raises(DataError, match=r"x\.csv has no column 'caption' in its header line, only "
                                        r"\['image', 'text'\]: set image_key and caption_key"):
        build(root, 'x.csv', 'image,text\na.jpg,x\n')


def test_broken_lines_are_numbered(root):
    with pytest.raises(DataError, match=r'line 2 of .*x\.jsonl is not JSON: '):
        build(root, 'x.jsonl', '{"image": "a.jpg", "caption": "x"}\n{"image":\n')
    with pytest.raises(DataError, match=r"line 1 of .*x\.jsonl has a layout .*: got .*\['img'\]"):
        build(root, 'x.jsonl', '{"img": "a.jpg"}\n')
    with pytest.raises(DataError, match=r'line 3 of .*x\.tsv has too few columns'):
        build(root, 'x.tsv', 'image\tcaption\na.jpg\tx\nb.jpg\n')
    with pytest.raises(DataError, match=r'x\.csv cannot be read: '):
        build(root, 'x.csv', 'image,caption\na.jpg,"x\n')


def test_other_layouts_are_described(root):
    with pytest.raises(DataError, match=r'x\.json has a layout .* in every object of a list'):
        build(root, 'x.json', '{"a": 1}')
    with pytest.raises(DataError, match=r'x\.json has a layout'):
        build(root, 'x.json', '[{"image": "a.jpg", "caption": 3}]')


def test_other_endings_are_refused(root):
    with pytest.raises(ConfigError, match=r"ann_file '.*x\.xlsx' of ImageTextPairs must end with one of"):
        build(root, 'x.xlsx', '')


def test_empty_caption_is_refused_or_dropped(root):
    content = 'image,caption\na.jpg,\nb.jpg,x\n'
    with pytest.raises(DataError, match="1 empty texts in .*, the first is captions of image id 'a.jpg'"):
        build(root, 'x.csv', content)
    assert len(build(root, 'x.csv', content, filter_cfg=dict(empty_caption=True))) == 1
