import torch
from torch import nn


class ITMHead(nn.Module):
    """Image-text matching: a two-class linear on every query, averaged over the queries; in BLIP on the first token.

    Args:
        width (int): Width D of Q-Former or MED.
    """

    def __init__(self, width: int):
        super().__init__()
        self.classifier = nn.Linear(width, 2)

    def forward(self, query_feats: torch.Tensor) -> torch.Tensor:
        """(B, Q, D), or (B, 1, D) of a first token, to logits (B, 2); class 1 is 'matches'."""
        return self.classifier(query_feats).mean(dim=1)
