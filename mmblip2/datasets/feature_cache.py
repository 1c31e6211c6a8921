"""What a frozen vision encoder says of the images of a data set, kept on disk.

A cache is a folder: ``cache.json`` says what it was made from, ``shard-00000.bin`` and so on hold the features of some
images each, without a header, and are mapped into memory. A shard is there whole or not at all.

Shapes: N images, V views of each, P tokens, E width of the encoder.
"""
import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dataset import Compose

from mmblip2.checkpoints.io import whole_file
from mmblip2.errors import ConfigError, DataError

from .transforms.pack import pixels_of

FORMAT = 1  # raise it when the same images and settings would give other features, or other files
INFO = 'cache.json'
_DTYPES = dict(bfloat16=torch.bfloat16, float16=torch.float16, float32=torch.float32)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


class FeatureSettings(NamedTuple):
    """``feature_cache`` of a data set.

    Attributes:
        dir: Folder of caches, in which each has a folder named after what it was made from; or one cache.
        views: Fixed versions of each image (V), where the pipeline changes images at random; None: there is one.
        dtype: 'bfloat16', 'float16' or 'float32'.
        seed: Of the views.
        shard_mib: About how large a shard is, in MiB: what is lost when the filling is killed.
    """
    dir: str
    views: int | None = None
    dtype: str = 'bfloat16'
    seed: int = 0
    shard_mib: float = 64.

    @classmethod
    def of(cls, config, name: str) -> 'FeatureSettings':
        """Settings from a config.

        Raises:
            ConfigError: An unknown key, or a value that cannot be.
        """
        where = f'feature_cache of {name}'
        unknown = sorted(set(config) - set(cls._fields))
        if unknown or 'dir' not in config:
            raise ConfigError(f'{where} ' + (f'has unknown keys {unknown}' if unknown else 'has no dir') +
                              f': it may have {list(cls._fields)}, and needs dir, a folder')
        given = cls(**config)
        whole = [given.seed] if given.views is None else [given.seed, given.views - 1]
        if not all(isinstance(value, int) and value >= 0 for value in whole):
            raise ConfigError(f'{where} has views={given.views!r} and seed={given.seed!r}: expected whole numbers, '
                              'views from 1 and seed from 0 on')
        if given.dtype not in _DTYPES:
            raise ConfigError(f'{where} has dtype={given.dtype!r}: expected one of {", ".join(_DTYPES)}')
        if not isinstance(given.shard_mib, (int, float)) or not given.shard_mib > 0:
            raise ConfigError(f'{where} has shard_mib={given.shard_mib!r}: expected a size above 0, in MiB')
        return given


class CachedPipeline:
    """The pipeline of a data set with ``feature_cache``: its image part, which a cache stands for, and the rest.

    Args:
        config (dict): Of :class:`FeatureSettings`.
        configs (Sequence): The transforms, as given.
        steps (list): The transforms, built.
        name (str): Of the data set, for messages.

    Attributes:
        cache (FeatureCache | None): The Runner sets it; without, the data set gives pixels.

    Raises:
        ConfigError: A setting is wrong, or a transform does not say whether it changes the image.
    """

    def __init__(self, config, configs: Sequence, steps: Sequence, name: str):
        self.settings = FeatureSettings.of(config, name)
        self.name = name
        self.cache: FeatureCache | None = None
        self._configs = [dict(config) for config, step in zip(configs, steps) if _is_of_image(config, step)]
        self._image_part = Compose([step for step in steps if step.of_image])
        self._rest = Compose([step for step in steps if not step.of_image])

    def __call__(self, results):
        """What the whole pipeline returns, with ``features`` (P, E) of the cache instead of an image."""
        assert self.cache is not None
        results['features'] = self.cache.read(results['img_path'], results['rng'])
        return self._rest(results)

    def open(self, dataset, facts: dict) -> 'FeatureCache':
        """The cache as it is on the disk: perhaps not filled.

        Args:
            dataset (ImageTextDataset): The data set.
            facts: What the features depend on besides the images and their pipeline.

        Raises:
            DataError: A row has no image, or several.
            ConfigError: ``dir`` is a cache that was made from something else.
        """
        given = {dataset.get_data_info(index).get('img_path') for index in range(len(dataset))}
        if not all(isinstance(path, str) for path in given):
            raise DataError(f'{dataset.source} has rows without an image, or with several (img_path): take '
                            f'feature_cache out of the config of {self.name}')
        paths = sorted(given)
        folder = dataset.data_prefix['img_path']
        names = [os.path.relpath(path, folder) if folder and path.startswith(folder) else path for path in paths]
        digest = hashlib.sha256()
        for name, path in zip(names, paths):
            stat = os.stat(path)
            digest.update(f'{name} {stat.st_size} {stat.st_mtime_ns}\n'.encode())
        facts = dict(facts, images=dict(number=len(paths), names_sizes_times=digest.hexdigest()),
                     pipeline=self._configs, dtype=self.settings.dtype,
                     views=dict(number=self.settings.views or 1, seed=self.settings.seed))
        return FeatureCache(self.settings, facts, paths, names)

    def view(self, path: str, name: str, number: int) -> tuple[torch.Tensor, bool]:
        """An image as the image part of the pipeline makes it.

        Args:
            path: The file.
            name: Its random numbers depend on it,
            number: on this, and on the seed of the views.

        Returns:
            tuple: uint8 (3, H, W), and whether random numbers were used.
        """
        of_name = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'little')
        rng = np.random.default_rng((self.settings.seed, number, of_name))
        before = rng.bit_generator.state
        results = self._image_part(dict(img_path=path, rng=rng))
        return pixels_of(results['image']), rng.bit_generator.state != before

    def check_views(self, random: bool, test_mode: bool):
        """Refuse views that do not go with the pipeline.

        Args:
            random: Whether it changes images at random.
            test_mode: Whether the data set is for evaluation.

        Raises:
            ConfigError: They do not.
        """
        views = self.settings.views
        if random and test_mode:
            raise ConfigError(f'the pipeline of {self.name} changes images at random in test mode: an evaluation from '
                              'a feature cache uses the image as it is; take the random transforms out')
        if random and views is None:
            raise ConfigError(f'the pipeline of {self.name} changes images at random: set feature_cache.views to the '
                              'number of fixed versions to be kept of each image (4, for instance), or take the '
                              'random transforms out')
        if not random and (views or 1) > 1:
            raise ConfigError(f'feature_cache of {self.name} has views={views}, but no transform changes images at '
                              'random: all views would be equal; leave views out, or put in RandomResizedCrop or '
                              'RandomFlip')


