import json

import pytest

from mmblip2.errors import DataError
from mmblip2.evaluation.metrics import NLVRAccuracy


def samples(labels=(1, 0, 1), identifiers=('dev-1-0-0', 'dev-1-2-0', 'dev-7-0-1'), predictions=(1, 1, 1)):
    return [dict(sample_idx=i, identifier=identifier, pred_label=prediction,
                 **({} if label is None else dict(gt_label=label)))
            for i, (identifier, prediction, label) in enumerate(zip(identifiers, predictions, labels))]


def run(rows, **kwargs):
    metric = NLVRAccuracy(**kwargs)
    metric.process(None, rows)
    return metric.evaluate(len(rows))


def test_accuracy_and_consistency_in_percent(tmp_path):
    file = tmp_path / 'nlvr.json'
    assert run(samples(), out_file=str(file)) == {'nlvr/accuracy': pytest.approx(200 / 3), 'nlvr/consistency': 50}
    assert json.loads(file.read_text()) == [dict(identifier=identifier, prediction='True')
                                            for identifier in ('dev-1-0-0', 'dev-1-2-0', 'dev-7-0-1')]


def test_lists_without_identifiers_have_no_consistency():
    assert run(samples(identifiers=(0, 1, 2))) == {'nlvr/accuracy': pytest.approx(200 / 3)}


def test_predictions_are_written_before_and_without_labels(tmp_path):
    file = tmp_path / 'nlvr.json'
    assert run(samples((None, ) * 3, predictions=(1, 0, 1)), out_file=str(file)) == {}
    assert [row['prediction'] for row in json.loads(file.read_text())] == ['True', 'False', 'True']
    file.unlink()
    with pytest.raises(DataError, match=r"1 of 3 sentences have no label, for example \['dev-1-2-0'\]"):
        run(samples((1, None, 0)), out_file=str(file))
    assert file.exists()


def test_what_the_metric_needs_is_said():
    rows = samples()
    del rows[1]['pred_label']
    with pytest.raises(DataError, match='sample 1 has no pred_label, .*predict mode must set it'):
        run(rows)
