import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from PIL import Image

from mmblip2.datasets.transforms import PackInputs


def test_pixels_are_packed_channels_first_as_bytes():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    inputs = PackInputs()({'image': Image.fromarray(pixels), 'sample_idx': 0})['inputs']
    assert inputs.dtype == torch.uint8 and inputs.shape == (3, 4, 6) and inputs.is_contiguous()
    assert np.array_equal(inputs.permute(1, 2, 0).numpy(), pixels)


def test_fields_of_the_table_are_packed_and_others_are_not():
    results = {'sample_idx': 2, 'caption': 'a dog', 'prompt': '', 'rng': 1, 'other': 2}
    sample = PackInputs()(results)['data_samples']
    assert sorted(sample.keys()) == ['prompt', 'sample_idx', 'text']
    assert sample.text == 'a dog' and sample.prompt == ''


def test_text_without_image_has_no_inputs():
    batch = pseudo_collate([PackInputs()({'sample_idx': i, 'target': 'x', 'prompt': ''}) for i in range(2)])
    assert list(batch) == ['data_samples'] and len(batch['data_samples']) == 2
