"""Draw text under an image."""
import functools
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_MIN_WIDTH = 320
_MARGIN = 6
_FONT_SIZE = 14
_COLUMNS = 5


def draw_caption(image: Image.Image, lines: list[str], min_width: int = _MIN_WIDTH) -> Image.Image:
    """A new picture: the image, and below it the lines in black on white.

    Args:
        image: Any mode and size; narrow images are centred on a wider canvas so that text has room.
        lines: Texts; each starts on a line of its own and is wrapped to the width. Letters that the font has not, such
            as Chinese ones, are drawn as empty boxes.
        min_width: Of the picture, pixels.

    Returns:
        Image.Image: RGB, at least as wide and high as the image.
    """
    font = _font()
    width = max(image.width, min_width)
    wrapped = [part for line in lines for part in _wrap(_drawable(line, font), font, width - 2 * _MARGIN)]
    line_height = _FONT_SIZE + 4
    height = image.height + (len(wrapped) * line_height + 2 * _MARGIN if wrapped else 0)
    canvas = Image.new('RGB', (width, height), 'white')
    canvas.paste(image.convert('RGB'), ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for number, text in enumerate(wrapped):
        draw.text((_MARGIN, image.height + _MARGIN + number * line_height), text, fill='black', font=font)
    return canvas


def side_by_side(images: list[Image.Image]) -> Image.Image:
    """A new picture with all images in a row, in their order, on white.

    Args:
        images: At least one, of any size.

    Returns:
        Image.Image: RGB, as high as the highest of them; a single image is returned as it is.
    """
    if len(images) == 1:
        return images[0]
    canvas = Image.new('RGB', (sum(image.width + _MARGIN for image in images) - _MARGIN,
                               max(image.height for image in images)), 'white')
    left = 0
    for image in images:
        canvas.paste(image.convert('RGB'), (left, 0))
        left += image.width + _MARGIN
    return canvas


def draw_results(title: str, found: list[tuple[Image.Image, str]], size: tuple[int, int]) -> Image.Image:
    """A new picture: a text, and below it images in rows of five, each with a line of its own.

    Args:
        title: Of the picture, wrapped to its width.
        found: Images and their lines, in reading order; an image is resized to fill its place.
        size: Width of the picture and its greatest height, pixels, as far as the lines leave room.

    Returns:
        Image.Image: RGB.
    """
    columns = max(1, min(_COLUMNS, len(found)))
    rows = -(-len(found) // columns)
    head = draw_caption(Image.new('RGB', (size[0], 1), 'white'), [title], min_width=1)
    width = max(1, (size[0] - _MARGIN) // columns - _MARGIN)
    height = max(1, (size[1] - head.height) // max(1, rows) - _FONT_SIZE - 4 - 2 * _MARGIN)
    tiles = []
    for image, line in found:
        scale = min(width / image.width, height / image.height)
        fitted = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        tiles.append(draw_caption(fitted, [line], min_width=width))
    heights = [max(tile.height for tile in tiles[start:start + columns]) for start in range(0, len(tiles), columns)]
    picture = Image.new('RGB', (size[0], head.height + sum(heights)), 'white')
    picture.paste(head, (0, 0))
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        picture.paste(tile, (_MARGIN + column * (width + _MARGIN), head.height + sum(heights[:row])))
    return picture


@functools.cache
def _font():
    """DejaVu Sans, which comes with matplotlib and has most alphabets; or else Pillow's own font."""
    try:
        import matplotlib
        return ImageFont.truetype(Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf'), _FONT_SIZE)
    except (ImportError, OSError):  # no matplotlib, a Pillow without FreeType; or no such file
        return ImageFont.load_default(_FONT_SIZE)


def _drawable(text: str, font) -> str:
    """The text on one line; without FreeType, Pillow's font has Latin-1 only."""
    text = ' '.join(text.split())
    if isinstance(font, ImageFont.FreeTypeFont):
        return text
    return text.encode('latin-1', 'replace').decode('latin-1')


def _wrap(text: str, font, width: int) -> list[str]:
    """Split at spaces, and inside words that are wider than a line."""
    lines = ['']
    for word in text.split(' '):
        longer = f'{lines[-1]} {word}' if lines[-1] else word
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append('')
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append('')
            lines[-1] += letter
    return lines
