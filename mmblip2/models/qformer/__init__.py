from .qformer import QFormer

__all__ = ['QFormer']
