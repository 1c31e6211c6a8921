"""Parts of BLIP that transformers publishes alone, and its BLIP in the manner of CLIP.

Shapes: B images, P patches, E vision width, N texts, D text width, C contrastive width.
"""
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmblip2.errors import ConfigError
from mmblip2.registry import MODELS

from ..tokenizers import TextBatch
from .base import EncodedImages, check_text_fits
from .features import Features


@MODELS.register_module()
class BlipFeatures(Features):
    """A part of BLIP for its features alone; it is not trained.

    =========================  ==================================================
    class of transformers      parts
    =========================  ==================================================
    ``BlipModel``              ``vision``, ``text_encoder``, ``embed_dim``
    ``BlipTextModel``          ``text_encoder``
    ``BlipVisionModel``        ``vision``
    =========================  ==================================================

    Args:
        vision (nn.Module, optional): Encoder with its norm, images to tokens (B, P, E), with ``embed_dim``.
        text_encoder (nn.Module, optional): A ``MED``.
        tokenizer (BertTokenizer, optional): Of the text encoder.
        embed_dim (int, optional): Contrastive width C of ``BlipModel``; None builds no projections.
        max_text_len (int): Longest text in tokens.
        frozen (Sequence[str]): See ``VisionLanguageModel``.
        data_preprocessor (dict, optional): Config of the data preprocessor.

    Raises:
        ConfigError: There is neither ``vision`` nor ``text_encoder``, or what is there does not fit together.
    """

    whole, text_part = 'BLIP', 'text encoder'
    trained_as = 'take a BlipRepresentation or a BlipGeneration'

    def __init__(self, vision: nn.Module | None = None, text_encoder: nn.Module | None = None, tokenizer=None,
                 embed_dim: int | None = None, max_text_len: int = 512, frozen: Sequence[str] = (),
                 data_preprocessor: dict | None = None):
        if vision is None and text_encoder is None:
            raise ConfigError('BlipFeatures has neither vision nor text_encoder: set one of them, or both')
        if (tokenizer is None) != (text_encoder is None):
            raise ConfigError('BlipFeatures needs tokenizer and text_encoder together: set both, or neither')
        if embed_dim is not None and (vision is None or text_encoder is None):
            raise ConfigError(f'embed_dim is {embed_dim}, which projects images and texts: set vision and '
                              'text_encoder, or leave embed_dim out')
        if text_encoder is not None:
            check_text_fits(text_encoder, tokenizer, max_text_len, 'text_encoder')
        parts: dict[str, Any] = dict(vision=vision, text_encoder=text_encoder)
        super().__init__(parts, 'text_encoder', frozen, data_preprocessor=data_preprocessor)
        self.tokenizer = tokenizer
        self.max_text_len = max_text_len
        if text_encoder is not None:
            width: Any = text_encoder.width
            self.pooler = nn.Linear(width, width)
        if embed_dim is not None:
            self.vision_projection = nn.Linear(self.vision.embed_dim, embed_dim, bias=False)
            self.text_projection = nn.Linear(width, embed_dim, bias=False)
            self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    def encode_image(self, images: torch.Tensor, data_samples: Sequence | None = None) -> EncodedImages:
        """Patches of images, and the text encoder's keys and values (none without one).

        Args:
            images: float (B, 3, H, W), normalised pixels.
            data_samples: Not used.

        Raises:
            ConfigError: There is no vision encoder.
        """
        self._need('vision', 'vision encoder')
        patches = self._see(images).float()
        return EncodedImages(patches, self.project_image(patches) if self.text_encoder is not None else [])

    @torch.no_grad()
    def pooled_image(self, encoded: EncodedImages) -> torch.Tensor:
        """``pooler_output`` (B, E) of encoded images: transformers norms the class token a second time."""
        return self.vision.norm(encoded.patches[:, 0])

    @torch.no_grad()
    def pooled_text(self, text: TextBatch) -> torch.Tensor:
        """``pooler_output`` (N, D) of texts.

        Raises:
            ConfigError: The model reads no text.
        """
        self._need('text_encoder', 'text encoder')
        return torch.tanh(self.pooler(self.text_encoder.forward_text(*text)))

    @property
    def itc_head(self) -> Any:
        """The projections as the other models have them, of all tokens; None if there are none."""
        if getattr(self, 'logit_scale', None) is None:
            return None
        return SimpleNamespace(image_features=self._project_image, text_features=self._project_text)

    def _project_image(self, patches):
        """(..., E) to normalised float32 (..., C); of the class token ``image_embeds``."""
        return F.normalize(self.vision_projection(self.vision.norm(patches)).float(), dim=-1)

    def _project_text(self, states):
        """(..., D) to normalised float32 (..., C); of [CLS] ``text_embeds``."""
        return F.normalize(self.text_projection(torch.tanh(self.pooler(states))).float(), dim=-1)

    @torch.no_grad()
    def image_features(self, encoded: EncodedImages) -> torch.Tensor:
        """Contrastive features (B, C) of encoded images, float32, normalised.

        Raises:
            ConfigError: There are no projections.
        """
        self._need('itc_head', 'contrastive projections')
        return self._project_image(encoded.patches[:, 0])

    @torch.no_grad()
    def text_features(self, text: TextBatch) -> torch.Tensor:
        """Contrastive features (N, C) of texts, float32, normalised.

        Raises:
            ConfigError: There are no projections.
        """
        self._need('itc_head', 'contrastive projections')
        return self._project_text(self.text_encoder.forward_text(*text))

    @torch.no_grad()
    def contrastive_logits(self, encoded: EncodedImages, text: TextBatch) -> torch.Tensor:
        """``logits_per_image`` (B, N): similarities, times the exponential of ``logit_scale``.

        Raises:
            ConfigError: There are no projections.
        """
        return self.logit_scale.exp() * self.image_features(encoded) @ self.text_features(text).T
