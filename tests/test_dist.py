"""The number of processes changes no result."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / 'tests' / 'data'
ENVIRONMENT = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(DATA)])}


@pytest.fixture(scope='module')
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp('eval')
    run = subprocess.run([sys.executable, str(DATA / 'eval_run.py'), str(folder)], capture_output=True, text=True,
                         timeout=600, env=ENVIRONMENT)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return folder


@pytest.mark.dist
@pytest.mark.parametrize('task, file', [
    ('retrieval', 'predictions/retrieval.json'), ('caption', 'dump.json'), ('caption', 'predictions/caption.json'),
    ('vqa', 'dump.json'), ('vqa', 'predictions/vqa.json')])
def test_one_to_four_processes_give_the_same_metrics_and_the_same_bytes(evaluated, task, file):
    """10 images and 23 questions in batches of 2: no number of processes divides them."""
    one = evaluated / f'{task}_1'
    for world in (2, 3, 4):
        other = evaluated / f'{task}_{world}'
        assert (other / 'metrics.json').read_text() == (one / 'metrics.json').read_text()
        assert (other / file).read_bytes() == (one / file).read_bytes()
    assert len(json.loads((one / 'metrics.json').read_text())) > 0
    if file == 'dump.json':
        rows = json.loads((one / file).read_text())
        assert [row['sample_idx'] for row in rows] == list(range(dict(caption=10, vqa=23)[task]))
        assert len({row['pred_text'] for row in rows}) > 1, 'a constant answer would be equal anyway'


@pytest.mark.slow
@pytest.mark.dist
def test_a_restart_by_torchrun_ends_with_the_same_weights(tmp_path):
    """One of two workers is killed; torchrun starts both again, and they go on at the newest checkpoint."""
    from mmengine.config import Config
    sys.path.insert(0, str(DATA))
    from toy_parts import toy_config
    (tmp_path / 'toy.py').write_text(Config(toy_config('unused', max_iters=400)).pretty_text)

    def start(work_dir, restarts):
        return subprocess.Popen(
            [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
             f'--max-restarts={restarts}', '--monitor-interval=0.2', str(ROOT / 'tools/train.py'),
             str(tmp_path / 'toy.py'), '--work-dir', str(work_dir), '--launcher', 'pytorch', '--resume'],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT, start_new_session=True)

    def end(process):
        try:
            output = process.communicate(timeout=240)[0]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return output

    whole = start(tmp_path / 'whole', 0)
    assert end(whole) and whole.returncode == 0
    cut = start(tmp_path / 'cut', 2)
    deadline = time.monotonic() + 120
    while not list((tmp_path / 'cut').glob('iter_*.pth')) and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = subprocess.run(['pgrep', '-P', str(cut.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    output = end(cut)
    assert cut.returncode == 0 and 'resumed from' in output, output[-3000:]
    one, other = (torch.load(tmp_path / name / 'iter_400.pth', weights_only=True)['state_dict']
                  for name in ('whole', 'cut'))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
