"""What all data sets share: paths, checks before the work starts, random numbers, exchanged images."""
import logging
import os
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import TRANSFORMS

from .feature_cache import CachedPipeline
from .samplers import Draw
from .transforms.text import is_empty

_FILTERS = ('missing_image', 'empty_caption')
_TEXTS = ('caption', 'captions', 'text', 'texts', 'gt_caption', 'question')
_SHUFFLE_SEED = 20240229


def derange(count):
    """A fixed permutation of ``count`` things that moves every one of them (one cycle, Sattolo's algorithm).

    Args:
        count (int): How many, >= 2.

    Returns:
        list[int]: (count,), no element at its own place; the same at every call.
    """
    rng = np.random.default_rng(_SHUFFLE_SEED)
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        other = int(rng.integers(last))  # strictly smaller: this is what makes it one cycle
        order[last], order[other] = order[other], order[last]
    return order


def missing_files(paths):
    """Those of ``paths`` that are not there, in their order; every folder is listed once.

    Args:
        paths (Iterable[str]): File paths.

    Returns:
        list[str]: The missing ones.
    """
    folders, missing = {}, []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
        if name not in folders[folder]:
            missing.append(path)
    return missing


def image_files(row):
    """Paths of the images of a row: one, none, or those of a tuple.

    Args:
        row (dict): Of ``load_data_list``.

    Returns:
        tuple[str]: The paths.
    """
    paths = row.get('img_path', ())
    return (paths, ) if isinstance(paths, str) else paths


