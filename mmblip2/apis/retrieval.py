"""Search images for a text, or texts for an image, in a gallery that is prepared once.

Shapes: M query texts or images, N rows of the gallery, Q queries, C contrastive width, P patches, E vision width,
k candidates.
"""
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmblip2.errors import ConfigError, DataError, first_lines
from mmblip2.models.algorithms.base import select_kv
from mmblip2.models.losses import query_text_similarity
from mmblip2.models.tokenizers import TextBatch
from mmblip2.structures import DataSample
from mmblip2.visualization.visualizer import draw_caption, draw_results

from . import gallery
from .base import BaseInferencer, _bar, shrink
from .images import count_images, is_url, iterate_images, load_image
from .texts import clean_steps, image_steps, needs_representation, read_texts, tokenize

_SIMILARITIES = 2**24  # products of a query and a text at a time
_COPIED_KV = 32  # rows of images' keys and values that are copied at a time, where images have few texts each


def pair_logits(model, image_kv, texts: TextBatch, image_index: torch.Tensor, text_index: torch.Tensor,
                batch_size: int = 256) -> torch.Tensor:
    """ITM logits of pairs; the keys and values of an image are computed once for all its pairs.

    Args:
        model (nn.Module): A retrieval model, of BLIP or BLIP-2.
        image_kv: Function of int64 (n,) image indices, ascending, to the keys and values of these images.
        texts: Texts, on any device.
        image_index, text_index: int64 (n,), on the CPU: the pairs, in any order.
        batch_size: Pairs that are scored together.

    Returns:
        torch.Tensor: float32 (n, 2), on the CPU; class 1 is 'matches'.
    """
    device = model.data_preprocessor.mean.device
    logits = torch.empty(len(image_index), 2)
    length = texts.mask.sum(dim=1).cpu()[text_index]
    order = length.argsort(stable=True)  # alike lengths share a batch
    order = order[image_index[order].argsort(stable=True)]
    images, counts = image_index[order].unique_consecutive(return_counts=True)
    start = 0
    for first, last in _groups(counts.tolist()):
        kv = image_kv(images[first:last])
        pairs = order[start:start + int(counts[first:last].sum())]
        start += len(pairs)
        if last - first > 1:
            rows = torch.arange(last - first).repeat_interleave(counts[first:last]).to(device)
            kv = select_kv(kv, rows) if len(rows) > last - first else kv
            logits[pairs] = model.match_logits(kv, texts.rows(text_index[pairs]).trimmed(device)).cpu()
            continue
        for part in pairs.split(batch_size):
            logits[part] = model.match_logits(kv, texts.rows(text_index[part]).trimmed(device)).cpu()
    return logits


