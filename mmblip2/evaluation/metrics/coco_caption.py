"""COCO caption metric."""
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mmengine.logging import print_log

from mmblip2.errors import DataError
from mmblip2.evaluation.functional.caption import METRICS as CAPTION_METRICS
from mmblip2.evaluation.functional.caption import caption_scores, check_caption_metrics
from mmblip2.registry import METRICS

from .base import GatheredMetric, plain_id, required


@METRICS.register_module()
class COCOCaptionMetric(GatheredMetric):
    """Bleu, METEOR, ROUGE_L and CIDEr (SPICE on request) of the generated captions, in percent as papers print them.

    Captions are scored as generated and references as annotated, with the official tokenizer only. An image
    that occurs in several samples counts once, with its first caption. Predictions are written in the COCO
    result format, ``[{"image_id": ..., "caption": ...}]``. A split without published captions is only written: the
    result is then empty and the log says so.

    Args:
        ann_file (str, optional): COCO caption file with the references; it may have more images than the data
            set. Defaults to the samples' ``gt_caption``.
        metrics (Sequence[str]): Some of ``Bleu``, ``METEOR``, ``ROUGE_L``, ``CIDEr``, ``SPICE``, or single ones as
            ``Bleu_4``.
        spice_jars (str, optional): Folder with the jars that SPICE needs, see
            :func:`~mmblip2.evaluation.functional.caption.caption_scores`.
        prefix (str): First part of the metric keys.
        out_file (str, optional): See :class:`GatheredMetric`.

    Raises:
        ConfigError: Unknown metric, or Java, pycocoevalcap or a jar of SPICE is missing: at once, not after the
            inference.
        DataError: ``ann_file`` is missing or not a COCO caption file.
    """

    default_prefix = 'caption'
    known_keys = (*(key for keys in CAPTION_METRICS.values() for key in keys), 'SPICE')

    def __init__(self, ann_file: str | None = None, metrics: Sequence[str] = tuple(CAPTION_METRICS),
                 spice_jars: str | None = None, prefix: str = 'caption', out_file: str | None = None):
        super().__init__(prefix=prefix, out_file=out_file)
        self.metrics = check_caption_metrics(metrics, spice_jars)
        self.spice_jars = spice_jars
        self.references = _read_references(ann_file) if ann_file else None
        self.ann_file = ann_file

    def read(self, sample) -> dict:
        result = dict(image_id=plain_id(required(sample, 'image_id')), caption=required(sample, 'pred_text'))
        if self.references is None:
            result['references'] = list(required(sample, 'gt_caption'))
        return result

    def to_predictions(self, results: list) -> list:
        return [dict(image_id=row['image_id'], caption=row['caption']) for row in _first_of_each(results)]

    def compute_metrics(self, results: list) -> dict:
        """Percent; keys as pycocoevalcap's."""
        rows = _first_of_each(results)
        if len(rows) < len(results):
            print_log(f'{len(results) - len(rows)} of {len(results)} samples repeat an image and are not scored again',
                      'current')
        if self.references is None:
            references = {row['image_id']: row['references'] for row in rows}
            if not any(references.values()):
                print_log('COCOCaptionMetric: no ground truth, nothing is scored; predictions: '
                          f'{self._path()}', 'current')
                return {}
        else:
            unknown = [row['image_id'] for row in rows if str(row['image_id']) not in self.references]
            if unknown:
                raise DataError(f'{len(unknown)} of {len(rows)} predicted images are not in {self.ann_file}, '
                                f'for example {unknown[:5]}: ann_file of the metric and of the data set must '
                                'agree')
            references = {row['image_id']: self.references[str(row['image_id'])] for row in rows}
        scores = caption_scores({row['image_id']: row['caption'] for row in rows}, references, self.metrics,
                                self.spice_jars)
        return {key: 100 * value for key, value in scores.items()}


def _first_of_each(results: list) -> list:
    rows: dict[str, dict] = {}
    for row in results:
        rows.setdefault(str(row['image_id']), row)
    return list(rows.values())


def _read_references(ann_file: str) -> dict:
    """Image id as str -> captions."""
    try:
        annotations = json.loads(Path(ann_file).read_text())['annotations']
        references = defaultdict(list)
        for row in annotations:
            references[str(row['image_id'])].append(row['caption'])
    except FileNotFoundError:
        raise DataError(f'ann_file {ann_file} of COCOCaptionMetric not found') from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'ann_file {ann_file} of COCOCaptionMetric is not a COCO caption file '
                        f'({type(error).__name__}: {error}): expected '
                        '{"annotations": [{"image_id": ..., "caption": ...}]}') from None
    return dict(references)
