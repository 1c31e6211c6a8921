"""Image transforms on ``results['image']``: a ``PIL.Image`` in RGB, or pixels of torchvision, uint8 (3, H, W)."""
import io
import math
import os
import re
import struct
import zlib
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import TRANSFORMS

from ..tar_files import read_member, split_path


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
        source (str | Path | file): Path, or an open binary file. ``FOLDER/00000.tar/01.jpg`` is a member of a tar.

    Returns:
        PIL.Image.Image: Mode RGB.

    Raises:
        DataError: Why it cannot be read; which file it was is for the caller to say.
    """
    size = None
    if isinstance(source, (str, os.PathLike)):
        if os.path.isfile(source):
            size = os.path.getsize(source)
        elif split_path(source):
            content = read_member(source)
            size, source = len(content), io.BytesIO(content)
    if size == 0:
        raise DataError('the file is empty (0 bytes)')
    try:
        with Image.open(source) as image:
            return to_rgb(image)
    # Pillow raises all of these for broken files, depending on the format and on where the damage is.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error,
            Image.DecompressionBombError) as error:
        text = re.sub(r' <_io\.BytesIO [^>]*>', '', str(error))  # an address, another one in each process
        raise DataError(f'{type(error).__name__}: {text}') from None


def read_jpeg(path):
    """Decode an ordinary JPEG file by torchvision, faster than Pillow and with the same pixels.

    Returns:
        torch.Tensor | None: uint8 (3, H, W); None for what Pillow has to read: other formats, CMYK, broken files.
    """
    import torch
    from torchvision.io import decode_jpeg  # type: ignore[import-untyped]
    try:
        with open(path, 'rb') as file:
            content = file.read()
        if not content.startswith(b'\xff\xd8') or not content.rstrip(b'\0').endswith(b'\xff\xd9'):
            return None
        pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    except (OSError, RuntimeError):
        return None
    return pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels if len(pixels) == 3 else None


def as_pillow(image):
    """The ``PIL.Image`` of pixels uint8 (3, H, W); an image stays as it is."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) if hasattr(image, 'permute') else image


def resized(image, height, width):
    """An image, or pixels uint8 (3, H, W), resized by antialiased bicubic interpolation, as a ``PIL.Image``."""
    if isinstance(image, Image.Image):
        return image.resize((width, height), Image.Resampling.BICUBIC)
    from torch.nn.functional import interpolate
    return as_pillow(interpolate(image[None], (height, width), mode='bicubic', antialias=True)[0])


def random_numbers(results, transform):
    """The random numbers of a sample, which it then is said to be augmented by.

    Args:
        results (dict): The sample.
        transform: The one that needs them.

    Returns:
        numpy.random.Generator: ``results['rng']``.

    Raises:
        ConfigError: There are none.
    """
    if 'rng' not in results:
        raise ConfigError(f"{type(transform).__name__} needs random numbers in results['rng'], which the "
                          'data sets put there: leave it out of pipelines for single images')
    results['augmented'] = type(transform).__name__
    return results['rng']


@TRANSFORMS.register_module()
class LoadImage:
    """Read ``results['img_path']`` as RGB into ``results['image']``; where there is an image already, convert that.

    See :func:`to_rgb` for what becomes of other modes.

    Args:
        backend (str): ``'pillow'``, or ``'torchvision'``, for training: JPEG files are decoded, and resized by the next
            ``Resize`` or ``RandomResizedCrop``, by it, which is faster (159 COCO photos: 5 % of the resized values
            differ from Pillow's, mean 0.05, at most 7 of 255). Published weights are evaluated with Pillow.

    Raises:
        DataError: The file is missing or is not a whole image; the message names path and sample.
        ConfigError: The sample has several images; an unknown backend.
    """

    of_image = True

    def __init__(self, backend='pillow'):
        if backend not in ('pillow', 'torchvision'):
            raise ConfigError(f"backend of LoadImage is {backend!r}, expected 'pillow' or 'torchvision'")
        if backend == 'torchvision' and find_spec('torchvision.io') is None:
            raise ConfigError("backend of LoadImage is 'torchvision', which is not installed or has no torchvision.io: "
                              "install one that has, or set backend='pillow'")
        self.backend = backend

    def __call__(self, results):
        path = results.get('img_path')
        given = results.get('image', path)
        if isinstance(given, (list, tuple)):
            raise ConfigError(f'the sample has {len(given)} images, LoadImage reads one: put the image transforms of '
                              "this pipeline into dict(type='EachImage', transforms=[...])")
        if self.backend == 'torchvision' and 'image' not in results:
            pixels = read_jpeg(path)
            if pixels is not None:
                results['image'] = pixels
                return results
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
        if self.filter == Image.Resampling.BICUBIC:
            results['image'] = resized(results['image'], self.height, self.width)
        else:
            results['image'] = as_pillow(results['image']).resize((self.width, self.height), self.filter)
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
        image, rng = results['image'], random_numbers(results, self)
        if isinstance(image, Image.Image):
            results['image'] = image.crop(self._box(*image.size, rng))
        else:
            left, top, right, bottom = self._box(image.shape[2], image.shape[1], rng)
            results['image'] = image[:, top:bottom, left:right]
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
        if random_numbers(results, self).random() < self.prob:
            results['image'] = as_pillow(results['image']).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            if 'patch_labels' in results:
                labels = results['patch_labels']
                side = math.isqrt(labels.shape[-1])
                results['patch_labels'] = labels.unflatten(-1, (side, side)).flip(-1).flatten(-2)
        return results