def _groups(counts: list[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of neighbours with at most ``_COPIED_KV`` pairs in all, or of a single image."""
    first, total = 0, 0
    for i, count in enumerate(counts):
        if i > first and total + count > _COPIED_KV:
            yield first, i
            first, total = i, 0
        total += count
    if counts:
        yield first, len(counts)


class _RetrievalInferencer(BaseInferencer):
    """What both directions share: a gallery, and ranking in two passes."""

    kind = ''

    def __init__(self, model, prototype, prototype_cache=None, fast_match: bool = False, prepare_batch_size: int = 8,
                 pretrained: bool | str | None = True, device: str | None = None, *, k_test: int = 128,
                 progress: bool = True, **kwargs):
        super().__init__(model, pretrained, device, **kwargs)
        needs_representation(self)
        for name, value in (('prepare_batch_size', prepare_batch_size), ('k_test', k_test)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f'{name} is {value!r}, expected a positive whole number'
                                  + ('; fast_match=True re-ranks nothing' if name == 'k_test' else ''))
        self.fast_match = fast_match
        self.k_test = k_test
        self._meta: Callable[[], dict[str, str]] = dict  # what a file of the gallery says; costs time
        self.model.eval()
        with torch.no_grad(), self.autocast():
            self.prototype = self._prepare_prototype(prototype, prototype_cache, prepare_batch_size, progress)

    def _prepare_prototype(self, prototype, cache, batch_size, progress) -> gallery.Gallery:
        raise NotImplementedError

    def _expected(self, preprocessing, rows) -> dict[str, str]:
        """What a file of the gallery ``rows`` says; without rows, of any gallery."""
        meta = dict(kind=self.kind, model=gallery.model_digest(self.model, self.kind),
                    preprocessing=gallery.digest(preprocessing))
        return meta if rows is None else dict(meta, gallery=gallery.digest(rows))

    def save_prototype(self, path: str | Path):
        """Write the prepared gallery to a file, for ``prototype_cache``.

        Raises:
            CheckpointError: The disk is full or not writable.
        """
        self.prototype.meta = self.prototype.meta or self._meta()
        self.prototype.save(path)

    def _rank(self, similarity: torch.Tensor, topk: int, logits) -> list[list[tuple[float, int]]]:
        """The best rows of the gallery.

        Args:
            similarity: float32 (M, N), ITC cosine.
            topk: Results of each query.
            logits: Function of int64 (M, k) rows of the gallery to their ITM logits, float32 (M, k).

        Returns:
            list: For each query (score, row), best first; of equal scores the lower row first.
        """
        if isinstance(topk, bool) or not isinstance(topk, int) or topk < 1:
            raise ConfigError(f'topk is {topk!r}, expected a positive whole number')
        count = topk if self.fast_match else max(topk, self.k_test)
        best = similarity.sort(dim=1, descending=True, stable=True).indices[:, :count]
        candidates = best.sort(dim=1).values  # (M, k)
        scores = similarity.gather(1, candidates)
        if not self.fast_match:
            scores = scores + logits(candidates)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        rows = candidates.gather(1, order)
        return [list(zip(*both)) for both in zip(scores[:, :topk].tolist(), rows[:, :topk].tolist())]

    def _samples(self, results: list[list[dict]]) -> list[DataSample]:
        """Results as data samples, see ``__call__``."""
        samples = []
        for best in results:
            scores = torch.full((len(self.prototype.rows), ), float('-inf'))
            scores[[one['sample_idx'] for one in best]] = torch.tensor([one['match_score'] for one in best])
            samples.append(DataSample(pred_score=scores))
        return samples

    def _similarity(self, image_feats, text_feats) -> torch.Tensor:
        """float32 (I, N), on the CPU; never in half precision, where neighbours would tie."""
        step = max(1, _SIMILARITIES // (image_feats.size(1) * len(text_feats)))
        with torch.autocast(self.device.type, enabled=False):
            text_feats = text_feats.to(self.device)
            return torch.cat([query_text_similarity(part.to(self.device), text_feats).cpu()
                              for part in image_feats.split(step)])


class TextToImageRetrievalInferencer(_RetrievalInferencer):
    """Search images for a text.

    ITC ranks the whole gallery, ITM re-ranks the ``k_test`` best of a text; a result scores ITM logit + ITC cosine, as
    in LAVIS and in the retrieval loop. Of equal scores the lower ``sample_idx`` comes first.

    Differs from mmpretrain: ``fast_match`` means the same, but is False unless it is set, because the published
    figures are re-ranked ones; and the images that a gallery consists of are checked before any of them is encoded.

    Args:
        model (str | Path | Config | nn.Module): See ``BaseInferencer``.
        prototype: The images: a directory, a list of paths, URLs, ``PIL.Image`` or numpy arrays, the config (dict) of
            a data set, a ``BaseDataset``, or a ``DataLoader``. Data sets and loaders have pipelines of their own; a
            config without ``pipeline`` gets the model's test pipeline, and ``test_mode=True``. None: whatever
            ``prototype_cache`` holds.
        prototype_cache (str | Path, optional): File of the prepared gallery: opened if it exists, otherwise written.
            An opened file is mapped, so the patches stay on the disk; without a file they are in the CPU's memory,
            P * E values an image of the type that the model computes in (257 * 1408 bfloat16 for ViT-g at 224 pixels
            under autocast: 0.7 MB; 677 * 1408 at 364 pixels: 1.9 MB; float32 twice as much).
        fast_match (bool): Rank by ITC alone and keep no patches: scores are cosines.
        prepare_batch_size (int): Images that are encoded at a time, unless ``prototype`` is a ``DataLoader``.
        pretrained, device, **kwargs: See ``BaseInferencer``.
        k_test (int): Candidates of a text that ITM re-ranks; at least ``topk`` are.
        progress (bool): Whether to show progress bars while the gallery is prepared.

    Raises:
        ConfigError: A model without ITC and ITM heads, or an argument that does not fit.
        DataError: The gallery is empty; images cannot be read (all of them are named, nothing was encoded yet); the
            file holds another gallery.
        CheckpointError: The file is broken, of another version, or of another model.

    Example:
        >>> TextToImageRetrievalInferencer(model, prototype='photos/')('a red circle', topk=2)[0][0]
        {'match_score': 3.2, 'sample_idx': 7, 'sample': {'img_path': 'photos/b.jpg'}}
    """

    kind = 'images'

    def _prepare_prototype(self, prototype, cache, batch_size, progress):
        from mmblip2 import datasets  # noqa: F401 (registers data sets and transforms)
        self._sources: list = []  # of plain images
        if prototype is None:
            if cache is None or not Path(cache).exists():
                raise ConfigError(f'there is no gallery: give prototype=, the images (prototype_cache is {cache})')
            return gallery.read_gallery(cache, self._expected(self._preprocessing(image_steps(self)), None),
                                        not self.fast_match)
        loader, steps = self._loader(prototype, batch_size)
        if loader is None:
            self._sources = list(iterate_images(prototype))
            rows = [dict(img_path=str(source) if isinstance(source, (str, os.PathLike)) else None)
                    for source in self._sources]
            paths = self._sources
        else:
            infos = (loader.dataset.get_data_info(i) for i in range(len(loader.dataset)))
            rows = [{key: value for key, value in row.items() if key != 'sample_idx'} for row in infos]
            paths = [row['img_path'] for row in rows if 'img_path' in row]
        if not rows:
            raise DataError('the gallery is empty: give prototype= at least one image')
        self._meta = lambda: self._expected(self._preprocessing(steps), [rows, [_identity(path) for path in paths]])
        meta = {}
        if cache is not None:
            meta = self._meta()
            if Path(cache).exists():
                return gallery.read_gallery(cache, meta, not self.fast_match)
        _check_images(paths, progress)
        batches = self._read(batch_size) if loader is None else self._load(loader)
        total = len(loader) if loader is not None else -(-len(rows) // batch_size)
        return self._encode(_bar(batches, total, progress, 'Gallery'), rows, meta, cache)

    def _loader(self, prototype, batch_size):
        """(DataLoader, its transforms) of a data set; (None, the model's transforms) of plain images."""
        from mmengine.dataset import BaseDataset, pseudo_collate
        from torch.utils.data import DataLoader

        from mmblip2.registry import DATASETS, our_scope
        if isinstance(prototype, dict):
            config = dict(dict(pipeline=image_steps(self), test_mode=True), **prototype)
            try:
                with our_scope():
                    prototype = DATASETS.build(config)
            except (KeyError, TypeError) as error:  # mmengine's, of a wrong type or argument
                raise ConfigError(f'the data set that prototype describes cannot be built: {first_lines(error)}'
                                  ) from error
        if isinstance(prototype, BaseDataset):
            prototype = DataLoader(prototype, batch_size, collate_fn=pseudo_collate)
        if not isinstance(prototype, DataLoader):
            return None, image_steps(self)
        dataset: Any = prototype.dataset
        if not isinstance(dataset, BaseDataset):
            raise ConfigError(f"the data loader reads a {type(dataset).__name__}: expected a data set of mmengine's "
                              'BaseDataset, which says what its samples are; of wrapped data sets give one, or give a '
                              'list of paths')
        dataset.full_init()
        return prototype, dataset.pipeline.transforms

    def _preprocessing(self, steps) -> list:
        """What becomes of the pixels."""
        from mmblip2.registry import TRANSFORMS, our_scope
        with our_scope():
            steps = [TRANSFORMS.build(step) if isinstance(step, dict) else step for step in steps]
        ours = self.model.data_preprocessor
        return [gallery.description(steps), ours.mean.flatten().tolist(), ours.std.flatten().tolist()]

    def _read(self, batch_size) -> Iterator[tuple[list[int], torch.Tensor]]:
        """(indices, images (B, 3, H, W)) of the plain images."""
        for start in range(0, len(self._sources), batch_size):
            part = enumerate(self._sources[start:start + batch_size], start)
            rows = [dict(sample_idx=index, image=load_image(source, index)) for index, source in part]
            yield list(range(start, start + len(rows))), self.prepare(rows, image_steps(self))['images']

    def _load(self, loader):
        """(indices, images (B, 3, H, W)) of a data loader."""
        for batch in loader:
            data = self.model.data_preprocessor(batch, False)
            if data['images'] is None:
                raise DataError(f'the samples of {type(loader.dataset).__name__} have no images: give another '
                                'prototype')
            changed = next((sample for sample in data['data_samples'] if sample.get('augmented')), None)
            if changed is not None:
                raise ConfigError(f'{changed.augmented} changes the images of the gallery at random: give the data set '
                                  'a test pipeline, or leave pipeline out of its config')
            yield [sample.sample_idx for sample in data['data_samples']], data['images']

    def _encode(self, batches, rows, meta, cache) -> gallery.Gallery:
        """Encode all images; to the file ``cache``, or into memory."""
        encoded = ((index, *self._features(images)) for index, images in batches)
        first = next(iter(encoded))
        tensors = dict(zip(('features', 'patches'), first[1:]))
        shapes = {name: (tensor.dtype, (len(rows), *tensor.shape[1:])) for name, tensor in tensors.items()
                  if tensor is not None}

        def fill(put):
            seen = set()
            for index, *found in chain([first], encoded):
                for name, tensor in zip(('features', 'patches'), found):
                    for i, row in zip(index, tensor if tensor is not None else ()):
                        put(name, i, row[None])
                seen.update(index)
            if len(seen) < len(rows):
                raise DataError(f'the data loader gave {len(seen)} of the {len(rows)} images of its data set: leave '
                                'its sampler and drop_last out')

        if cache is not None:
            gallery.write_gallery(cache, shapes, rows, meta, fill)
            return gallery.read_gallery(cache, meta, not self.fast_match)
        stored = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in shapes.items()}

        def put(name, start, tensor):
            stored[name][start:start + len(tensor)] = tensor

        fill(put)
        return gallery.Gallery(stored['features'], stored.get('patches'), rows, meta)

    def _features(self, images):
        """Contrastive features (B, Q, C), float32, and patches (B, P, E) or None, in the type of autocast."""
        encoded = self.model.encode_image(images)
        kind = self.device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        return self.model.image_features(encoded), None if self.fast_match else encoded.patches.to(half)

    def __call__(self, inputs, topk: int = 1, batch_size: int = 256, *, return_datasamples: bool = False,
                 draw_score: bool = True, figsize: tuple[float, float] = (16, 9), **kwargs) -> list:
        """Search.

        Args:
            inputs (str | Iterable[str]): Texts; longer ones than ``model.max_text_len`` tokens are cut there, as in
                training, with a warning.
            topk: Results of each text; all images, where the gallery has fewer.
            batch_size: Texts that are ranked together; an image that several of them want is projected once.
            return_datasamples: Return a data sample in the place of each list: its ``pred_score``, float32 (N,), has
                the scores, -inf at all but the ``topk`` best.
            draw_score: Whether scores stand in the pictures.
            figsize: Width and greatest height of a picture in units of 100 pixels.
            **kwargs: ``show``, ``show_dir``, ``wait_time``, ``resize``, ``progress``: see ``BaseInferencer``. Pictures
                are called ``<index>_<text>.png``.

        Returns:
            list: For each text a list of ``{'match_score' (float), 'sample_idx' (int, row of the gallery), 'sample'}``,
            best first; ``sample`` is ``{'img_path'}`` (None of an image from memory), or the row of the data set.

        Raises:
            DataError: No text, an empty one, or one that is no text.
            ConfigError: ``topk`` or ``batch_size`` is not a positive whole number.
        """
        if not (isinstance(figsize, (tuple, list)) and len(figsize) == 2
                and all(isinstance(side, (int, float)) and side > 0 for side in figsize)):
            raise ConfigError(f'figsize is {figsize!r}, expected two numbers above 0: width and height of the pictures '
                              'in units of 100 pixels')
        texts = read_texts(inputs, 'texts')
        tokens = tokenize(self, texts)
        rows = (dict(sample_idx=index, text=text, source=text) for index, text in enumerate(texts))

        def predict(batch):
            return self._search(tokens.rows([row['sample_idx'] for row in batch]), topk)

        results = self.run(rows, predict, len(texts), batch_size, draw_score=draw_score, figsize=figsize, **kwargs)
        return self._samples(results) if return_datasamples else results

    def _search(self, tokens, topk):
        features, patches = self.prototype.features, self.prototype.patches
        text_feats = self.model.text_features(tokens.trimmed(self.device))
        similarity = self._similarity(features, text_feats).T.contiguous()  # (M, N)

        def image_kv(rows):
            assert patches is not None
            return self.model.project_image(patches[rows].to(self.device).float())

        def logits(candidates):
            text_index = torch.arange(len(candidates)).repeat_interleave(candidates.size(1))
            found = pair_logits(self.model, image_kv, tokens, candidates.flatten(), text_index)
            return found[:, 1].view(candidates.shape)

        return [[dict(match_score=score, sample_idx=row, sample=dict(self.prototype.rows[row]))
                 for score, row in best] for best in self._rank(similarity, topk, logits)]

    def name_of(self, row):
        """``<index>_<text>``, at most 60 letters of it."""
        return f'{row["sample_idx"]:06d}_{row["text"][:60]}'

    def picture(self, row, result, resize=None, *, draw_score=True, figsize=(16, 9), **drawing) -> Image.Image:
        """The text, and below it the images that were found, best first."""
        found = []
        for place, one in enumerate(result, 1):
            source = self._sources[one['sample_idx']] if self._sources else one['sample'].get('img_path')
            if source is None:
                raise DataError(f'image {one["sample_idx"]} of this gallery was never a file, so there is nothing to '
                                'draw: give prototype= the images again, or leave show and show_dir out')
            score = f' ({one["match_score"]:.3f})' if draw_score else ''
            image = shrink(load_image(source, one['sample_idx']), resize)
            found.append((image, f'{place}. #{one["sample_idx"]}{score}'))
        return draw_results(row['text'], found, tuple(round(100 * side) for side in figsize))


class ImageToTextRetrievalInferencer(_RetrievalInferencer):
    """Search texts for an image; scores, ``fast_match`` and order as in :class:`TextToImageRetrievalInferencer`.

    Args:
        model (str | Path | Config | nn.Module): See ``BaseInferencer``.
        prototype (list[str] | str | Path | None): The texts, or a UTF-8 file with one a line. Texts longer than
            ``model.max_text_len`` tokens are cut there, as in training, with a warning. None: whatever
            ``prototype_cache`` holds.
        prototype_cache (str | Path, optional): File of the prepared gallery: opened if it exists, otherwise written.
        fast_match (bool): Rank by ITC alone: scores are cosines.
        prepare_batch_size (int): Texts that are encoded at a time.
        pretrained, device, **kwargs: See ``BaseInferencer``.
        k_test (int): Candidates of an image that ITM re-ranks; at least ``topk`` are.
        progress (bool): Whether to show a progress bar while the gallery is prepared.

    Raises:
        ConfigError: A model without ITC and ITM heads, or an argument that does not fit.
        DataError: The gallery is empty, a text of it is, or the file holds another gallery.
        CheckpointError: The file is broken, of another version, or of another model.
    """

    kind = 'texts'

    def _prepare_prototype(self, prototype, cache, batch_size, progress):
        clean = clean_steps(self)
        if prototype is None:
            if cache is None or not Path(cache).exists():
                raise ConfigError(f'there is no gallery: give prototype=, the texts (prototype_cache is {cache})')
            found = gallery.read_gallery(cache, self._expected(clean, None), False)
            self._tokens = tokenize(self, found.rows)
            return found
        texts = read_texts(_lines(prototype), 'prototype')
        self._tokens = tokenize(self, texts)
        self._meta = lambda: self._expected(clean, texts)
        meta = {}
        if cache is not None:
            meta = self._meta()
            if Path(cache).exists():
                return gallery.read_gallery(cache, meta, False)
        starts = _bar(range(0, len(texts), batch_size), -(-len(texts) // batch_size), progress, 'Gallery')
        features = torch.cat([self.model.text_features(
            self._tokens.rows(slice(start, start + batch_size)).trimmed(self.device)).cpu() for start in starts])
        found = gallery.Gallery(features, None, texts, meta)
        if cache is not None:
            found.save(cache)
        return found

    def __call__(self, inputs, topk: int = 1, batch_size: int = 1, *, return_datasamples: bool = False,
                 draw_score: bool = True, **kwargs) -> list:
        """Search.

        Args:
            inputs: An image, or several: see ``mmblip2.apis.images.iterate_images``.
            topk: Results of each image; all texts, where the gallery has fewer.
            batch_size: Images that are encoded together.
            return_datasamples: Return a data sample in the place of each list: its ``pred_score``, float32 (N,), has
                the scores, -inf at all but the ``topk`` best.
            draw_score: Whether scores stand in the pictures.
            **kwargs: ``show``, ``show_dir``, ``wait_time``, ``resize``, ``progress``: see ``BaseInferencer``.

        Returns:
            list: For each image a list of ``{'match_score' (float), 'sample_idx' (int, place in the gallery),
            'text'}``, best first.

        Raises:
            DataError: An image cannot be read.
            ConfigError: ``topk`` or ``batch_size`` is not a positive whole number.
        """
        results = self.run(self.image_rows(inputs), lambda batch: self._search(batch, topk), count_images(inputs),
                           batch_size, draw_score=draw_score, **kwargs)
        return self._samples(results) if return_datasamples else results

    def _search(self, batch, topk):
        encoded = self.model.encode_image(self.prepare(batch, image_steps(self))['images'])
        similarity = self._similarity(self.model.image_features(encoded), self.prototype.features)  # (M, N)

        def logits(candidates):
            image_index = torch.arange(len(candidates)).repeat_interleave(candidates.size(1))
            found = pair_logits(self.model, lambda rows: select_kv(encoded.image_kv, rows.to(self.device)),
                                self._tokens, image_index, candidates.flatten())
            return found[:, 1].view(candidates.shape)

        return [[dict(match_score=score, sample_idx=row, text=self.prototype.rows[row]) for score, row in best]
                for best in self._rank(similarity, topk, logits)]

    def picture(self, row, result, resize=None, *, draw_score=True, **drawing) -> Image.Image:
        """The image, and below it the texts that were found, best first."""
        lines = [f'{place}. {one["text"]}' + (f' ({one["match_score"]:.3f})' if draw_score else '')
                 for place, one in enumerate(result, 1)]
        return draw_caption(shrink(row['image'], resize), lines)


def _lines(prototype):
    """Texts as they are, or the lines of a file."""
    if not isinstance(prototype, (str, os.PathLike)):
        return prototype
    path = Path(prototype)
    if not path.is_file():
        raise DataError(f'prototype is {str(prototype)!r}, and there is no such file: give a list of texts, or a UTF-8 '
                        'file with one a line')
    try:
        return path.read_text(encoding='utf-8-sig').rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'cannot read the texts of {path}: {error}') from None


def _identity(source) -> list:
    """What tells an image from another: of a file path, size and time of change; of one in memory its pixels."""
    if isinstance(source, np.ndarray):
        return [source.shape, hashlib.sha256(source.tobytes()).hexdigest()]
    if isinstance(source, Image.Image):
        image = load_image(source)  # of a file that is broken, this says so
        return [image.size, hashlib.sha256(image.tobytes()).hexdigest()]
    if not isinstance(source, (str, os.PathLike)) or is_url(source) or not os.path.exists(source):
        return [str(source)]
    state = os.stat(source)
    return [str(source), state.st_size, state.st_mtime_ns]


def _check_images(sources: list, progress: bool):
    """Decode all files once, in threads: a broken one is named before the first is encoded.

    Raises:
        DataError: Naming the first ones.
    """
    def problem(item):
        try:
            load_image(item[1], item[0])
        except DataError as error:
            return str(error)
        return None

    files = [(index, source) for index, source in enumerate(sources) if not is_url(source)]
    parts = [files[start:start + 64] for start in range(0, len(files), 64)]
    problems = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for part in _bar(parts, len(parts), progress, 'Check of the images'):
            in_memory = [item for item in part if not isinstance(item[1], (str, os.PathLike))]
            found = [problem(item) for item in in_memory]  # the same image may be there twice: not in threads
            found += pool.map(problem, [item for item in part if isinstance(item[1], (str, os.PathLike))])
            problems += [text for text in found if text]
    if problems:
        more = f'; and {len(problems) - 3} more' if len(problems) > 3 else ''
        raise DataError(f'{len(problems)} of the {len(sources)} images of the gallery cannot be used, none was encoded '
                        f'yet: {"; ".join(problems[:3])}{more}. Mend them, or leave them out')
