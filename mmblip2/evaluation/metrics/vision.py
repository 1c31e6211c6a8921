"""Metric of the vision encoder's own training."""
from mmblip2.registry import METRICS

from .base import GatheredMetric, required


@METRICS.register_module()
class PatchAccuracy(GatheredMetric):
    """Share of the patch labels that were predicted right, in percent: ``vision/patch_accuracy``.

    Reads ``pred_correct`` and ``num_patches`` (counts) of every sample; patches, not images, have equal
    weight.
    Arguments: see :class:`GatheredMetric`.
    """

    default_prefix = 'vision'
    known_keys = ('patch_accuracy', )

    def read(self, sample) -> tuple:
        return int(required(sample, 'pred_correct')), int(required(sample, 'num_patches'))

    def compute_metrics(self, results: list) -> dict:
        """Percent."""
        right, total = map(sum, zip(*results))
        return dict(patch_accuracy=100 * right / total)
