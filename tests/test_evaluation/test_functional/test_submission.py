import pytest

from mmblip2.errors import ConfigError, DataError
from mmblip2.evaluation.functional import check_submission

VQA = [dict(question_id=1, answer='a'), dict(question_id=2, answer='')]
CAPTIONS = [dict(image_id=1, caption='a dog'), dict(image_id=2, caption='a cat')]


def test_good_files_are_returned():
    assert check_submission(VQA, 'vqa') is VQA
    assert check_submission(CAPTIONS, 'coco') is CAPTIONS
    assert check_submission(CAPTIONS, 'nocaps') is CAPTIONS
    whole = [dict(image_id=i, caption='a') for i in range(4500)]
    assert check_submission(whole, 'nocaps', 'val') is whole


@pytest.mark.parametrize('rows, message', [
    ({'1': 'a'}, 'no list of objects'),
    (CAPTIONS, r"2 rows have other keys, the first \['caption', 'image_id'\]"),
    ([dict(question_id='1', answer='a')], "1 ids are no whole numbers, the first '1'"),
    ([dict(question_id=True, answer='a')], '1 ids are no whole numbers, the first True'),
    (VQA + VQA[:1], '1 ids are repeated, the first 1'),
    ([dict(question_id=1, answer=None)], '1 texts are no strings, the first None'),
    ([dict(question_id=1, answer='a', score=1)], 'other keys'),
])
def test_what_a_server_would_refuse_is_named(rows, message):
    with pytest.raises(DataError, match=message):
        check_submission(rows, 'vqa')


def test_everything_wrong_is_said_at_once_with_the_number_of_rows():
    with pytest.raises(DataError, match='1 ids are no whole.*1 texts are no.*1 rows, vqa test has 447793'):
        check_submission([dict(question_id='x', answer=1)], 'vqa', 'test')


def test_other_tasks_and_splits_are_refused():
    with pytest.raises(ConfigError, match="'gqa' is not one of vqa, coco, nocaps"):
        check_submission(VQA, 'gqa')
    with pytest.raises(ConfigError, match="'train' is not one of test, val"):
        check_submission(VQA, 'vqa', 'train')
