import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger

from mmblip2.errors import DataError
from mmblip2.evaluation.metrics.base import GatheredMetric
from mmblip2.evaluation.metrics.vqa import VQAMetric
from mmblip2.structures import DataSample

ROOT = Path(__file__).parents[3]


class Total(GatheredMetric):
    default_prefix = 'total'

    def read(self, sample):
        return sample.get('value')

    def to_predictions(self, results):
        return results

    def compute_metrics(self, results):
        if None in results:
            raise DataError('a value is missing')
        return dict(order=list(results), sum=sum(results))


def feed(metric, rows):
    for index, value in rows:
        metric.process(None, [dict(sample_idx=index, value=value)])
    return metric


def test_results_are_ordered_by_index_and_copies_dropped():
    metric = feed(Total(), [(2, 30), (0, 10), (1, 20), (0, 10)])
    assert metric.evaluate(3) == {'total/order': [10, 20, 30], 'total/sum': 60}


def test_results_of_one_evaluation_do_not_reach_the_next():
    metric = feed(Total(prefix='a'), [(0, 1)])
    assert metric.evaluate(1) == feed(metric, [(0, 1)]).evaluate(1)


@pytest.mark.parametrize('rows, size, message', [
    ([(0, 1), (2, 1)], 4, r'Total gathered 2 results for a data set of 4 samples .*sample_idx: 2 \[1, 3\]'),
    ([(0, 1), (5, 1)], 1, r'outside the data set: 1 \[5\]'),
    ([], 2, 'gathered 0 results for a data set of 2'),
    ([], 0, 'the data set is empty'),
])
def test_count_other_than_the_data_set_is_refused(rows, size, message):
    with pytest.raises(DataError, match=message):
        feed(Total(), rows).evaluate(size)


def test_sample_without_index_is_refused():
    with pytest.raises(DataError, match='has no sample_idx, which the metric reads: the data set'):
        Total().process(None, [dict(value=1)])


def test_predictions_are_written_before_scoring(tmp_path):
    metric = feed(Total(out_file=str(tmp_path / 'new' / 'file.json')), [(1, None), (0, 4)])
    with pytest.raises(DataError, match='a value is missing'):
        metric.evaluate(2)
    assert json.loads((tmp_path / 'new' / 'file.json').read_text()) == [4, None]
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['file.json']


def test_predictions_go_below_the_work_dir_of_the_runner(tmp_path):
    log_file = tmp_path / 'run' / '20250101' / '20250101.log'
    log_file.parent.mkdir(parents=True)
    MMLogger.get_instance('test_metric_work_dir', log_file=str(log_file))
    feed(Total(prefix='x'), [(0, 1)]).evaluate(1)
    assert json.loads((tmp_path / 'run' / 'predictions' / 'x.json').read_text()) == [1]


def test_work_dir_attribute_wins(tmp_path):
    metric = feed(Total(), [(0, 1)])
    metric.work_dir = str(tmp_path)
    metric.evaluate(1)
    assert (tmp_path / 'predictions' / 'total.json').is_file()


def test_data_samples_pass_through_the_evaluator(tmp_path):
    metric = VQAMetric(out_file=str(tmp_path / 'answers.json'))
    evaluator = Evaluator([metric])
    evaluator.process([DataSample(sample_idx=0, question_id=5, pred_text='2', gt_answer=['2'] * 10)])
    assert evaluator.evaluate(1) == {'vqa/accuracy': 100}


WORKER = '''
import json, sys
import torch.distributed as dist
from mmblip2.engine.dump import DumpPredictions
from mmblip2.errors import DataError
from mmblip2.evaluation.metrics import Perplexity, VQAMetric
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
answers = json.load(open(folder + '/samples.json'))
parts = {0: [0, 2, 4, 6, 0], 1: [1, 3, 5, 1, 3]}  # 7 samples: both ranks repeat some, as padding does
metric = VQAMetric(out_file=folder + '/two.json')
for i in parts[rank]:
    metric.process(None, [answers[i]])
other = Perplexity()
for i in parts[rank]:
    other.process(None, [dict(sample_idx=i, nll=float(i), num_tokens=i + 1)])
result = {**metric.evaluate(7), **other.evaluate(7)}
metric.process(None, [answers[0]])
try:
    metric.evaluate(7)
except DataError as error:
    result['error'] = str(error)
dump = DumpPredictions(folder + '/dump.json')
dump.process(None, [dict(sample_idx=0, pred_text='cat')])
try:
    dump.evaluate(7)
except DataError as error:
    result['dump_error'] = str(error)
dump = DumpPredictions(folder + '/samples.json/dump.json')  # below a file: cannot be written
try:
    dump.evaluate(0)
except Exception as error:
    result['write_error'] = type(error).__name__ + str(error)
json.dump(result, open(f'{folder}/result{rank}.json', 'w'))
dist.barrier()
dist.destroy_process_group()
'''


def test_two_processes_equal_one_with_uneven_padding(tmp_path):
    samples = [dict(sample_idx=i, question_id=100 + i, pred_text='cat',
                    answer_type='other' if i % 2 else 'yes/no',
                    gt_answer=['cat'] * (i % 4) + ['dog'] * (10 - i % 4)) for i in range(7)]
    (tmp_path / 'samples.json').write_text(json.dumps(samples))
    metric = VQAMetric(out_file=str(tmp_path / 'one.json'))
    metric.process(None, samples)
    expected = metric.evaluate(7)

    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    workers = [subprocess.Popen([sys.executable, '-c', WORKER, str(rank), str(tmp_path)], env=environment,
                                stderr=subprocess.PIPE, text=True) for rank in range(2)]
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors

    first, second = (json.loads((tmp_path / f'result{rank}.json').read_text()) for rank in range(2))
    assert {key: first[key] for key in expected} == expected
    assert first['lm/perplexity'] == second['lm/perplexity'] == pytest.approx(2.718281828 ** (21 / 28))
    assert (tmp_path / 'two.json').read_text() == (tmp_path / 'one.json').read_text()
    assert 'gathered 1 results for a data set of 7' in first.pop('error')
    assert 'gathered 1 results for a data set of 7' in second.pop('error')  # nobody waits for the failed rank
    for errors in (first, second):
        assert '1 different sample_idx for 7 samples' in errors.pop('dump_error')
    assert first.pop('write_error').startswith(('FileExistsError', 'NotADirectoryError'))
    assert second.pop('write_error').startswith('RuntimeErrorrank 0: ')
    assert first == second
