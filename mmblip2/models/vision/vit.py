"""Vision Transformer that returns all tokens (the encoder of BLIP-2, EVA-ViT-g by default arguments' names).

Shapes: B images, P tokens (class token and patches), E width.
"""
from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS

from ..layers import Mlp
from ..layers.attention import scaled_attention


class SelfAttention(nn.Module):
    """Self-attention with one fused projection; its bias has no key part (a key bias cannot change a softmax)."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))  # (B, P, 3, H, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        out = scaled_attention(query, key, value)  # (B, H, P, d)
        return self.proj(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int, mlp_width: int, eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = SelfAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, mlp_width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@MODELS.register_module()
class VisionTransformer(nn.Module):
    """ViT with learned absolute positions, no head and no final norm (BLIP-2 normalises outside).

    Args:
        image_size (int): Side of the square input in pixels.
        patch_size (int): Side of a patch in pixels; must divide ``image_size``.
        width (int): Token width E.
        depth (int): Number of blocks.
        num_heads (int): Attention heads.
        mlp_width (int, optional): Hidden width of the MLPs. Defaults to 4 * width.
        eps (float): Epsilon of the LayerNorms.
        weights (str, optional): Checkpoint with this encoder's weights, alone or under the prefix ``vision.``.

    Raises:
        ConfigError: If ``patch_size`` does not divide ``image_size``.
        CheckpointError: If ``weights`` does not fit.
    """

    def __init__(self, image_size: int = 224, patch_size: int = 14, width: int = 1408, depth: int = 39,
                 num_heads: int = 16, mlp_width: Optional[int] = None, eps: float = 1e-6,
                 weights: Optional[str] = None):
        super().__init__()
        if image_size % patch_size:
            raise ConfigError(f'image_size {image_size} is not a multiple of patch_size {patch_size}')
        self.image_size = image_size
        self.embed_dim = width
        self.weights_source = weights
        self.patch_embed = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (image_size // patch_size)**2 + 1, width))
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_width or 4 * width, eps) for _ in range(depth))
        self._init_weights()
        if weights:
            from mmblip2.checkpoints.io import load_weights
            load_weights(self, weights, prefix='vision')

    def _init_weights(self):
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            images: float (B, 3, S, S), normalised, S = ``image_size``.

        Returns:
            torch.Tensor: (B, P, E), the class token first, then the patches row by row.

        Raises:
            ConfigError: If the images have another size.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ConfigError(
                f'image size of the model ({self.image_size}) and of the pipeline '
                f'({tuple(images.shape[-2:])}) differ: set both to one value')
        x = self.patch_embed(images).flatten(2).transpose(1, 2)  # (B, P-1, E)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x
