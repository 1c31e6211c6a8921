"""Data sets, samplers and transforms; importing this package registers them all."""
from . import transforms  # noqa: F401
from .coco_caption import COCOCaption
from .coco_retrieval import COCORetrieval
from .image_text_pairs import ImageTextPairs
from .samplers import Draw, SeekableInfiniteSampler, SeekableSampler
from .scene_labels import SceneLabels
from .text_corpus import TextCorpus
from .vqa import COCOVQA

__all__ = [
    'COCOCaption', 'COCORetrieval', 'COCOVQA', 'Draw', 'ImageTextPairs', 'SceneLabels',
    'SeekableInfiniteSampler', 'SeekableSampler', 'TextCorpus'
]
