from .base import GatheredMetric
from .coco_caption import COCOCaptionMetric
from .language import Perplexity
from .nlvr import NLVRAccuracy
from .retrieval import RetrievalRecall
from .submission import ServerSubmission
from .vision import PatchAccuracy
from .vqa import ANLSMetric, AOKVQAMetric, GQAMetric, TextVQAMetric, VQAMetric

__all__ = [
    'ANLSMetric', 'AOKVQAMetric', 'COCOCaptionMetric', 'GQAMetric', 'GatheredMetric', 'NLVRAccuracy', 'PatchAccuracy',
    'Perplexity', 'RetrievalRecall', 'ServerSubmission', 'TextVQAMetric', 'VQAMetric',
]
