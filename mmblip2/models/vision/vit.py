"""Vision Transformer that returns all tokens: the encoders of BLIP-2, EVA-ViT-g and CLIP ViT-L, and smaller ones.

Shapes: B images, P tokens (class token and patches), E width.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS

from ..layers import Mlp
from ..layers.attention import scaled_attention


class SelfAttention(nn.Module):
    """Self-attention with one fused projection.

    Args:
        width (int): Width E.
        num_heads (int): Number of heads; must divide ``width``.
        qkv_bias (str): ``'qv'``: no bias for the keys (it cannot change a softmax), as EVA; ``'full'``, as CLIP.

    Raises:
        ConfigError: If ``num_heads`` does not divide ``width``, or ``qkv_bias`` is neither.
    """

    def __init__(self, width: int, num_heads: int, qkv_bias: str = 'qv'):
        super().__init__()
        if qkv_bias not in ('qv', 'full'):
            raise ConfigError(f"qkv_bias {qkv_bias!r} is unknown: set it to one of 'qv', 'full'")
        if width % num_heads:
            raise ConfigError(f'width {width} is not a multiple of num_heads {num_heads}: change one of them')
        self.num_heads = num_heads
        self.qkv_bias = qkv_bias
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias == 'full')
        if qkv_bias == 'qv':
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias: torch.Tensor = self.qkv.bias
        if self.qkv_bias == 'qv':
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))  # (B, P, 3, H, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        out = scaled_attention(query, key, value)  # (B, H, P, d)
        return self.proj(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Transformer block with a LayerNorm before each half; in training an image skips a half with probability
    ``drop_path``."""

    def __init__(self, width: int, num_heads: int, mlp_width: int, eps: float, activation: str, qkv_bias: str,
                 drop_path: float = 0.):
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = SelfAttention(width, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, mlp_width, activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self._dropped(self.attn(self.norm1(x)))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        """Some images' rows are zero and the others larger, so that the mean stays."""
        if not self.training or not self.drop_path:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
        return x * (kept / (1 - self.drop_path)).to(x.dtype)


def resize_positions(table: torch.Tensor, grid: int, align_corners: bool) -> torch.Tensor:
    """Positions for another number of patches, bicubic; the class token keeps its own.

    Args:
        table: float (1, 1 + g * g, E), the class token first, then the patches row by row.
        grid: Patches along a side of the new images.
        align_corners: Whether the corner patches keep their positions exactly (see ``F.interpolate``).

    Returns:
        torch.Tensor: (1, 1 + grid * grid, E) in the type of ``table``.
    """
    side = math.isqrt(table.size(1) - 1)
    patches = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, E, g, g)
    patches = F.interpolate(patches, size=(grid, grid), mode='bicubic', align_corners=align_corners)
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def not_a_multiple(image_size: int, patch_size: int) -> str:
    """What is wrong with an image that has no whole number of patches along a side, and the nearest that have."""
    low = max(image_size // patch_size, 1) * patch_size
    high = (image_size // patch_size + 1) * patch_size
    return (f'image_size {image_size} is not a multiple of patch_size {patch_size}: set it to '
            + (f'{low} or {high}' if low != high else f'{high}'))


@MODELS.register_module()
class VisionTransformer(nn.Module):
    """ViT with learned absolute positions and no head.

    The encoders of the paper, each without the last block of the published model (section 3.1), as LAVIS builds them:

    - EVA-ViT-g: ``width=1408, depth=39, num_heads=16, mlp_width=6144, eps=1e-6``, the other arguments as they are.
    - CLIP ViT-L/14: ``width=1024, depth=23, num_heads=16, mlp_width=4096, eps=1e-5, activation='quick_gelu',
      pre_norm=True, qkv_bias='full', patch_bias=False``.

    They have no final norm, BLIP-2 normalises outside. Those of BLIP are whole, and normalise inside:

    - ViT-B/16: ``patch_size=16, width=768, depth=12, num_heads=12, qkv_bias='full', final_norm=True``.
    - ViT-L/16: ``patch_size=16, width=1024, depth=24, num_heads=16, qkv_bias='full', final_norm=True``, with
      ``drop_path=0.1`` in every training.

    Args:
        image_size (int): Side of the square input in pixels. Weights made for another size are interpolated.
        patch_size (int): Side of a patch in pixels; must divide ``image_size``.
        width (int): Token width E.
        depth (int): Number of blocks.
        num_heads (int): Attention heads; must divide ``width``.
        mlp_width (int, optional): Hidden width of the MLPs. Defaults to 4 * width.
        eps (float): Epsilon of the LayerNorms.
        activation (str): Of the MLPs, ``'gelu'`` (exact) or ``'quick_gelu'``.
        pre_norm (bool): LayerNorm between the embeddings and the first block.
        final_norm (bool): LayerNorm after the last block.
        qkv_bias (str): ``'qv'`` (queries and values have a bias) or ``'full'`` (the keys too).
        patch_bias (bool): The patch embedding has a bias.
        drop_path (float): Probability that, in training, an image skips a half of the last block (stochastic depth);
            it grows linearly from 0 in the first.
        grad_checkpointing (bool): In training, keep only the input of each block and compute it again in the
            backward pass: less memory, more time, the same gradients.
        weights (str, optional): Checkpoint with this encoder's weights, alone or under the prefix ``vision.``; also
            a published encoder in the names of transformers or LAVIS (see ``mmblip2.checkpoints.vision``). Looked for,
            and downloaded where its address is known, as ``mmblip2.checkpoints.sources.locate`` says.

    Raises:
        ConfigError: If ``patch_size`` does not divide ``image_size``, ``num_heads`` does not divide ``width``,
            ``activation`` or ``qkv_bias`` has another value, or ``drop_path`` is no probability below 1.
        CheckpointError: If ``weights`` does not fit; a published encoder may have one block more, no further ones.
    """

    def __init__(self, image_size: int = 224, patch_size: int = 14, width: int = 1408, depth: int = 39,
                 num_heads: int = 16, mlp_width: int | None = None, eps: float = 1e-6, activation: str = 'gelu',
                 pre_norm: bool = False, final_norm: bool = False, qkv_bias: str = 'qv', patch_bias: bool = True,
                 drop_path: float = 0., grad_checkpointing: bool = False, weights: str | None = None):
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ConfigError(f'drop_path is {drop_path}, expected a probability from 0 to below 1')
        if image_size % patch_size:
            raise ConfigError(not_a_multiple(image_size, patch_size))
        self.image_size = image_size
        self.embed_dim = width
        self.grad_checkpointing = grad_checkpointing
        self.weights_source = weights
        self.before_resize: dict[str, torch.Tensor] = {}  # as the weights had them, made for another image size
        self.grid = image_size // patch_size
        self.patch_embed = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=patch_bias)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2 + 1, width))
        self.pre_norm = nn.LayerNorm(width, eps) if pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(width, num_heads, mlp_width or 4 * width, eps, activation, qkv_bias,
                  drop_path * i / max(depth - 1, 1)) for i in range(depth))
        self.norm = nn.LayerNorm(width, eps) if final_norm else nn.Identity()
        self._draws = drop_path > 0
        # LAVIS interpolates the positions of CLIP with aligned corners and those of EVA without
        self._align_corners = pre_norm
        self._init_weights()
        if weights:
            from mmblip2.checkpoints.io import load_weights
            from mmblip2.checkpoints.sources import locate
            load_weights(self, locate(weights, 'weights of the vision encoder'), prefix='vision').log_notes()

    def _init_weights(self):
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def adapt_weights(self, state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Weights of this encoder as another one has them: names of other projects, positions of another image size.

        Args:
            state: Tensors by name, as a file has them. Stays as it is.

        Returns:
            tuple: Tensors by the names used here, and what was changed, one note a line. What cannot be adapted
            stays and is refused by its key or shape.
        """
        from mmblip2.checkpoints.vision import to_own_names
        state, notes = to_own_names(state, self)
        table = state.get('pos_embed')
        if table is None:
            return state, notes
        self.before_resize = {}
        if table.shape == self.pos_embed.shape:
            return state, notes
        side = math.isqrt(max(table.shape[1] - 1, 0)) if table.dim() == 3 else 0
        if not side or table.shape != (1, 1 + side**2, self.embed_dim):
            return state, notes
        self.before_resize = {'pos_embed': table}
        note = f'positions interpolated from {side} x {side} to {self.grid} x {self.grid} patches'
        return {**state, 'pos_embed': resize_positions(table, self.grid, self._align_corners)}, notes + [note]

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
        x = self.pre_norm(x)
        recompute = self.grad_checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            if recompute:  # where the blocks draw no random numbers, there is no random state to keep
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=self._draws)
            else:
                x = block(x)
        return self.norm(x)
