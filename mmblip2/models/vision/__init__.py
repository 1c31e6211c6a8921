from .adapters import *  # noqa: F403
from .vit import VisionTransformer

__all__ = ['VisionTransformer']
