"""A run that is killed again and again ends with the weights of a run that was left alone."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize('world, workers', [(1, 2), (1, 0), (2, 2)])
def test_twenty_kills_change_no_bit_of_the_weights(tmp_path, world, workers):
    """SIGKILL at random moments, inside an accumulation window, in the middle of a save, before its renaming, and
    between a checkpoint and the pointer to it."""
    run = subprocess.run(
        [sys.executable, str(ROOT / 'tests/data/fault_run.py'), str(tmp_path), str(world), str(workers), '20'],
        capture_output=True, text=True, timeout=600, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert (tmp_path / 'result.json').is_file(), run.stdout[-3000:] + run.stderr[-3000:]
    result = json.loads((tmp_path / 'result.json').read_text())
    assert result['equal'], result
    assert len(result['kills']) == 20, result
    assert 0 < result['reached'][-1] < 120, result


@pytest.mark.slow
def test_kills_change_nothing_with_shards(tmp_path):
    """A mix of shards, with bad samples that are replaced, and of files; two processes with two workers each."""
    run = subprocess.run(
        [sys.executable, str(ROOT / 'tests/data/fault_run.py'), str(tmp_path), '2', '2', '5', 'shards'],
        capture_output=True, text=True, timeout=600, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert (tmp_path / 'result.json').is_file(), run.stdout[-3000:] + run.stderr[-3000:]
    result = json.loads((tmp_path / 'result.json').read_text())
    whole, cut = result.pop('bad')
    assert result['equal'] and len(result['kills']) == 5, result
    assert {line['sample'].split(': ')[0][-13:] for line in whole} == {'000.tar/00003', '002.tar/00012'}
    assert sorted(map(str, whole)) == sorted(map(str, cut)), 'and the same bad samples are listed'
