import json

import pytest

from mmblip2.datasets import COCOVQA
from mmblip2.errors import ConfigError, DataError

QUESTIONS = dict(questions=[dict(image_id=7, question='What?', question_id=70),
                            dict(image_id=9, question='Is it?', question_id=90)])
ANSWERS = dict(annotations=[
    dict(question_id=90, image_id=9, answer_type='yes/no', question_type='is it',
         answers=[dict(answer='yes', answer_confidence='yes', answer_id=i) for i in range(1, 11)]),
    dict(question_id=70, image_id=7, answer_type='other', question_type='what',
         answers=[dict(answer=a, answer_id=a) for a in ('dog', 'cat')])])


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'val').mkdir()
    for image_id in (7, 9):
        (tmp_path / f'val/COCO_val2014_{image_id:012d}.jpg').touch()
    return tmp_path


def build(root, questions=QUESTIONS, answers=ANSWERS, **kwargs):
    (root / 'q.json').write_text(json.dumps(questions))
    if answers:
        (root / 'a.json').write_text(json.dumps(answers))
        kwargs['ann_file'] = 'a.json'
    return COCOVQA(question_file='q.json', data_root=str(root), **dict(dict(data_prefix=dict(img_path='val')),
                                                                       **kwargs))


def test_official_files_are_joined_by_question_id(root):
    first, second = (build(root).get_data_info(index) for index in range(2))
    assert first == dict(question='What?', question_id=70, image_id=7, gt_answer=['dog', 'cat'],
                         answer_type='other', question_type='what', sample_idx=0,
                         img_path=f'{root}/val/COCO_val2014_000000000007.jpg')
    assert second['gt_answer'] == ['yes'] * 10 and second['answer_type'] == 'yes/no'


@pytest.mark.parametrize('name', ['{}.jpg', '{:012d}.png', 'COCO_train2014_{:012d}.jpg', 'x_{:06d}.jpg'])
def test_images_are_found_by_their_id(root, name):
    (root / 'train').mkdir()
    for image_id in (7, 9):
        (root / 'train' / name.format(image_id)).touch()
    for template in ('', name):
        dataset = build(root, data_prefix=dict(img_path='train'), image_template=template)
        assert dataset.get_data_info(1)['img_path'] == f'{root}/train/{name.format(9)}'


@pytest.mark.parametrize('annotators, expected', [
    ([dict(answer_id=1), dict(answer_id=2)], None), ([{}, {}], [0, 0]),
    ([dict(answer_confidence='yes'), dict(answer_confidence='no')], None),
    ([dict(answer_confidence='yes')] * 2, [0, 0]), ([dict(answer_id=3)] * 2, [0, 0])])
def test_answers_that_the_file_does_not_tell_apart_are_marked(root, annotators, expected):
    answers = json.loads(json.dumps(ANSWERS))
    answers['annotations'][0]['answers'] = [
        dict(answer=text, **who) for text, who in zip(('dog', 'cat'), annotators)]
    rows = {row['question_id']: row for row in map(build(root, answers=answers).get_data_info, range(2))}
    row = rows[answers['annotations'][0]['question_id']]
    assert row['gt_answer'] == ['dog', 'cat'] and row.get('gt_annotator') == expected


def test_test_split_needs_no_answers(root):
    dataset = build(root, answers=None, test_mode=True)
    assert len(dataset) == 2 and 'gt_answer' not in dataset.get_data_info(0)
    with pytest.raises(ConfigError, match=r'training on .*q\.json needs its answers: set ann_file'):
        build(root, answers=None)


def test_lavis_lists_are_read(root):
    name = 'val/COCO_val2014_00000000000{}.jpg'
    items = [dict(image=name.format(7), question='What?', answer=['a', 'b'], question_id=70),
             dict(image=name.format(9), question='Why?', answer='c', dataset='vg')]
    dataset = build(root, items, answers=None, data_prefix=dict(img_path=''))
    first, second = dataset.get_data_info(0), dataset.get_data_info(1)
    assert (first['image_id'], first['gt_answer'], first['question_id']) == (7, ['a', 'b'], 70)
    assert (second['image_id'], second['gt_answer'], second['question_id']) == (9, ['c'], 1)


