"""Image-text retrieval in two passes: rank everything by ITC, then re-rank the best candidates by ITM.

The loop schedules and gathers; scores come from the model, recall from ``evaluation.functional``.
Shapes: I images, N texts, Q queries, C contrastive width, k re-ranked candidates.
"""
import json
import os
import time
from pathlib import Path

import torch
from mmengine.runner import BaseLoop

from mmblip2.errors import ConfigError
from mmblip2.evaluation.functional import recall_from_ranks, retrieval_ranks
from mmblip2.models.losses import query_text_similarity
from mmblip2.registry import LOOPS
from mmblip2.utils.dist import gather_objects, world

from .autocast import autocast_context
from .random_state import random_state_kept


class _RetrievalLoop(BaseLoop):
    """Evaluate retrieval both ways on a data set with ``texts`` and ``text_to_image``.

    As LAVIS, a re-ranked pair scores ITM logit + ITC cosine, and pairs outside the k best of a query -100. Unlike
    LAVIS, images and texts are encoded once over all processes, an image's cross-attention keys and values are
    computed once for all its texts, and a pair wanted by both directions is scored once.

    Args:
        runner (Runner): The runner.
        dataloader (dict or DataLoader): Of a data set in test mode, one row an image.
        evaluator (dict, optional): ``dict(type='RetrievalRecall', topk=(1, 5, 10))``.
        k_test (int): Candidates that are re-ranked for every query (128 in the paper); 0 re-ranks nothing.
        text_batch_size (int): Texts encoded, and pairs scored, at a time.
        autocast (str, optional): 'auto', 'bfloat16', 'float16' or 'float32'; None: as ``optim_wrapper`` says.
        out_file (str, optional): Where the five best of every query are written, before scoring. Defaults to
            ``<work_dir>/predictions/retrieval.json``.
    """

    split = ''

    def __init__(self, runner, dataloader, evaluator=None, k_test: int = 128, text_batch_size: int = 256,
                 autocast: str | None = None, out_file: str | None = None):
        super().__init__(runner, dataloader)
        self.evaluator = runner.build_evaluator(evaluator or dict(type='RetrievalRecall'))
        self.k_test = k_test
        self.text_batch_size = text_batch_size
        self.autocast = runner.eval_autocast if autocast is None else autocast
        self.out_file = out_file
        self.ranking: dict | None = None  # on the main process, what was written of the last run
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
        with torch.no_grad(), autocast_context(self.autocast), random_state_kept():
            itc, i2t, t2i = self.score()
        metrics = self.compute(itc, i2t, t2i)
        runner.call_hook(f'after_{self.split}_epoch', metrics=metrics)
        runner.call_hook(f'after_{self.split}')
        return metrics

    def score(self):
        """ITC similarities, and re-ranked scores of both directions.

        Returns:
            tuple: float32 (I, N), (I, N) and (N, I) on the CPU, the same on every process.
        """
        model = getattr(self.runner.model, 'module', self.runner.model)
        dataset = self.dataloader.dataset
        rank, size = world()
        device = next(model.parameters()).device

        texts = model.tokenize(list(dataset.texts))
        own_text = torch.arange(len(dataset.texts)).split(self.text_batch_size)[rank::size]  # batches as of one process
        text_feats = self._gather_rows(torch.cat(own_text) if own_text else None, torch.cat([  # (N, C)
            model.text_features(texts.rows(rows).trimmed(device)) for rows in own_text]) if own_text else None)

        encoded: dict[int, torch.Tensor] = {}
        similarity: dict[int, torch.Tensor] = {}
        bar = self._progress(len(self.dataloader), 'encode images')
        for batch in self.dataloader:
            data = model.data_preprocessor(batch, False)
            images = model.encode_image(data['images'])
            rows = query_text_similarity(model.image_features(images), text_feats.to(images.patches.device))
            for i, sample in enumerate(data['data_samples']):
                encoded.setdefault(sample.sample_idx, images.patches[i:i + 1].to(self._store_dtype()))
                similarity.setdefault(sample.sample_idx, rows[i].float().cpu())
            bar()
        itc = self._gather_dict(similarity, len(dataset))  # (I, N)

        i2t = torch.full_like(itc, -100.)
        t2i = torch.full_like(itc.T, -100.)
        if self.k_test == 0:
            return itc, itc.clone(), itc.T.clone()
        wanted_i2t, wanted_t2i = _best(itc, self.k_test), _best(itc.T, self.k_test)
        wanted = wanted_i2t | wanted_t2i.T
        scores: dict[int, list] = {}
        bar = self._progress(len(encoded), 're-rank images')
        for i in sorted(encoded):
            index = wanted[i].nonzero()[:, 0]
            image_kv = model.qformer.project_image(encoded[i].float())
            index = index[texts.mask[index].sum(dim=1).argsort(stable=True)]  # alike lengths share a batch
            for rows in index.split(self.text_batch_size):
                logits = model.score_pairs(image_kv, texts.rows(rows).trimmed(device)).cpu()
                scores.setdefault(i, []).append((rows, logits))
            bar()
        for part in gather_objects(scores):
            for i, chunks in part.items():
                for rows, logits in chunks:
                    i2t[i, rows] = t2i[rows, i] = logits + itc[i, rows]
        return itc, i2t.masked_fill(~wanted_i2t, -100.), t2i.masked_fill(~wanted_t2i, -100.)

    def compute(self, itc, i2t, t2i) -> dict[str, float]:
        """Recall both ways, of ITC alone and re-ranked; rank 0 first writes the best five of every query."""
        dataset = self.dataloader.dataset
        text_positives = [[image] for image in dataset.text_to_image]
        image_positives: list[list[int]] = [[] for _ in range(len(dataset))]
        for text, image in enumerate(dataset.text_to_image):
            image_positives[image].append(text)
        predictions = self._predictions(i2t, t2i) if world()[0] == 0 else None
        if predictions is not None:
            self.runner.logger.info(f'predictions written to {self._write(predictions)}')
        topk = self.evaluator.metrics[0].topk
        metrics, ranks = {}, {}
        for name, scores, positives in (('i2t/retrieval', i2t, image_positives), ('t2i/retrieval', t2i, text_positives),
                                        ('i2t/itc', itc, image_positives), ('t2i/itc', itc.T, text_positives)):
            ranks[name] = retrieval_ranks(scores, positives)
            recall = recall_from_ranks(ranks[name], topk)
            metrics.update({f'{name}/Recall@{k}': value for k, value in recall.items()})
            metrics[f'{name}/Recall@mean'] = sum(recall.values()) / len(recall)
        if predictions is not None:  # the ranks too: the file can be scored again
            self._write(dict(predictions, ranks=ranks))
        return metrics

    def _predictions(self, i2t, t2i) -> dict:
        """What is written: the five best of every query."""
        dataset = self.dataloader.dataset
        images = [dataset.get_data_info(i) for i in range(len(dataset))]
        top_texts, top_images = (scores.topk(min(5, scores.size(1)), dim=1) for scores in (i2t, t2i))
        return dict(
            images=[info['img_path'] for info in images],
            image_ids=[info['image_id'] for info in images],
            texts=list(dataset.texts),
            text_to_image=list(dataset.text_to_image),
            i2t=[dict(image=i, top=list(zip(top_texts.indices[i].tolist(), top_texts.values[i].tolist())))
                 for i in range(len(i2t))],
            t2i=[dict(text=i, top=list(zip(top_images.indices[i].tolist(), top_images.values[i].tolist())))
                 for i in range(len(t2i))])

    def _write(self, result) -> Path:
        """To ``out_file``, whole or not at all."""
        path = Path(self.out_file or Path(self.runner.work_dir, 'predictions', 'retrieval.json'))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + '.partial')
        partial.write_text(json.dumps(result))
        os.replace(partial, path)
        self.ranking = result
        return path

    def _store_dtype(self):
        """bfloat16 halves the memory of the kept patches where the model computes in it anyway."""
        return torch.bfloat16 if torch.is_autocast_enabled(self._device_type()) else torch.float32

    def _device_type(self):
        return next(self.runner.model.parameters()).device.type

    def _progress(self, total, what):
        """A callable that advances a progress line on rank 0."""
        if world()[0] != 0:
            return lambda: None
        logger, start, done = self.runner.logger, time.time(), 0

        def advance():
            nonlocal done
            done += 1
            if done == total or done % max(1, total // 5) == 0:
                left = (time.time() - start) / done * (total - done)
                logger.info(f'{what}: {done}/{total}, {left:.0f} s left')

        return advance

    @staticmethod
    def _gather_rows(index, rows) -> torch.Tensor:
        """Rows of all processes in the order of their index."""
        parts = gather_objects((index, rows.cpu() if rows is not None else None))
        parts = [part for part in parts if part[1] is not None]
        order = torch.cat([index for index, _ in parts]).argsort()
        return torch.cat([rows for _, rows in parts])[order]

    @staticmethod
    def _gather_dict(rows, total) -> torch.Tensor:
        merged = {}
        for part in gather_objects(rows):
            merged.update(part)
        if len(merged) != total:
            raise RuntimeError(f'{len(merged)} of {total} images were encoded: the sampler lost some')
        return torch.stack([merged[i] for i in range(total)])


def _best(scores: torch.Tensor, k: int) -> torch.Tensor:
    """bool mask of the k best columns of every row."""
    k = min(k, scores.size(1))
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(k, dim=1).indices, True)


@LOOPS.register_module()
class RetrievalValLoop(_RetrievalLoop):
    __doc__ = _RetrievalLoop.__doc__
    split = 'val'


@LOOPS.register_module()
class RetrievalTestLoop(_RetrievalLoop):
    __doc__ = _RetrievalLoop.__doc__
    split = 'test'
