from .base import BaseInferencer
from .caption import ImageCaptionInferencer
from .chat import ChatInferencer
from .inference import inference_model
from .models import get_model, list_models
from .vqa import VisualQuestionAnsweringInferencer

__all__ = [
    'BaseInferencer', 'ChatInferencer', 'ImageCaptionInferencer', 'VisualQuestionAnsweringInferencer', 'get_model',
    'inference_model', 'list_models'
]
