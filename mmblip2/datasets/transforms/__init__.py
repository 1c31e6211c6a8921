"""Transforms: a results dict in, a results dict out; every task becomes (image, prompt, target)."""
from .image import LoadImage, RandomFlip, RandomResizedCrop, Resize
from .pack import PackInputs
from .text import CaptionPrompt, CleanCaption, CleanQuestion, PrefixSplit, VQAPrompt

__all__ = [
    'CaptionPrompt', 'CleanCaption', 'CleanQuestion', 'LoadImage', 'PackInputs', 'PrefixSplit',
    'RandomFlip', 'RandomResizedCrop', 'Resize', 'VQAPrompt'
]
