from .base import BaseInferencer
from .caption import ImageCaptionInferencer
from .chat import ChatInferencer
from .inference import get_model, inference_model
from .vqa import VisualQuestionAnsweringInferencer

__all__ = [
    'BaseInferencer', 'ChatInferencer', 'ImageCaptionInferencer', 'VisualQuestionAnsweringInferencer', 'get_model',
    'inference_model'
]
