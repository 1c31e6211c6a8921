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
@pytest.mark.parametrize('stage, names', [(1, ['loss_itc', 'loss_itm', 'loss_itg']), (2, ['loss_lm']),
                                          ('blip', ['loss_itc', 'loss_itm', 'loss_lm'])])
def test_losses_and_gradients_equal_those_of_one_process(measured, stage, names, world):
    """Negatives, token counts and hard-negative draws ignore the number of processes."""
    one, many = (torch.load(measured / f'{stage}_{count}.pth', weights_only=True) for count in (1, world))
    assert one['names'] == many['names'] == names
    torch.testing.assert_close(many['values'], one['values'], atol=1e-5, rtol=1e-5)
    for name, gradient in one['gradients'].items():
        torch.testing.assert_close(many['gradients'][name], gradient, atol=1e-5, rtol=1e-4,
                                   msg=lambda m, name=name: f'{name}: {m}')


@pytest.mark.dist
@pytest.mark.parametrize('world', [2, 4])
def test_momentum_queues_of_several_processes_equal_those_of_the_joined_batch(measured, world):
    """Order and content, on the last process, after two steps."""
    one, many = (torch.load(measured / f'blip_{count}.pth', weights_only=True)['buffers'] for count in (1, world))
    assert one['queue_ptr'].tolist() == many['queue_ptr'].tolist() == [16]
    ids = [0, 1, 1, 2, 2, 3, 3, 0] + [0, 0, 1, 1, 2, 2, 3, 3] + 8 * [-100]
    assert many['image_id_queue'].tolist() == one['image_id_queue'].tolist() == ids
    for name in ('image_queue', 'text_queue'):
        torch.testing.assert_close(many[name], one[name], atol=1e-6, rtol=0)
        columns = one[name][:, :8].T
        distances = torch.cdist(columns, columns) + torch.eye(8)
        assert distances.min() > 1e-3, 'equal columns would hide another order'
