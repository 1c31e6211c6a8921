"""A-OKVQA, GQA, TextVQA and Visual Genome's questions: their own layouts, LAVIS's lists, and files of another kind."""
import json

import pytest

from mmblip2.datasets import AOKVQA, COCOVQA, GQA, TextVQA, VisualGenomeQA
from mmblip2.datasets.transforms import PackInputs, VQAPrompt
from mmblip2.errors import ConfigError, DataError

GQA_FILE = {'201': dict(imageId='n1', question='Is it red?', answer='yes', types=dict(structural='verify')),
            '202': dict(imageId='n2', question='What is it?', answer='a dog', types=dict(structural='query')),
            '203': dict(imageId='n2', question='Which?', answer='left')}
AOKVQA_FILE = [dict(split='val', image_id=5, question_id='x1', question='Why?', choices=['a', 'b'],
                    direct_answers=['rain'] * 10, difficult_direct_answer=False),
               dict(split='val', image_id=6, question_id='x2', question='How?', direct_answers=['by bus'] * 10,
                    difficult_direct_answer=True)]
TEXTVQA_FILE = dict(dataset_type='val', data=[
    dict(question_id=34602, image_id='003a8ae2', question='what is the brand?', answers=['nous'] * 10),
    dict(question_id=34603, image_id='003a8ae2', question='what year?', answers=['2010'] * 10)])
GENOME_FILE = [dict(id=1, qas=[dict(qa_id=11, image_id=1, question='What?', answer='A clock.', a_objects=[]),
                               dict(qa_id=12, image_id=1, question='Where?', answer='Left.')]),
               dict(id=2, qas=[])]
CASES = [(GQA, GQA_FILE, ['n1.jpg', 'n2.jpg'], [['yes'], ['a dog'], ['left']]),
         (AOKVQA, AOKVQA_FILE, ['000000000005.jpg', '000000000006.jpg'], [['rain'] * 10, ['by bus'] * 10]),
         (TextVQA, TEXTVQA_FILE, ['003a8ae2.jpg'], [['nous'] * 10, ['2010'] * 10]),
         (VisualGenomeQA, GENOME_FILE, ['VG_100K/1.jpg'], [['A clock.'], ['Left.']])]
IDS = [case[0].__name__ for case in CASES]


def build(root, kind, content, images=(), **kwargs):
    for name in images:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    (root / 'ann.json').write_text(json.dumps(content))
    return kind(ann_file='ann.json', data_root=str(root), **kwargs)


def rows(dataset):
    return [dataset.get_data_info(index) for index in range(len(dataset))]


@pytest.mark.parametrize('kind, content, images, answers', CASES, ids=IDS)
def test_official_layouts(tmp_path, kind, content, images, answers):
    for mode in (True, False):
        found = rows(build(tmp_path, kind, content, images, test_mode=mode))
        assert [row['gt_answer'] for row in found] == answers
        assert {row['img_path'] for row in found} == {f'{tmp_path}/{name}' for name in images}
        assert len({row['question_id'] for row in found}) == len(answers) and all(row['question'] for row in found)


def test_an_answer_of_visual_genome_counts_a_fifth(tmp_path):
    listed = [dict(image='1.jpg', question='What?', answer='a clock', question_id=1, dataset='vg')]
    for content, images in ((GENOME_FILE, ['VG_100K/1.jpg']), (listed, ['1.jpg'])):
        assert {row['answer_weight'] for row in rows(build(tmp_path, VisualGenomeQA, content, images))} == {0.2}
        dataset = build(tmp_path, VisualGenomeQA, content, images, answer_weight=1., pipeline=[
            VQAPrompt(every_answer=True), PackInputs()])
        assert list(dataset[0]['data_samples'].targets.values()) == [1.]
    with pytest.raises(ConfigError, match='answer_weight of VisualGenomeQA is 0, expected a number above 0'):
        build(tmp_path, VisualGenomeQA, GENOME_FILE, answer_weight=0)


def test_gqa_groups_as_the_official_program(tmp_path):
    first, second, third = rows(build(tmp_path, GQA, GQA_FILE, ['n1.jpg', 'n2.jpg']))
    assert (first['question_type'], first['answer_type']) == ('verify', 'binary')
    assert (second['question_type'], second['answer_type']) == ('query', 'open')
    assert 'question_type' not in third and third['question_id'] == '203'


def test_difficult_questions_of_aokvqa_can_be_left_out(tmp_path):
    found = rows(build(tmp_path, AOKVQA, AOKVQA_FILE, CASES[1][2], skip_difficult=True))
    assert [row['question_id'] for row in found] == ['x1']


def test_ok_vqa_comes_in_the_layout_of_vqav2(tmp_path):
    """Five annotators, each twice; ``answer`` is what is scored, ``raw_answer`` is not."""
    (tmp_path / 'COCO_val2014_000000000007.jpg').touch()
    (tmp_path / 'q.json').write_text(json.dumps(dict(questions=[dict(image_id=7, question='Why?', question_id=70)])))
    (tmp_path / 'a.json').write_text(json.dumps(dict(annotations=[dict(
        question_id=70, image_id=7, question_type='one', answer_type='other', answers=[
            dict(answer_id=i, answer='ride', raw_answer='riding') for i in range(1, 11)])])))
    dataset = COCOVQA(question_file='q.json', ann_file='a.json', data_root=str(tmp_path), test_mode=True)
    assert dataset.get_data_info(0)['gt_answer'] == ['ride'] * 10


@pytest.mark.parametrize('kind', [case[0] for case in CASES], ids=IDS)
def test_lists_of_lavis(tmp_path, kind):
    content = [dict(image='a.jpg', question='What?', answer='dog', question_id=4),
               dict(image='a.jpg', question='Who?', answer=['he', 'she'], question_id=5)]
    found = rows(build(tmp_path, kind, content, ['a.jpg']))
    assert [(row['question_id'], row['gt_answer']) for row in found] == [(4, ['dog']), (5, ['he', 'she'])]


@pytest.mark.parametrize('kind, content, images, answers', CASES[:3], ids=IDS[:3])
def test_a_test_split_has_no_answers(tmp_path, kind, content, images, answers):
    text = json.dumps(content)
    for key in ('"answer"', '"answers"', '"direct_answers"'):
        text = text.replace(key, '"hidden"')
    found = rows(build(tmp_path, kind, json.loads(text), images, test_mode=True))
    assert len(found) == len(answers) and not any('gt_answer' in row for row in found)
    with pytest.raises(DataError, match=f'{len(answers)} of {len(answers)} questions .* a split without any answer'):
        build(tmp_path, kind, json.loads(text), images)


@pytest.mark.parametrize('kind', [case[0] for case in CASES], ids=IDS)
@pytest.mark.parametrize('content', [
    dict(questions=[]), [dict(image='a.jpg', caption='a dog')], [dict(image='a.jpg', question=3)],
    dict(images=[dict(id=1)], annotations=[])], ids=['vqa', 'captions', 'number', 'coco'])
def test_files_of_another_task_are_refused(tmp_path, kind, content):
    with pytest.raises(DataError, match='has a layout that cannot be read: got .*, expected the official layout'):
        build(tmp_path, kind, content, ['a.jpg'], test_mode=True)


def test_repeated_question_ids_are_refused(tmp_path):
    with pytest.raises(DataError, match='question ids that occur twice'):
        build(tmp_path, AOKVQA, AOKVQA_FILE[:1] * 2, CASES[1][2])
