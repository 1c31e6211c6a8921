"""Metrics: pure functions in ``functional`` and the mmengine metrics over them in ``metrics``."""
from .functional import caption_scores, retrieval_recall, vqa_accuracy
from .metrics import COCOCaptionMetric, GatheredMetric, PatchAccuracy, Perplexity, RetrievalRecall, VQAMetric

__all__ = [
    'COCOCaptionMetric', 'GatheredMetric', 'PatchAccuracy', 'Perplexity', 'RetrievalRecall', 'VQAMetric',
    'caption_scores', 'retrieval_recall', 'vqa_accuracy',
]
