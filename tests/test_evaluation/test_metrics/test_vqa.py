import json
from pathlib import Path

import pytest

from mmblip2.errors import ConfigError, DataError
from mmblip2.evaluation.metrics.vqa import VQAMetric
from mmblip2.registry import METRICS

CASES = json.loads((Path(__file__).parents[2] / 'data' / 'vqa_accuracy.json').read_text())['cases']


def sample(i, prediction='2', answers=('2',) * 9 + ('3',), **extra):
    return dict(sample_idx=i, question_id=10 + i, pred_text=prediction, gt_answer=list(answers), **extra)


@pytest.mark.parametrize('variant, key', [('official', 'official'), ('pre2021', 'official_pre2021')])
def test_overall_is_the_mean_of_the_golden_cases(variant, key):
    cases = [case for case in CASES if case['with_answer_id']]
    metric = METRICS.build(dict(type='VQAMetric', variant=variant, prefix='v'))
    metric.process(None, [sample(i, case['prediction'], case['answers'], answer_type=case['answer_type'])
                          for i, case in enumerate(cases)])
    mean = sum(case[key] for case in cases) / len(cases)
    assert metric.evaluate(len(cases))['v/accuracy'] == pytest.approx(mean)


def test_answer_types_are_reported_apart_and_predictions_written(tmp_path):
    metric = VQAMetric(out_file=str(tmp_path / 'answers.json'))
    metric.process(None, [sample(0, 'two', answer_type='number'), sample(1, '3', answer_type='number'),
                          sample(2, 'Yes', ['yes'] * 8 + ['no'] * 2, answer_type='yes/no')])
    metric.process(None, [sample(3, 'x', answer_type='other')])
    assert metric.evaluate(4) == {'vqa/accuracy': pytest.approx(230 / 4), 'vqa/number': pytest.approx(65),
                                  'vqa/yes_no': 100, 'vqa/other': 0}
    assert json.loads((tmp_path / 'answers.json').read_text())[:2] == [
        dict(question_id=10, answer='two'), dict(question_id=11, answer='3')]


def test_without_ground_truth_only_writes_and_says_so(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('mmblip2.evaluation.metrics.vqa.print_log', lambda text, *args: said.append(text))
    metric = VQAMetric(out_file=str(tmp_path / 'answers.json'))
    metric.process(None, [dict(sample_idx=0, question_id=1, pred_text='a')])
    assert metric.evaluate(1) == {}
    assert 'no ground truth' in said[0] and 'answers.json' in said[0]
    assert json.loads((tmp_path / 'answers.json').read_text()) == [dict(question_id=1, answer='a')]


def test_partial_ground_truth_is_refused():
    metric = VQAMetric()
    metric.process(None, [sample(0), sample(1, answers=())])
    with pytest.raises(DataError, match=r'1 of 2 questions have no answers, for example \[11\]'):
        metric.evaluate(2)


def test_repeated_question_id_is_refused():
    metric = VQAMetric()
    metric.process(None, [sample(0), {**sample(1), 'question_id': 10}])
    with pytest.raises(DataError, match='2 questions have only 1 different question ids'):
        metric.evaluate(2)


def test_sample_without_prediction_is_refused():
    with pytest.raises(DataError, match='sample 0 has no pred_text'):
        VQAMetric().process(None, [sample(0, None)])


def test_unknown_variant_is_refused():
    with pytest.raises(ConfigError, match="unknown variant 'lavis', expected one of official, pre2021"):
        VQAMetric(variant='lavis')