def test_all_questions_of_an_image_get_the_same_exchanged_image(root):
    more = dict(questions=QUESTIONS['questions'] + [dict(image_id=7, question='Who?', question_id=71)])
    dataset = build(root, more, answers=None, test_mode=True, shuffle_images=True)
    shown = [dataset.get_data_info(index)['img_path'][-6:] for index in range(3)]
    assert shown == ['09.jpg', '07.jpg', '09.jpg']


def test_questions_without_answers_are_counted(root):
    with pytest.raises(DataError, match=r'1 of 2 questions in .*q\.json have no answer in .*a\.json, the '
                                        'first is question_id 70: check that'):
        build(root, answers=dict(annotations=ANSWERS['annotations'][:1]), test_mode=True)
    blank = [dict(image='val/COCO_val2014_000000000007.jpg', question='What?', answer=' ')]
    with pytest.raises(DataError, match='1 of 1 questions .* have no answer'):
        build(root, blank, answers=None, data_prefix=dict(img_path=''))


def test_question_id_that_occurs_twice_is_refused(root):
    twice = dict(questions=[dict(item, question_id=70) for item in QUESTIONS['questions']])
    with pytest.raises(DataError, match=r'q\.json has question ids that occur twice'):
        build(root, twice)


def test_image_that_is_not_in_the_folder_is_named(root):
    (root / 'val/COCO_val2014_000000000009.jpg').unlink()
    with pytest.raises(DataError, match=r'1 of 2 images listed in .*q\.json not found, .*\(image id 9\)'):
        build(root)


def test_image_folder_that_is_not_there_is_named(root):
    with pytest.raises(DataError, match=r"image folder '.*/test' not found: check data_root and data_prefix"):
        build(root, data_prefix=dict(img_path='test'))


def test_ambiguous_image_id_asks_for_a_template(root):
    (root / 'val/COCO_train2014_000000000009.jpg').touch()
    with pytest.raises(DataError, match='image id 9 of .* matches 2 files in .*: set image_template'):
        build(root)
    assert len(build(root, image_template='COCO_val2014_{:012d}.jpg')) == 2


def test_template_without_a_field_is_refused(root):
    with pytest.raises(ConfigError, match="image_template 'x.jpg' has no field for the image id"):
        build(root, image_template='x.jpg')


@pytest.mark.parametrize('questions', [dict(data=[]), [dict(question='a')],
                                       dict(questions=[dict(question='a')]), 1])
def test_other_question_layouts_are_described(root, questions):
    with pytest.raises(DataError, match=r'q\.json has a layout that cannot be read: got .*, expected the '
                                        r'official layout \{"questions": .* or the list of LAVIS'):
        build(root, questions)


@pytest.mark.parametrize('answers', [[1], dict(questions=[]),
                                     dict(annotations=[dict(question_id=1, answers=['a'])])])
def test_other_answer_layouts_are_described(root, answers):
    with pytest.raises(DataError, match=r'a\.json has a layout .* the official layout \{"annotations"'):
        build(root, answers=answers)


def test_missing_question_file_is_named(root):
    with pytest.raises(DataError, match=r"annotation file '.*no\.json' not found: check question_file"):
        COCOVQA(question_file='no.json', data_root=str(root))


def test_empty_question_is_refused(root):
    with pytest.raises(DataError, match='1 empty texts in .*q.json, the first is question of image id 7'):
        build(root, dict(questions=[dict(image_id=7, question='', question_id=1)]), answers=None,
              test_mode=True)


def test_rows_of_an_image_come_together_in_evaluation(root):
    pairs = [(9, 1), (7, 2), (9, 3), (7, 4), (9, 5)]
    questions = dict(questions=[dict(image_id=image, question='What?', question_id=number) for image, number in pairs])
    dataset = build(root, questions, answers=None, test_mode=True)
    assert dataset.rows_by_image() == [0, 2, 4, 1, 3]
    assert list(build(root, QUESTIONS, answers=None, test_mode=True).rows_by_image()) == [0, 1]
