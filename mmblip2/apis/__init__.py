from .inference import inference_model
from .models import get_model, list_models

__all__ = ['get_model', 'inference_model', 'list_models']
