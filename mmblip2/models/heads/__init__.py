from .itc import ITCHead, project
from .itm import ITMHead
from .lm import LMHead
from .momentum import QUEUES, MomentumCopies, advance, check_queue, random_queue

__all__ = [
    'QUEUES', 'ITCHead', 'ITMHead', 'LMHead', 'MomentumCopies', 'advance', 'check_queue', 'project', 'random_queue'
]
