import numpy as np
import pytest
from PIL import Image, ImageFont

from mmblip2.visualization import draw_caption
from mmblip2.visualization.visualizer import _wrap


def red(size, mode='RGB'):
    return Image.new('RGB', size, (255, 0, 0)).convert(mode)


def test_image_stays_and_text_stands_below():
    image = red((400, 50))
    drawn = np.asarray(draw_caption(image, ['a caption']))
    assert drawn.shape[1] == 400 and drawn.shape[0] > 50
    assert (drawn[:50] == np.asarray(image)).all()
    assert (drawn[50:] == 255).any() and (drawn[50:] < 128).any()


def test_long_text_is_wrapped_to_the_width():
    one, many = draw_caption(red((330, 40)), ['word']), draw_caption(red((330, 40)), ['word ' * 60])
    assert many.width == one.width == 330 and many.height > one.height
    font = ImageFont.load_default(14)
    lines = _wrap('short ' + 'x' * 300 + ' end', font, 200)
    assert max(font.getlength(line) for line in lines) <= 200
    assert ''.join(lines).replace(' ', '') == 'short' + 'x' * 300 + 'end'


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', 'CMYK'])
def test_any_mode_and_small_images_work(mode):
    drawn = draw_caption(red((20, 10), mode), ['é 漢字 😀', ''])
    assert drawn.mode == 'RGB' and drawn.width == 320


def test_without_lines_nothing_is_added():
    assert draw_caption(red((400, 50)), []).size == (400, 50)
