from .attention import Attention
from .mlp import Mlp

__all__ = ['Attention', 'Mlp']
