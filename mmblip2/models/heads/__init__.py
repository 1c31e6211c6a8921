from .itc import ITCHead
from .itm import ITMHead
from .lm import LMHead

__all__ = ['ITCHead', 'ITMHead', 'LMHead']
