"""Image-text pairs in the tar shards of WebDataset, as collections from the web come: a data set with a length and
random access, so that samplers, resume, tools and evaluation are those of every other set."""
import glob
import json
import logging
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dataset import force_full_init
from mmengine.logging import print_log

from mmblip2.errors import ConfigError, DataError, first_lines
from mmblip2.registry import DATASETS

from .base import derange
from .caption_file import check_captions_per_image, draw_caption
from .coco_retrieval import TextGallery
from .files import describe, parse_image_id
from .samplers import Draw, EpochOrders
from .tar_files import index_tars, open_tar
from .transforms.text import is_empty

_ATTEMPTS = 20
_BRACES = re.compile(r'\{(?:(?P<first>\d+)\.\.(?P<last>\d+)|(?P<list>[^{}]*,[^{}]*))\}')
_STREAM = re.compile(r'pipe:|\w+://')


class ChangedShard(DataError):
    """A shard is another one than when the data set was built: no sample of it is replaced."""


def expand_braces(pattern):
    """``'a/{000..002}.tar'`` or ``'{a,b}.tar'`` as a list of names; leading zeros are kept.

    Raises:
        ConfigError: The range runs backwards.
    """
    found = _BRACES.search(pattern)
    if not found:
        return [pattern]
    first, last = found['first'], found['last']
    options = (found['list'] or '').split(',')
    if first:
        if int(first) > int(last):
            raise ConfigError(f'{found[0]} in {pattern!r} runs backwards: give the smaller number first')
        options = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [name for option in options for name in expand_braces(pattern[:found.start()] + option
                                                                 + pattern[found.end():])]


