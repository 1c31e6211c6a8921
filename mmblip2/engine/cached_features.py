"""Fill the feature caches of data sets, and have the data sets read from them."""
import logging
import time
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from mmblip2.datasets.feature_cache import FORMAT, Claims, FeatureCache
from mmblip2.errors import ConfigError, MMBlip2Error
from mmblip2.utils.dist import gather_objects, world

from .autocast import autocast_context, resolve_dtype
from .random_state import random_state_kept

_SAY_SECONDS = 30  # between two lines of progress
_WAIT_SECONDS = 0.2  # until another process is asked again for what it fills


def use_feature_caches(loader, model, autocast, logger, model_cfg=None):
    """Let the data sets of a loader that have ``feature_cache`` read features instead of images; first what is missing
    is computed, by all processes together.

    Args:
        loader (DataLoader): Over a data set, or over several in a ``ConcatDataset`` or the like.
        model (VisionLanguageModel): Has the frozen encoder, its weights loaded.
        autocast (str, optional): Precision of the run, see :func:`resolve_dtype`.
        logger (Logger): Is told sizes and progress.
        model_cfg (dict, optional): Config of the model: what its ``vision`` says besides the weights.

    Returns:
        int: How many of its data sets have ``feature_cache``.

    Raises:
        ConfigError: The vision encoder is not frozen, or the cache and the pipeline do not fit, or there is no room.
        CheckpointError: The disk is full.
    """
    cached = [dataset for dataset in _innermost(loader.dataset) if getattr(dataset, 'cached', None)]
    for dataset in cached:
        if dataset.cached.cache is not None:
            continue
        dataset.full_init()

        def encode(pixels):
            """Tokens (B, P, E) of uint8 images (3, H, W)."""
            with torch.no_grad(), autocast_context(autocast):
                return model._see(model.data_preprocessor(dict(inputs=pixels), False)['images'])

        # all have seen how much room there is before anybody writes
        cache = _together(_opened, dataset, model, encode, autocast, logger, model_cfg)
        with random_state_kept():  # making a data loader draws a number
            _together(_fill, cache, dataset, encode, loader, logger)
        dataset.cached.cache = cache
    return len(cached)


def _together(work, *args):
    """The result of ``work``; an error where any of the processes has one."""
    result, error = None, None
    try:
        result = work(*args)
    except Exception as caught:
        error = caught
    failed = [(rank, text) for rank, text in enumerate(gather_objects(error and str(error))) if text is not None]
    if error is not None:
        raise error
    if failed:
        raise MMBlip2Error(f'process {failed[0][0]} could not make the feature cache: {failed[0][1]}')
    return result


def _innermost(dataset):
    """The data sets below ConcatDataset, RepeatDataset and the like."""
    parts = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    return [dataset] if parts == [None] else [found for part in parts for found in _innermost(part)]


def _opened(dataset, model, encode, autocast, logger, model_cfg) -> FeatureCache:
    """The cache of a data set, which may lack shards; there is room for them."""
    if 'vision' not in (model.frozen_parts() if hasattr(model, 'frozen_parts') else {}):
        raise ConfigError('feature_cache keeps what a frozen vision encoder says: add vision to model.frozen, or take '
                          f'feature_cache out of the config of {type(dataset).__name__}')
    cache = dataset.cached.open(dataset, _encoder_facts(model, autocast, model_cfg))
    _say(logger, f'features of {len(cache.paths)} images x {cache.views} views in {cache.folder}')
    if cache.shape is None:
        pixels, random = dataset.cached.view(cache.paths[0], cache.names[0], 0)
        dataset.cached.check_views(random, dataset.test_mode)
        cache.create(tuple(encode([pixels])[0].shape), random)
    dataset.cached.check_views(cache.random, dataset.test_mode)
    if cache.torn():
        _say(logger, f'{cache.torn()[0]} and perhaps others are cut off: they are made again', logging.WARNING)
    _check_room(cache, logger)
    return cache


def _encoder_facts(model, autocast, model_cfg) -> dict:
    """What the features depend on besides the images and their pipeline."""
    preprocessor, vision = model.data_preprocessor, (model_cfg or {}).get('vision')
    dtype = resolve_dtype(autocast)
    return dict(
        format=FORMAT,
        encoder=dict(type=type(model.vision).__name__, sha256=model.frozen_record()['vision']['sha256'],
                     config={key: value for key, value in vision.items() if key != 'weights'}
                     if isinstance(vision, dict) else None),
        precision=str(model.vision_dtype or dtype or torch.float32),
        preprocessor=dict(type=type(preprocessor).__name__,
                          **{name: buffer.flatten().tolist() for name, buffer in preprocessor.named_buffers()}))


