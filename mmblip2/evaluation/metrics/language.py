"""Metric of the language model's own training."""
import math

from mmblip2.registry import METRICS

from .base import GatheredMetric, required


@METRICS.register_module()
class Perplexity(GatheredMetric):
    """exp of the mean negative log likelihood a token: ``lm/perplexity``.

    Reads ``nll`` (sum over the sample's tokens, in nats) and ``num_tokens`` of every sample; tokens, not
    samples, have equal weight. Arguments: see :class:`GatheredMetric`.
    """

    default_prefix = 'lm'
    known_keys = ('perplexity', )

    def read(self, sample) -> tuple:
        return float(required(sample, 'nll')), int(required(sample, 'num_tokens'))

    def compute_metrics(self, results: list) -> dict:
        """Perplexity, 1 or more; infinite where it exceeds a float."""
        nll, tokens = math.fsum(nll for nll, _ in results), sum(count for _, count in results)
        mean = nll / tokens
        return dict(perplexity=math.exp(mean) if mean < 700 else math.inf)
