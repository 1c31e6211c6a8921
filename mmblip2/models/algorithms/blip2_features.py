"""Halves of BLIP-2's stage 1 (section 3.2) that transformers publishes alone.

Shapes: B images, P patches, Q queries, N texts, C contrastive width.
"""
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS

from ..heads import ITCHead
from ..tokenizers import TextBatch
from .base import EncodedImages, check_text_fits
from .features import Features


@MODELS.register_module()
class Blip2Features(Features):
    """A part of BLIP-2 for its features alone; it is not trained.

    =================================  ====================================================
    class of transformers              parts
    =================================  ====================================================
    ``Blip2VisionModel``               ``vision``
    ``Blip2VisionModelWithProjection`` ``vision``, ``qformer``, ``embed_dim``
    ``Blip2TextModelWithProjection``   ``qformer`` with text, ``tokenizer``, ``embed_dim``
    ``Blip2QFormerModel``              ``qformer`` without queries
    =================================  ====================================================

    Args:
        vision (nn.Module, optional): Encoder, images to tokens (B, P, E), with ``embed_dim``.
        qformer (nn.Module, optional): A ``QFormer``.
        tokenizer (BertTokenizer, optional): For a Q-Former that reads text.
        embed_dim (int, optional): Contrastive width C of the features of images (with ``vision``) and of texts (with
            ``tokenizer``); None builds no projection.
        max_text_len (int): Longest text in tokens.
        vision_norm_eps (float): Epsilon of the norm after the encoder (1e-5 LAVIS, 1e-6 Hugging Face).
        frozen (Sequence[str]): See ``VisionLanguageModel``; with it a checkpoint need not have the part.
        data_preprocessor (dict, optional): Config of the data preprocessor.

    Raises:
        ConfigError: There is neither ``vision`` nor ``qformer``, or tokenizer, projection and Q-Former do not fit.
    """

    whole, text_part = 'BLIP-2', 'text half'
    trained_as = 'give its folder to load_from of a Blip2Representation or Blip2Generation'
    droppable = ('itm_head.*', 'qformer.layers.*.text_mlp.*', 'qformer.layers.*.text_norm.*')
    qformer: Any

    def __init__(self, vision: nn.Module | None = None, qformer: nn.Module | None = None, tokenizer=None,
                 embed_dim: int | None = None, max_text_len: int = 32, vision_norm_eps: float = 1e-5,
                 frozen: Sequence[str] = (), data_preprocessor: dict | None = None):
        if vision is None and qformer is None:
            raise ConfigError('Blip2Features has neither vision nor qformer: set one of them, or both')
        if qformer is None and embed_dim is not None:
            raise ConfigError(f'embed_dim is {embed_dim}, which projects what a Q-Former gives, and there is none: '
                              'leave it out, or set qformer')
        if (tokenizer is not None) != bool(getattr(qformer, 'has_text', False)):
            raise ConfigError(f'qformer.vocab_size is {getattr(qformer, "vocab_size", None)} and tokenizer is '
                              f'{tokenizer}: set both for a Q-Former that reads text, neither for one that does not')
        if tokenizer is not None:
            check_text_fits(qformer, tokenizer, max_text_len)
        parts: dict[str, Any] = dict(vision=vision, qformer=qformer)
        super().__init__(parts, 'qformer', frozen, data_preprocessor=data_preprocessor)
        self.tokenizer = tokenizer
        self.max_text_len = max_text_len
        if vision is not None:
            self.vision_norm = nn.LayerNorm(self.vision.embed_dim, vision_norm_eps)
        if embed_dim is not None:
            self.itc_head = ITCHead(self.qformer.width, embed_dim, image=vision is not None,
                                    text=tokenizer is not None)

    def encode_image(self, images: torch.Tensor, data_samples: Sequence | None = None) -> EncodedImages:
        """Patches of images, and the Q-Former's keys and values (none without a Q-Former).

        Args:
            images: float (B, 3, H, W), normalised pixels.
            data_samples: Not used.

        Raises:
            ConfigError: There is no vision encoder.
        """
        self._need('vision', 'vision encoder')
        patches = self.vision_norm(self._see(images).float())  # (B, P, E)
        return EncodedImages(patches, self.qformer.project_image(patches) if self.qformer is not None else [])

    @torch.no_grad()
    def image_features(self, encoded: EncodedImages) -> torch.Tensor:
        """Contrastive features (B, Q, C) of encoded images, float32, normalised.

        Raises:
            ConfigError: They are not among the parts.
        """
        self._need('qformer', 'Q-Former')
        self._need('itc_head', 'projection of images')
        return self.itc_head.image_features(self.qformer.forward_queries(encoded.image_kv)[0])

    @torch.no_grad()
    def text_features(self, text: TextBatch) -> torch.Tensor:
        """Contrastive features (N, C) of texts, float32, normalised.

        Raises:
            ConfigError: They are not among the parts.
        """
        self._need('itc_head', 'projection of texts')
        return self.itc_head.text_features(self.qformer.forward_text(*text))
