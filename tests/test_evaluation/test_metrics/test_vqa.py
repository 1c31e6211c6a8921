import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

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


# ------------------------------------------------------------------------------------ kinds and relatives

def test_question_types_are_reported_apart():
    metric = VQAMetric()
    metric.process(None, [sample(0, 'cat', ['cat'] * 10, question_type='what is'),
                          sample(1, 'dog', ['cat'] * 10, question_type='what is'),
                          sample(2, 'no', ['no'] * 10, question_type='is the')])
    assert metric.evaluate(3) == {'vqa/accuracy': pytest.approx(200 / 3), 'vqa/question_type/is the': 100,
                                  'vqa/question_type/what is': 50}
    metric = VQAMetric(question_types=False)
    metric.process(None, [sample(0, 'cat', ['cat'] * 10, question_type='what is', answer_type='other')])
    assert metric.evaluate(1) == {'vqa/accuracy': 100, 'vqa/other': 100}


def test_questions_with_one_answer_are_said_to_score_nothing(monkeypatch):
    said = []
    monkeypatch.setattr('mmblip2.evaluation.metrics.vqa.print_log', lambda text, *_: said.append(text))
    metric = VQAMetric()
    metric.process(None, [sample(0, 'cat', ['cat']), sample(1, 'cat', ['cat'] * 10)])
    assert metric.evaluate(2) == {'vqa/accuracy': 50}
    assert len(said) == 1 and said[0].startswith('1 of 2 questions have one answer only, which scores 0')


def test_lemmas_are_scored_and_texts_written(tmp_path, monkeypatch):
    """spaCy is not installed here: what matters is which words are replaced."""
    words = {'dogs': ('dog', 'NOUN'), 'running': ('run', 'VERB'), 'better': ('good', 'ADJ')}
    model = lambda text: [SimpleNamespace(text=word, lemma_=words[word][0], pos_=words[word][1])  # noqa: E731
                          for word in text.split()]
    spacy = ModuleType('spacy')
    spacy.__spec__, spacy.load = ModuleSpec('spacy', None), lambda name: model
    monkeypatch.setitem(sys.modules, 'spacy', spacy)
    metric = VQAMetric(lemmatise=True, out_file=str(tmp_path / 'answers.json'))
    metric.process(None, [sample(0, 'dogs running better', ['dog run better'] * 10)])
    assert metric.evaluate(1) == {'vqa/accuracy': 100}
    assert json.loads((tmp_path / 'answers.json').read_text()) == [dict(question_id=10, answer='dogs running better')]

    def missing(name):
        raise OSError("Can't find model")

    spacy.load = missing
    with pytest.raises(ConfigError, match='python -m spacy download en_core_web_sm'):
        VQAMetric(lemmatise=True)


def test_lemmas_without_spacy_are_refused_at_once(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ConfigError, match='pip install spacy'):
        VQAMetric(lemmatise=True)


@pytest.mark.parametrize('config, prediction, answers, key, expected', [
    (dict(type='GQAMetric'), 'yes', ['yes'], 'gqa/accuracy', 100),
    (dict(type='GQAMetric'), 'Yes', ['yes'], 'gqa/accuracy', 0),
    (dict(type='GQAMetric', variant='normalised'), 'Yes', ['yes'], 'gqa/accuracy', 100),
    (dict(type='AOKVQAMetric'), 'cat', ['cat'] * 2 + ['dog'] * 8, 'aokvqa/accuracy', 200 / 3),
    (dict(type='TextVQAMetric'), 'Cat', ['cat'] * 3 + ['dog'] * 7, 'textvqa/accuracy', 90),
    (dict(type='ANLSMetric'), 'helo', ['hello'], 'anls/anls', 80),
    (dict(type='ANLSMetric', variant='paper'), 'ab', ['ax'], 'anls/anls', 0),
])
def test_relatives_score_by_their_own_rule(config, prediction, answers, key, expected):
    metric = METRICS.build(config)
    metric.process(None, [sample(0, prediction, answers)])
    assert metric.evaluate(1) == {key: pytest.approx(expected)}


@pytest.mark.parametrize('config, expected', [
    (dict(type='GQAMetric'), [dict(questionId=10, prediction='2')]),
    (dict(type='AOKVQAMetric'), {'10': dict(direct_answer='2')}),
    (dict(type='TextVQAMetric'), [dict(question_id=10, answer='2')])])
def test_relatives_write_what_their_servers_take(tmp_path, config, expected):
    metric = METRICS.build(dict(config, out_file=str(tmp_path / 'out.json')))
    metric.process(None, [dict(sample_idx=0, question_id=10, pred_text='2')])
    assert metric.evaluate(1) == {}
    assert json.loads((tmp_path / 'out.json').read_text()) == expected


def test_relatives_refuse_unknown_variants():
    for name in ('GQAMetric', 'ANLSMetric'):
        with pytest.raises(ConfigError, match=f"{name}: unknown variant 'x'"):
            METRICS.build(dict(type=name, variant='x'))
