from .itc import ITCHead, project
from .itm import ITMHead
from .lm import LMHead
from .momentum import MomentumCopies, advance, check_queue, random_queue

__all__ = ['ITCHead', 'ITMHead', 'LMHead', 'MomentumCopies', 'advance', 'check_queue', 'project', 'random_queue']
