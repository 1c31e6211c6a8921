"""Image-text retrieval in two passes: rank everything by ITC, then re-rank the best candidates by ITM.

The loop schedules and gathers; scores come from the model, recall from ``evaluation.functional``.
Shapes: I images, N texts, Q queries, C contrastive width, k re-ranked candidates.
"""
import json
import math
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.runner import BaseLoop
from torch.utils.data import DataLoader

from mmblip2 import __version__
from mmblip2.errors import ConfigError, DataError
from mmblip2.evaluation.functional import recall_from_ranks, retrieval_ranks
from mmblip2.models.algorithms.base import fingerprint
from mmblip2.models.layers.attention import KeyValue
from mmblip2.models.losses import query_text_similarity
from mmblip2.registry import LOOPS
from mmblip2.utils.dist import gather_objects, on_first, world

from .autocast import autocast_context, resolve_dtype
from .evaluation_blocks import Blocks, Rows, Shelf, digest_of, file_facts
from .preempt import outlasts_term
from .random_state import random_state_kept

_SAY_SECONDS = 30  # between two lines of progress
_ENOUGH_ROWS = 16  # a batch of as many texts is as fast a row as a larger one


class _RetrievalLoop(BaseLoop):
    """Evaluate retrieval both ways on a data set with ``texts`` and ``text_to_image``.

    As LAVIS, a re-ranked pair scores ITM logit + ITC cosine, and pairs outside the k best of a query -100. Unlike
    LAVIS, images and texts are encoded once over all processes, an image's cross-attention keys and values are
    computed once for all its texts, what a text's layers compute before they read the image is computed once for all
    images, and a pair wanted by both directions is scored once.

    Ties: among equal ITC similarities the lower index is re-ranked first; recall counts equal scores as
    ``retrieval_recall`` says. Scores that are not finite are an error.

    A killed evaluation goes on where it was when it is started again, also with another number of processes: finished
    parts lie in ``<work_dir>/retrieval_blocks``, in a folder named after weights, data and settings, until the end.

    Args:
        runner (Runner): The runner.
        dataloader (dict or DataLoader): Of a data set in test mode, one row an image. Its batches are dealt out to the
            processes, whatever its sampler.
        evaluator (dict, optional): ``dict(type='RetrievalRecall', topk=(1, 5, 10))``.
        k_test (int): Candidates that are re-ranked for every query (128 in BLIP-2's paper, 256 in BLIP for COCO), at
            most the gallery; 0 re-ranks nothing.
        text_batch_size (int): Texts encoded, and pairs scored, at a time, at most.
        autocast (str, optional): 'auto', 'bfloat16', 'float16' or 'float32'; None: as ``optim_wrapper`` says.
        out_file (str, optional): Where the five best of every query are written, before scoring. Defaults to
            ``<work_dir>/predictions/retrieval.json``.
        memory_gib (float): Memory of a process for what is kept of images and texts, in GiB; what exceeds it lies in
            nameless files in ``work_dir`` while the evaluation runs. What exceeds four times as much of the texts is
            not kept but computed again for every image.
        block_size (int): Images that are re-ranked between two writes of finished scores; 0 writes no parts.
    """

    split = ''

    def __init__(self, runner, dataloader, evaluator=None, k_test: int = 128, text_batch_size: int = 256,
                 autocast: str | None = None, out_file: str | None = None, memory_gib: float = 2.,
                 block_size: int = 16):
        for name, value, least in (('k_test', k_test, 0), ('text_batch_size', text_batch_size, 1),
                                   ('block_size', block_size, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f'{type(self).__name__}: {name} is {value!r}, expected a whole number from {least} '
                                  'up')
        if not memory_gib >= 0:
            raise ConfigError(f'{type(self).__name__}: memory_gib is {memory_gib!r}, expected 0 or more GiB')
        super().__init__(runner, dataloader)
        self.evaluator = runner.build_evaluator(evaluator or dict(type='RetrievalRecall'))
        self.k_test = k_test
        self.text_batch_size = text_batch_size
        self.autocast = runner.eval_autocast if autocast is None else autocast
        self.out_file = out_file
        self.memory_gib = memory_gib
        self.block_size = block_size
        self.ranking: dict | None = None  # on the main process, what was written of the last run
        self._config = str(dataloader.get('dataset')) if isinstance(dataloader, dict) else ''
        dataset = self.dataloader.dataset
        if not (hasattr(dataset, 'texts') and hasattr(dataset, 'text_to_image')):
            raise ConfigError(f'{type(self).__name__} needs a retrieval data set in test mode (texts and '
                              f'text_to_image), got {type(dataset).__name__}: use COCORetrieval(test_mode=True)')

    def run(self) -> dict[str, float]:
        """Evaluate and return the metrics, percent."""
        runner = self.runner
        runner.call_hook(f'before_{self.split}')
        runner.call_hook(f'before_{self.split}_epoch')
        runner.model.eval()
        blocks = self._blocks()
        try:
            with torch.no_grad(), autocast_context(self.autocast), random_state_kept():
                scores = self.score(blocks)
            metrics = on_first(lambda: self.compute(*scores))
        except BaseException:
            if blocks.names(''):
                runner.logger.error('the evaluation stopped: start it again in the same way, and it goes on from the '
                                    f'finished parts in {blocks.folder}')
            raise
        blocks.remove()  # after on_first, so after the predictions were written
        runner.call_hook(f'after_{self.split}_epoch', metrics=metrics)
        runner.call_hook(f'after_{self.split}')
        return metrics

    @property
    def _model(self):
        return getattr(self.runner.model, 'module', self.runner.model)

    def _blocks(self) -> Blocks:
        """The parts of the evaluation with these weights, data and settings."""
        if not self.block_size:
            return Blocks(None)
        dataset, model = self.dataloader.dataset, self._model
        paths = [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]
        name = digest_of([
            __version__, torch.__version__, fingerprint(model), self.runner.cfg.get('model'), self._config,
            self._batch_size, self.k_test, self.text_batch_size, resolve_dtype(self.autocast), self._device().type,
            torch.get_float32_matmul_precision(), dataset.texts, *model.tokenize(list(dataset.texts)),
            dataset.text_to_image, file_facts(paths), dataset[0]['inputs']])[:16]
        return Blocks(Path(self.runner.work_dir, 'retrieval_blocks', name))

    def score(self, blocks: Blocks | None = None):
        """ITC similarities, and re-ranked scores of both directions.

        Args:
            blocks (Blocks, optional): Where finished parts are kept and found.

        Returns:
            tuple: float32 (I, N), (I, N) and (N, I) on the CPU of the main process; three times None on the others.

        Raises:
            DataError: A similarity is not finite.
        """
        blocks = blocks or Blocks(None)
        dataset, model, (rank, size) = self.dataloader.dataset, self._model, world()
        texts = model.tokenize(list(dataset.texts))
        shelf = Shelf(self.memory_gib * 2**30, Path(self.runner.work_dir))
        done: dict[int, tuple] = {}  # image to texts and logits
        for name in blocks.names('pairs'):
            done.update((blocks.read(name) or {}).get('pairs', {}))
        if blocks.names(''):
            self._say(f'finished parts found: {len(done)} of {len(dataset)} images are re-ranked already')

        text_feats = self._text_features(texts, blocks)  # (N, C)
        own = [list(range(len(dataset)))[start:start + self._batch_size]
               for start in range(0, len(dataset), self._batch_size)][rank::size]
        itc, patches = self._encode(own, done, text_feats, shelf, blocks)
        itc = self._gather_dict(itc, len(dataset))  # (I, N)
        _check_finite(itc)
        if self.k_test == 0:
            return (itc, itc.clone(), itc.T.clone()) if rank == 0 else (None, None, None)
        wanted_i2t, wanted_t2i = _best(itc, self.k_test), _best(itc.T, self.k_test)
        both, total = int((wanted_i2t & wanted_t2i.T).sum()), int(wanted_i2t.sum() + wanted_t2i.sum())
        self._say(f'{len(dataset)} images x {len(dataset.texts)} texts: {total - both} pairs are re-ranked, {both} of '
                  f'them for both directions')
        wanted = {i: (wanted_i2t[i] | wanted_t2i[:, i]).nonzero()[:, 0] for batch in own for i in batch}
        if rank:
            del itc, wanted_i2t, wanted_t2i
        scores = self._rerank(wanted, done, patches, texts, shelf, blocks)
        self._say(f'memory: {shelf.in_memory / 2**30:.2f} GiB of memory_gib={self.memory_gib:g} kept, '
                  f'{shelf.in_files / 2**30:.2f} GiB in files; peak of the process {_peak_gib():.2f} GiB')
        parts = gather_objects(scores)
        if rank:
            return None, None, None
        i2t = torch.full_like(itc, -100.)
        t2i = torch.full_like(itc.T, -100.)
        for part in parts:
            for i, (rows, logits) in part.items():
                i2t[i, rows] = t2i[rows, i] = logits + itc[i, rows]
        return itc, i2t.masked_fill_(~wanted_i2t, -100.), t2i.masked_fill_(~wanted_t2i, -100.)

    def _text_features(self, texts, blocks) -> torch.Tensor:
        """Contrastive features (N, C) of all texts, each encoded by one process."""
        rank, size = world()
        batches = dict(enumerate(texts.mask.sum(dim=1).argsort(stable=True).split(self.text_batch_size)))
        own = {number: rows for number, rows in batches.items() if number % size == rank}
        feats = {}
        bar = self._progress(len(own), 'encode texts, batch')
        for number, rows in own.items():
            kept = blocks.read(f'texts-{number}')
            if kept is None:
                kept = dict(feats=self._model.text_features(texts.rows(rows).trimmed(self._device())).cpu())
                blocks.write(f'texts-{number}', kept)
            feats[number] = kept['feats']
            bar()
        merged = self._merge(feats)
        order = torch.cat(list(batches.values())).argsort()
        return torch.cat([merged[number] for number in batches])[order]

    def _encode(self, own, done, text_feats, shelf, blocks):
        """ITC similarities of the own images, and the patches of those that are not re-ranked yet.

        Args:
            own (list[list[int]]): Images of a batch each.

        Returns:
            tuple: dict of image to float32 (N,), and the patches by image.
        """
        model, device = self._model, self._device()
        kept = {batch[0]: blocks.read(f'images-{batch[0]}') for batch in own}
        needed = [batch for batch in own if kept[batch[0]] is None
                  or self.k_test and any(i not in done for i in batch)]
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
        patches = _Patches(shelf, [i for batch in needed for i in batch if i not in done] if self.k_test else [])
        bar = self._progress(len(needed), 'encode images, batch')
        for batch, data in zip(needed, self._loader(needed)):
            images = model.encode_image(model.data_preprocessor(data, False)['images'])
            if kept[batch[0]] is None:
                kept[batch[0]] = dict(feats=model.image_features(images).cpu())  # (B, Q, C)
                blocks.write(f'images-{batch[0]}', kept[batch[0]])
            for row, i in enumerate(batch):
                if i in patches:
                    patches[i] = images.patches[row:row + 1].to(dtype)
            bar()
        similarity: dict[int, torch.Tensor] = {}
        text_feats = text_feats.to(device)
        with torch.autocast(device.type, enabled=False):  # 16 bits would make ties
            for batch in own:
                for i, feats in zip(batch, kept[batch[0]]['feats']):  # an image at a time: Q x N numbers
                    similarity[i] = query_text_similarity(feats[None].to(device), text_feats)[0].cpu()
        return similarity, patches

    def _rerank(self, wanted, done, patches, texts, shelf, blocks):
        """ITM logits of the wanted pairs.

        Args:
            wanted (dict[int, Tensor]): Image to texts.

        Returns:
            dict[int, tuple]: Image to texts and float32 logits.
        """
        model, device = self._model, self._device()
        scores = {i: done[i] for i, rows in wanted.items() if i in done and torch.equal(done[i][0].long(), rows)}
        todo = [i for i in wanted if i not in scores]
        other = [[i] for i in todo if i not in patches]  # finished once, but with other candidates
        others = _Patches(shelf, [i for i, in other])
        for (i, ), data in zip(other, self._loader(other) if other else ()):
            others[i] = model.encode_image(model.data_preprocessor(data, False)['images']).patches
        starts = _TextStarts(self, texts, [wanted[i] for i in todo], shelf)
        bar = self._progress(sum(len(wanted[i]) for i in todo), 're-rank, pair')
        for count, i in enumerate(todo, 1):
            image_kv = [kv and KeyValue(kv.key.contiguous(), kv.value.contiguous())  # faster for many texts
                        for kv in model.project_image((patches if i in patches else others)[i].to(device))]
            logits = torch.empty(len(wanted[i]))
            for places in _alike(starts.lengths[wanted[i]], self.text_batch_size):
                logits[places] = model.match_started(image_kv, *starts.rows(wanted[i][places]))[:, 1].cpu()
                bar(len(places))
            scores[i] = (wanted[i].int(), logits)
            if self.block_size and (count % self.block_size == 0 or count == len(todo)):
                block = todo[(count - 1) // self.block_size * self.block_size:count]
                blocks.write(f'pairs-{block[0]}-{len(block)}', dict(pairs={j: scores[j] for j in block}))
        return scores

    def compute(self, itc, i2t, t2i) -> dict[str, float]:
        """Recall both ways, of ITC alone and re-ranked; first the best five of every query are written."""
        dataset = self.dataloader.dataset
        text_positives = [[image] for image in dataset.text_to_image]
        image_positives: list[list[int]] = [[] for _ in range(len(dataset))]
        for text, image in enumerate(dataset.text_to_image):
            image_positives[image].append(text)
        predictions = self._predictions(i2t, t2i)
        self.runner.logger.info(f'predictions written to {self._write(predictions)}')
        topk = self.evaluator.metrics[0].topk
        metrics, ranks = {}, {}
        for name, scores, positives in (('i2t/retrieval', i2t, image_positives), ('t2i/retrieval', t2i, text_positives),
                                        ('i2t/itc', itc, image_positives), ('t2i/itc', itc.T, text_positives)):
            ranks[name] = retrieval_ranks(scores, positives)
            recall = recall_from_ranks(ranks[name], topk)
            metrics.update({f'{name}/Recall@{k}': value for k, value in recall.items()})
            metrics[f'{name}/Recall@mean'] = sum(recall.values()) / len(recall)
        self._write(dict(predictions, ranks=ranks))  # the ranks too: the file can be scored again
        return metrics

    def _predictions(self, i2t, t2i) -> dict:
        """What is written: the five best of every query."""
        dataset = self.dataloader.dataset
        images = [dataset.get_data_info(i) for i in range(len(dataset))]
        top_texts, top_images = _top(i2t, 5), _top(t2i, 5)
        return dict(
            images=[info['img_path'] for info in images],
            image_ids=[info['image_id'] for info in images],
            texts=list(dataset.texts),
            text_to_image=list(dataset.text_to_image),
            i2t=[dict(image=i, top=top) for i, top in enumerate(top_texts)],
            t2i=[dict(text=i, top=top) for i, top in enumerate(top_images)])

    def _write(self, result) -> Path:
        """To ``out_file``, whole or not at all."""
        path = Path(self.out_file or Path(self.runner.work_dir, 'predictions', 'retrieval.json'))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + '.partial')
        partial.write_text(json.dumps(result))
        os.replace(partial, path)
        self.ranking = result
        return path

    @property
    def _batch_size(self):
        return getattr(self.dataloader.batch_sampler, 'batch_size', 1)

    def _loader(self, batches) -> Iterator:
        """Batches of the data loader, these ones only.

        Raises:
            RuntimeError: A worker was killed; torch says so, unless the worker was just handing over a batch.
        """
        old = self.dataloader
        loader = DataLoader(old.dataset, batch_sampler=batches, collate_fn=old.collate_fn, num_workers=old.num_workers,
                            pin_memory=old.pin_memory, worker_init_fn=old.worker_init_fn, timeout=old.timeout,
                            prefetch_factor=old.prefetch_factor, multiprocessing_context=old.multiprocessing_context)
        if old.num_workers:
            outlasts_term(loader)
        try:
            yield from loader
        except (ConnectionError, EOFError, FileNotFoundError, RuntimeError) as error:
            # torch says it itself, or passes on what a transform raised in a worker
            if not old.num_workers or str(error).startswith(('DataLoader worker', 'Caught ')):
                raise
            raise RuntimeError(f'a DataLoader worker exited or was killed ({type(error).__name__}: {error}): is there '
                               'enough memory, also shared memory (/dev/shm), for num_workers?') from error

    def _device(self):
        return next(self.runner.model.parameters()).device

    def _say(self, line):
        """Log on the main process."""
        if world()[0] == 0:
            self.runner.logger.info(line)

    def _progress(self, total, what):
        """A callable that advances a progress line on the main process."""
        start, done, said = time.monotonic(), 0, time.monotonic()

        def advance(count=1):
            nonlocal done, said
            done, now = done + count, time.monotonic()
            if done == total or now - said >= _SAY_SECONDS:
                said = now
                left = (now - start) / done * (total - done)
                self._say(f'{what} {done} of {total}, {_duration(left)} left')

        return advance

    @staticmethod
    def _merge(rows: dict) -> dict:
        """The dicts of all processes in one."""
        return {key: value for part in gather_objects(rows) for key, value in part.items()}

    @classmethod
    def _gather_dict(cls, rows, total) -> torch.Tensor:
        merged = cls._merge(rows)
        if len(merged) != total:
            raise RuntimeError(f'{len(merged)} of {total} images were encoded')
        return torch.stack([merged[i] for i in range(total)])


class _Patches:
    """Patches (1, P, E) by image, on a shelf; ``images`` are those that will be kept."""

    def __init__(self, shelf, images):
        self.shelf = shelf
        self.places = {image: torch.tensor([row]) for row, image in enumerate(images)}
        self.rows: Rows | None = None

    def __contains__(self, image):
        return image in self.places

    def __setitem__(self, image, patches):
        if self.rows is None:
            self.rows = self.shelf.rows(len(self.places), patches.shape[1:], patches.dtype)
        self.rows[self.places[image]] = patches.cpu()

    def __getitem__(self, image):
        assert self.rows is not None
        return self.rows[self.places[image]]


class _TextStarts:
    """What the model computes of a text before it reads an image (``start_text``): kept for all wanted texts unless it
    is too large.

    Of a text's tokens only the real ones are kept. Texts are computed in batches that depend on nothing but the texts,
    so that every process gets the same values.
    """

    def __init__(self, loop, texts, wanted, shelf):
        self.loop, self.texts = loop, texts
        self.lengths = texts.mask.sum(dim=1)
        self.offsets = self.lengths.cumsum(0) - self.lengths
        self.kept: list[torch.Tensor | Rows] = []  # a row a text each; the last one a row a token
        used = torch.zeros(len(self.lengths), dtype=torch.bool)
        for rows in wanted:
            used[rows] = True
        if used.any():
            self._keep([rows for rows in self.lengths.argsort(stable=True).split(loop.text_batch_size)
                        if used[rows].any()], shelf)

    def _keep(self, batches, shelf):
        *others, tokens = self._start(batches[0])
        shapes = [(len(self.lengths), *other.shape[1:]) for other in others]
        shapes.append((int(self.lengths.sum()), tokens.size(2)))
        size = sum(math.prod(shape) for shape in shapes) * tokens.element_size()
        device = tokens.device
        if device.type == 'cuda' and 2 * size < torch.cuda.mem_get_info(device)[0]:
            self.kept = [tokens.new_empty(shape) for shape in shapes]
        elif size <= 4 * shelf.room:
            self.kept = [shelf.rows(shape[0], shape[1:], tokens.dtype) for shape in shapes]
        if not self.kept:
            return
        for rows in batches:
            *others, tokens = self._start(rows)
            for kept, other in zip(self.kept, others):
                kept[rows.to(kept.device)] = other.to(kept.device)
            real = self.texts.mask[rows][:, :tokens.size(1)].bool()
            places = (self.offsets[rows][:, None] + torch.arange(tokens.size(1)))[real]
            kept = self.kept[-1]
            kept[places.to(kept.device)] = tokens[real.to(device)].to(kept.device)

    def _start(self, rows):
        return self.loop._model.start_text(self.texts.rows(rows).trimmed(self.loop._device()))

    def rows(self, rows):
        """What ``match_started`` takes of some texts: the tuple, and a mask (B, T) or None where no text is padded."""
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        device = self.loop._device()
        mask = torch.arange(longest) < lengths[:, None]
        on_device = None if mask.all() else mask.to(device)
        if not self.kept:
            return self._start(rows), on_device
        places = (self.offsets[rows][:, None] + torch.arange(longest)).where(mask, self.offsets[rows][:, None])
        indices = [rows] * (len(self.kept) - 1) + [places]
        return tuple(kept[index.to(kept.device)].to(device) for kept, index in zip(self.kept, indices)), on_device


def _alike(lengths: torch.Tensor, most: int) -> list[torch.Tensor]:
    """Batches of at most ``most`` texts of alike lengths: a new length begins a new batch where the last is large
    enough.

    Args:
        lengths: int64 (N,).

    Returns:
        list: int64 places in ``lengths``.
    """
    order = lengths.argsort(stable=True)
    batches: list[list[int]] = [[]]
    last = None
    for place, length in zip(order.tolist(), lengths[order].tolist()):
        if len(batches[-1]) == most or length != last and len(batches[-1]) >= min(most, _ENOUGH_ROWS):
            batches.append([])
        batches[-1].append(place)
        last = length
    return [torch.tensor(batch) for batch in batches]


def _check_finite(itc: torch.Tensor):
    bad = (~itc.isfinite()).nonzero()
    if len(bad):
        i, text = bad[0].tolist()
        raise DataError(f'{len(bad)} ITC similarities are not finite, the first {itc[i, text].item()} of image {i} and '
                        f'text {text}: such a model cannot be ranked')


def _best(scores: torch.Tensor, k: int) -> torch.Tensor:
    """bool mask of the k best columns of every row; of equal ones the first."""
    k = min(k, scores.size(1))
    masks = []
    for rows in scores.split(max(1, (1 << 24) // scores.size(1))):
        least = rows.topk(k, dim=1).values[:, -1:]
        above, equal = rows > least, rows == least
        masks.append(above | equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    return torch.cat(masks)


def _top(scores: torch.Tensor, k: int) -> list[list[tuple]]:
    """Columns and scores of the k best of every row, best first; of equal ones the first column first."""
    columns = _best(scores, k).nonzero()[:, 1].view(len(scores), -1)
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return [list(zip(row, best)) for row, best in zip(columns.gather(1, order).tolist(), values.tolist())]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes:02} min' if hours else f'{minutes} min {seconds:02} s' if minutes else f'{seconds} s'


def _peak_gib() -> float:
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@LOOPS.register_module()
class RetrievalValLoop(_RetrievalLoop):
    __doc__ = _RetrievalLoop.__doc__
    split = 'val'


@LOOPS.register_module()
class RetrievalTestLoop(_RetrievalLoop):
    __doc__ = _RetrievalLoop.__doc__
    split = 'test'
