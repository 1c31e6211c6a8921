from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmblip2.errors import ConfigError
from mmblip2.registry import HOOKS
from mmblip2.structures import DataSample
from mmblip2.visualization import PredictionVisualizationHook
from mmblip2.visualization import hook as hook_module
from mmblip2.visualization.hook import _describe


def batch(n):
    return dict(inputs=[torch.full((3, 32, 32), 40 * i, dtype=torch.uint8) for i in range(n)])


def test_one_picture_a_sample_with_unique_names(tmp_path):
    Image.new('RGB', (400, 30), (0, 255, 0)).save(tmp_path / 'same name.png')
    hook = HOOKS.build(dict(type='PredictionVisualizationHook', show_dir=str(tmp_path / 'a' / 'b')))
    path = str(tmp_path / 'same name.png')
    samples = [DataSample(sample_idx=i, img_path=path, pred_text='x') for i in range(2)]
    hook.after_test_iter(None, 0, batch(3), samples + [DataSample(sample_idx=2, pred_text='y')])
    files = sorted((tmp_path / 'a' / 'b').iterdir())
    assert [file.name for file in files] == [
        '000000_same_name.png', '000001_same_name.png', '000002_image.png']
    assert Image.open(files[0]).getpixel((5, 5)) == (0, 255, 0)  # the file as it is
    assert (np.asarray(Image.open(files[2]))[5, 160] == 80).all()  # no file: what the model saw


def test_interval_counts_samples_of_the_data_set(tmp_path):
    hook = PredictionVisualizationHook(str(tmp_path), interval=3)
    hook.after_test_iter(None, 0, batch(4), [DataSample(sample_idx=i, pred_text='x') for i in (2, 3, 4, 6)])
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == ['000003', '000006']


def test_samples_without_prediction_are_passed_over(tmp_path):
    hook = PredictionVisualizationHook(str(tmp_path / 'none'))
    hook.after_test_iter(None, 0, batch(1), [DataSample(sample_idx=0)])
    hook.after_test_iter(None, 0, batch(1), None)
    assert not (tmp_path / 'none').exists()


def test_retrieval_shows_each_image_with_its_best_texts(tmp_path, monkeypatch):
    Image.new('RGB', (400, 30), (0, 255, 0)).save(tmp_path / 'a.png')
    drawn = []
    monkeypatch.setattr(hook_module, 'draw_caption', lambda image, lines: drawn.append(lines) or image)
    ranking = dict(images=[str(tmp_path / 'a.png')] * 3, texts=['x', 'y', 'z'], text_to_image=[0, 1, 2],
                   i2t=[dict(image=i, top=[(1, 2.5), (0, 1.25)]) for i in range(3)])
    runner = SimpleNamespace(test_loop=SimpleNamespace(ranking=ranking))
    hook = PredictionVisualizationHook(str(tmp_path / 'out'), interval=2)
    hook.after_test(runner)
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['000000_a.png', '000002_a.png']
    assert drawn[0] == ['1. y (2.50)', '2. x (1.25) [right]']
    hook.after_test(SimpleNamespace(test_loop=SimpleNamespace()))  # another loop, or another process


def test_prediction_and_ground_truth_are_shown():
    assert _describe(DataSample(question='how many?', prompt='Question: how many? Answer:', pred_text='2',
                                gt_answer=['2', 'two'])) == [
        'question: how many?', 'prediction: 2', 'answers: 2, two']
    assert _describe(DataSample(prompt='a photo of', pred_text='a cat', gt_caption=['one', 'two'])) == [
        'prompt: a photo of', 'prediction: a cat', 'reference: one', 'reference: two']


def test_both_images_of_a_pair_are_shown(tmp_path):
    paths = []
    for name, color in (('left', (255, 0, 0)), ('right', (0, 0, 255))):
        paths.append(str(tmp_path / f'{name}.png'))
        Image.new('RGB', (400, 30), color).save(paths[-1])
    hook = PredictionVisualizationHook(str(tmp_path / 'out'))
    samples = [DataSample(sample_idx=0, img_path=tuple(paths), text='one', pred_label=1),
               DataSample(sample_idx=1, img_path=(paths[0], 'none.png'), text='two', pred_label=0)]
    inputs = [torch.zeros(2, 3, 32, 200, dtype=torch.uint8) + torch.tensor([50, 150])[:, None, None, None].byte()] * 2
    hook.after_test_iter(None, 0, dict(inputs=inputs), samples)
    first, second = (Image.open(path) for path in sorted((tmp_path / 'out').iterdir()))
    assert first.filename.endswith('000000_left.png')
    assert first.getpixel((5, 5)) == (255, 0, 0) and first.getpixel((790, 5)) == (0, 0, 255)
    assert second.getpixel((5, 5)) == (50, ) * 3 and second.getpixel((390, 5)) == (150, ) * 3, 'what the model saw'


def test_judgement_and_label_are_shown():
    sample = DataSample(text='one dog', pred_label=1)
    assert _describe(sample) == ['one dog', 'prediction: true']
    sample.gt_label = 0
    assert _describe(sample) == ['one dog', 'prediction: true', 'label: false']


def test_bad_interval_is_refused():
    with pytest.raises(ConfigError, match='interval must be 1 or more, got 0'):
        PredictionVisualizationHook('x', interval=0)
