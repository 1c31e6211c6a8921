"""What models that only give features share."""
from typing import Any

import torch

from mmblip2.errors import ConfigError

from ..tokenizers import TextBatch
from .base import EncodedImages, VisionLanguageModel


class Features(VisionLanguageModel):
    """Base of the models of a part, for its features alone; they are not trained.

    A subclass has ``tokenizer`` and ``max_text_len``.
    """

    #: what stands in its errors: which project's part it is, and what is trained in its place
    project = ''
    trained = ''
    max_text_len: int

    def encode_image(self, images: torch.Tensor) -> EncodedImages:
        """Patches of images, normalised, and the reader's keys and values (none without one).

        Args:
            images: float (B, 3, H, W), normalised pixels.

        Raises:
            ConfigError: There is no vision encoder.
        """
        self._need('vision', 'vision encoder')
        patches = self._normed(self.vision(images).float())  # (B, P, E)
        return EncodedImages(patches, self.project_image(patches) if self.reader is not None else [])

    def _normed(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches behind the norm that is not inside the encoder."""
        return patches

    def tokenize(self, texts: list[str], device=None) -> TextBatch:
        """Token ids of texts, at most ``max_text_len`` long.

        Raises:
            ConfigError: The model reads no text.
        """
        self._need('tokenizer', 'part that reads text')
        return self.tokenizer(texts, self.max_text_len, device)

    def loss(self, images, data_samples):
        """Not a mode of this model."""
        raise ConfigError(f'{type(self).__name__} is not trained: {self.trained}')

    def predict(self, images, data_samples):
        """Not a mode of this model."""
        raise ConfigError(f'{type(self).__name__} has features only: call encode_image, image_features or '
                          'text_features')

    def _need(self, name: str, what: str) -> Any:
        """Refuse what the model was built without."""
        if getattr(self, name, None) is None:
            raise ConfigError(f'this {type(self).__name__} has no {what}: it was built from a part of {self.project} '
                              'without one')
