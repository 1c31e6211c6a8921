from .base import BaseInferencer
from .caption import ImageCaptionInferencer
from .chat import ChatInferencer
from .features import FeatureExtractor
from .inference import inference_model
from .matching import ImageTextMatchingInferencer
from .models import get_model, list_models
from .nlvr import NLVRInferencer
from .retrieval import ImageToTextRetrievalInferencer, TextToImageRetrievalInferencer
from .vqa import VisualQuestionAnsweringInferencer

__all__ = [
    'BaseInferencer', 'ChatInferencer', 'FeatureExtractor', 'ImageCaptionInferencer', 'ImageTextMatchingInferencer',
    'ImageToTextRetrievalInferencer', 'NLVRInferencer', 'TextToImageRetrievalInferencer',
    'VisualQuestionAnsweringInferencer', 'get_model', 'inference_model', 'list_models'
]
