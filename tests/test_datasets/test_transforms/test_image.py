import numpy as np
import pytest
import torch
from PIL import Image

from mmblip2.datasets.transforms import LoadImage, PackInputs, RandAugment, RandomFlip, RandomResizedCrop, Resize
from mmblip2.datasets.transforms.image import AUGMENTATIONS
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


def photo(width=48, height=36):
    """Smooth, so that an interpolated pixel is near its neighbours, with all levels used."""
    y, x = np.mgrid[:height, :width]
    channels = [127 + 100 * np.sin(x / 9 + y / 7 + channel) for channel in range(3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def by_table(pixels, tables):
    return np.stack([np.asarray(table)[pixels[..., i]] for i, table in enumerate(tables)], -1)


def stretched(pixels):
    """Each channel's least and greatest level become 0 and 255."""
    low, high = pixels.min((0, 1)).astype(float), pixels.max((0, 1)).astype(float)
    return by_table(pixels, [np.clip((np.arange(256) - a) * 255 / (b - a), 0, 255).astype(int)
                             for a, b in zip(low, high)])


def equalised(pixels):
    """Each channel's cumulated histogram becomes a line; the greatest level's pixels do not count for the step."""
    tables = []
    for channel in range(3):
        counts = np.bincount(pixels[..., channel].ravel(), minlength=256)
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        tables.append(np.clip((step // 2 + np.cumsum(counts) - counts) // step, 0, 255))
    return by_table(pixels, tables)


def sharpened(pixels, factor):
    """Away from the mean of the 3 x 3 neighbours (the middle counts five times); the border stays."""
    smooth = sum(np.roll(pixels.astype(float), (dy, dx), (0, 1)) * (5 if dx == dy == 0 else 1)
                 for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 13
    smooth = np.round(smooth)
    smooth[0], smooth[-1], smooth[:, 0], smooth[:, -1] = pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]
    return np.clip(smooth + factor * (pixels - smooth), 0, 255)


def warped(pixels, matrix):
    """OpenCV's warpAffine, linear, with grey around: pixel p goes to ``matrix`` (p, 1), both from the first one's
    middle."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width].astype(float)
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    sx, sy = (inverse[row, 0] * x + inverse[row, 1] * y + inverse[row, 2] for row in (0, 1))
    grey = np.pad(pixels.astype(float), ((64, 64), (64, 64), (0, 0)), constant_values=128)
    sx, sy = np.clip(sx + 64, 0, grey.shape[1] - 2), np.clip(sy + 64, 0, grey.shape[0] - 2)
    left, top = np.floor(sx).astype(int), np.floor(sy).astype(int)
    fx, fy = (sx - left)[..., None], (sy - top)[..., None]
    return ((grey[top, left] * (1 - fx) + grey[top, left + 1] * fx) * (1 - fy)
            + (grey[top + 1, left] * (1 - fx) + grey[top + 1, left + 1] * fx) * fy)


def turning(degrees, width, height):
    """Against the clock around (width / 2, height / 2)."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x, y = width / 2, height / 2
    return np.array([[cos, sin, x - cos * x - sin * y], [-sin, cos, y + sin * x - cos * y]])


SIGNED = {'ShearX': lambda s: np.array([[1, 0.3 * s, 0], [0, 1, 0]]),
          'ShearY': lambda s: np.array([[1, 0, 0], [0.3 * s, 1, 0]]),
          'TranslateX': lambda s: np.array([[1, 0, -10 * s], [0, 1, 0]]),
          'TranslateY': lambda s: np.array([[1, 0, 0], [0, 1, -10 * s]]),
          'Rotate': lambda s: turning(30 * s, 48, 36)}


@pytest.mark.parametrize('strength', [0.5, -0.5, 0.9])
def test_operations_of_randaugment_are_those_of_the_recipe(strength):
    pixels = np.array(photo())
    factor = 0.1 + 1.8 * abs(strength)
    exact = dict(Identity=pixels, AutoContrast=stretched(pixels), Equalize=equalised(pixels),
                 Brightness=np.clip(np.floor(pixels * factor), 0, 255), Sharpness=sharpened(pixels, factor))
    assert {*exact, *SIGNED} == set(AUGMENTATIONS)
    for name, expected in exact.items():
        found = np.array(AUGMENTATIONS[name](photo(), strength)).astype(int)
        assert np.abs(found - expected).max() <= 1, name
    for name, matrix in SIGNED.items():
        found = np.array(AUGMENTATIONS[name](photo(), strength)).astype(int)
        far = np.abs(found - warped(pixels, matrix(strength))).max(-1) > 3
        # Along the edge of the grey, Pillow takes the image or the grey, and OpenCV mixes them.
        assert far.mean() < 0.08 and not far[16:20, 22:26].any(), name
        assert (found == 128).all(-1).sum() > 20, f'{name} brings no grey'


def test_randaugment_at_probability_0_and_1():
    image = photo()
    assert RandAugment(prob=0)({'image': image, 'rng': np.random.default_rng(0)})['image'] is image
    results = RandAugment(num_ops=1, prob=1, ops=['TranslateX'])({'image': image, 'rng': np.random.default_rng(0)})
    moved = np.array(results['image'])
    assert results['augmented'] == 'RandAugment'
    pixels = np.array(image)
    assert np.array_equal(moved[:, 5:], pixels[:, :-5]) or np.array_equal(moved[:, :-5], pixels[:, 5:])


def test_randaugment_depends_on_the_draws_generator_only():
    drawn = {seed: [RandAugment()({'image': photo(), 'rng': np.random.default_rng(seed)})['image'].tobytes()
                    for _ in range(2)] for seed in range(20)}
    assert all(first == second for first, second in drawn.values())
    assert len({first for first, _ in drawn.values()}) > 4


def test_randaugment_draws_every_operation_half_of_the_time(monkeypatch):
    counts = dict.fromkeys(AUGMENTATIONS, 0)
    signs = set()
    for name in AUGMENTATIONS:
        def count(image, strength, name=name):
            counts[name] += 1
            signs.add(strength)
            return image
        monkeypatch.setitem(AUGMENTATIONS, name, count)
    rng, transform = np.random.default_rng(0), RandAugment()
    for _ in range(1000):
        transform({'image': None, 'rng': rng})
    assert signs == {-0.5, 0.5}
    assert 900 < sum(counts.values()) < 1100 and all(60 < number < 140 for number in counts.values())


@pytest.mark.parametrize('options, message', [
    (dict(ops=['Invert']), r"ops of RandAugment are \['Invert'\], expected some of Identity, AutoContrast"),
    (dict(ops=[]), 'ops of RandAugment'), (dict(num_ops=0), 'num_ops of RandAugment'),
    (dict(magnitude=11), 'magnitude of RandAugment is 0 to 10, got 11'), (dict(prob=2), 'prob of RandAugment')])
def test_impossible_randaugment_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        RandAugment(**options)


def test_randaugment_with_patch_labels_is_refused():
    with pytest.raises(ConfigError, match='RandAugment would misplace patch_labels'):
        RandAugment()({'image': photo(), 'patch_labels': torch.zeros(1, 4), 'rng': np.random.default_rng(0)})


def test_load_image_refuses_a_sample_with_two_images():
    with pytest.raises(ConfigError, match='the sample has 2 images, LoadImage reads one: .*EachImage'):
        LoadImage()({'img_path': ('a.png', 'b.png')})
    with pytest.raises(ConfigError, match='the sample has 2 images, LoadImage reads one: .*EachImage'):
        LoadImage()({'image': [noise(6, 4, 'RGB')] * 2})


def smooth_photo(path, mode='RGB', **settings):
    """A JPEG file of gradients, shapes and a little noise."""
    across, down = np.meshgrid(np.linspace(0, 255, 150), np.linspace(0, 255, 110))
    pixels = np.stack([across, down, 255 - across], axis=-1) + np.random.default_rng(0).normal(0, 8, (110, 150, 3))
    pixels[30:60, 40:90] = (220, 20, 60)
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert(mode).save(path, quality=90, **settings)
    return str(path)


@pytest.mark.parametrize('mode, tensor', [('RGB', True), ('L', True), ('CMYK', False)])
def test_torchvision_gives_nearly_the_pixels_of_pillow_in_every_training_transform(tmp_path, mode, tensor):
    path = smooth_photo(tmp_path / 'a.jpg', mode)
    loaded = LoadImage(backend='torchvision')({'img_path': path})['image']
    assert isinstance(loaded, torch.Tensor) is tensor
    for transforms in ([Resize(32)], [RandomResizedCrop(32)], [RandomFlip(1.), Resize(32)], [Resize(32, 'nearest')],
                       [RandomResizedCrop((24, 40)), RandomFlip(), RandAugment()]):
        both = []
        for backend in ('pillow', 'torchvision'):
            results = LoadImage(backend=backend)({'img_path': path, 'rng': np.random.default_rng(1)})
            for transform in transforms:
                results = transform(results)
            both.append(PackInputs()(results)['inputs'])
        assert both[0].shape == both[1].shape and both[1].dtype == torch.uint8
        difference = (both[0].int() - both[1].int()).abs()
        assert difference.float().mean() < 1 and difference.max() < 32, transforms
    assert PackInputs()(LoadImage(backend='torchvision')({'img_path': path}))['inputs'].shape == (3, 110, 150)


@pytest.mark.parametrize('name', ['cut.jpg', 'text.jpg', 'missing.jpg'])
def test_torchvision_names_broken_files_as_pillow_does(tmp_path, name):
    path = tmp_path / 'cut.jpg'
    smooth_photo(path)
    path.write_bytes(path.read_bytes()[:1500])
    (tmp_path / 'text.jpg').write_text('<html>')
    with pytest.raises(DataError, match=rf'cannot read image .*{name} \(sample 5\)'):
        LoadImage(backend='torchvision')({'img_path': str(tmp_path / name), 'sample_idx': 5})


def test_torchvision_leaves_other_formats_to_pillow(tmp_path):
    noise(6, 4, 'RGBA').save(tmp_path / 'a.png')
    image = LoadImage(backend='torchvision')({'img_path': str(tmp_path / 'a.png')})['image']
    assert image.mode == 'RGB' and image.size == (6, 4)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="backend of LoadImage is 'cv2', expected 'pillow' or 'torchvision'"):
        LoadImage(backend='cv2')


def test_without_torchvision_it_is_said_when_the_pipeline_is_built(monkeypatch):
    monkeypatch.setattr('mmblip2.datasets.transforms.image.find_spec', lambda name: None)
    with pytest.raises(ConfigError, match="has no torchvision.io: install one that has, or set backend='pillow'"):
        LoadImage(backend='torchvision')
