import numpy as np
import pytest
import torch
from PIL import Image

from mmblip2.datasets.transforms import LoadImage, RandomFlip, RandomResizedCrop, Resize
from mmblip2.errors import ConfigError, DataError


def noise(width, height, mode='RGB'):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize('mode, name', [('RGB', 'a.png'), ('L', 'a.jpg'), ('CMYK', 'a.jpg'),
                                        ('RGBA', 'a.png')])
def test_every_image_becomes_rgb(tmp_path, mode, name):
    noise(6, 4, mode).save(tmp_path / name)
    image = LoadImage()({'img_path': str(tmp_path / name)})['image']
    assert image.mode == 'RGB' and image.size == (6, 4)


def test_an_image_in_memory_is_only_converted():
    assert LoadImage()({'image': noise(6, 4, 'L')})['image'].mode == 'RGB'


def test_broken_jpeg_is_named(tmp_path):
    path = tmp_path / 'cut.jpg'
    noise(64, 64).save(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r'cannot read image .*cut\.jpg \(sample 5\): .*; replace the file'):
        LoadImage()({'img_path': str(path), 'sample_idx': 5})


def test_file_that_is_no_image_and_missing_file_are_named(tmp_path):
    (tmp_path / 'text.jpg').write_text('<html>')
    for name in ('text.jpg', 'missing.jpg'):
        with pytest.raises(DataError, match=rf'cannot read image .*{name} \(sample 0\)'):
            LoadImage()({'img_path': str(tmp_path / name), 'sample_idx': 0})


def test_resize_is_pillows_bicubic_to_the_exact_size():
    image = noise(31, 17)
    for scale, size in ((8, (8, 8)), ((6, 9), (9, 6))):
        resized = Resize(scale)({'image': image})['image']
        assert resized.size == size
        assert resized.tobytes() == image.resize(size, Image.Resampling.BICUBIC).tobytes()


def test_resize_takes_pillows_other_filters_by_name():
    image = noise(31, 17)
    resized = {name: Resize(8, filter=name)({'image': image})['image'].tobytes() for name in ('nearest', 'lanczos')}
    assert resized['nearest'] == image.resize((8, 8), Image.Resampling.NEAREST).tobytes()
    assert resized['lanczos'] == image.resize((8, 8), Image.Resampling.LANCZOS).tobytes()
    with pytest.raises(ConfigError, match=r"filter of Resize is 'cubic', expected one of nearest, .*bicubic"):
        Resize(8, filter='cubic')


@pytest.mark.parametrize('scale', [0, (8, 8, 8), '8', 8.0])
def test_impossible_scale_is_refused(scale):
    with pytest.raises(ConfigError, match='scale is an int or'):
        Resize(scale)


def test_crop_keeps_the_area_and_aspect_asked_for():
    crop = RandomResizedCrop(8, crop_ratio_range=(0.5, 0.6), aspect_ratio_range=(0.8, 1.25))
    rng = np.random.default_rng(0)
    boxes = [crop._box(200, 180, rng) for _ in range(200)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 200 and 0 <= top < bottom <= 180
        assert 0.49 < (right - left) * (bottom - top) / 200 / 180 < 0.61
        assert 0.78 < (right - left) / (bottom - top) < 1.27
    assert len(set(boxes)) > 150


def test_crop_of_a_very_long_image_takes_the_middle():
    assert RandomResizedCrop(8)._box(1000, 10, np.random.default_rng(0)) == (493, 0, 506, 10)


def test_crop_depends_on_the_draws_generator_only():
    image = noise(40, 40)
    results = [RandomResizedCrop(8)({'image': image, 'rng': np.random.default_rng(seed)})['image'].tobytes()
               for seed in (1, 1, 2)]
    assert results[0] == results[1] != results[2]


def test_flip_mirrors_image_and_patch_labels():
    image = noise(4, 4)
    labels = torch.arange(8).view(2, 4)
    results = RandomFlip(prob=1)({'image': image, 'patch_labels': labels, 'rng': np.random.default_rng(0)})
    assert np.array_equal(np.array(results['image']), np.array(image)[:, ::-1])
    assert results['patch_labels'].tolist() == [[1, 0, 3, 2], [5, 4, 7, 6]]
    assert RandomFlip(prob=0)({'image': image, 'rng': np.random.default_rng(0)})['image'] is image


def test_random_transform_without_generator_is_refused():
    with pytest.raises(ConfigError, match=r"RandomFlip needs random numbers in results\['rng'\]"):
        RandomFlip()({'image': noise(4, 4)})


def test_crop_with_patch_labels_is_refused():
    with pytest.raises(ConfigError, match='would misplace patch_labels'):
        RandomResizedCrop(8)({'image': noise(4, 4), 'patch_labels': torch.zeros(1, 4)})


def test_impossible_ranges_are_refused():
    with pytest.raises(ConfigError, match='crop_ratio_range'):
        RandomResizedCrop(8, crop_ratio_range=(0.5, 2))
    with pytest.raises(ConfigError, match='aspect_ratio_range'):
        RandomResizedCrop(8, aspect_ratio_range=(2, 1))
    with pytest.raises(ConfigError, match='prob of RandomFlip'):
        RandomFlip(prob=2)
