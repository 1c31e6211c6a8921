"""Transforms of samples with several images, such as the pairs of NLVR2."""
import re

from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import TRANSFORMS

from .image import random_numbers

_SIDES = {'left': 'right', 'right': 'left'}
_SIDE = re.compile(r'\b(left|right)\b')


@TRANSFORMS.register_module()
class EachImage:
    """Apply image transforms to every image of a sample, each with random numbers of its own.

    The images are those of ``results['image']`` if there are any, or the files ``results['img_path']``; afterwards
    ``results['image']`` is their list. ``PackInputs`` makes (N, 3, H, W) of it.

    Args:
        transforms (Sequence): Of one image: configs or callables; ``LoadImage`` first.
        num_images (int): Images of a sample.

    Raises:
        ConfigError: There are no transforms.
        DataError: A sample has another number of images.
    """

    of_image = True

    def __init__(self, transforms, num_images=2):
        if not transforms:
            raise ConfigError("EachImage has no transforms: give at least dict(type='LoadImage')")
        self.transforms = [TRANSFORMS.build(step) if isinstance(step, dict) else step for step in transforms]
        self.num_images = num_images

    def __call__(self, results):
        key = 'image' if 'image' in results else 'img_path'
        given = results.get(key)
        items = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
        if len(items) != self.num_images:
            raise DataError(f'sample {results.get("sample_idx")} has {len(items)} images ({results.get("img_path")}), '
                            f'the pipeline takes {self.num_images}: check the annotations, or num_images of EachImage')
        paths = results.get('img_path')
        images = []
        for number, item in enumerate(items):
            one = {**results, key: item}
            if isinstance(paths, (list, tuple)):
                one['img_path'] = paths[number]
            for step in self.transforms:
                one = step(one)
            images.append(one['image'])
            if 'augmented' in one:
                results['augmented'] = one['augmented']
        results['image'] = images
        return results


@TRANSFORMS.register_module()
class SwapImages:
    """Exchange the two images of a sample at random, and with them the words "left" and "right" of its text.

    As in BLIP's training on NLVR2, where it comes after the cleaning of the text. Differs from BLIP: "left" and "right"
    are also exchanged before a comma or a hyphen.

    Args:
        prob (float): Probability.

    Raises:
        ConfigError: ``prob`` is no probability.
        DataError: The sample has not two images.
    """

    of_image = True

    def __init__(self, prob=0.5):
        if not 0 <= prob <= 1:
            raise ConfigError(f'prob of SwapImages is a probability, got {prob!r}')
        self.prob = prob

    def __call__(self, results):
        image = results.get('image')
        if not isinstance(image, list) or len(image) != 2:
            raise DataError(f'SwapImages exchanges two images, sample {results.get("sample_idx")} has '
                            f'{len(image) if isinstance(image, list) else int(image is not None)}: put EachImage '
                            'before it')
        if random_numbers(results, self).random() < self.prob:
            results['image'] = image[::-1]
            if isinstance(results.get('img_path'), (list, tuple)):
                results['img_path'] = results['img_path'][::-1]
            if 'text' in results:
                results['text'] = _SIDE.sub(lambda side: _SIDES[side[1]], results['text'])
        return results
