import numpy as np
import pytest
from PIL import Image, ImageFont

from mmblip2.visualization import draw_caption
from mmblip2.visualization.visualizer import _wrap, draw_results, side_by_side


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


def test_letters_with_accents_and_other_alphabets_are_drawn():
    pytest.importorskip('matplotlib')
    drawn = {draw_caption(red((20, 10)), [letter]).tobytes() for letter in 'uüéçßøжяλω'}
    assert len(drawn) == 10, 'some look the same, as letters do that the font has not'


def test_without_lines_nothing_is_added():
    assert draw_caption(red((400, 50)), []).size == (400, 50)


def test_results_stand_in_rows_below_the_title():
    colours = [(40 * i, 255 - 40 * i, 20 * i) for i in range(1, 7)]
    found = [(Image.new('RGB', (10 * i + 5, 20), colour), f'line {i}') for i, colour in enumerate(colours)]
    drawn = draw_results('a title', found, (600, 400))
    pixels = np.asarray(drawn)
    assert drawn.width == 600 and drawn.height <= 400
    places = [np.argwhere((pixels == colour).all(axis=2)) for colour in colours]
    tops, lefts = [int(place[:, 0].min()) for place in places], [int(place[:, 1].min()) for place in places]
    assert tops[:5].count(tops[0]) == 5 and tops[5] > places[0][:, 0].max(), 'five in a row'
    assert lefts[:5] == sorted(lefts[:5]) and min(tops) > 14, 'in reading order, below the title'
    assert all(len(place) == np.prod(np.ptp(place, axis=0) + 1) for place in places), 'an image covers another'
    assert (pixels[:14] < 128).any(), 'no title'
    assert draw_results('nothing', [], (100, 50)).width == 100


def test_images_stand_side_by_side_in_their_order():
    picture = side_by_side([red((40, 20)), Image.new('L', (30, 50), 0)])
    assert picture.mode == 'RGB' and picture.height == 50 and 70 < picture.width < 90
    pixels = np.asarray(picture)
    assert (pixels[:20, :40] == (255, 0, 0)).all() and (pixels[:, -30:] == 0).all()
    assert (pixels[20:, :40] == 255).all() and (pixels[:, 40:-30] == 255).all()
    assert side_by_side([picture]) is picture
