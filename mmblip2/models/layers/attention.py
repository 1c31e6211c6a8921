"""Multi-head attention whose keys and values can be computed once and used many times.

Shapes: B batch, L rows that ask, S rows that are looked at, D width, E width of the other modality, H heads, d = D/H.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class KeyValue(NamedTuple):
    """Projected keys and values, each (B, H, S, d)."""
    key: torch.Tensor
    value: torch.Tensor

    def rows(self, index) -> 'KeyValue':
        """The batch rows ``index`` (int64 tensor or slice)."""
        return KeyValue(self.key[index], self.value[index])

    @staticmethod
    def cat(parts, dim: int) -> 'KeyValue':
        """Concatenate along ``dim`` (0: batch, 2: sequence)."""
        return KeyValue(*(torch.cat(tensors, dim) for tensors in zip(*parts)))


def scaled_attention(query, key, value, mask=None, dropout=0.):
    """``scaled_dot_product_attention`` in the type that is fastest where it runs.

    On CPUs the bfloat16 backward of torch 2.15 takes seven times as long as the float32 one (stage 1 of the
    quickstart, two cores), so gradients go through float32 there.

    Args:
        query, key, value: (B, H, L or S, d).
        mask: bool, broadcastable to (B, H, L, S); True means visible.
        dropout: Probability of dropping an attention weight.

    Returns:
        torch.Tensor: (B, H, L, d) in the type of ``query``.
    """
    dtype = query.dtype
    if query.device.type == 'cpu' and query.requires_grad and dtype == torch.bfloat16:
        query, key, value = query.float(), key.float(), value.float()
        with torch.autocast('cpu', enabled=False):
            return F.scaled_dot_product_attention(query, key, value, mask, dropout).to(dtype)
    return F.scaled_dot_product_attention(query, key, value, mask, dropout)


class Attention(nn.Module):
    """Multi-head attention with separate projections, through ``scaled_dot_product_attention``.

    Args:
        width (int): Width D of the rows that ask and of the output.
        num_heads (int): Number of heads H; must divide ``width``.
        kv_width (int, optional): Width E of the rows that are looked at. Defaults to ``width``.
        dropout (float): Dropout on the attention weights in training.

    Raises:
        ValueError: If ``num_heads`` does not divide ``width``.
    """

    def __init__(self, width: int, num_heads: int, kv_width: int | None = None, dropout: float = 0.):
        super().__init__()
        if width % num_heads:
            raise ValueError(f'width {width} is not a multiple of num_heads {num_heads}')
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(kv_width or width, width)
        self.value = nn.Linear(kv_width or width, width)
        self.output = nn.Linear(width, width)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, S, d)

    def project_kv(self, x: torch.Tensor) -> KeyValue:
        """Keys and values of ``x`` (B, S, E)."""
        return KeyValue(self._heads(self.key(x)), self._heads(self.value(x)))

    def forward(self, x: torch.Tensor, kv: KeyValue, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Attend from ``x`` to ``kv``.

        Args:
            x: (B, L, D).
            kv: Keys and values of B rows, or of fewer: each is then shared by as many rows of ``x`` that follow one
                another.
            mask: bool, broadcastable to (B, H, L, S); True means visible. Of shared keys (rows of ``kv``, 1, 1, S).

        Returns:
            torch.Tensor: (B, L, D).
        """
        batch, length, width = x.shape
        query = self.query(x)
        if kv.key.size(0) != batch:  # one image, many texts: fold the batch into the rows instead of copying K and V
            query = query.reshape(kv.key.size(0), -1, width)
        out = scaled_attention(self._heads(query), kv.key, kv.value, mask,
                               self.dropout if self.training else 0.)  # (B, H, L, d)
        return self.output(out.transpose(1, 2).reshape(batch, length, width))
