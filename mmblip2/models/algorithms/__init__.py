from .blip2_features import Blip2Features
from .blip2_generation import Blip2Generation
from .blip2_representation import Blip2Representation
from .blip_features import BlipFeatures
from .blip_generation import BlipGeneration
from .blip_nlvr import BlipNLVR
from .blip_representation import BlipRepresentation
from .pretraining import LanguagePretraining, VisionPretraining
from .representation import Representation

__all__ = [
    'Blip2Features', 'Blip2Generation', 'Blip2Representation', 'BlipFeatures', 'BlipGeneration', 'BlipNLVR',
    'BlipRepresentation', 'LanguagePretraining', 'Representation', 'VisionPretraining'
]
