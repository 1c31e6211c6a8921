import math

import pytest
import torch

from mmblip2.registry import METRICS


def perplexity(*rows):
    metric = METRICS.build(dict(type='Perplexity'))
    metric.process(None, [dict(sample_idx=i, nll=nll, num_tokens=count)
                          for i, (nll, count) in enumerate(rows)])
    return metric.evaluate(len(rows))['lm/perplexity']


def test_tokens_have_equal_weight():
    assert perplexity((math.log(2) * 3, 3), (torch.tensor(math.log(8)), 1)) == pytest.approx(2 ** (6 / 4))


def test_overflow_is_infinite():
    assert perplexity((1e6, 1)) == math.inf
