import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name('stage1_rank.py')
ROOT = Path(__file__).parents[3]


def run(bert, out, world):
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        port = str(sock.getsockname()[1])
    env = dict(os.environ, PYTHONPATH=str(ROOT), MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE=str(world))
    processes = [subprocess.Popen([sys.executable, str(SCRIPT), bert, str(out)], env=dict(env, RANK=str(rank)),
                                  stderr=subprocess.PIPE, text=True) for rank in range(world)]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert out.is_file(), '\n'.join(errors)
    return torch.load(out, weights_only=True)


@pytest.mark.dist
def test_two_ranks_equal_one(bert_folder, tmp_path):
    """Same losses and same gradients: negatives, token counts and hard-negative draws ignore the process count."""
    one, two = (run(bert_folder, tmp_path / f'{world}.pth', world) for world in (1, 2))
    torch.testing.assert_close(two['values'], one['values'], atol=1e-5, rtol=1e-5)
    for name, gradient in one['gradients'].items():
        torch.testing.assert_close(two['gradients'][name], gradient, atol=1e-5, rtol=1e-4,
                                   msg=lambda text, name=name: f'{name}: {text}')
