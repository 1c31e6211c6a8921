from .algorithms import (
    Blip2Features,
    Blip2Generation,
    Blip2Representation,
    BlipGeneration,
    LanguagePretraining,
    VisionPretraining,
)
from .data_preprocessor import ImageTextPreprocessor
from .language import CausalLM, Seq2SeqLM
from .med import MED
from .qformer import QFormer
from .tokenizers import BertTokenizer
from .vision import VisionTransformer

__all__ = [
    'BertTokenizer', 'Blip2Features', 'Blip2Generation', 'Blip2Representation', 'BlipGeneration', 'CausalLM',
    'ImageTextPreprocessor', 'LanguagePretraining', 'MED', 'QFormer', 'Seq2SeqLM', 'VisionPretraining',
    'VisionTransformer'
]
