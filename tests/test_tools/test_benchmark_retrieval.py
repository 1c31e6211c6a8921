"""The benchmark of re-ranking on a toy model: what it compares, not how fast it is."""
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools' / 'analysis_tools'))
import benchmark_eval

from mmblip2.models.tokenizers import BertTokenizer

TINY = ['retrieval', '--tiny', '--device', 'cpu', '--images', '2', '--texts', '12', '--rows', '4', '--patches', '20',
        '--repeats', '1', '--kept', '3']


def test_both_ways_give_the_same_scores_of_all_pairs():
    args = benchmark_eval.parse_args(TINY)
    ways, asked, _ = benchmark_eval.retrieval_ways(args, torch.device('cpu'), torch.float32)
    ours, theirs = (way() for way in ways.values())
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert ours.shape == (2, 12) and len(ours.unique()) > 12 and asked == 24 + round(0.197 * 24)


def test_the_report_has_ratio_operations_memory_and_extrapolation(tmp_path, capsys):
    benchmark_eval.main([*TINY, '--out', str(tmp_path / 'out.json')])
    result = json.loads((tmp_path / 'out.json').read_text())
    assert result['flops']['theirs'] > 2 * result['flops']['ours'] and result['difference'] < 1e-5
    assert {way: peak['images'] for way, peak in result['peak_mib'].items()} == dict(ours=3, theirs=3)
    assert all(peak['peak'] >= peak['before'] > 0 for peak in result['peak_mib'].values())
    assert result['coco_seconds']['ours'] > result['seconds']['ours']
    printed = capsys.readouterr().out
    for part in ('of 795 captions of COCO val2017', 'ratio ', '% of the matrix rate', 'peak memory', '25010 captions'):
        assert part in printed


def test_lengths_come_from_the_captions_given(tmp_path, bert_folder):
    (tmp_path / 'captions.json').write_text(json.dumps(dict(
        images=[dict(id=1, file_name='1.jpg')],
        annotations=[dict(id=i, image_id=1, caption=text) for i, text in enumerate(['A red.', 'a small red circle'])])))
    args = benchmark_eval.parse_args([*TINY, '--ann-file', str(tmp_path / 'captions.json'), '--tokenizer', bert_folder])
    lengths, source = benchmark_eval.caption_lengths(args)
    expected = BertTokenizer(bert_folder)(['a red', 'a small red circle'], 35).mask.sum(dim=1).tolist()
    assert sorted(set(lengths.tolist())) == expected and len(lengths) == 12 and 'captions.json' in source


def test_wrong_options_are_named(capsys):
    for options, message in ((['--ann-file', 'x'], '--ann-file and --tokenizer go together'),
                             (['--rows', '0'], 'are at least 1')):
        with pytest.raises(SystemExit):
            benchmark_eval.parse_args([*TINY, *options])
        assert message in capsys.readouterr().err
