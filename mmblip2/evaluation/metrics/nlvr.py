"""Accuracy on NLVR2."""
from mmengine.logging import print_log

from mmblip2.errors import DataError
from mmblip2.evaluation.functional.nlvr import nlvr_accuracy, nlvr_consistency, sentence_of
from mmblip2.registry import METRICS

from .base import GatheredMetric, plain_id, required


@METRICS.register_module()
class NLVRAccuracy(GatheredMetric):
    """Share of the sentences that are judged right, in percent: ``nlvr/accuracy``; and ``nlvr/consistency``, of those
    that are judged right with all their pairs of images.

    Reads ``pred_label``, ``identifier`` and ``gt_label``. Consistency needs the published identifiers, which the lists
    of BLIP do not have. Predictions are written as ``[{"identifier", "prediction"}]`` with "True" or "False", the
    values that the official ``metrics.py`` takes; a split without published labels is only written.

    Args:
        prefix (str): First part of the metric keys.
        out_file (str, optional): See :class:`GatheredMetric`.
    """

    default_prefix = 'nlvr'
    known_keys = ('accuracy', 'consistency')

    def __init__(self, prefix: str = 'nlvr', out_file: str | None = None):
        super().__init__(prefix=prefix, out_file=out_file)

    def read(self, sample) -> dict:
        label = sample.get('gt_label')
        return dict(identifier=plain_id(required(sample, 'identifier')), prediction=int(required(sample, 'pred_label')),
                    label=None if label is None else int(label))

    def to_predictions(self, results: list) -> list:
        return [dict(identifier=row['identifier'], prediction=str(bool(row['prediction']))) for row in results]

    def compute_metrics(self, results: list) -> dict:
        """Percent; empty when no sentence has a label."""
        without = [row['identifier'] for row in results if row['label'] is None]
        if len(without) == len(results):
            print_log(f'{type(self).__name__}: no ground truth, accuracy is not computed; predictions: {self._path()}',
                      'current')
            return {}
        if without:
            raise DataError(f'{len(without)} of {len(results)} sentences have no label, for example {without[:5]}: '
                            'mend the annotation file')
        predictions, labels = ([row[key] for row in results] for key in ('prediction', 'label'))
        metrics = dict(accuracy=100 * nlvr_accuracy(predictions, labels))
        sentences = [sentence_of(row['identifier']) for row in results]
        if None not in sentences:
            metrics['consistency'] = 100 * nlvr_consistency(predictions, labels, sentences)
        return metrics
