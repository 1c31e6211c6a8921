"""Collectives: what they return, what their gradient is, what travels."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmblip2.utils.dist import exchange_rows

ROOT = Path(__file__).parents[2]


@pytest.mark.dist
def test_exchanged_rows_are_those_of_a_gather_with_its_gradient_and_nothing_else_travels(tmp_path):
    run = subprocess.run([sys.executable, str(ROOT / 'tests/data/exchange_rank.py'), str(tmp_path)],
                         capture_output=True, text=True, timeout=120, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert run.returncode == 0, run.stderr[-3000:]
    for rank in range(2):
        result = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        (rows, gradient), (expected, expected_gradient) = result['exchanged'], result['plain']
        assert torch.equal(rows, expected) and torch.equal(gradient, expected_gradient)
        assert expected_gradient.abs().sum() > 0
        assert result['gathered'] == [torch.int64], 'only the choices are gathered, no rows'


def test_one_process_exchanges_with_itself():
    x = torch.arange(4.).reshape(2, 2)
    assert exchange_rows(x, torch.tensor([1, 0, 1])).tolist() == [[2, 3], [0, 1], [2, 3]]
