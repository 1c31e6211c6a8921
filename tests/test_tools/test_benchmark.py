"""The benchmark of training steps and captioning on toy models: what it compares, not how fast it is."""
import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools' / 'analysis_tools'))
import benchmark

TINY = ['--tiny', '--device', 'cpu', '--batch-size', '4', '--repeats', '1']


@pytest.fixture
def without_children(monkeypatch):
    """The peak memory of each way takes a process; one test does that."""
    peaks = {way: dict(before=1, peak=2, gpu=0) for way in ('ours', 'theirs')}
    monkeypatch.setattr(benchmark, 'child_peaks', lambda *args: peaks)


def test_the_report_has_ratio_operations_memory_and_equal_losses(tmp_path, capsys):
    benchmark.main(['stage1', *TINY, '--out', str(tmp_path / 'out.json')])
    result = json.loads((tmp_path / 'out.json').read_text())
    assert result['difference'] < 1e-5 and result['flops']['theirs'] > 1.5 * result['flops']['ours']
    assert abs(result['found']['ours']['loss_itc'] - math.log(4)) > 0.01, 'images and texts that are all alike'
    assert all(peak['peak'] >= peak['before'] > 0 for peak in result['peak_mib'].values())
    printed = capsys.readouterr().out
    for part in ("against our own writing of LAVIS's arithmetic", 'ratio ', '% of the matrix rate', 'images a second',
                 'peak memory theirs', 'largest difference'):
        assert part in printed


def test_cached_features_give_the_same_losses_and_spare_the_encoder(tmp_path, without_children):
    flops = {}
    for options in ([], ['--cached']):
        benchmark.main(['stage1', *TINY, *options, '--out', str(tmp_path / 'out.json')])
        result = json.loads((tmp_path / 'out.json').read_text())
        assert result['difference'] < 1e-5
        flops[bool(options)] = result['flops']
    assert flops[True]['ours'] < flops[False]['ours'] and flops[True]['theirs'] == flops[False]['theirs']


def test_other_negatives_are_noticed(monkeypatch, without_children):
    """What is compared depends on them."""
    naive = benchmark.naive_losses
    monkeypatch.setattr(benchmark, 'naive_losses', lambda model, pixels, text, negatives: naive(
        model, pixels, text, [(index + 1) % 4 for index in negatives]))
    with pytest.raises(SystemExit, match='the losses differ'):
        benchmark.main(['stage1', *TINY])


def test_stage_2_of_transformers_has_the_same_loss_and_trains_the_same(tmp_path, without_children):
    args = benchmark.parse_args(['stage2', *TINY])
    ours, theirs, _ = benchmark.generation_models(args, torch.device('cpu'))
    trained = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, theirs)]
    assert trained[0] == trained[1] > 0
    benchmark.main(['stage2', *TINY, '--out', str(tmp_path / 'out.json')])
    assert json.loads((tmp_path / 'out.json').read_text())['difference'] < 1e-5


def test_several_captions_an_image_have_the_same_loss_and_fewer_operations(tmp_path, without_children, capsys):
    share = {}
    for captions in (1, 4):
        benchmark.main(['stage2', *TINY, '--captions', str(captions), '--out', str(tmp_path / 'out.json')])
        result = json.loads((tmp_path / 'out.json').read_text())
        assert result['difference'] < 1e-5 and f'{captions} captions an image' in capsys.readouterr().out
        share[captions] = result['flops']['theirs'] / result['flops']['ours']
    assert share[4] > 1.3 * share[1]


def test_captions_of_transformers_are_the_same_and_ours_reads_the_prefix_once(tmp_path, without_children, capsys):
    benchmark.main(['caption', *TINY, '--new-tokens', '5', '--out', str(tmp_path / 'out.json')])
    result = json.loads((tmp_path / 'out.json').read_text())
    assert result['same_texts'] == 4 and len(set(result['found']['ours'])) > 1
    assert result['flops']['theirs'] > 1.05 * result['flops']['ours']
    assert '4 of 4 texts are the same' in capsys.readouterr().out


def test_wrong_options_are_named(tmp_path, capsys):
    (tmp_path / 'lavis' / 'models').mkdir(parents=True)
    for options, message in ((['--lavis', 'nowhere'], 'no LAVIS there; pip install --no-deps --target nowhere'),
                             (['--lavis', str(tmp_path), '--device', 'cuda'], '--lavis runs on CPUs')):
        with pytest.raises(SystemExit):
            benchmark.parse_args(['stage1', *options])
        assert message in capsys.readouterr().err
