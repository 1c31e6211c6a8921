"""Caches on disk. Filling and using them: tests/test_engine/test_cached_features.py."""
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmblip2.datasets  # noqa: F401
from mmblip2.datasets import ImageTextPairs, TextCorpus
from mmblip2.datasets.feature_cache import FeatureCache, FeatureSettings
from mmblip2.errors import DataError
from mmblip2.registry import TRANSFORMS

PIPELINE = [dict(type='LoadImage'), dict(type='PackInputs')]


def data(root, **cache):
    """A data set of three images, one of them twice."""
    (root / 'images').mkdir(parents=True)
    for i in range(3):
        Image.fromarray(np.full((4, 4, 3), 50 * i, np.uint8)).save(root / 'images' / f'{i}.png')
    (root / 'pairs.json').write_text(json.dumps([dict(image=f'{i % 3}.png', caption='a') for i in range(4)]))
    return dataset(root, **cache)


def dataset(root, **cache):
    return ImageTextPairs('pairs.json', data_root=str(root), data_prefix=dict(img_path='images'), pipeline=PIPELINE,
                          feature_cache=dict(dir=str(root.parent / 'caches'), **cache))


def filled(source, shard_mib=64.):
    """A cache whose features are numbered."""
    cache = FeatureCache(FeatureSettings(str(source), views=2, shard_mib=shard_mib), {}, ['a', 'b', 'c'], 'abc')
    cache.create((2, 3), True)
    for shard in range(len(cache)):
        start = 12 * cache.images(shard).start
        cache.write(shard, torch.arange(start, start + 12 * len(cache.images(shard)), dtype=cache.dtype).view(
            cache.shard_shape(shard)))
    return cache


@pytest.mark.parametrize('shard_mib, shards', [(64., 1), (1e-6, 3), (50 / 2**20, 2)])
def test_what_was_written_is_read(tmp_path, shard_mib, shards):
    cache = filled(tmp_path, shard_mib)
    assert (len(cache), cache.missing(), cache.torn()) == (shards, [], [])
    again = FeatureCache(cache.settings, {}, ['a', 'b', 'c'], 'abc')
    found = {tuple(again.read('b', rng).flatten().tolist()) for rng in map(np.random.default_rng, range(20))}
    assert found == {tuple(range(12, 18)), tuple(range(18, 24))}, 'both views'
    row = again.read('c', np.random.default_rng(0))
    assert row.dtype == torch.bfloat16 and row.shape == (2, 3)
    row.zero_()  # it is a copy, and not the file
    assert again.read('c', np.random.default_rng(0)).sum() > 0


def test_a_shard_is_filled_by_one_process_at_a_time(tmp_path):
    cache = filled(tmp_path, 1e-6)
    for shard in (0, 1):
        cache._path(shard).unlink()
    left = cache.folder / 'shard-00001.bin.77.part'
    left.touch()
    ready, write = os.pipe()
    child = os.fork()
    if not child:  # takes the first, and is killed
        try:
            with cache.claims() as claims:
                os.write(write, b'1' if claims.take(0) and not claims.take(2) else b'0')
                signal.pause()
        finally:
            os._exit(1)
    with cache.claims() as claims:
        try:
            assert os.read(ready, 1) == b'1'
            assert not claims.take(0)
            assert claims.take(1) and not left.exists()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert claims.take(0)
    assert cache.missing() == [0, 1]


def test_moved_data_find_their_cache_and_changed_images_do_not(tmp_path):
    one = data(tmp_path / 'one')
    names = one.cached.open(one, {}).names
    shutil.copytree(tmp_path / 'one', tmp_path / 'two')
    two = dataset(tmp_path / 'two')
    assert names == ['0.png', '1.png', '2.png']
    assert one.cached.open(one, {}).folder == two.cached.open(two, {}).folder
    assert one.cached.open(one, dict(encoder='another')).folder != two.cached.open(two, {}).folder
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / 'two' / 'images' / '1.png')
    assert one.cached.open(one, {}).folder != two.cached.open(two, {}).folder


def test_without_a_cache_the_data_set_gives_pixels_and_with_one_features(tmp_path):
    pixels = data(tmp_path / 'one', views=2)
    assert pixels[0]['inputs'].shape == (3, 4, 4)
    pixels.cached.cache = cache = filled(tmp_path / 'caches')
    cache._row = {path: row for row, path in enumerate(sorted({pixels.get_data_info(i)['img_path'] for i in range(4)}))}
    Path(pixels.get_data_info(0)['img_path']).unlink()
    assert pixels[0]['inputs'].shape == pixels[3]['inputs'].shape == (2, 3)
    assert pixels[0]['data_samples'].text == 'a'


def test_rows_without_an_image_are_refused(tmp_path):
    (tmp_path / 'corpus.txt').write_text('a text\n')
    corpus = TextCorpus(ann_file=str(tmp_path / 'corpus.txt'), pipeline=[dict(type='PackInputs')],
                        feature_cache=dict(dir=str(tmp_path)))
    with pytest.raises(DataError, match=r'has rows without an image, or with several \(img_path\): take feature_cache '
                                        'out of the config of TextCorpus'):
        corpus.cached.open(corpus, {})


def test_every_transform_says_whether_it_changes_the_image():
    silent = [name for name, kind in TRANSFORMS.module_dict.items()
              if kind.__module__.startswith('mmblip2.') and getattr(kind, 'of_image', None) is None]
    assert silent == []
