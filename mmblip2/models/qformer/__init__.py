from .masks import self_attention_mask
from .qformer import QFormer

__all__ = ['QFormer', 'self_attention_mask']
