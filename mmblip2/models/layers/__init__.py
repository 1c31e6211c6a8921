from .attention import Attention
from .bert import BertTower, PostNormLayer
from .masks import self_attention_mask
from .mlp import Mlp

__all__ = ['Attention', 'BertTower', 'Mlp', 'PostNormLayer', 'self_attention_mask']
