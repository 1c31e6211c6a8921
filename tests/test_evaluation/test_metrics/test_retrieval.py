import pytest

from mmblip2.errors import ConfigError
from mmblip2.registry import METRICS


def test_carries_topk_for_the_retrieval_loops_and_refuses_other_loops():
    metric = METRICS.build(dict(type='RetrievalRecall', topk=[1, 5]))
    assert metric.topk == (1, 5)
    with pytest.raises(ConfigError, match='RetrievalValLoop'):
        metric.process(None, [])