class ImageTextDataset(BaseDataset):
    """Base of the data sets: a subclass implements ``load_data_list``, which returns plain dicts.

    A row has ``img_path`` (joined; a tuple where a sample has several images; absent in sets without images),
    ``image_id`` and what its task needs.
    All rows are checked when the data set is built: no rows, empty texts, one id for two images and missing
    files are errors. An image that cannot be decoded is an error too, in training as well: nothing is
    replaced in silence.

    Each draw gets its own ``results['rng']`` (``numpy.random.Generator``): from (seed, position) when the
    index is a ``Draw``, from the index alone in test mode, else from a number of numpy's global state.

    Args:
        ann_file (str): Annotation file, relative to ``data_root`` unless absolute.
        data_root (str): Folder in front of ``ann_file`` and ``data_prefix``.
        data_prefix (dict): ``img_path``: folder of the images, relative to ``data_root`` unless absolute.
        pipeline (Sequence): Transforms: configs or callables.
        test_mode (bool): One row an image (or question) with all its references, instead of training rows.
        shuffle_images (bool): Control experiment: every row shows the image of another row, by a fixed
            derangement over the different images; ids, texts and answers stay.
        filter_cfg (dict, optional): ``missing_image=True`` and ``empty_caption=True`` drop such rows, with a
            warning, instead of raising.
        feature_cache (dict, optional): A :class:`mmblip2.datasets.feature_cache.FeatureSettings`: the Runner keeps
            there what the frozen vision encoder says of the images, and samples have that in place of pixels. Other
            users of the data set get pixels.
        **kwargs: ``indices``, ``serialize_data``, ``lazy_init``, ``metainfo`` of ``mmengine.BaseDataset``.

    Raises:
        ConfigError: An unknown key in ``data_prefix``, ``filter_cfg`` or ``feature_cache``, or a pipeline that does
            not go with the last.
        DataError: Annotations or images are missing or malformed.
    """

    _fully_initialized: bool

    def __init__(self, ann_file='', data_root='', data_prefix=None, pipeline=(), test_mode=False,
                 shuffle_images=False, filter_cfg=None, feature_cache=None, **kwargs):
        name = type(self).__name__
        data_prefix = dict(img_path='') if data_prefix is None else data_prefix
        if set(data_prefix) != {'img_path'}:
            raise ConfigError(f'data_prefix of {name} has one key, img_path: got {dict(data_prefix)}')
        unknown = sorted(set(filter_cfg or ()) - set(_FILTERS))
        if unknown:
            raise ConfigError(
                f'filter_cfg of {name} has unknown keys {unknown}: it may have {list(_FILTERS)}')
        self.shuffle_images = shuffle_images
        configs, pipeline = pipeline, [TRANSFORMS.build(step) if isinstance(step, dict) else step for step in pipeline]
        self.cached = None if feature_cache is None else CachedPipeline(feature_cache, configs, pipeline, name)
        super().__init__(ann_file=ann_file, data_root=data_root, data_prefix=data_prefix, pipeline=pipeline,
                         test_mode=test_mode, filter_cfg=filter_cfg, **kwargs)

    @property
    def source(self):
        """str: The file that messages name as the origin of the rows."""
        return self.ann_file

    def image_path(self, image):
        """str: The path of an image that the annotations call ``image``, below ``data_prefix``.

        Raises:
            DataError: It is no text.
        """
        if not isinstance(image, str):
            raise DataError(f'{self.source} names an image by {image!r:.60}: expected a text, its path in the '
                            'folder of the images')
        return os.path.join(self.data_prefix['img_path'], image)

    def rows_by_image(self):
        """Sequence[int]: All rows, in order, but those of one image together, at the place of the first."""
        rows: dict[Any, list[int]] = {}
        for index in range(len(self)):
            rows.setdefault(self.get_data_info(index).get('img_path', index), []).append(index)
        return range(len(self)) if len(rows) == len(self) else [index for same in rows.values() for index in same]

    def draw(self, results, rng):
        """Choose what a draw leaves open (overridden where a row holds several captions).

        Args:
            results (dict): The row with ``sample_idx``; the callee may change it.
            rng (numpy.random.Generator): The random numbers of this draw.

        Returns:
            dict: The results dict that enters the pipeline.
        """
        return results

    def prepare_data(self, idx):
        """Run the pipeline on one row.

        Args:
            idx (int | Draw): Index of the row.

        Returns:
            dict: ``inputs`` and ``data_samples`` when the pipeline ends with ``PackInputs``.

        Raises:
            DataError: The image cannot be read, or a transform returned None.
        """
        results = self.get_data_info(int(idx))
        if isinstance(idx, Draw):
            seed: Any = (idx.seed, idx.pos)
        elif self.test_mode:
            seed = results['sample_idx']
        else:
            seed = int(np.random.randint(2**63))
        results['rng'] = np.random.default_rng(seed)
        results = self.draw(results, results['rng'])
        pipeline = self.pipeline if self.cached is None or self.cached.cache is None else self.cached
        packed = pipeline(results)
        if packed is None:  # mmengine would draw another row in silence
            raise DataError(f'a transform returned None for sample {int(idx)} of {self.source}')
        return packed

    def full_init(self):
        """Load, filter, cut to ``indices``, check, exchange the images, serialise."""
        if self._fully_initialized:
            return
        self.data_list = self._check_texts(self.load_data_list())
        self.data_list = self.filter_data()
        if self._indices is not None:
            self.data_list = self._get_unserialized_subset(self._indices)
        if not self.data_list:
            raise DataError(f'{type(self).__name__} is empty: no sample of {self.source!r} is left with '
                            f'indices={self._indices} and filter_cfg={self.filter_cfg}')
        self._check_images()
        if self.shuffle_images:
            self._exchange_images()
        if self.serialize_data:
            self.data_bytes, self.data_address = self._serialize_data()
        self._fully_initialized = True

    def filter_data(self):
        """Drop the rows whose image file is missing, if ``filter_cfg`` says so."""
        if not self._filters('missing_image'):
            return self.data_list
        missing = set(missing_files(self._image_paths()))
        if missing:
            self._warn(f'{len(missing)} images are missing: their samples are dropped')
        return [row for row in self.data_list if missing.isdisjoint(image_files(row))]

    def _filters(self, what):
        return bool((self.filter_cfg or {}).get(what, False))

    def _warn(self, message):
        print_log(f'{self.source}: {message}', logger='current', level=logging.WARNING)

    def _check_texts(self, rows):
        """Refuse, or drop from lists and rows, the texts of which cleaning would leave nothing."""
        kept, num_empty, first = [], 0, None
        for row in rows:
            whole = True
            for key in _TEXTS:
                texts = row.get(key)
                if not texts and texts != '':  # absent, or no references at all
                    continue
                listed = [texts] if isinstance(texts, str) else texts
                if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
                    raise DataError(f'{self.source}: {key} of image id {row.get("image_id")!r} is {texts!r:.60}, '
                                    'expected a text or a list of texts')
                full = [text for text in listed if not is_empty(text)]
                if len(full) < len(listed):
                    num_empty += len(listed) - len(full)
                    first = first or f'the first is {key} of image id {row["image_id"]!r}'
                    whole = whole and len(full) > 0
                    row[key] = texts if isinstance(texts, str) else full
            if whole:
                kept.append(row)
        if num_empty and not self._filters('empty_caption'):
            raise DataError(f'{num_empty} empty texts in {self.source}, {first}: mend the file or drop them '
                            'with filter_cfg=dict(empty_caption=True)')
        if num_empty:
            self._warn(f'{num_empty} empty texts are dropped, {first}')
        return kept

    def _check_images(self):
        """Refuse one image id for two files, and files that are not there."""
        path_of: dict[Any, str | tuple[str, ...]] = {}
        id_of: dict[str, Any] = {}
        for row in self.data_list:
            if 'img_path' not in row:
                continue
            path, image_id = row['img_path'], row['image_id']
            if path_of.setdefault(image_id, path) != path:
                raise DataError(f'image id {image_id!r} of {self.source} stands for two images, '
                                f'{path_of[image_id]} and {path}: give every image its own image_id')
            id_of.update((file, image_id) for file in image_files(row) if file not in id_of)
        missing = missing_files(id_of)
        if missing:
            raise DataError(
                f'{len(missing)} of {len(id_of)} images listed in {self.source} not found, the first is '
                f'{missing[0]} (image id {id_of[missing[0]]!r}): check data_root and data_prefix, now '
                f'img_path={self.data_prefix["img_path"]!r}, or drop them with '
                'filter_cfg=dict(missing_image=True)')

    def _image_paths(self):
        """The different images, in the order of the rows."""
        return list(dict.fromkeys(path for row in self.data_list for path in image_files(row)))

    def _exchange_images(self):
        paths = self._image_paths()
        if len(paths) < 2:
            raise DataError('shuffle_images needs at least two different images, '
                            f'{self.source} has {len(paths)}')
        shown = {path: paths[other] for path, other in zip(paths, derange(len(paths)))}
        for row in self.data_list:
            others = tuple(shown[path] for path in image_files(row))
            row['img_path'] = others[0] if isinstance(row['img_path'], str) else others