def find_shards(patterns, data_root=''):
    """Tar files that patterns mean, in the order of the patterns, those of a wildcard by name.

    Args:
        patterns (str | Sequence[str]): Paths relative to ``data_root``, with ``{000..119}``, ``*`` and ``?``.
        data_root (str): Folder.

    Returns:
        list[str]: Paths; those without a wildcard are not looked for.

    Raises:
        ConfigError: A pattern is the address of a stream.
        DataError: A wildcard finds nothing, or a shard is named twice.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    shards: list[str] = []
    for pattern in patterns:
        if _STREAM.match(pattern):
            raise ConfigError(f'WebShards reads files, and {pattern!r} is a stream, in which nothing can be looked up: '
                              'mount or download it, or use WebStream, which resumes from whole shards only')
        for path in expand_braces(os.path.join(data_root, pattern)):
            found = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
            if not found:
                raise DataError(f'no file is called {path}: check shards and data_root')
            shards += found
    twice = next((path for path, other in zip(sorted(shards), sorted(shards)[1:]) if path == other), None)
    if twice or not shards:
        raise DataError(f'shards {patterns} name ' + (f'{twice} twice' if twice else 'no file'))
    return shards


class CaptionKeys:
    """Where the captions of a sample of WebDataset are.

    Args:
        image_key (Sequence[str]): Endings of images; the first that a sample has is taken.
        caption_key (str | Sequence[str]): ``'txt'``: a text. ``'json.FIELD'``: a text or a list of texts in a JSON
            object, or the JSON itself where that is a text or a list of texts. All that are there count, but a text
            that an earlier key had.
        max_captions (int, optional): Only so many of them, from the first on.
    """

    def __init__(self, image_key, caption_key, max_captions=None):
        self.image_keys = [image_key] if isinstance(image_key, str) else list(image_key)
        self.caption_keys = [caption_key] if isinstance(caption_key, str) else list(caption_key)
        self.max_captions = max_captions
        if max_captions is not None and max_captions < 1:
            raise ConfigError(f'max_captions is {max_captions}: expected a number from 1 on, or None for all')

    def image_ending(self, members):
        """The ending of the image among those of a sample.

        Raises:
            DataError: There is none.
        """
        found = next((ending for ending in self.image_keys if ending in members), None)
        if found is None:
            raise DataError(f'it has no image, only {sorted(members)}: expected one of {self.image_keys} (image_key)')
        return found

    def read(self, members, content):
        """Captions and id of a sample.

        Args:
            members (Container[str]): Its endings.
            content (Callable): From an ending to bytes.

        Returns:
            tuple[list[str], int | str | None]: Captions in their order; the id in its JSON, or None.

        Raises:
            DataError: No caption, an empty one only, or something that is no text or JSON.
        """
        captions: list[str] = []
        parsed: dict[str, Any] = {}
        for key in self.caption_keys:
            ending, _, field = key.partition('.')
            if ending not in members:
                continue
            try:
                if ending not in parsed:
                    text = content(ending).decode('utf-8-sig')
                    parsed[ending] = json.loads(text) if ending == 'json' else text.strip()
            except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are
                raise DataError(f'its .{ending} cannot be read: {first_lines(error)}') from None
            value = parsed[ending]
            if isinstance(value, dict):
                value = value.get(field) if field else value
            if value is None:
                continue
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise DataError(f'its {key} is {describe(value)}: expected a text or a list of texts (caption_key)')
            before = set(captions)
            captions += [text for text in texts if not is_empty(text) and text not in before]
        captions = captions[:self.max_captions]
        if not captions:
            raise DataError(f'it has no caption, or an empty one: its members are {sorted(members)}, caption_key is '
                            f'{self.caption_keys}')
        found = parsed.get('json')
        return captions, found.get('image_id') if isinstance(found, dict) else None


@DATASETS.register_module()
class WebShards(TextGallery):
    """Image-text pairs in tar shards on local or mounted disks, in the layout of WebDataset.

    An index of each tar is made once (see ``tar_files``); then a sample is read by its number, without unpacking, and
    everything works as with other sets: exact resume, any number of workers and processes, evaluation, tools. The path
    of an image is ``FOLDER/00000.tar/KEY.jpg``; its id is the ``image_id`` of its JSON, or else that path.

    Training rows have ``captions``, of which each draw takes one or ``captions_per_image``; in test mode ``gt_caption``
    and ``texts`` are all.

    A bad sample (no image, or one that cannot be decoded; no text, an empty one, wrong JSON) is replaced in training by
    another one of this set, drawn from (seed, position), and noted in ``replaced`` of the data sample, for
    ``BadSamplesHook``. In test mode it is an error.

    Training draws shards in random order, and mixes ``shuffle_shards`` neighbours of this order sample by sample, so
    that few files are in use at a time. Each sample comes once an epoch.

    Args:
        shards (str | Sequence[str]): Tar files below ``data_root``, with ``{00000..00119}`` and wildcards.
        image_key (str | Sequence[str]): Endings of images.
        caption_key (str | Sequence[str]): See ``CaptionKeys``.
        max_captions (int, optional): Only the first captions of a sample, as LAVIS takes two of those ranked by CLIP.
        captions_per_image (int, optional): Each draw takes so many different captions, as a list, see ``COCOCaption``.
        shuffle_shards (int): Shards whose samples are mixed; all of them for a permutation of all samples.
        allow_cut (bool): Use the whole samples of shards that are cut off, instead of an error.
        **kwargs: ``data_root``, ``pipeline``, ``test_mode``, ``shuffle_images``, ``indices``, ``lazy_init`` of
            ``ImageTextDataset``.

    Raises:
        ConfigError: An argument is wrong, or ``shards`` is a stream.
        DataError: Shards that are missing, cut off, or no shards; in test mode a bad sample; in training 20 bad
            samples one after the other.
    """

    def __init__(self, shards, image_key=('jpg', 'jpeg', 'png', 'webp'), caption_key=('json.caption', 'txt'),
                 max_captions=None, captions_per_image=None, shuffle_shards=64, allow_cut=False, **kwargs):
        refused = sorted({'ann_file', 'data_prefix', 'filter_cfg'} & set(kwargs))
        if refused:
            raise ConfigError(f'WebShards has no {", ".join(refused)}: everything is in the shards')
        if shuffle_shards < 1:
            raise ConfigError(f'shuffle_shards of WebShards is {shuffle_shards}: expected a number from 1 on')
        self.patterns = [shards] if isinstance(shards, str) else list(shards)
        self.keys = CaptionKeys(image_key, caption_key, max_captions)
        check_captions_per_image(captions_per_image, 'WebShards')
        self.captions_per_image = captions_per_image
        self.shuffle_shards = shuffle_shards
        self.allow_cut = allow_cut
        self.shards: list[str] = []
        self._subset: np.ndarray | None = None
        self._shown: list[int] | None = None
        super().__init__(**kwargs)

    @property
    def source(self):
        return os.path.join(self.data_root or '', self.patterns[0])

    def full_init(self):
        """Find the shards and index those that are new."""
        if self._fully_initialized:
            return
        self.load_shards()
        if self._indices is not None:
            self.get_subset_(self._indices)
        if self.shuffle_images:
            if len(self) < 2:
                raise DataError(f'shuffle_images needs at least two different images, {self.source} has {len(self)}')
            self._shown = derange(len(self))

    def load_shards(self):
        """Number of samples of each shard.

        Raises:
            DataError: See the class.
        """
        self.shards = find_shards(self.patterns, self.data_root or '')
        found = index_tars(self.shards)
        cut = [(path, summary) for path, summary in zip(self.shards, found) if summary.cut is not None]
        if cut:
            path, summary = cut[0]
            text = (f'{len(cut)} of {len(self.shards)} shards are cut off or damaged, the first is {path} at byte '
                    f'{summary.cut}, after {summary.samples} whole samples')
            if not self.allow_cut:
                raise DataError(f'{text}: copy them again, or set allow_cut=True to use the whole samples; all of them '
                                f'are {", ".join(os.path.basename(path) for path, _ in cut[:20])}')
            self._warn(f'{text}: these are used (allow_cut=True)')
        self.counts = np.array([summary.samples for summary in found], np.int64)
        self._ends = np.cumsum(self.counts)
        if not self._ends[-1]:
            raise DataError(f'{type(self).__name__} is empty: {len(self.shards)} shards of {self.source!r} have no '
                            'sample')
        self._fully_initialized = True
        print_log(f'{self.source}: {self._ends[-1]} samples in {len(self.shards)} shards', logger='current',
                  level=logging.INFO)

    @force_full_init
    def __len__(self):
        return int(self._ends[-1]) if self._subset is None else len(self._subset)

    def load_data_list(self):
        """Returns:
            list[dict]: ``img_path`` of every sample that has an image; texts are not read.
        """
        self.full_init()
        return [dict(img_path=self._path(index)) for index in range(len(self))]

    def endless_order(self, shuffle, seed):
        """The order of training, see the class and ``samplers.endless_order``."""
        if not shuffle or self._subset is not None:
            return EpochOrders(len(self), shuffle, seed)
        return _ShardOrders(self.counts, self.shuffle_shards, seed)

    def get_subset_(self, indices: Sequence[int] | int):
        """Keep only ``indices``, or the first ones (negative: the last ones)."""
        rows = np.arange(len(self)) if self._subset is None else self._subset
        if isinstance(indices, int):
            self._subset = rows[:indices] if indices >= 0 else rows[indices:]
        else:
            self._subset = rows[np.asarray(indices, np.int64)]
        self._gallery_cache = None

    def get_subset(self, indices):
        """A data set of ``indices`` only."""
        import copy
        subset = copy.copy(self)
        subset.get_subset_(indices)
        return subset

    @force_full_init
    def get_data_info(self, idx):
        """The row of a sample.

        Args:
            idx (int): Its number.

        Returns:
            dict: ``sample_idx``, ``image_id``, ``img_path`` and ``captions`` (in test mode ``gt_caption`` and
            ``texts``).

        Raises:
            DataError: The sample is bad, or its shard has changed.
        """
        index = int(idx) % len(self)
        file, members, key = self._sample(index)
        path = self._path(index if self._shown is None else self._shown[index])
        captions, image_id = self.keys.read(members, lambda ending: file.read(members[ending]))
        image_id = path if image_id in (None, '') else parse_image_id(image_id, path, path)
        row = dict(sample_idx=index, image_id=image_id, img_path=path)
        return dict(row, gt_caption=captions, texts=list(captions)) if self.test_mode else dict(row, captions=captions)

    def sample_name(self, idx):
        """str: Shard and key of a sample, for messages."""
        file, _, key = self._sample(int(idx) % len(self))
        return f'{file.path}/{key}'

    def problem(self, idx):
        """What is wrong with a sample, its image decoded, or None."""
        from .transforms.image import read_image
        try:
            read_image(self.get_data_info(idx)['img_path'])
        except DataError as error:
            return f'{self.sample_name(idx)}: {error}'
        return None

    def _sample(self, index):
        """(tar, members by ending, key) of a sample."""
        number = index if self._subset is None else int(self._subset[index])
        shard = int(np.searchsorted(self._ends, number, 'right'))
        file = open_tar(self.shards[shard])
        if file.summary.samples != self.counts[shard]:
            raise ChangedShard(f'{file.path} had {self.counts[shard]} samples when the run began and has '
                               f'{file.summary.samples} now: leave shards alone while they are in use, and start the '
                               'run again (--resume goes on from its last checkpoint)')
        key, members = file.sample(number - int(self._ends[shard]) + int(self.counts[shard]))
        return file, members, key

    def _path(self, index):
        file, members, _ = self._sample(index)
        return f'{file.path}/{file.name(members[self.keys.image_ending(members)])}'

    def draw(self, results, rng):
        """Draw one of the captions of a training row, or ``captions_per_image`` of them."""
        return draw_caption(results, rng, count=self.captions_per_image)

    def prepare_data(self, idx):
        """As that of ``ImageTextDataset``; a bad sample is replaced in training.

        Raises:
            DataError: In test mode; after 20 bad samples, one drawn after the other.
        """
        if self.test_mode:
            return super().prepare_data(idx)
        draw = idx if isinstance(idx, Draw) else Draw(idx, int(np.random.randint(2**63)), 0)
        replaced: list[str] = []
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                packed = super().prepare_data(draw)
            except ChangedShard:
                raise
            except DataError as error:
                replaced.append(f'{self.sample_name(draw)}: {error}')
                other = np.random.default_rng((draw.seed, draw.pos, attempt)).integers(len(self))
                draw = Draw(int(other), draw.seed, draw.pos)
                continue
            if replaced and 'data_samples' in packed:
                packed['data_samples'].replaced = replaced
            elif replaced:
                packed['replaced'] = replaced
            return packed
        raise DataError(f'{_ATTEMPTS} samples of {self.source}, drawn one after the other, are bad; the first: '
                        f'{"; ".join(replaced[:3])}')


class _ShardOrders:
    """Endless order of samples in shards: shards in random order, groups of them mixed; every sample once an epoch.

    Args:
        counts (numpy.ndarray): (S,) int64, samples of each shard.
        group (int): Shards that are mixed.
        seed (int): From 0 on.
    """

    def __init__(self, counts, group, seed):
        self.counts, self.group, self.seed = counts, group, seed
        self.firsts = np.cumsum(counts) - counts
        self.size = int(counts.sum())
        self._epoch = self._part = None

    def __getitem__(self, k):
        epoch, offset = divmod(k, self.size)
        if epoch != self._epoch:
            self._epoch, self._part = epoch, None
            self._shards = np.random.default_rng((self.seed, epoch)).permutation(len(self.counts))
            self._ends = np.cumsum(self.counts[self._shards])
            last = np.append(np.arange(self.group, len(self._shards), self.group), len(self._shards)) - 1
            self._part_ends = self._ends[last]
        part = int(np.searchsorted(self._part_ends, offset, 'right'))
        if part != self._part:
            self._part = part
            shards = self._shards[part * self.group:(part + 1) * self.group]
            rows = np.concatenate([np.arange(self.counts[s]) + self.firsts[s] for s in shards])
            self._rows = np.random.default_rng((self.seed, epoch, part)).permutation(rows)
            self._begin = int(self._part_ends[part]) - len(rows)
        return int(self._rows[offset - self._begin])
