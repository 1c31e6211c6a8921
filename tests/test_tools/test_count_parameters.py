"""The parameter counts of the paper follow from the shipped configs alone."""
import importlib.util
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


FINE_TUNED = {  # with the vision encoder; the paper prints 1.2 B, 474 M, 1.1 B and 1.2 B
    'blip2_vit-g_16xb14_retrieval-coco': (1173.19, 0.01), 'blip2_vit-l_16xb14_retrieval-coco': (474, 0.5),
    'blip2-opt2.7b_16xb16_caption-coco': (1093.62, 0.01), 'blip2-opt2.7b_16xb8_vqa-vqav2': (1170, 10)}


@pytest.mark.parametrize('name', FINE_TUNED)
def test_fine_tuning_trains_the_vision_encoder(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(ROOT / 'configs' / 'blip2' / f'{name}.py')
    counts = json.loads(capsys.readouterr().out)
    millions, tolerance = FINE_TUNED[name]
    assert counts['trainable'] / 1e6 == pytest.approx(millions, abs=tolerance)
    assert counts['parts']['vision']['frozen'] == 0


@pytest.mark.parametrize('name, millions', MILLIONS.items())
def test_trained_parameters_are_those_of_the_paper(name, millions, capsys, tmp_path, monkeypatch):
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


@pytest.mark.parametrize('name, width', [('blip2-flan-t5xl_stage2', 2048), ('blip2-flan-t5xxl_stage2', 4096)])
def test_flan_t5_is_counted_with_an_output_layer_of_its_own(name, width, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frozen = []
    for options in ((), ('--cfg-options', 'model.language_model.config.tie_word_embeddings=True')):
        main(ROOT / 'configs' / 'blip2' / f'{name}.py', *options)
        frozen.append(json.loads(capsys.readouterr().out)['parts']['language_model']['frozen'])
    assert frozen[0] - frozen[1] == 32128 * width


PUBLISHED = {  # mmpretrain's model zoo, to the last parameter
    'blip-base_8xb32_caption': 223971644, 'blip-base_8xb32_vqa': 361478972, 'blip-base_8xb32_retrieval': 447486979,
    'blip-base_8xb32_nlvr': 259372034}


@pytest.mark.parametrize('name, total', PUBLISHED.items())
def test_blip_has_as_many_parameters_as_published(name, total, capsys, tmp_path, monkeypatch):
    """Counted are momentum copies, of vision, text encoder and projections; not the queues, which are buffers, nor a
    second time the words that the writing head shares."""
    monkeypatch.chdir(tmp_path)
    main(ROOT / 'configs' / 'blip' / f'{name}.py')
    counts = json.loads(capsys.readouterr().out)
    assert counts['total'] == total
    copies = counts['parts'].get('momentum', dict(trainable=0, frozen=0))
    assert counts['frozen'] == copies['frozen'] and copies['trainable'] == 0
    assert (copies['frozen'] > 0) == ('retrieval' in name)
