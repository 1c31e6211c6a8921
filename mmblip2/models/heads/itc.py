from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmblip2.errors import ConfigError


def project(layer: nn.Module, feats: torch.Tensor) -> torch.Tensor:
    """Features (..., D) through ``layer`` to normalised float32 (..., C)."""
    return F.normalize(layer(feats).float(), dim=-1)


class ITCHead(nn.Module):
    """Projections and temperature of image-text contrastive learning.

    Args:
        width (int): Width D of what is projected.
        embed_dim (int): Contrastive width C.
        temperature (float): Initial temperature; learned, similarities are divided by it.
        image (bool): Build the projection of images.
        text (bool): Build the projection of texts.
        image_width (int, optional): Width of what is projected of an image (BLIP: the vision encoder's). Defaults to
            ``width``.
        dropout (float): In training, of the features before they are projected.

    Raises:
        ConfigError: ``dropout`` is not from 0 to below 1.
    """
    vision_proj: Any
    text_proj: Any

    def __init__(self, width: int, embed_dim: int = 256, temperature: float = 0.07, image: bool = True,
                 text: bool = True, image_width: int | None = None, dropout: float = 0.):
        if not 0 <= dropout < 1:
            raise ConfigError(f'dropout of contrastive features is {dropout!r}, expected a number from 0 to below 1')
        super().__init__()
        self.vision_proj = nn.Linear(image_width or width, embed_dim) if image else None
        self.text_proj = nn.Linear(width, embed_dim) if text else None
        self.temperature = nn.Parameter(torch.tensor(temperature))
        self.dropout = nn.Dropout(dropout)

    def image_features(self, query_feats: torch.Tensor) -> torch.Tensor:
        """(B, Q, D) to normalised float32 (B, Q, C)."""
        return project(self.vision_proj, self.dropout(query_feats))

    def text_features(self, cls_feats: torch.Tensor) -> torch.Tensor:
        """(B, D) to normalised float32 (B, C)."""
        return project(self.text_proj, self.dropout(cls_feats))
