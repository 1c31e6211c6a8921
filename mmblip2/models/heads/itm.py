import torch
from torch import nn


class ITMHead(nn.Module):
    """Image-text matching: a two-class linear on every query, averaged over the queries.

    Args:
        width (int): Q-Former width D.
    """

    def __init__(self, width: int):
        super().__init__()
        self.classifier = nn.Linear(width, 2)

    def forward(self, query_feats: torch.Tensor) -> torch.Tensor:
        """(B, Q, D) to logits (B, 2); class 1 is 'matches'."""
        return self.classifier(query_feats).mean(dim=1)
