from .adapters import *  # noqa: F401,F403
from .vit import VisionTransformer

__all__ = ['VisionTransformer']
