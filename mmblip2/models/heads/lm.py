import torch
import torch.nn.functional as F
from torch import nn


class LMHead(nn.Module):
    """BERT's prediction head; its decoder is the word embedding table, which the caller passes.

    Args:
        width (int): Width D of Q-Former or MED.
        vocab_size (int): Vocabulary size V.
        eps (float): Epsilon of the LayerNorm.
    """

    def __init__(self, width: int, vocab_size: int, eps: float = 1e-12):
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, text_feats: torch.Tensor, word_embeddings: torch.Tensor) -> torch.Tensor:
        """(B, T, D) and the table (V, D) to logits (B, T, V)."""
        return F.linear(self.norm(F.gelu(self.transform(text_feats))), word_embeddings, self.bias)
