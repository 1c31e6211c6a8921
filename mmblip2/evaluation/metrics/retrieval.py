"""Retrieval recall as the retrieval loops compute it."""
from collections.abc import Sequence

from mmengine.evaluator import BaseMetric

from mmblip2.errors import ConfigError
from mmblip2.registry import METRICS


@METRICS.register_module()
class RetrievalRecall(BaseMetric):
    """What ``RetrievalValLoop`` and ``RetrievalTestLoop`` report: recall at ``topk``, in percent.

    The loops hold the whole score matrix and call :func:`mmblip2.evaluation.functional.retrieval_recall` on
    it, so this class only carries the settings.

    Args:
        topk (Sequence[int]): The values of k.
    """

    default_prefix = 'retrieval'
    gathers_by_index = True  # the loops do
    known_keys = tuple(f'{way}/{scores}/Recall@{k}' for way in ('i2t', 't2i') for scores in ('retrieval', 'itc')
                       for k in (1, 5, 10, 'mean'))

    def __init__(self, topk: Sequence[int] = (1, 5, 10)):
        super().__init__()
        self.topk = tuple(topk)

    def process(self, data_batch, data_samples):
        raise ConfigError('RetrievalRecall cannot score single samples: set '
                          'val_cfg = dict(type="RetrievalValLoop") '
                          'and test_cfg = dict(type="RetrievalTestLoop")')

    def compute_metrics(self, results):
        raise NotImplementedError('the retrieval loops compute the recall')
