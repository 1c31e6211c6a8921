import json

import pytest

from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import METRICS


def build(tmp_path, **kwargs):
    return METRICS.build(dict(type='ServerSubmission', out_file=str(tmp_path / 'out.json'), **kwargs))


def test_captions_are_written_once_an_image_with_numbers_as_ids(tmp_path):
    metric = build(tmp_path, task='coco')
    metric.process(None, [dict(sample_idx=1, image_id='12', pred_text='b'),
                          dict(sample_idx=0, image_id=7, pred_text='a'),
                          dict(sample_idx=2, image_id=12, pred_text='c')])
    assert metric.evaluate(3) == {}
    assert json.loads((tmp_path / 'out.json').read_text()) == [
        dict(image_id=7, caption='a'), dict(image_id=12, caption='b')]


def test_answers_are_written_and_counted(tmp_path):
    metric = build(tmp_path, task='vqa', split='val')
    metric.process(None, [dict(sample_idx=0, question_id=5, pred_text='two')])
    with pytest.raises(DataError, match='1 rows, vqa val has 214354'):
        metric.evaluate(1)
    assert json.loads((tmp_path / 'out.json').read_text()) == [dict(question_id=5, answer='two')], 'lost'


def test_ids_that_the_server_refuses(tmp_path):
    metric = build(tmp_path, task='nocaps')
    metric.process(None, [dict(sample_idx=0, image_id='a.jpg', pred_text='two')])
    with pytest.raises(DataError, match="1 ids are no whole numbers, the first 'a.jpg'"):
        metric.evaluate(1)


def test_other_tasks_are_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match="task 'okvqa' is not one of vqa, coco, nocaps"):
        build(tmp_path, task='okvqa')
    with pytest.raises(ConfigError, match="split 'train'"):
        build(tmp_path, task='vqa', split='train')