def _is_of_image(config, step):
    """Whether a transform belongs to the image part.

    Raises:
        ConfigError: It does not say so, or does and is not given as a config.
    """
    name = type(step).__name__
    if getattr(step, 'of_image', None) is None:
        raise ConfigError(f'feature_cache: the transform {name} does not say whether it changes the image: give its '
                          'class of_image = True if it does, which may then depend on nothing but the image and '
                          "results['rng'], or False")
    if step.of_image and not isinstance(config, dict):
        raise ConfigError(f'feature_cache: {name} has to be in the pipeline as a config, dict(type=...), since what '
                          'it is set to decides which cache fits')
    return step.of_image


class FeatureCache:
    """Features of images, by path and view.

    Args:
        settings (FeatureSettings): Where, and in which type.
        facts (dict): Everything that the features depend on, as plain values.
        paths (Sequence[str]): The images.
        names (Sequence[str]): What each is called in the cache.

    Raises:
        ConfigError: ``settings.dir`` is a cache that was made from something else.
    """

    def __init__(self, settings: FeatureSettings, facts: dict, paths: Sequence[str], names: Sequence[str]):
        self.settings = settings
        self.facts = json.loads(json.dumps(facts, default=str))
        key = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()
        folder = Path(settings.dir)
        self.folder = folder if (folder / INFO).is_file() else folder / key[:16]
        order = sorted(zip(names, paths))
        self.names = [name for name, _ in order]
        self.paths = [path for _, path in order]
        self.views = settings.views or 1
        self.dtype = _DTYPES[settings.dtype]
        self.shape: tuple[int, int] | None = None  # (P, E), once it is known
        self.random = False  # whether the pipeline changes images at random
        self._images_per_shard = 0
        self._row = {path: row for row, path in enumerate(self.paths)}
        self._mapped: dict[int, np.memmap] = {}  # bytes
        self._open()

    def _open(self):
        try:
            info = json.loads((self.folder / INFO).read_text())
            facts, shape, random = info['facts'], info['shape'], info['random']
            images_per_shard = info['images_per_shard']
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f'{self.folder / INFO} cannot be read ({type(error).__name__}: {error}): remove '
                              f'{self.folder}, and it is made again') from None
        if facts != self.facts:
            differences = '; '.join(_differences(facts, self.facts))
            raise ConfigError(f'{self.folder} is a feature cache that was made from something else: {differences}. '
                              'Set feature_cache.dir to a folder of caches, in which each has a folder of its own, or '
                              'go back to what this one was made with')
        self._lay_out(shape, images_per_shard, random)

    def _lay_out(self, shape, images_per_shard, random):
        self.shape, self.random, self._images_per_shard = tuple(shape), random, images_per_shard

    def create(self, shape: tuple[int, int], random: bool):
        """Write what a new cache is.

        Args:
            shape: (P, E) of an image's tokens.
            random: Whether the pipeline changes images at random.
        """
        one = self.views * math.prod(shape) * self.dtype.itemsize
        self._lay_out(shape, max(1, int(self.settings.shard_mib * 2**20 / one)), random)
        content = dict(facts=self.facts, shape=shape, random=random, images_per_shard=self._images_per_shard)
        with whole_file(self.folder / INFO, f'feature cache {self.folder}', 'nothing was written') as file:
            file.write(json.dumps(content, indent=1).encode())

    # -------------------------------------------------------------------------------------------- shards

    def __len__(self):
        """Number of shards."""
        return math.ceil(len(self.paths) / self._images_per_shard)

    def images(self, shard: int) -> range:
        """Numbers of the images of a shard."""
        start = shard * self._images_per_shard
        return range(start, min(start + self._images_per_shard, len(self.paths)))

    def shard_shape(self, shard: int) -> tuple[int, ...]:
        """(n, V, P, E)."""
        return (len(self.images(shard)), self.views, *(self.shape or ()))

    def bytes_of(self, shard: int) -> int:
        """Size of a shard."""
        return math.prod(self.shard_shape(shard)) * self.dtype.itemsize

    def missing(self) -> list[int]:
        """Shards that are not there, or are there but not whole."""
        return [shard for shard in range(len(self)) if self._size(shard) != self.bytes_of(shard)]

    def torn(self) -> list[Path]:
        """Files that are shards of another size than they should have."""
        return [self._path(shard) for shard in self.missing() if self._size(shard) is not None]

    def _path(self, shard):
        return self.folder / f'shard-{shard:05}.bin'

    def _size(self, shard):
        try:
            return self._path(shard).stat().st_size
        except FileNotFoundError:
            return None

    def free_bytes(self) -> int:
        """Room on the disk."""
        folder = next(parent for parent in (self.folder, *self.folder.absolute().parents) if parent.exists())
        return shutil.disk_usage(folder).free

    def write(self, shard: int, features: torch.Tensor):
        """Write a shard, whole or not at all.

        Args:
            features: (n, V, P, E).

        Raises:
            CheckpointError: The disk is full or not writable.
        """
        with whole_file(self._path(shard), f'shard {shard} of the feature cache {self.folder}',
                        'the shards that are finished stay: make room and start again, it goes on from them') as file:
            file.write(features.contiguous().flatten().view(torch.uint8).numpy().data)

    @contextlib.contextmanager
    def claims(self) -> Iterator['Claims']:
        """Shards to be filled, each by one process at a time: also by processes that know nothing of one another."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / 'lock', 'ab') as file:  # the locks end with the process, however that ends
            yield Claims(self, file)

    # ------------------------------------------------------------------------------------------- reading

    def read(self, path: str, rng: np.random.Generator) -> torch.Tensor:
        """Tokens (P, E) of an image; of several views one that ``rng`` chooses."""
        shard, row = divmod(self._row[path], self._images_per_shard)
        if shard not in self._mapped:
            images = len(self.images(shard))
            self._mapped[shard] = np.memmap(self._path(shard), mode='r', shape=(
                images, self.views, self.bytes_of(shard) // images // self.views))
        view = int(rng.integers(self.views)) if self.views > 1 else 0
        return torch.from_numpy(np.array(self._mapped[shard][row, view])).view(self.dtype).view(self.shape or ())

    def __getstate__(self):
        return {**self.__dict__, '_mapped': {}}


class Claims:
    """See :meth:`FeatureCache.claims`."""

    def __init__(self, cache, file):
        self.cache = cache
        self.file = file

    def take(self, shard: int) -> bool:
        """Whether this process is to fill the shard: it is still missing, and no other process is at it."""
        if not self._lock(shard):
            return False
        if self.cache._size(shard) == self.cache.bytes_of(shard):
            self.release(shard)
            return False
        for left in self.cache.folder.glob(f'{self.cache._path(shard).name}.*.part'):  # of a process that was killed
            left.unlink(missing_ok=True)
        return True

    def release(self, shard: int):
        """Leave a shard to others."""
        with contextlib.suppress(OSError):
            fcntl.lockf(self.file, fcntl.LOCK_UN, 1, shard)

    def _lock(self, shard):
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, shard)
        except OSError as error:
            return error.errno in _NO_LOCKS  # then two may do the same work, and the one file replaces the other
        return True


def _differences(saved, now, path='') -> Iterator[str]:
    """What differs between the facts of a cache and those that are needed, in words."""
    for key in sorted({*saved, *now}):
        old, new = saved.get(key), now.get(key)
        where = f'{path}{key}'
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f'{where}.')
        elif old != new:
            yield f'{where} was {_short(old)}, now it is {_short(new)}'


def _short(value: Any) -> str:
    text = value[:12] if isinstance(value, str) and len(value) == 64 else repr(value)
    return text if len(text) <= 300 else text[:300] + ' ...'