_GREY = (128, 128, 128)  # what shearing, moving and turning bring in


def _affine(image, *source):
    """The image whose pixel (x, y) is that of ``image`` at (a x + b y + c, d x + e y + f), with (a, b, c, d, e, f) as
    ``source``; (0, 0) is the corner of the first pixel."""
    return image.transform(image.size, Image.Transform.AFFINE, source, Image.Resampling.BILINEAR, fillcolor=_GREY)


def _turn(image, degrees):
    width, height = image.size
    return image.rotate(degrees, Image.Resampling.BILINEAR, center=((width + 1) / 2, (height + 1) / 2),
                        fillcolor=_GREY)


#: An image and a strength, -1 to 1, to an image. Half a pixel is added where OpenCV, which the original calls, counts
#: from the middle of the first pixel.
AUGMENTATIONS: dict[str, Callable] = dict(
    Identity=lambda image, strength: image,
    AutoContrast=lambda image, strength: ImageOps.autocontrast(image),
    Brightness=lambda image, strength: ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * abs(strength)),
    Sharpness=lambda image, strength: ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * abs(strength)),
    Equalize=lambda image, strength: ImageOps.equalize(image),
    ShearX=lambda image, strength: _affine(image, 1, -0.3 * strength, 0.15 * strength, 0, 1, 0),
    ShearY=lambda image, strength: _affine(image, 1, 0, 0, -0.3 * strength, 1, 0.15 * strength),
    TranslateX=lambda image, strength: _affine(image, 1, 0, 10 * strength, 0, 1, 0),
    TranslateY=lambda image, strength: _affine(image, 1, 0, 0, 0, 1, 10 * strength),
    Rotate=lambda image, strength: _turn(image, 30 * strength))


@TRANSFORMS.register_module()
class RandAugment:
    """Change the image by a few operations, each drawn from a list (with repeats) and then applied or not.

    The augmentation of BLIP's training, after RandomResizedCrop and RandomFlip. Operations, magnitudes and the grey
    (128, 128, 128) of new pixels are those of BLIP and LAVIS (``randaugment.py``), where 10 is the greatest magnitude:
    shearing by 0.3 times it, moving by 10 pixels, turning by 30 degrees, to either side; brightness and sharpness times
    0.1 to 1.9. At BLIP's magnitude of 5 these two factors are 1 and change nothing, there as here.

    Differs from BLIP: computed by Pillow instead of OpenCV, so that interpolated pixels may differ by rounding, and
    those along the edge of the grey are not mixed with it.

    Args:
        num_ops (int): Operations drawn.
        magnitude (float): 0 to 10.
        prob (float): Probability that a drawn operation is applied.
        ops (Sequence[str], optional): Names of ``AUGMENTATIONS`` to draw from; default: all, as BLIP.

    Raises:
        ConfigError: An unknown operation, none, or a number out of its range; patch labels in the sample.
    """

    of_image = True

    def __init__(self, num_ops=2, magnitude=5, prob=0.5, ops=None):
        self.ops = list(AUGMENTATIONS) if ops is None else list(ops)
        unknown = [name for name in self.ops if name not in AUGMENTATIONS]
        if unknown or not self.ops:
            raise ConfigError(f'ops of RandAugment are {self.ops}, expected some of {", ".join(AUGMENTATIONS)}')
        if isinstance(num_ops, bool) or not isinstance(num_ops, int) or num_ops < 1:
            raise ConfigError(f'num_ops of RandAugment is a number of operations, 1 or more, got {num_ops!r}')
        if not 0 <= magnitude <= 10:
            raise ConfigError(f'magnitude of RandAugment is 0 to 10, got {magnitude!r}')
        if not 0 <= prob <= 1:
            raise ConfigError(f'prob of RandAugment is a probability, got {prob!r}')
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.prob = prob

    def __call__(self, results):
        if 'patch_labels' in results:
            raise ConfigError('RandAugment would misplace patch_labels: leave it out of this pipeline')
        rng = random_numbers(results, self)
        for _ in range(self.num_ops):
            name, applied, sign = self.ops[rng.integers(len(self.ops))], rng.random() < self.prob, rng.choice((-1, 1))
            if applied:
                results['image'] = AUGMENTATIONS[name](as_pillow(results['image']), sign * self.magnitude / 10)
        return results
