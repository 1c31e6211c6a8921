"""The last transform: what the collate function and the model see."""
from typing import Any

import numpy as np
import torch

from mmblip2.errors import DataError
from mmblip2.registry import TRANSFORMS
from mmblip2.structures import FIELDS, DataSample

from .image import as_pillow


@TRANSFORMS.register_module()
class PackInputs:
    """Make ``{'inputs': uint8 (3, H, W) RGB, 'data_samples': DataSample}``; no image, no ``inputs``.

    Several images of a sample (see ``EachImage``) become ``inputs`` of (N, 3, H, W). From a feature cache ``inputs``
    are the tokens (P, E) of the frozen encoder. All fields of the data sample's table that the results dict has are
    copied; a training ``caption`` (or a list of several) becomes ``text``.

    Raises:
        DataError: The images of the sample differ in size.
    """

    of_image = False

    def __call__(self, results):
        sample = DataSample()
        if 'caption' in results:
            sample.text = results['caption']
        for key in FIELDS:
            if key in results:
                setattr(sample, key, results[key])
        packed: dict[str, Any] = {'data_samples': sample}
        if 'features' in results:
            packed['inputs'] = results['features']
        elif 'image' in results:
            image = results['image']
            packed['inputs'] = _stack(image) if isinstance(image, (list, tuple)) else pixels_of(image)
        return packed


def pixels_of(image):
    """uint8 (3, H, W) of an RGB ``PIL.Image``, or of pixels of torchvision."""
    return torch.from_numpy(np.array(as_pillow(image))).permute(2, 0, 1).contiguous()


def _stack(images):
    images = [as_pillow(image) for image in images]
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise DataError(f'the images of one sample differ in size, {sizes[0]} and {sizes[-1]} (width, height): end the '
                        'transforms of EachImage with Resize(scale=...)')
    return torch.stack([pixels_of(image) for image in images])  # (N, 3, H, W)
