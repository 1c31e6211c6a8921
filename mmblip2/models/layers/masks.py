"""The three self-attention masks of BLIP-2's figure 2, drawn for Q = 2 queries and T = 3 text tokens.

A row asks, a column is looked at; 1 means visible.

```
  bidirectional (ITM)   causal (ITG)      unimodal (ITC)
      q q t t t           q q t t t         q q t t t
  q   1 1 1 1 1       q   1 1 0 0 0     q   1 1 0 0 0
  q   1 1 1 1 1       q   1 1 0 0 0     q   1 1 0 0 0
  t   1 1 1 1 1       t   1 1 1 0 0     t   0 0 1 1 1
  t   1 1 1 1 1       t   1 1 1 1 0     t   0 0 1 1 1
  t   1 1 1 1 1       t   1 1 1 1 1     t   0 0 1 1 1
```
Padded text columns are 0 in every row.
"""
import torch


def self_attention_mask(kind: str, num_query: int, text_mask: torch.Tensor) -> torch.Tensor:
    """Build one of the three masks.

    Args:
        kind: 'bidirectional', 'causal' or 'unimodal'.
        num_query: Number of queries Q in front of the text.
        text_mask: (B, T), nonzero where a token is real, zero at padding.

    Returns:
        torch.Tensor: bool (B, 1, Q+T, Q+T), True where visible.

    Raises:
        ValueError: For another ``kind``.
    """
    length = num_query + text_mask.size(1)
    is_text = torch.arange(length, device=text_mask.device) >= num_query
    row, column = is_text[:, None], is_text[None, :]
    if kind == 'bidirectional':
        visible = torch.ones(length, length, dtype=torch.bool, device=text_mask.device)
    elif kind == 'causal':
        visible = ~column | (row & torch.ones_like(row & column).tril())
    elif kind == 'unimodal':
        visible = row == column
    else:
        raise ValueError(f"mask kind {kind!r} is not one of 'bidirectional', 'causal', 'unimodal'")
    real = torch.cat([text_mask.new_ones(len(text_mask), num_query, dtype=torch.bool), text_mask.bool()], dim=1)
    return visible & real[:, None, None, :]
