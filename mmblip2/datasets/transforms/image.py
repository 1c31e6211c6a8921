"""Image transforms on ``results['image']``, a ``PIL.Image`` in RGB."""
import math
import os

import numpy as np
from PIL import Image

from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import TRANSFORMS


def height_width(scale):
    """(h, w) of an int or a pair.

    Raises:
        ConfigError: Neither, or not positive.
    """
    pair = (scale, scale) if isinstance(scale, int) else scale if isinstance(scale, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ConfigError(f'scale is an int or (height, width) in pixels, got {scale!r}')
    return tuple(pair)


def to_rgb(image):
    """An image of any mode as RGB; training, evaluation and inference all use this one rule.

    Eight bits a channel: as Pillow's ``convert('RGB')``, which transformers uses, too. Alpha is dropped, so that what
    is below transparent pixels shows. Of an animation the first frame is taken. A rotation in the EXIF data is not
    applied, as in transformers and LAVIS: call ``PIL.ImageOps.exif_transpose`` before, if it should be.

    Differs from transformers: 16 bits of grey are scaled to 8 (65535 is white, rounded); Pillow alone would show
    everything above 255 as white.

    Args:
        image (PIL.Image.Image): Not changed.

    Returns:
        PIL.Image.Image: Mode RGB.

    Raises:
        DataError: Floating point or 32-bit pixels, whose range is not known.
    """
    if image.mode == 'F':
        raise DataError('its pixels are floating point (mode F), and nothing says which value is white: save it with '
                        '8 or 16 bits')
    if image.mode.startswith('I'):
        pixels = np.asarray(image).astype(np.int64)  # (H, W)
        low, high = int(pixels.min()), int(pixels.max())
        if low < 0 or high > 65535:
            raise DataError(f'its pixels are 32-bit integers from {low} to {high}, and nothing says which value is '
                            'white: save it with 8 or 16 bits')
        # Older releases of Pillow read a 16-bit PNG as mode I, which otherwise may hold 8 bits.
        if image.mode != 'I' or high > 255 or getattr(image, 'format', None) == 'PNG':
            pixels = (pixels * 255 + 32767) // 65535
        image = Image.fromarray(pixels.astype(np.uint8))
    return image.convert('RGB')


def read_image(source):
    """Read an image file as RGB, see :func:`to_rgb`.

    Pillow warns above ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million) pixels and refuses twice as many.

    Args:
        source (str | Path | file): Path, or an open binary file.

    Returns:
        PIL.Image.Image: Mode RGB.

    Raises:
        DataError: Why it cannot be read; which file it was is for the caller to say.
    """
    if isinstance(source, (str, os.PathLike)) and os.path.isfile(source) and os.path.getsize(source) == 0:
        raise DataError('the file is empty (0 bytes)')
    try:
        with Image.open(source) as image:
            return to_rgb(image)
    # Pillow raises all of these for broken files, depending on the format and on where the damage is.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f'{type(error).__name__}: {error}') from None


def _rng(results, transform):
    if 'rng' not in results:
        raise ConfigError(f"{type(transform).__name__} needs random numbers in results['rng'], which the "
                          'data sets put there: leave it out of pipelines for single images')
    results['augmented'] = type(transform).__name__
    return results['rng']


@TRANSFORMS.register_module()
class LoadImage:
    """Read ``results['img_path']`` as RGB into ``results['image']``; where there is an image already, convert that.

    See :func:`to_rgb` for what becomes of other modes.

    Raises:
        DataError: The file is missing or is not a whole image; the message names path and sample.
    """

    of_image = True

    def __call__(self, results):
        path = results.get('img_path')
        try:
            results['image'] = to_rgb(results['image']) if 'image' in results else read_image(path)
        except DataError as error:
            sample = f' (sample {results["sample_idx"]})' if 'sample_idx' in results else ''
            raise DataError(f'cannot read image {path}{sample}: {error}; replace the file or take it out of the '
                            'annotations') from None
        return results


@TRANSFORMS.register_module()
class Resize:
    """Resize to exactly ``scale``, by default with Pillow's bicubic filter, as published weights were evaluated.

    Args:
        scale (int | tuple[int, int]): Side of a square, or (height, width), pixels.
        filter (str): Pillow's name: ``'nearest'``, ``'box'``, ``'bilinear'``, ``'hamming'``, ``'bicubic'`` or
            ``'lanczos'``.

    Raises:
        ConfigError: Another filter, or no size.
    """

    of_image = True

    def __init__(self, scale, filter='bicubic'):
        self.height, self.width = height_width(scale)
        names = [member.name.lower() for member in Image.Resampling]
        if filter not in names:
            raise ConfigError(f'filter of Resize is {filter!r}, expected one of {", ".join(names)}')
        self.filter = Image.Resampling[filter.upper()]

    def __call__(self, results):
        results['image'] = results['image'].resize((self.width, self.height), self.filter)
        return results


@TRANSFORMS.register_module()
class RandomResizedCrop:
    """Crop a random part and resize it to ``scale`` with Pillow's bicubic filter.

    Args:
        scale (int | tuple[int, int]): Side of a square, or (height, width), pixels.
        crop_ratio_range (tuple[float, float]): Area of the part, as a fraction of the image.
        aspect_ratio_range (tuple[float, float]): Width over height of the part.
        max_attempts (int): Tries, before the largest central part of an allowed aspect ratio is taken.

    Raises:
        ConfigError: An impossible range; patch labels in the sample, which a crop would misplace.
    """

    of_image = True

    def __init__(self, scale, crop_ratio_range=(0.5, 1.0), aspect_ratio_range=(3 / 4, 4 / 3),
                 max_attempts=10):
        low, high = crop_ratio_range
        if not 0 < low <= high <= 1:
            raise ConfigError(f'crop_ratio_range {crop_ratio_range} is not 0 < low <= high <= 1')
        if not 0 < aspect_ratio_range[0] <= aspect_ratio_range[1]:
            raise ConfigError(f'aspect_ratio_range {aspect_ratio_range} is not 0 < low <= high')
        self.resize = Resize(scale)
        self.crop_ratio_range = crop_ratio_range
        self.aspect_ratio_range = aspect_ratio_range
        self.max_attempts = max_attempts

    def __call__(self, results):
        if 'patch_labels' in results:
            raise ConfigError('RandomResizedCrop would misplace patch_labels: use Resize in this pipeline')
        width, height = results['image'].size
        results['image'] = results['image'].crop(self._box(width, height, _rng(results, self)))
        return self.resize(results)

    def _box(self, width, height, rng):
        """(left, top, right, bottom) of the part to keep, pixels."""
        narrow, wide = self.aspect_ratio_range
        for _ in range(self.max_attempts):
            area = width * height * rng.uniform(*self.crop_ratio_range)
            aspect = math.exp(rng.uniform(math.log(narrow), math.log(wide)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
                return left, top, left + w, top + h
        w = min(width, max(1, round(height * wide)))
        h = min(height, max(1, round(width / narrow)))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


@TRANSFORMS.register_module()
class RandomFlip:
    """Mirror the image left to right, and its patch labels with it (a square grid of patches).

    Captions are not changed: "left" stays "left", as in the reference implementations.

    Args:
        prob (float): Probability.
    """

    of_image = True

    def __init__(self, prob=0.5):
        if not 0 <= prob <= 1:
            raise ConfigError(f'prob of RandomFlip is a probability, got {prob!r}')
        self.prob = prob

    def __call__(self, results):
        if _rng(results, self).random() < self.prob:
            results['image'] = results['image'].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if 'patch_labels' in results:
                labels = results['patch_labels']
                side = math.isqrt(labels.shape[-1])
                results['patch_labels'] = labels.unflatten(-1, (side, side)).flip(-1).flatten(-2)
        return results
