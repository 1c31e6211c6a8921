from .algorithms import (
    Blip2Features,
    Blip2Generation,
    Blip2Representation,
    BlipFeatures,
    BlipGeneration,
    BlipNLVR,
    BlipRepresentation,
    LanguagePretraining,
    Representation,
    VisionPretraining,
)
from .data_preprocessor import ImageTextPreprocessor
from .language import CausalLM, Seq2SeqLM
from .med import MED, TwinMED
from .qformer import QFormer
from .tokenizers import BertTokenizer
from .vision import VisionTransformer

__all__ = [
    'BertTokenizer', 'Blip2Features', 'Blip2Generation', 'Blip2Representation', 'BlipFeatures', 'BlipGeneration',
    'BlipNLVR', 'BlipRepresentation', 'CausalLM', 'ImageTextPreprocessor', 'LanguagePretraining', 'MED', 'QFormer',
    'Representation', 'Seq2SeqLM', 'TwinMED', 'VisionPretraining', 'VisionTransformer'
]
