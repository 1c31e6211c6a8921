"""Transforms: a results dict in, a results dict out; every task becomes (image, prompt, target)."""
from .image import LoadImage, RandAugment, RandomFlip, RandomResizedCrop, Resize
from .pack import PackInputs
from .pairs import EachImage, SwapImages
from .text import CaptionPrompt, CleanCaption, CleanQuestion, PrefixSplit, VQAPrompt

__all__ = [
    'CaptionPrompt', 'CleanCaption', 'CleanQuestion', 'EachImage', 'LoadImage', 'PackInputs', 'PrefixSplit',
    'RandAugment', 'RandomFlip', 'RandomResizedCrop', 'Resize', 'SwapImages', 'VQAPrompt'
]
