"""Image transforms on ``results['image']``, a ``PIL.Image`` in RGB."""
import math

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


def _rng(results, transform):
    if 'rng' not in results:
        raise ConfigError(f"{type(transform).__name__} needs random numbers in results['rng'], which the "
                          'data sets put there: leave it out of pipelines for single images')
    results['augmented'] = type(transform).__name__
    return results['rng']


@TRANSFORMS.register_module()
class LoadImage:
    """Read ``results['img_path']`` as RGB into ``results['image']``; without a path, convert that image.

    Raises:
        DataError: The file is missing or is not a whole image; the message names path and sample.
    """

    def __call__(self, results):
        if 'img_path' not in results:
            results['image'] = results['image'].convert('RGB')
            return results
        path = results['img_path']
        try:
            with Image.open(path) as image:
                results['image'] = image.convert('RGB')
        # Pillow raises all of these for broken files, depending on the format and on where the damage is.
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            raise DataError(f'cannot read image {path} (sample {results.get("sample_idx")}): '
                            f'{type(error).__name__}: {error}; replace the file or take it out of the '
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
