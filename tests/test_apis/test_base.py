"""BaseInferencer: batches, pictures, and what it says of models that do not fit."""
import copy
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mmblip2.apis import base
from mmblip2.apis.base import BaseInferencer
from mmblip2.errors import ConfigError, DataError


class Sizes(BaseInferencer):
    """The width and height of each image, and what the batches looked like."""

    def __call__(self, images, **kwargs):
        self.batches = []
        return self.run(self.image_rows(images), self.look, **kwargs)

    def look(self, rows):
        self.batches.append([row['sample_idx'] for row in rows])
        self.modes = (self.model.training, torch.is_grad_enabled())
        return [dict(size=row['image'].size) for row in rows]


@pytest.fixture
def sizes(tiny_generator):
    return Sizes(tiny_generator([dict(type='CaptionPrompt')]))


def image(width, height=8):
    return Image.new('RGB', (width, height), (200, 30, 30))


def test_batches_keep_the_order(sizes):
    assert sizes([image(width) for width in (5, 6, 7)], batch_size=2) == [dict(size=(w, 8)) for w in (5, 6, 7)]
    assert sizes.batches == [[0, 1], [2]]
    assert sizes([]) == []
    for wrong in (0, 1.0, True):
        with pytest.raises(ConfigError, match='batch_size is the number of images of a batch, 1 or more, got'):
            sizes(image(5), batch_size=wrong)


def test_an_argument_that_nothing_reads_is_refused(sizes):
    with pytest.raises(ConfigError, match="Sizes: a call has no argument 'shwo_dir'; did you mean 'show_dir'"):
        sizes(image(5), shwo_dir='x')
    assert sizes.batches == []


def test_a_model_without_weights_is_refused(sizes):
    with pytest.raises(ConfigError, match="the device 'meta' has shapes but no weights, and computes nothing: take d"):
        Sizes(copy.deepcopy(sizes.model).to('meta'))


@pytest.mark.parametrize('cast', ['half', 'bfloat16', 'double'])
def test_a_model_that_was_cast_as_a_whole_is_refused(sizes, cast):
    with pytest.raises(ConfigError, match=r'is torch.*, but all outside .* instead of model.half\(\) or alike call'):
        Sizes(getattr(copy.deepcopy(sizes.model), cast)())


def test_a_picture_of_a_narrow_strip_is_not_enlarged_beyond_reason(sizes):
    assert base.shrink(Image.new('1', (5000, 1)), 100).size == (10000, 2)
    assert base.shrink(Image.new('1', (20000, 1)), 100).size == (20000, 1)
    assert base.shrink(Image.new('1', (20000, 200)), 100).size == (10000, 100)
    assert base.shrink(Image.new('1', (30, 20)), 40).size == (60, 40)


def test_runs_in_eval_mode_without_gradients(sizes):
    sizes.model.train()
    sizes(image(5))
    assert sizes.modes == (False, False)


def test_a_generator_is_read_a_batch_at_a_time(sizes):
    read = []

    def images():
        for number in range(4):
            read.append(len(sizes.batches))
            yield image(number + 1)
    sizes(images(), batch_size=2)
    assert read == [0, 0, 1, 1]  # the third image was asked for after the first batch was done


def test_progress_only_for_several_batches_and_can_be_switched_off(sizes, capsys):
    images = [image(5)] * 3
    sizes(images, batch_size=3, total=3)
    sizes(images, batch_size=2, total=3, progress=False)
    assert capsys.readouterr().err == ''
    sizes(images, batch_size=2, total=3)
    sizes(iter(images), batch_size=2)
    assert capsys.readouterr().err.count('Inference') >= 2
    assert capsys.readouterr().out == ''


def test_rows_go_through_the_pipeline_of_the_config(sizes, tmp_path):
    image(20).save(tmp_path / 'a.png')
    batch = sizes.prepare(sizes.image_rows([tmp_path / 'a.png', image(30), np.zeros((9, 9, 3), np.uint8)]))
    assert batch['images'].shape == (3, 3, 16, 16) and batch['images'].dtype == torch.float32
    assert [sample.prompt for sample in batch['data_samples']] == ['a photo of'] * 3
    assert [sample.get('img_path') for sample in batch['data_samples']] == [str(tmp_path / 'a.png'), None, None]
    torch.testing.assert_close(batch['images'][0], batch['images'][1])


def test_errors_name_the_image(sizes, tmp_path):
    with pytest.raises(DataError, match=re.escape(f'image 1 ({tmp_path / "b.png"}): no such file')):
        sizes([image(5), tmp_path / 'b.png'])


