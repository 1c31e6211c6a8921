"""The number of processes changes no result."""
import json
import os
import re
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
    ('vqa', 'dump.json'), ('vqa', 'predictions/vqa.json'), ('blip', 'predictions/retrieval.json')])
def test_one_to_four_processes_give_the_same_metrics_and_the_same_bytes(evaluated, task, file):
    """10 images and 23 questions in batches of 2: no number of processes divides them."""
    one = evaluated / f'{task}_1'
    for world in (2, ) if task == 'blip' else (2, 3, 4):
        other = evaluated / f'{task}_{world}'
        assert (other / 'metrics.json').read_text() == (one / 'metrics.json').read_text()
        assert (other / file).read_bytes() == (one / file).read_bytes()
    assert len(json.loads((one / 'metrics.json').read_text())) > 0
    if file == 'dump.json':
        rows = json.loads((one / file).read_text())
        assert [row['sample_idx'] for row in rows] == list(range(dict(caption=10, vqa=23)[task]))
        assert len({row['pred_text'] for row in rows}) > 1, 'a constant answer would be equal anyway'


@pytest.mark.dist
@pytest.mark.parametrize('killed', [1, 2])
def test_after_a_killed_process_another_number_of_processes_ends_with_the_same_bytes(evaluated, killed):
    again, one = evaluated / f'killed_{killed}', evaluated / 'retrieval_1'
    for file in ('metrics.json', 'predictions/retrieval.json'):
        assert (again / file).read_bytes() == (one / file).read_bytes()
    assert not (again / 'retrieval_blocks').exists()
    log = ''.join(path.read_text() for path in again.glob('*/*.log'))
    assert re.search(r'found: [1-9]\d* of 10 images are re-ranked already', log)


@pytest.mark.dist
def test_a_killed_loader_worker_is_named_and_nothing_is_lost(evaluated):
    assert re.search('DataLoader worker .*(killed|exited)', (evaluated / 'killed_worker.txt').read_text())
    again, one = evaluated / 'killed_worker', evaluated / 'retrieval_1'
    for file in ('metrics.json', 'predictions/retrieval.json'):
        assert (again / file).read_bytes() == (one / file).read_bytes()
    # torch's signal handler may interrupt whatever the first start was writing, so only the second log is sure
    assert any('finished parts found' in path.read_text() for path in again.glob('*/*.log'))


def torchrun(config, work_dir, restarts=0):
    """Start a training on two processes."""
    return subprocess.Popen(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
         f'--max-restarts={restarts}', '--monitor-interval=0.2', str(ROOT / 'tools/train.py'), str(config),
         '--work-dir', str(work_dir), '--launcher', 'pytorch', '--resume'],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT, start_new_session=True)


def output_of(process):
    try:
        return process.communicate(timeout=240)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def after_the_first_checkpoint(work_dir):
    deadline = time.monotonic() + 120
    while not list(work_dir.glob('iter_*.pth')) and time.monotonic() < deadline:
        time.sleep(0.01)


def final(work_dir):
    return torch.load(work_dir / 'iter_400.pth', weights_only=True)['state_dict']


@pytest.fixture(scope='module')
def left_alone(tmp_path_factory):
    """A config, and the weights at its end when nothing happens."""
    from mmengine.config import Config
    sys.path.insert(0, str(DATA))
    from toy_parts import toy_config
    folder = tmp_path_factory.mktemp('whole')
    (folder / 'toy.py').write_text(Config(toy_config('unused', max_iters=400)).pretty_text)
    whole = torchrun(folder / 'toy.py', folder / 'work')
    output = output_of(whole)
    assert whole.returncode == 0, output[-3000:]
    return folder / 'toy.py', final(folder / 'work')


@pytest.mark.slow
@pytest.mark.dist
def test_a_restart_by_torchrun_ends_with_the_same_weights(tmp_path, left_alone):
    """One of two workers is killed; torchrun starts both again, and they go on at the newest checkpoint."""
    config, expected = left_alone
    cut = torchrun(config, tmp_path, restarts=1)
    after_the_first_checkpoint(tmp_path)
    workers = subprocess.run(['pgrep', '-P', str(cut.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    output = output_of(cut)
    assert cut.returncode == 0 and 'resumed from' in output, output[-3000:]
    found = final(tmp_path)
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.slow
@pytest.mark.dist
def test_a_preempted_torchrun_saves_once_and_goes_on_with_the_same_weights(tmp_path, left_alone):
    config, expected = left_alone
    cut = torchrun(config, tmp_path)
    after_the_first_checkpoint(tmp_path)
    cut.send_signal(signal.SIGTERM)  # torchrun tells its workers
    output = output_of(cut)
    assert cut.returncode != 0 and output.count('SIGTERM: saved at iteration') == 1, output[-3000:]
    stopped = int(output.split('SIGTERM: saved at iteration ')[1].split(',')[0])
    assert (tmp_path / f'iter_{stopped}.pth').is_file() and stopped < 400
    again = torchrun(config, tmp_path)
    output = output_of(again)
    assert again.returncode == 0 and f'at iteration {stopped} ' in output, output[-3000:]
    found = final(tmp_path)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.slow
@pytest.mark.dist
def test_a_process_that_ends_or_hangs_is_reported_by_the_other(tmp_path):
    subprocess.run([sys.executable, str(DATA / 'lost_run.py'), str(tmp_path)], capture_output=True, timeout=300,
                   env=ENVIRONMENT)
    for how in ('ends', 'hangs'):
        said = (tmp_path / f'{how}.txt').read_text()
        assert said.startswith('process 0 of 2 has lost another one') and '--resume' in said
