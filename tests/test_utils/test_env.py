"""What the machine can do."""
import torch

from mmblip2.utils.env import cpu_has_bf16, describe_device


def test_device_line_says_what_runs():
    assert torch.__version__ in describe_device()
    assert isinstance(cpu_has_bf16(), bool)