def test_pictures_do_not_overwrite_one_another(sizes, tmp_path):
    for folder in ('x', 'y'):
        (tmp_path / folder).mkdir()
        image(400, 300).save(tmp_path / folder / 'same name.png')
    shown = tmp_path / 'new' / 'folder'
    sizes([tmp_path / 'x' / 'same name.png', tmp_path / 'y' / 'same name.png', image(10)], show_dir=shown)
    sizes(image(10), show_dir=str(shown))
    assert sorted(path.name for path in shown.iterdir()) == [
        'image_000000.png', 'image_000002.png', 'same_name.png', 'same_name_1.png']
    with Image.open(shown / 'same_name.png') as picture:
        assert picture.width == 400 and picture.height > 300
        assert np.asarray(picture)[0, 0].tolist() == [200, 30, 30]
        below = np.asarray(picture)[300:]
    assert (below == 255).all(axis=-1).any() and (below < 128).all(axis=-1).any()  # black text on white


def test_resize_is_the_shorter_side(sizes, tmp_path):
    sizes(image(800, 400), show_dir=tmp_path, resize=200)
    with Image.open(tmp_path / 'image_000000.png') as picture:
        assert picture.width == 400 and 200 < picture.height < 300
    with pytest.raises(ConfigError, match="resize is the length of the shorter side in pixels, got 'large'"):
        sizes(image(8), show_dir=tmp_path, resize='large')


def test_a_folder_that_cannot_be_made_is_named(sizes, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match='cannot write pictures into show_dir .*file'):
        sizes(image(5), show_dir=tmp_path / 'file' / 'below')


def test_show_without_a_display_is_a_clear_error(sizes, monkeypatch):
    from matplotlib import pyplot
    monkeypatch.setattr(pyplot, 'get_backend', lambda: 'Agg')
    with pytest.raises(ConfigError, match='show=True needs a display.*use show_dir=FOLDER'):
        sizes(image(5), show=True)
    assert sizes.batches == []  # said before the work


def test_show_opens_a_window_for_wait_time(sizes, monkeypatch):
    from matplotlib import pyplot
    calls = []
    pyplot.switch_backend('agg')
    monkeypatch.setattr(pyplot, 'get_backend', lambda: 'a window system')
    monkeypatch.setattr(pyplot, 'show', lambda block=True: calls.append(('show', block, pyplot.get_fignums())))
    monkeypatch.setattr(pyplot, 'pause', lambda seconds: calls.append(('pause', seconds)))
    sizes(image(5), show=True)
    sizes(image(5), show=True, wait_time=0.5)
    assert calls == [('show', True, [1]), ('show', False, [1]), ('pause', 0.5)] and pyplot.get_fignums() == []


def test_a_model_that_is_built_takes_no_more_arguments(sizes):
    assert Sizes(sizes.model).model is sizes.model
    with pytest.raises(ConfigError, match='pretrained, device: only with the name of a model, this one is built al'):
        Sizes(sizes.model, pretrained='x.pth', device='cpu')
    with pytest.raises(ConfigError, match='Linear has no _config, whose test pipeline prepares the images: build it'):
        Sizes(torch.nn.Linear(1, 1))


def test_config_without_a_test_pipeline(sizes):
    sizes.model._config.pop('test_dataloader')
    with pytest.raises(ConfigError, match='has no test_dataloader, whose pipeline would prepare the images'):
        sizes.prepare(sizes.image_rows(image(5)))


def test_pipeline_of_a_wrapped_data_set(sizes):
    loader = sizes.model._config.test_dataloader
    steps = sizes.pipeline_steps()
    loader.dataset = dict(type='ConcatDataset', datasets=[dict(type='COCOCaption', pipeline=steps)])
    assert sizes.pipeline_steps() == steps


def test_autocast_is_that_of_the_training(sizes):
    with sizes.autocast():
        assert not torch.is_autocast_enabled('cpu')
    sizes.model._config.optim_wrapper = dict(dtype='bfloat16')
    with sizes.autocast():
        assert torch.is_autocast_enabled('cpu') and torch.get_autocast_dtype('cpu') == torch.bfloat16


def test_names_of_pictures_have_no_odd_characters(tmp_path):
    path = base.save_picture(image(5), tmp_path, '../ä b:c')
    assert path.name == '.._ä_b_c.png' and path.parent == tmp_path
    long = [base.save_picture(image(5), tmp_path, 'ä' * 125) for _ in range(2)]
    assert [path.name for path in long] == ['ä' * 100 + '.png', 'ä' * 100 + '_1.png']
