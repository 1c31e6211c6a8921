from .med import MED

__all__ = ['MED']
