"""A dialogue about one image."""
import logging
from pathlib import Path
from typing import Any

import torch

from mmblip2.errors import ConfigError, DataError
from mmblip2.utils.log import say

from .generation import TextInferencer, check_question, kind_of
from .images import is_several


class ChatInferencer(TextInferencer):
    """A dialogue about one image: every question is asked together with the turns before it.

    The language model reads ``<image> Question: q1 Answer: a1. Question: q2 Answer:``, each turn by the template, the
    answers ended by a full stop (as in LAVIS's examples). The image is encoded once for a dialogue. A Q-Former that
    reads text reads the newest question.

    The context of the language model is never exceeded: where image, turns, question and ``max_new_tokens`` together
    do not fit, the oldest turns are left out first; the result says how many, and the log once a dialogue.
    ``history`` keeps them all. A question that does not even fit alone is an error.

    Args:
        model, pretrained, device, **kwargs: See :class:`BaseInferencer`.
        template (str, optional): Of a turn, with ``{}`` for the question. Default: the VQAPrompt of the model's config,
            or else 'Question: {} Answer:'.
        max_context (int, optional): Most tokens that the language model shall read and write. Default: its own limit;
            where nothing names one (a T5 with relative positions) there is none.
        max_turns (int, optional): Most earlier turns that are read with a question. Default: all that the context
            holds; 0 for a model that was trained on single questions.

    Attributes:
        history (list[dict]): ``{'question', 'pred_answer'}`` of all turns.

    Raises:
        ConfigError: The model writes no text, or has no language model; ``max_context`` is more than it has, or
            ``max_turns`` no number.

    Example:
        >>> chat = ChatInferencer('work_dirs/quickstart/vqa')
        >>> chat.start('data/shapes/test/000000004501.jpg')
        >>> chat('how many stars are there?')['pred_answer']
        '1'
    """

    def __init__(self, model, pretrained: Any = True, device: str | None = None, template: str | None = None,
                 max_context: int | None = None, max_turns: int | None = None, **kwargs):
        super().__init__(model, pretrained, device, **kwargs)
        from mmengine.dataset import Compose

        from mmblip2 import datasets  # noqa: F401 (registers the transforms)
        from mmblip2.models import Blip2Generation
        from mmblip2.registry import our_scope
        if not isinstance(self.model, Blip2Generation):
            raise ConfigError('a dialogue needs a language model that reads the turns before a question '
                              f'(Blip2Generation), this is a {type(self.model).__name__}: ask single questions with '
                              'VisualQuestionAnsweringInferencer')
        limit = self.model.language_model.max_context
        if max_context is not None and (isinstance(max_context, bool) or not isinstance(max_context, int)
                                        or not 0 < max_context <= (limit or max_context)):
            raise ConfigError(f'max_context={max_context!r}: expected a number of tokens' +
                              (f', at most the {limit} of the language model' if limit else ''))
        if max_turns is not None and (isinstance(max_turns, bool) or not isinstance(max_turns, int) or max_turns < 0):
            raise ConfigError(f'max_turns={max_turns!r}: expected a number of turns, 0 or more')
        self.max_context: int | None = max_context or limit
        self.max_turns = max_turns
        prompt = self.question_steps(template)
        if not any(kind_of(step) == 'CleanQuestion' for step in prompt):
            prompt = [*(step for step in self.pipeline_steps() if kind_of(step) == 'CleanQuestion'), *prompt]
        with our_scope():
            self._ask = Compose(prompt)
        # a shortest length is for captions
        self._defaults = None if self.prompt_step('VQAPrompt') else dict(min_new_tokens=None)
        self._row: dict | None = None
        self._told = False
        self._said: list[str] = []
        self.history: list[dict] = []

    def start(self, image) -> 'ChatInferencer':
        """Begin a dialogue about an image; the turns of the one before are forgotten.

        Args:
            image: One path, URL, ``PIL.Image`` or array (BGR).

        Raises:
            DataError: It cannot be read, or is more than one image.
        """
        if is_several(image):
            raise DataError('a dialogue is about one image, got several: give one of them')
        self.model.eval()
        row = next(self.image_rows(image))
        steps = self.steps_with([dict(type='CaptionPrompt', prompt='')])  # of the pipeline only the image counts here
        batch = self.prepare([row], steps)
        with torch.no_grad(), self.autocast():
            self._prefix_of = self._encode(batch['images'], batch['data_samples'])
        self._row = row
        self.reset()
        return self

    def _encode(self, images, samples):
        """Function of the text that the Q-Former reads to the visual prefix (1, Q, H); the image is encoded here."""
        from mmblip2.models import Blip2Generation
        model = self.model
        if model.tokenizer is None:
            prefix = model.visual_prefix(images, samples)
            return lambda text: prefix
        if type(model).visual_prefix is Blip2Generation.visual_prefix:
            encoded = model.encode_image(images)
            return lambda text: model.prefix_of(encoded, [text])

        def whole_way(text):  # a class of one's own: what it does is not known, so the image goes through it each time
            samples[0].qformer_text = text
            return model.visual_prefix(images, samples)
        return whole_way

    def reset(self):
        """Forget the turns; the image stays."""
        self.history, self._said, self._told = [], [], False

    def __call__(self, question: str, image=None, seed: int | None = None, **generation) -> dict:
        """Ask.

        Args:
            question: About the image.
            image: Begins a new dialogue, see :meth:`start`.
            seed: Of sampling, see :class:`TextInferencer`; turn i of a dialogue uses ``seed + i``.
            **generation: See :class:`TextInferencer`.

        Returns:
            dict: ``question``, ``pred_answer``, and ``dropped_turns``: how many of the oldest turns the language model
            did not read.

        Raises:
            ConfigError: There is no image yet; the question alone exceeds the context; a setting is wrong.
            DataError: The question is empty, or the image cannot be read.
        """
        check_question(question, len(self.history))
        if image is not None:
            self.start(image)
        if self._row is None:
            raise ConfigError('this dialogue has no image yet: call start(image), or give image=')
        settings = self.settings(generation, defaults=self._defaults)
        settings['max_new_tokens'] = settings.get('max_new_tokens') or 30
        asked = self._ask(dict(question=question))
        self.model.eval()
        with torch.no_grad(), self.autocast():
            prefix = self._prefix_of(asked.get('qformer_text'))
            prompt, dropped = self._fitting(asked['prompt'], prefix.size(1), settings['max_new_tokens'])
            answer, = self.texts(prefix, [prompt], settings, [len(self.history)], seed)
        self._said.append(f'{asked["prompt"].rstrip()} {answer.rstrip(" .")}.')
        self.history.append(dict(question=question, pred_answer=answer))
        return dict(question=question, pred_answer=answer, dropped_turns=dropped)

    def _fitting(self, prompt: str, num_prefix: int, max_new_tokens: int) -> tuple[str, int]:
        """The prompt with as many of the newest turns as the context holds, and how many were left out."""
        lm, limit, said = self.model.language_model, self.max_context, len(self._said)
        first = 0 if self.max_turns is None else max(0, said - self.max_turns)
        for dropped in range(first, said + 1):
            text = ' '.join([*self._said[dropped:], prompt])
            length = lm.count_context(num_prefix, text, max_new_tokens)
            if limit is None or length <= limit:
                if dropped > first and not self._told:
                    self._told = True
                    say(f'the dialogue is longer than the {limit} tokens that the language model reads: the oldest '
                        'turns are left out (said once a dialogue)', logging.WARNING)
                return text, dropped
        raise ConfigError(f'image, question and max_new_tokens={max_new_tokens} together make {length} tokens, but the '
                          f'context has {limit}: shorten the question or lower max_new_tokens')

    def lines(self, result=None) -> list[str]:
        """What is written below the image: all turns."""
        return [line for turn in self.history
                for line in (f'question: {turn["question"]}', f'answer: {turn["pred_answer"]}')]

    def draw(self, show: bool = False, show_dir: str | Path | None = None, wait_time: float = 0,
             resize: int | None = None) -> Path | None:
        """Show or write the picture of the dialogue: the image, and all turns below it.

        Args:
            show, show_dir, wait_time, resize: See :meth:`BaseInferencer.visualize`.

        Returns:
            Path | None: The file that was written.

        Raises:
            ConfigError: There is no image yet.
        """
        if self._row is None:
            raise ConfigError('this dialogue has no image yet: call start(image)')
        return self.visualize(self._row, None, show, show_dir, wait_time, resize)
