from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from mmblip2.errors import ConfigError


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """The approximation of GELU that CLIP was trained with, x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = dict(gelu=F.gelu, quick_gelu=quick_gelu)


class Mlp(nn.Module):
    """Two linear layers with an activation between them.

    Args:
        width (int): Width of input and output.
        hidden_width (int): Width between the two layers.
        activation (str): ``'gelu'`` (exact, erf) or ``'quick_gelu'``.

    Raises:
        ConfigError: If ``activation`` is neither.
    """

    def __init__(self, width: int, hidden_width: int, activation: str = 'gelu'):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f'activation {activation!r} is unknown: set it to one of '
                              f'{", ".join(map(repr, ACTIVATIONS))}')
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., width) to (..., width)."""
        return self.fc2(self.activation(self.fc1(x)))
