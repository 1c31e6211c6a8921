"""The benchmark of questions about shared images on a toy model: what it compares, not how fast it is."""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'tools' / 'analysis_tools'))
import benchmark_eval


def test_both_ways_give_the_same_answers_and_ours_encodes_an_image_once(tmp_path, capsys):
    benchmark_eval.main(['vqa', '--tiny', '--device', 'cpu', '--images', '2', '--questions', '5', '--batch-size', '10',
                         '--repeats', '1', '--out', str(tmp_path / 'out.json')])
    result = json.loads((tmp_path / 'out.json').read_text())
    assert result['same_answers'] == result['questions'] == 10 and result['different_answers'] > 1
    ours, theirs = result['flops']['an image once'], result['flops']['a pass a question']
    assert theirs > 3 * ours, 'the vision encoder is most of the work, and five questions share an image'
    assert '10 of 10 answers are the same' in capsys.readouterr().out
