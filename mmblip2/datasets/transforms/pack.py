"""The last transform: what the collate function and the model see."""
from typing import Any

import numpy as np
import torch

from mmblip2.registry import TRANSFORMS
from mmblip2.structures import FIELDS, DataSample


@TRANSFORMS.register_module()
class PackInputs:
    """Make ``{'inputs': uint8 (3, H, W) RGB, 'data_samples': DataSample}``; no image, no ``inputs``.

    All fields of the data sample's table that the results dict has are copied; a training ``caption``
    becomes ``text``. From a feature cache ``inputs`` are the tokens (P, E) of the frozen encoder.
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
            packed['inputs'] = pixels_of(results['image'])
        return packed


def pixels_of(image):
    """uint8 (3, H, W) of an RGB ``PIL.Image``."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
