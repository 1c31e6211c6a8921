import torch
import torch.nn.functional as F
from torch import nn


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them.

    Args:
        width (int): Width of input and output.
        hidden_width (int): Width between the two layers.
    """

    def __init__(self, width: int, hidden_width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., width) to (..., width)."""
        return self.fc2(F.gelu(self.fc1(x)))
