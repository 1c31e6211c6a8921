"""What the models share that are a published part of BLIP-2 or BLIP, for its features alone."""
from mmblip2.errors import ConfigError

from ..tokenizers import TextBatch
from .base import VisionLanguageModel


class Features(VisionLanguageModel):
    """Base of these models: they are not trained and predict nothing.

    A subclass has ``tokenizer`` and ``max_text_len``.
    """

    #: of what it is a part, what of it reads text, and how it is trained after all, in messages
    whole: str
    text_part: str
    trained_as: str
    max_text_len: int

    def tokenize(self, texts: list[str], device=None) -> TextBatch:
        """Token ids of texts, at most ``max_text_len`` long.

        Raises:
            ConfigError: The model reads no text.
        """
        self._need('tokenizer', self.text_part)
        return self.tokenizer(texts, self.max_text_len, device)

    def loss(self, images, data_samples):
        """Not a mode of this model."""
        raise ConfigError(f'{type(self).__name__} is not trained: {self.trained_as}')

    def predict(self, images, data_samples):
        """Not a mode of this model."""
        raise ConfigError(f'{type(self).__name__} has features only: call encode_image, image_features or '
                          'text_features')

    def _need(self, name, what):
        if getattr(self, name, None) is None:
            raise ConfigError(f'this {type(self).__name__} has no {what}: it was built from a part of {self.whole} '
                              'without')
