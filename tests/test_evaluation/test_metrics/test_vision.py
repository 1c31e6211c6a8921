import pytest

from mmblip2.registry import METRICS


def test_patches_have_equal_weight():
    metric = METRICS.build(dict(type='PatchAccuracy'))
    metric.process(None, [dict(sample_idx=0, pred_correct=1, num_patches=10),
                          dict(sample_idx=1, pred_correct=30, num_patches=30)])
    assert metric.evaluate(2) == {'vision/patch_accuracy': pytest.approx(77.5)}
