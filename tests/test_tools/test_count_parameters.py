"""The parameter counts of the paper follow from the shipped configs alone."""
import importlib.util
import inspect
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MILLIONS = {  # trained parameters; the paper prints 188 M (ViT-g, stage 1) and 107, 108, 107, 108 M (stage 2)
    'blip2_vit-g_stage1': 186.71, 'blip2_vit-l_stage1': 183.17, 'blip2-opt2.7b_stage2': 107.13,
    'blip2-opt6.7b_stage2': 108.31, 'blip2-flan-t5xl_stage2': 106.74, 'blip2-flan-t5xxl_stage2': 108.31}


def main(*args):
    """The tool's main in this process."""
    path = ROOT / 'tools' / 'analysis_tools' / 'count_parameters.py'
    spec = importlib.util.spec_from_file_location('count_parameters', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(arg) for arg in args])


@pytest.mark.parametrize('name, millions', MILLIONS.items())
def test_trained_parameters_are_those_of_the_paper(name, millions, capsys, tmp_path, monkeypatch):
    from mmblip2.models import VisionTransformer
    if 'vit-l' in name and 'pre_norm' not in inspect.signature(VisionTransformer).parameters:
        pytest.skip('this VisionTransformer has no pre_norm')
    monkeypatch.chdir(tmp_path)
    main(ROOT / 'configs' / 'blip2' / f'{name}.py')
    out = capsys.readouterr().out
    counts = json.loads(out)
    assert out.count('\n') == 1 and set(counts) == {'trainable', 'frozen', 'total', 'parts'}
    assert counts['trainable'] / 1e6 == pytest.approx(millions, abs=0.01)
    assert counts['total'] == counts['trainable'] + counts['frozen']
    assert sum(sum(part.values()) for part in counts['parts'].values()) == counts['total']
    assert counts['parts']['vision']['trainable'] == 0
    if 'vit-l' not in name:
        assert counts['parts']['vision']['frozen'] / 1e6 == pytest.approx(985.89, abs=0.01)