def _check_room(cache, logger):
    """Say how large the cache is.

    Raises:
        ConfigError: The disk is too small for what is missing.
    """
    missing, free = cache.missing(), cache.free_bytes()
    total, needed = (sum(map(cache.bytes_of, shards)) for shards in (range(len(cache)), missing))
    tokens, width = cache.shape
    size = f'{tokens} x {width} {cache.settings.dtype} each, {_size(total)} in all'
    if not missing:
        _say(logger, f'  {size}: all there, the vision encoder is not run')
        return
    _say(logger, f'  {size}: {_size(needed)} in {len(missing)} of {len(cache)} shards to be made, {_size(free)} free '
         'on the disk')
    if needed > free:
        raise ConfigError(f'the feature cache {cache.folder} needs {_size(needed)} more, and the disk has '
                          f'{_size(free)}: set feature_cache.dir to another disk, or lower feature_cache.views '
                          f'({cache.views})' + (", or use dtype='bfloat16'" if cache.dtype == torch.float32 else ''))


def _fill(cache, dataset, encode, loader, logger):
    """Make the missing shards. Each process begins at another one; at the end it helps the others, or waits."""
    rank, size = world()
    said = started = time.monotonic()
    at_first = len(cache.missing())
    if not at_first:
        return  # it may be on a disk that is read-only
    with cache.claims() as claims:
        while missing := cache.missing():
            first = len(missing) * rank // size
            work = _Work(cache, claims, missing[first:] + missing[:first], loader.batch_size or 1)
            workers = DataLoader(_Views(cache, dataset.cached), batch_sampler=work.batches(), collate_fn=list,
                                 num_workers=loader.num_workers,
                                 multiprocessing_context=loader.multiprocessing_context)
            rows: list[torch.Tensor] = []
            for pixels in workers:
                rows += _checked(encode(pixels), cache)
                shard = work.claimed[0]
                if len(rows) == len(cache.images(shard)) * cache.views:
                    cache.write(shard, torch.stack(rows).view(cache.shard_shape(shard)))
                    claims.release(work.claimed.pop(0))
                    rows = []
                if time.monotonic() - said >= _SAY_SECONDS:
                    said, left = time.monotonic(), len(cache.missing())
                    minutes = (said - started) / 60 * left / max(at_first - left, 1)
                    _say(logger, f'  {len(cache) - left} of {len(cache)} shards' +
                         (f', about {minutes:.0f} min left' if left < at_first else ''))
            if not work.done:
                time.sleep(_WAIT_SECONDS)


class _Views(torch.utils.data.Dataset):
    """Pixels by (image, view)."""

    def __init__(self, cache, pipeline):
        self.cache, self.pipeline = cache, pipeline

    def __getitem__(self, place):
        image, view = place
        return self.pipeline.view(self.cache.paths[image], self.cache.names[image], view)[0]


class _Work:
    """What this process fills: shards are claimed as the loader comes to them.

    Attributes:
        claimed (list[int]): Shards that are begun and not written, in their order.
        done (int): How many shards were claimed in all.
    """

    def __init__(self, cache, claims: Claims, shards: list[int], batch_size: int):
        self.cache, self.claims, self.shards, self.batch_size = cache, claims, shards, batch_size
        self.claimed: list[int] = []
        self.done = 0

    def batches(self) -> Iterator[list[tuple[int, int]]]:
        """(image, view) of a batch each, none with images of two shards."""
        for shard in self.shards:
            if not self.claims.take(shard):
                continue
            self.claimed.append(shard)
            self.done += 1
            places = [(image, view) for image in self.cache.images(shard) for view in range(self.cache.views)]
            for start in range(0, len(places), self.batch_size):
                yield places[start:start + self.batch_size]


def _checked(features: torch.Tensor, cache) -> list[torch.Tensor]:
    """The tokens (P, E) of each image, in the type of the cache, on the CPU."""
    if tuple(features.shape[1:]) != cache.shape:
        raise ConfigError(f'the vision encoder gives {tuple(features.shape[1:])} tokens, {cache.folder} has '
                          f'{cache.shape}: all images of a cache have as many; end the image part of the pipeline '
                          'with Resize')
    features = features.to(cache.dtype)
    if not features.isfinite().all():
        raise ConfigError(f'features are not finite in {cache.settings.dtype}: ' + (
            "use feature_cache.dtype='bfloat16', which has the range of float32" if cache.dtype == torch.float16 else
            'the vision encoder gives such numbers itself'))
    return list(features.cpu())


def _say(logger, line, level=logging.INFO):
    if world()[0] == 0:
        logger.log(level, line)


def _size(count: float) -> str:
    """Bytes in words."""
    for unit in ('bytes', 'KiB', 'MiB'):
        if count < 1024:
            return f'{count:.0f} {unit}'
        count /= 1024
    return f'{count:.1f} GiB'
