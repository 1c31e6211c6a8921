"""VQA accuracy of a data set."""

from mmengine.logging import print_log

from mmblip2.errors import ConfigError, DataError
from mmblip2.evaluation.functional.vqa import VARIANTS, vqa_accuracy
from mmblip2.registry import METRICS

from .base import GatheredMetric, plain_id, required


@METRICS.register_module()
class VQAMetric(GatheredMetric):
    """Mean VQA accuracy in percent, over all questions and for each answer type.

    Predictions are written in the format of the VQA server, ``[{"question_id": ..., "answer": ...}]``. A
    split without published answers is only written: the result is then empty and the log says so.

    Args:
        variant (str): 'official' or 'pre2021', see :func:`~mmblip2.evaluation.functional.vqa.vqa_accuracy`.
        prefix (str): First part of the metric keys.
        out_file (str, optional): See :class:`GatheredMetric`.

    Raises:
        ConfigError: ``variant`` is unknown.
    """

    default_prefix = 'vqa'

    def __init__(self, variant: str = 'official', prefix: str = 'vqa', out_file: str | None = None):
        super().__init__(prefix=prefix, out_file=out_file)
        if variant not in VARIANTS:
            raise ConfigError(f'VQAMetric: unknown variant {variant!r}, expected one of '
                              f'{", ".join(VARIANTS)}')
        self.variant = variant

    def read(self, sample) -> dict:
        answers = sample.get('gt_answer')
        return dict(question_id=plain_id(required(sample, 'question_id')),
                    answer=required(sample, 'pred_text'),
                    gt_answer=None if answers is None else list(answers),
                    answer_type=sample.get('answer_type'))

    def to_predictions(self, results: list) -> list:
        return [dict(question_id=row['question_id'], answer=row['answer']) for row in results]

    def compute_metrics(self, results: list) -> dict:
        """Percent: ``accuracy``, ``yes_no``, ``number``, ``other``; empty when no question has answers."""
        ids = {row['question_id'] for row in results}
        if len(ids) < len(results):
            raise DataError(f'{len(results)} questions have only {len(ids)} different question ids: the '
                            'question file lists some twice')
        without = [row['question_id'] for row in results if not row['gt_answer']]
        if len(without) == len(results):
            print_log('VQAMetric: no ground truth, accuracy is not computed; predictions: '
                      f'{self._path()}', 'current')
            return {}
        if without:
            raise DataError(f'{len(without)} of {len(results)} questions have no answers, for example '
                            f'{without[:5]}: question_file and ann_file do not belong together')
        groups: dict[str, list[float]] = {'accuracy': []}
        for row in results:
            accuracy = vqa_accuracy(row['answer'], row['gt_answer'], self.variant)
            groups['accuracy'].append(accuracy)
            if row['answer_type']:
                groups.setdefault(row['answer_type'].replace('/', '_'), []).append(accuracy)
        return {name: 100 * sum(values) / len(values) for name, values in groups.items()}
