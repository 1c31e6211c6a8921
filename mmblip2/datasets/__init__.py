"""Data sets, samplers and transforms; importing this package registers them all."""
from . import transforms  # noqa: F401
from .coco_caption import COCOCaption, Flickr30kCaption, NoCaps, VisualGenomeCaption
from .coco_retrieval import COCORetrieval, Flickr30kRetrieval
from .image_text_pairs import ImageTextPairs
from .mixed import MixedDataset
from .mixed_stream import MixedStream
from .nlvr2 import NLVR2
from .question_lists import AOKVQA, GQA, TextVQA, VisualGenomeQA
from .samplers import Draw, SeekableInfiniteSampler, SeekableSampler
from .scene_labels import SceneLabels
from .text_corpus import TextCorpus
from .vqa import COCOVQA
from .web_shards import WebShards
from .web_stream import WebStream

__all__ = [
    'AOKVQA', 'COCOCaption', 'COCORetrieval', 'COCOVQA', 'Draw', 'Flickr30kCaption', 'Flickr30kRetrieval', 'GQA',
    'ImageTextPairs', 'MixedDataset', 'MixedStream', 'NLVR2', 'NoCaps', 'SceneLabels', 'SeekableInfiniteSampler',
    'SeekableSampler', 'TextCorpus', 'TextVQA', 'VisualGenomeCaption', 'VisualGenomeQA', 'WebShards', 'WebStream'
]
