"""Training and evaluation from a feature cache, and what can go wrong while it is filled."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'data'))
from cache_run import FIXED, RANDOM, PixelTokens, config, equal, write_files

from mmblip2.checkpoints.io import saved_state
from mmblip2.datasets import Draw
from mmblip2.datasets.transforms import LoadImage
from mmblip2.engine import Runner
from mmblip2.errors import CheckpointError, ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    write_files(folder)
    return folder


@pytest.fixture
def run(folder, tmp_path, monkeypatch):
    """Function ``(name, test=False, **changes) -> Runner`` that has been run; its losses are in ``losses``."""
    monkeypatch.setattr(Config, 'pretty_text', '')  # a third of the time

    def run(name, test=False, resume=False, **changes):
        cfg = config(folder, tmp_path / name, **changes)
        cfg.resume = resume
        if test:
            cfg.load_from = str(tmp_path / test)
        runner = Runner.from_cfg(cfg)
        runner.result = runner.test() if test else runner.train()
        runner.losses = None if test else {key: buffer.data[0].tolist() for key, buffer in
                                           runner.message_hub.log_scalars.items() if 'loss' in key}
        return runner
    return run


@pytest.fixture
def seen(monkeypatch):
    """Counts: images that were read, and images that the encoder saw."""
    counts = dict(read=0, encoded=0)
    load, forward = LoadImage.__call__, PixelTokens.forward

    def loading(self, results):
        counts['read'] += 1
        return load(self, results)

    def encoding(self, images):
        counts['encoded'] += len(images)
        return forward(self, images)

    monkeypatch.setattr(LoadImage, '__call__', loading)
    monkeypatch.setattr(PixelTokens, 'forward', encoding)
    return counts


class Always:
    """Draws one number."""

    def __init__(self, number):
        self.number = number

    def integers(self, high):
        assert self.number < high
        return self.number


def cache(tmp_path, **settings):
    return dict(dir=str(tmp_path / 'features'), **settings)


def weights(runner):
    return saved_state(runner.bare_model)


@pytest.mark.parametrize('stage', [1, 2])
def test_training_from_the_cache_is_training_without_it(run, tmp_path, seen, stage):
    plain = run('plain', stage=stage)
    exact = run('exact', stage=stage, feature_cache=cache(tmp_path, dtype='float32'))
    assert equal(weights(plain), weights(exact)) and plain.losses == exact.losses
    rounded = run('rounded', stage=stage, feature_cache=cache(tmp_path))
    for key, losses in plain.losses.items():
        torch.testing.assert_close(torch.tensor(rounded.losses[key]), torch.tensor(losses), atol=0.03, rtol=0.03)
    assert rounded.losses != plain.losses  # the default is bfloat16
    seen.update(read=0, encoded=0)
    again = run('again', stage=stage, feature_cache=cache(tmp_path, dtype='float32'))
    assert seen == dict(read=0, encoded=0) and equal(weights(plain), weights(again))


def test_an_encoder_that_multiplies_gives_the_same_losses_too(run, tmp_path):
    vision = dict(type='VisionTransformer', image_size=16, patch_size=8, width=16, depth=1, num_heads=2)
    plain, cached = (run(name, vision=vision, feature_cache=feature_cache) for name, feature_cache in (
        ('plain', None), ('cached', cache(tmp_path, dtype='float32'))))
    for key, losses in plain.losses.items():
        torch.testing.assert_close(torch.tensor(cached.losses[key]), torch.tensor(losses), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('task', ['retrieval', 'caption', 'vqa'])
def test_evaluation_from_the_cache_is_evaluation_without_it(run, tmp_path, seen, task):
    stage = 1 if task == 'retrieval' else 2
    run('trained', stage=stage, reads_text=task == 'vqa')
    results = {}
    for name, feature_cache in (('plain', None), ('cached', cache(tmp_path, dtype='float32')),
                                ('again', cache(tmp_path, dtype='float32'))):
        seen.update(read=0, encoded=0)
        results[name] = run(name, test='trained', task=task, stage=stage, reads_text=task == 'vqa',
                            feature_cache=feature_cache).result
        results[name + '_files'] = {path.name: json.loads(path.read_text())
                                    for path in (tmp_path / name).rglob('predictions/*.json')}
    assert seen == dict(read=0, encoded=0)
    assert results['plain'] == results['cached'] == results['again']
    assert results['plain_files'] == results['cached_files'] == results['again_files']


def test_stages_tasks_and_exchanged_images_share_a_cache(run, tmp_path, seen):
    run('one', feature_cache=cache(tmp_path))
    assert seen['encoded'] == 11  # and one of them twice: its shape decides how large a shard is
    run('two', stage=2, feature_cache=cache(tmp_path))
    run('three', shuffle_images=True, feature_cache=cache(tmp_path))
    run('four', test='one', task='retrieval', feature_cache=cache(tmp_path))
    assert seen['encoded'] == 11 and len(list((tmp_path / 'features').iterdir())) == 1


def test_features_of_random_versions(run, tmp_path, seen):
    """Each is what the encoder says of that version; draws choose among them, whatever the workers."""
    settings = cache(tmp_path, views=3, dtype='float32')
    one = run('one', image=RANDOM, feature_cache=settings)
    dataset = one.train_dataloader.dataset
    assert seen['encoded'] == 31
    features = dataset.cached.cache
    model, versions = one.bare_model, set()
    for path, name in zip(features.paths, features.names):
        for view in range(3):
            pixels, random = dataset.cached.view(path, name, view)
            assert random
            expected = model._see(model.data_preprocessor(dict(inputs=[pixels]))['images'])[0]
            assert torch.equal(features.read(path, Always(view)), expected)
            versions.add(tuple(expected.flatten().tolist()))
    assert len(versions) > 20  # of 30; a small image has few crops, and two may be equal
    drawn = {tuple(dataset[Draw(0, 3, position)]['inputs'].flatten().tolist()) for position in range(20)}
    assert len(drawn) == 3
    two = run('two', image=RANDOM, feature_cache=dict(settings, dir=str(tmp_path / 'other')), workers=2)
    assert equal(weights(one), weights(two)) and one.losses == two.losses


def test_a_resumed_training_from_the_cache_ends_as_the_uninterrupted_one(run, tmp_path):
    settings = cache(tmp_path, views=2)
    whole = run('whole', image=RANDOM, feature_cache=settings, max_iters=8)
    shutil.copytree(tmp_path / 'whole', tmp_path / 'cut')
    resumed = run('cut', image=RANDOM, feature_cache=settings, max_iters=8, resume=str(tmp_path / 'cut/iter_4.pth'))
    assert resumed.resumed_from.name == 'iter_4.pth' and resumed.iter == 8
    assert equal(weights(whole), weights(resumed))


def test_another_encoder_pipeline_or_image_is_another_cache(run, tmp_path, folder, seen):
    def number():
        return len(list((tmp_path / 'features').iterdir()))

    run('one', feature_cache=cache(tmp_path))
    for count, changes in enumerate((
            dict(vision=dict(type='PixelTokens', scale=2.)), dict(image=[FIXED[0], dict(type='Resize', scale=16,
                                                                                      filter='box')]),
            dict(mean=(1., 2., 3.)), dict(amp='bfloat16'), dict(indices=5)), 2):
        run(f'run{count}', feature_cache=cache(tmp_path), **changes)
        assert number() == count, changes
    run('type', feature_cache=cache(tmp_path, dtype='float16'))
    assert number() == 7
    seen.update(encoded=0)
    stat = os.stat(folder / '3.png')
    os.utime(folder / '3.png', ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))  # as written anew
    run('changed', feature_cache=cache(tmp_path))
    assert number() == 8 and seen['encoded'] == 11


def test_one_cache_can_be_named_and_has_to_fit(run, tmp_path, seen):
    run('one', feature_cache=cache(tmp_path))
    folder, = (tmp_path / 'features').iterdir()
    seen.update(encoded=0)
    run('two', feature_cache=dict(dir=str(folder)))
    assert seen['encoded'] == 0
    message = (re.escape(str(folder)) + r' is a feature cache that was made from something else: encoder.config.scale '
               r'was None, now it is 2.0; encoder.sha256 was \w{12}, now it is \w{12}. Set feature_cache.dir to a '
               'folder of caches')
    with pytest.raises(ConfigError, match=message):
        run('three', vision=dict(type='PixelTokens', scale=2.), feature_cache=dict(dir=str(folder)))
    with pytest.raises(ConfigError, match=r"pipeline was .*'scale': 16.*, now it is .*'filter': 'box'"):
        run('four', image=[FIXED[0], dict(type='Resize', scale=16, filter='box')],
            feature_cache=dict(dir=str(folder)))


def test_a_shard_that_was_cut_off_is_made_again(run, tmp_path, seen):
    settings = cache(tmp_path, shard_mib=1e-3)  # 128 bytes an image: 8 images a shard
    one = run('one', feature_cache=settings)
    shards = sorted((tmp_path / 'features').glob('*/shard-*.bin'))
    assert len(shards) == 2
    whole = shards[0].read_bytes()
    os.truncate(shards[0], len(whole) // 2)
    seen.update(encoded=0)
    two = run('two', feature_cache=settings)
    assert seen['encoded'] == 8 and shards[0].read_bytes() == whole and equal(weights(one), weights(two))
    assert f'{shards[0]} and perhaps others are cut off: they are made again' in log(tmp_path / 'two')
    (shards[0].parent / 'cache.json').write_text('{"facts": {')
    with pytest.raises(ConfigError, match=r'cache.json cannot be read .*: remove .*, and it is made again'):
        run('three', feature_cache=settings)


def log(work_dir):
    return ''.join(path.read_text() for path in work_dir.rglob('*.log'))


def test_the_size_is_said_beforehand(run, tmp_path):
    run('one', feature_cache=cache(tmp_path))
    text = log(tmp_path / 'one')
    assert re.search(r'4 x 16 bfloat16 each, 1 KiB in all: 1 KiB in 1 of 1 shards to be made, [\d.]+ \w+ free', text)
    assert text.index('to be made') < text.index('temperature 0.')
    run('two', feature_cache=cache(tmp_path))
    assert 'all there, the vision encoder is not run' in log(tmp_path / 'two')


def test_no_room_is_said_before_the_work(run, tmp_path, monkeypatch, seen):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=300))
    with pytest.raises(ConfigError, match=r'needs 2 KiB more, and the disk has 300 bytes: set feature_cache.dir to '
                                          r"another disk, or lower feature_cache.views \(1\), or use dtype='bfloat16'"):
        run('one', feature_cache=cache(tmp_path, dtype='float32'))
    assert seen['encoded'] == 1


def test_a_disk_that_becomes_full_loses_nothing(run, tmp_path, monkeypatch, seen):
    settings = cache(tmp_path, shard_mib=4e-4)  # 3 images a shard
    files = []
    kept = os.fsync

    def fsync(handle):
        files.append(handle)
        if len(files) == 5:  # cache.json and its folder, the first shard and its folder, the second
            raise OSError(28, 'No space left on device')
        kept(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', fsync)
        with pytest.raises(CheckpointError, match=r'cannot write shard 1 of the feature cache .*No space left on '
                                                  r'device; the shards that are finished stay: make room and '
                                                  'start again'):
            run('one', feature_cache=settings)
    assert sorted(path.name for path in (tmp_path / 'features').glob('*/*')) == [
        'cache.json', 'lock', 'shard-00000.bin']
    seen.update(encoded=0)
    one, plain = run('one', feature_cache=settings), run('two')
    assert seen['encoded'] == 7 + 18 and one.iter == plain.iter


@pytest.mark.parametrize('changes, message', [
    (dict(frozen=()), 'feature_cache keeps what a frozen vision encoder says: add vision to model.frozen, or take '
                      'feature_cache out of the config of COCORetrieval'),
    (dict(image=RANDOM), 'changes images at random: set feature_cache.views to the number of fixed versions'),
    (dict(views=2), 'views=2, but no transform changes images at random: all views would be equal'),
    (dict(views=0), r'has views=0 and seed=0: expected whole numbers, views from 1 and seed from 0 on'),
    (dict(dtype='int8'), "dtype='int8': expected one of bfloat16, float16, float32"),
    (dict(shard_mib=0), 'shard_mib=0: expected a size above 0, in MiB'),
    (dict(view=2), r"feature_cache of COCORetrieval has unknown keys \['view'\]: it may have \['dir', 'views', "),
    (dict(image=FIXED + [dict(type='Unsaid')]),
     'the transform Unsaid does not say whether it changes the image: give its class of_image = True'),
    (dict(vision=dict(type='PixelTokens', scale=1e6), dtype='float16'),
     "features are not finite in float16: use feature_cache.dtype='bfloat16'"),
    (dict(image=FIXED[:1]), r'the vision encoder gives \(10, 16\) tokens, .* has \(6, 16\): all images of a cache'),
])
def test_what_cannot_be_is_refused(run, tmp_path, changes, message):
    changes = dict(changes)
    settings = {key: changes.pop(key) for key in ('views', 'dtype', 'shard_mib', 'view') if key in changes}
    with pytest.raises(ConfigError, match=message):
        run('one', feature_cache=cache(tmp_path, **settings), **changes)


def test_an_evaluation_looks_at_the_image_as_it_is(run, tmp_path):
    run('trained')
    with pytest.raises(ConfigError, match='changes images at random in test mode: an evaluation from a feature cache'):
        run('one', test='trained', task='retrieval', image=RANDOM, feature_cache=cache(tmp_path, views=2))


def test_images_and_features_do_not_mix(run, tmp_path, folder):
    cfg = config(folder, tmp_path / 'one', feature_cache=cache(tmp_path))
    dataset = cfg.train_dataloader.dataset
    other = {key: value for key, value in dataset.items() if key != 'feature_cache'}
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[dataset, other])
    with pytest.raises(ConfigError, match='give all data sets of the loader a feature_cache, or none'):
        Runner.from_cfg(cfg).train()


def test_two_processes_kills_and_strangers(folder, tmp_path):
    """See ``cache_run.py``."""
    done = subprocess.run([sys.executable, str(ROOT / 'tests/data/cache_run.py'), str(tmp_path)], timeout=300,
                          capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert (tmp_path / 'result.json').is_file(), done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads((tmp_path / 'result.json').read_text())
    assert result['two_equal_one'], 'two processes end with other weights than one'
    assert result['shared'], 'a shard was made twice, or by one process only'
    assert 0 < result['left_by_the_kill'] < result['shards'], result
    assert result['parts_after_the_kill'] == 1 and result['files_at_the_end'] == result['shards'] + 2, result
    assert result['resumed_equal'], 'the cache of the killed run has other features'
    assert result['made_after_the_kill'] == result['shards'] - result['left_by_the_kill'], result
    assert result['full_disk_status'] == [2, 2] and 'No space left' in result['full_disk_said'][0], result
    assert 'No space left' in result['full_disk_said'][1], result
