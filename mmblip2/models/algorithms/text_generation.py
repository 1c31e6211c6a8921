"""What the algorithms that write text share: samples that show one image, batches of alike prompts, predictions."""
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from mmblip2.errors import ConfigError

from ..hub import refuse
from ..language.base import generation_problems
from .base import VisionLanguageModel


class TextGeneration(VisionLanguageModel):
    """Base of the algorithms that write text; what the inferencers and the evaluation need of them.

    A subclass says what is read before the text is written (:meth:`visual_prefix`) and who writes it
    (:attr:`writer`).

    Args:
        parts, reader, frozen, allow_random, data_preprocessor: See ``VisionLanguageModel``.
        generation (dict, optional): Arguments of :attr:`writer`.
        generation_batch_size (int, optional): Texts that are generated at a time, prompts of alike length together;
            default: all of a batch.

    Raises:
        ConfigError: ``generation`` has an unknown setting or one with which code of a model repository would run, or
            ``generation_batch_size`` is no positive number.
    """

    #: prompt of a question where the config has no VQAPrompt; None: this model answers none
    question_template: str | None = 'Question: {} Answer:'
    #: settings for answers of a model whose config is not one of question answering (BLIP-2, section 4.1)
    answering: dict = dict(num_beams=5, max_new_tokens=10, min_new_tokens=None, length_penalty=-1.)
    #: whether ``qformer_text`` of the samples is read
    reads_qformer_text: bool = False

    def __init__(self, parts: dict[str, nn.Module], reader: str, generation: dict | None = None,
                 generation_batch_size: int | None = None, frozen: Sequence[str] = (), allow_random: bool = False,
                 data_preprocessor: dict | None = None):
        if generation_batch_size is not None and generation_batch_size < 1:
            raise ConfigError(f'generation_batch_size is {generation_batch_size}, expected a positive number or None')
        super().__init__(parts, reader, frozen, allow_random, data_preprocessor)
        self.generation = dict(generation or {})
        self.generation_batch_size = generation_batch_size
        refuse(generation_problems(self.generation, self.writer), 'generation of the model')

    @abstractmethod
    def visual_prefix(self, images: torch.Tensor, data_samples: Sequence) -> Any:
        """What the writer reads of images (B, 3, H, W) and samples: B rows, which an index or a slice chooses from."""

    @property
    @abstractmethod
    def writer(self) -> Callable[..., list]:
        """Method ``(prefix, prompts, **settings)`` that writes the texts, as ``LanguageModel.generate`` does."""

    def generation_problems(self, settings: dict) -> dict:
        """What is wrong with settings of a call: each wrong one to what is wrong with it."""
        return generation_problems(settings, self.writer)

    @torch.no_grad()
    def generate(self, prefix: Any, prompts: Sequence[str], **settings) -> list:
        """Continue prompts behind visual prefixes.

        Args:
            prefix: B rows, of :meth:`visual_prefix`.
            prompts: One a row.
            **settings: Of :attr:`writer`; those of the config hold for the others.

        Returns:
            list[str] | list[list[str]]: See ``LanguageModel.generate``.

        Raises:
            ConfigError: The writer returns another number of texts than there are samples.
        """
        settings = {**self.generation, **settings}
        texts = self._in_batches(prefix, list(prompts), settings)
        if len(texts) != len(prompts):
            owner = type(getattr(self, 'language_model', self)).__name__
            raise ConfigError(f'{owner}.generate returned {len(texts)} texts for {len(prompts)} samples, expected one '
                              f'a sample: check what it does with generation={settings}')
        return texts

    def predict(self, images: torch.Tensor, data_samples: Sequence) -> Sequence:
        """Write ``pred_text`` into the samples and return them.

        Raises:
            ConfigError: See :meth:`generate`; ``generation`` asks for several texts a sample.
        """
        refuse(generation_problems(self.generation, self.writer), 'generation of the model')
        with torch.no_grad():
            prefix = self.visual_prefix(images, data_samples)
        for sample, text in zip(data_samples, self.generate(prefix, [sample.prompt for sample in data_samples])):
            sample.pred_text = text
        return data_samples

    def _in_batches(self, prefix, prompts: list[str], settings: dict) -> list:
        """Texts of the writer, made for at most ``generation_batch_size`` rows of ``prefix`` at a time."""
        size = self.generation_batch_size or len(prompts)
        if size >= len(prompts):
            return self.writer(prefix, prompts, **settings)
        texts: list = [None] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # letters stand for tokens
        for start in range(0, len(order), size):
            chosen = order[start:start + size]
            written = self.writer(prefix[chosen], [prompts[i] for i in chosen], **settings)
            for i, text in zip(chosen, written, strict=True):
                texts[i] = text
        return texts


class SharedRows(NamedTuple):
    """``first``: the first sample of each different image; ``of_sample``: for each sample the number of its image."""
    first: list[int]
    of_sample: list[int]


def shared_rows(images, data_samples) -> SharedRows | None:
    """Which samples show the same file; None if none do, if it is not known, or if their pixels (of a transform that
    looks at the question, say) differ."""
    paths = [sample.get('img_path') if sample and not sample.get('augmented') else None for sample in data_samples]
    number = {path: i for i, path in enumerate(dict.fromkeys(paths))}
    if None in number or len(number) == len(paths):
        return None
    shared = SharedRows([paths.index(path) for path in number], [number[path] for path in paths])
    of_first = [shared.first[row] for row in shared.of_sample]
    return shared if torch.equal(images[of_first], images) else None
