import copy
import json
from pathlib import Path

import pytest

from mmblip2.errors import ConfigError, DataError
from mmblip2.evaluation.functional.vqa import normalise_answer, vqa_accuracy

CASES = json.loads((Path(__file__).parents[2] / 'data' / 'vqa_accuracy.json').read_text())['cases']


def answers_of(case):
    return case['answers'] if case['with_answer_id'] else [{'answer': text} for text in case['answers']]


def dicts(texts):
    return [{'answer': text, 'answer_id': i, 'answer_confidence': 'yes'} for i, text in enumerate(texts, 1)]


@pytest.mark.parametrize('variant, key', [('official', 'official'), ('pre2021', 'official_pre2021')])
def test_equals_the_official_program_on_every_golden_case(variant, key):
    assert len(CASES) == 300
    different = [(case['tag'], case['prediction'], value, case[key]) for case in CASES
                 for value in [100 * vqa_accuracy(case['prediction'], answers_of(case), variant)]
                 if abs(value - case[key]) > 1e-9]
    assert different == []


def test_normalised_prediction_equals_golden():
    assert [case['prediction'] for case in CASES
            if normalise_answer(case['prediction'].replace('\n', ' ').replace('\t', ' ').strip())
            != case['prediction_normalised']] == []


def test_official_dicts_equal_strings():
    for case in CASES:
        if case['with_answer_id']:
            assert vqa_accuracy(case['prediction'], dicts(case['answers'])) == \
                vqa_accuracy(case['prediction'], case['answers'])


@pytest.mark.parametrize('matches, expected', [(0, 0), (1, .3), (2, .6), (3, .9), (4, 1), (9, 1)])
def test_ten_choose_nine_mean(matches, expected):
    answers = ['cat'] * matches + ['dog'] * (10 - matches)
    assert vqa_accuracy('cat', answers) == pytest.approx(expected)


def test_order_of_annotators_does_not_matter():
    answers = ['cat', 'A cat', 'dog', '2', 'two', 'cats', 'cat.', 'x', 'y', 'z']
    for prediction in ('cat', 'two', 'x', 'nothing'):
        assert vqa_accuracy(prediction, answers) == pytest.approx(vqa_accuracy(prediction, answers[::-1]))


def test_nothing_is_normalised_when_annotators_agree():
    assert vqa_accuracy('Yes', ['yes'] * 10) == 0
    assert vqa_accuracy('Yes', ['yes'] * 9 + ['no']) == 1
    assert vqa_accuracy('Yes', ['yes'] * 10, 'pre2021') == 1


def test_dicts_without_id_leave_out_all_equal_answers():
    answers = [{'answer': 'cat'}] * 3 + [{'answer': f'dog{i}'} for i in range(7)]
    assert vqa_accuracy('cat', answers) == pytest.approx(.7)


def test_single_answer_scores_zero_as_official():
    assert vqa_accuracy('cat', ['cat']) == 0


def test_inputs_are_not_changed_and_repeated_calls_agree():
    answers = dicts(['The cat!', 'two'] * 5)
    before = copy.deepcopy(answers)
    assert vqa_accuracy('Two', answers) == vqa_accuracy('Two', answers) == 1
    assert answers == before


@pytest.mark.parametrize('text, expected', [
    ('The  Cat', 'cat'), ('ten or eleven', '10 or eleven'), ('1,000', '1000'), ('a/b', 'b'), ('a / b', 'b'),
    ('2.5 m.', '2.5 m'), ("somebody'd", 'somebodyd'),
    ('couldntve', 'couldntve'), ("couldnt've", "couldn't've"),
    ('dont', "don't"), ("o'clock: 3", "o'clock: 3"), ('none', '0'), ('', '')])
def test_normalisation_by_hand(text, expected):
    assert normalise_answer(text) == expected


@pytest.mark.parametrize('prediction, answers, message', [
    (None, ['a'], 'prediction must be a string, got None'),
    (3, ['a'], 'prediction must be a string, got 3'),
    ('a', [], 'at least one answer'),
    ('a', 'yes', "list of strings or of official dicts, got 'yes'"),
    ('a', None, 'got None'),
    ('a', ['b', None], 'answer 2 of 2 must be a string'),
    ('a', [{'raw_answer': 'b'}], 'answer 1 of 1 must be a string or a dict'),
])
def test_bad_input_is_refused(prediction, answers, message):
    with pytest.raises(DataError, match=message):
        vqa_accuracy(prediction, answers)


def test_unknown_variant_is_refused():
    with pytest.raises(ConfigError, match="'2019': expected one of official, pre2021"):
        vqa_accuracy('a', ['a'], variant='2019')
