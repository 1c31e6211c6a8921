from .med import MED
from .twin import TwinMED

__all__ = ['MED', 'TwinMED']
