"""A batch on several processes has the losses and gradients of the same batch on one."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope='module')
def measured(tmp_path_factory, bert_folder, opt_folder):
    folder = tmp_path_factory.mktemp('ranks')
    run = subprocess.run([sys.executable, str(ROOT / 'tests/data/loss_rank.py'), bert_folder, opt_folder, str(folder)],
                         capture_output=True, text=True, timeout=300, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-3000:]
    return folder


@pytest.mark.dist
@pytest.mark.parametrize('world', [2, 4])
@pytest.mark.parametrize('stage, names', [(1, ['loss_itc', 'loss_itm', 'loss_itg']), (2, ['loss_lm'])])
def test_losses_and_gradients_equal_those_of_one_process(measured, stage, names, world):
    """Negatives, token counts and hard-negative draws ignore the number of processes."""
    one, many = (torch.load(measured / f'{stage}_{count}.pth', weights_only=True) for count in (1, world))
    assert one['names'] == many['names'] == names
    torch.testing.assert_close(many['values'], one['values'], atol=1e-5, rtol=1e-5)
    for name, gradient in one['gradients'].items():
        torch.testing.assert_close(many['gradients'][name], gradient, atol=1e-5, rtol=1e-4,
                                   msg=lambda m, name=name: f'{name}: {m}')
