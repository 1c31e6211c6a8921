from .base import GatheredMetric
from .coco_caption import COCOCaptionMetric
from .language import Perplexity
from .retrieval import RetrievalRecall
from .vision import PatchAccuracy
from .vqa import VQAMetric

__all__ = [
    'COCOCaptionMetric', 'GatheredMetric', 'PatchAccuracy', 'Perplexity', 'RetrievalRecall', 'VQAMetric',
]
