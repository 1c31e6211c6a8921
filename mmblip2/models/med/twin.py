"""BLIP's text transformer that reads two images (paper, figure 5 and section 5.5: NLVR2).

Shapes: B sentences, T text tokens, P patches of an image, E vision width, D width.
"""
from typing import Any

import torch
from torch import nn

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS

from ..layers import Attention
from ..layers.attention import KeyValue
from .med import MED, MEDLayer


class TwinLayer(MEDLayer):
    """A layer of :class:`MED` with two cross-attentions, one an image.

    Args:
        width (int): Width D.
        vision_width (int): Width E of the patches.
        merges (bool): A linear layer makes one output of the two; False: their mean.
        **sizes: ``num_heads``, ``mlp_width``, ``dropout``, ``eps`` of :class:`MED`.
    """

    merge: Any

    def __init__(self, width: int, vision_width: int, merges: bool, **sizes):
        super().__init__(width, vision_width=None, **sizes)
        self.cross_attention = nn.ModuleList(
            Attention(width, sizes['num_heads'], kv_width=vision_width, dropout=sizes['dropout']) for _ in range(2))
        self.cross_attention_norm = nn.LayerNorm(width, sizes['eps'])
        self.merge = nn.Linear(2 * width, width) if merges else None

    def cross_attend(self, x, image_kv, mask=None):
        """Cross-attention of ``x`` (B, T, D) to two images, whose keys and values follow one another."""
        read = [attention(x, KeyValue(key, value), part) for attention, key, value, part in zip(
            self.cross_attention, image_kv.key.chunk(2, 2), image_kv.value.chunk(2, 2),
            (None, None) if mask is None else mask.chunk(2, -1))]
        both = self.merge(torch.cat(read, dim=-1)) if self.merge is not None else (read[0] + read[1]) / 2
        return self.cross_attention_norm(x + self.dropout(both))


@MODELS.register_module()
class TwinMED(MED):
    """A :class:`MED` whose layers cross-attend to two images, with weights of its own for each.

    The outputs of the two cross-attentions are averaged in the lower layers and merged by a linear layer in the upper
    ones (6 to 11 of 12). Weights of a MED, which are how a fine-tuning begins, are taken for both images. Agrees with
    ``nlvr_encoder.py`` of BLIP and LAVIS.

    Args:
        vision_width (int): Width E of the patches.
        num_layers (int): Number of layers.
        merge_from (int, optional): First layer that merges; ``num_layers``: none does. Defaults to the upper half.
        **kwargs: See :class:`MED`.

    Raises:
        ConfigError: There is no ``vision_width``; and see :class:`MED`.
    """

    def __init__(self, vision_width: int, num_layers: int = 12, merge_from: int | None = None, **kwargs):
        if vision_width is None:
            raise ConfigError('TwinMED reads images: set its vision_width to the width of the vision encoder')
        self.merge_from = num_layers // 2 if merge_from is None else merge_from
        super().__init__(vision_width, num_layers, **kwargs)

    def _build_layer(self, index: int, **sizes) -> nn.Module:
        assert self.vision_width is not None
        return TwinLayer(self.width, self.vision_width, index >= self.merge_from, **sizes)

    def project_image(self, patches: torch.Tensor) -> list[KeyValue | None]:
        """Cross-attention keys and values of two images, per layer.

        Args:
            patches: (B, 2, P, E).

        Returns:
            list: One ``KeyValue`` (B, H, 2P, d) a layer, the first image's in front.
        """
        return [KeyValue.cat([attention.project_kv(patches[:, i]) for i, attention in enumerate(layer.cross_attention)],
                             dim=2) for layer in self.layers]

    def adapt_weights(self, state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Weights of a MED, whose cross-attention becomes that of each image; and see :meth:`MED.adapt_weights`."""
        state, notes = super().adapt_weights(state)
        result, copied = {}, 0
        for key, value in state.items():
            layer, inside, name = key.partition('.cross_attention.')
            if inside and name.split('.')[0] in ('query', 'key', 'value', 'output'):
                result.update({f'{layer}{inside}{i}.{name}': value for i in range(2)})
                copied += 1
            else:
                result[key] = value
        if copied:
            notes = [*notes, 'the cross-attention of the file, which reads one image, is taken for both; the layers '
                             'that merge are new']
        return result, notes
