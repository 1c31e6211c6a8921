import numpy as np
import pytest
import torch
from PIL import Image

from mmblip2.datasets.transforms import EachImage, LoadImage, PackInputs, RandomFlip, RandomResizedCrop, SwapImages
from mmblip2.errors import ConfigError, DataError


def image(seed, size=12):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.fixture
def paths(tmp_path):
    found = []
    for seed in (1, 2):
        found.append(str(tmp_path / f'{seed}.png'))
        image(seed).save(found[-1])
    return tuple(found)


def test_both_images_are_read_and_packed_in_order(paths):
    results = EachImage([dict(type='LoadImage')])(dict(img_path=paths, sample_idx=3, text='one'))
    packed = PackInputs()(results)
    assert packed['inputs'].shape == (2, 3, 12, 12) and packed['inputs'].dtype == torch.uint8
    for found, seed in zip(packed['inputs'], (1, 2)):
        assert np.array_equal(found.permute(1, 2, 0), np.array(image(seed)))
    assert packed['data_samples'].img_path == paths and packed['data_samples'].text == 'one'


def test_images_in_memory_take_the_place_of_files(paths):
    results = EachImage([LoadImage()])(dict(image=[image(5), image(6)], img_path=paths))
    assert [found.tobytes() for found in results['image']] == [image(5).tobytes(), image(6).tobytes()]


def test_each_image_has_random_numbers_of_its_own():
    both = EachImage([RandomResizedCrop(8, crop_ratio_range=(0.2, 0.3)), RandomFlip()])
    draws = []
    for seed in (1, 1, 2):
        results = both(dict(image=[image(0, 40), image(0, 40)], rng=np.random.default_rng(seed)))
        assert results['augmented'] == 'RandomFlip'
        draws.append([found.tobytes() for found in results['image']])
    assert draws[0] == draws[1] != draws[2] and draws[0][0] != draws[0][1]


@pytest.mark.parametrize('given, count', [(dict(img_path='a.png'), 1), (dict(img_path=('a.png', ) * 3), 3), ({}, 0)])
def test_one_image_or_three_are_refused(given, count):
    with pytest.raises(DataError, match=rf'sample 7 has {count} images \(.*\), the pipeline takes 2: check'):
        EachImage([LoadImage()])(dict(given, sample_idx=7))


def test_a_number_of_images_can_be_asked_for(paths):
    assert len(EachImage([LoadImage()], num_images=3)(dict(img_path=(*paths, paths[0])))['image']) == 3


def test_without_transforms_nothing_would_be_read():
    with pytest.raises(ConfigError, match='EachImage has no transforms'):
        EachImage([])


def test_broken_image_of_a_pair_is_named(paths):
    with pytest.raises(DataError, match=r'cannot read image .*missing\.png \(sample 4\)'):
        EachImage([LoadImage()])(dict(img_path=(paths[0], 'missing.png'), sample_idx=4))


def test_images_of_different_size_are_refused():
    with pytest.raises(DataError, match=r'differ in size, \(8, 8\) and \(12, 12\) .*Resize\(scale=...\)'):
        PackInputs()(dict(image=[image(0), image(1, 8)]))


def test_swapping_exchanges_images_paths_and_the_words_for_sides(paths):
    sample = dict(image=[image(1), image(2)], img_path=paths, text='the left-most dog, left, is not right; cleft')
    swapped = SwapImages(prob=1)(dict(sample, rng=np.random.default_rng(0)))
    assert [found.tobytes() for found in swapped['image']] == [image(2).tobytes(), image(1).tobytes()]
    assert swapped['img_path'] == paths[::-1] and swapped['augmented'] == 'SwapImages'
    assert swapped['text'] == 'the right-most dog, right, is not left; cleft'
    kept = SwapImages(prob=0)(dict(sample, rng=np.random.default_rng(0)))
    assert kept['image'] == sample['image'] and kept['text'] == sample['text'] and kept['img_path'] == paths


def test_swapping_depends_on_the_draws_generator_only():
    rng = np.random.default_rng(0)
    swapped = [SwapImages()(dict(image=['a', 'b'], rng=rng))['image'] == ['b', 'a'] for _ in range(200)]
    assert 70 < sum(swapped) < 130


def test_swapping_needs_two_images():
    with pytest.raises(DataError, match='exchanges two images, sample 2 has 1: put EachImage before it'):
        SwapImages()(dict(image=image(0), sample_idx=2))
    with pytest.raises(ConfigError, match='prob of SwapImages is a probability, got 3'):
        SwapImages(prob=3)
