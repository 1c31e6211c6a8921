"""What the inferencers that write text share: prompts in the test pipeline, and how text is searched or sampled."""
import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mmblip2.errors import ConfigError, DataError, first_lines

from .base import BaseInferencer

_SAMPLING = threading.Lock()  # torch has one random state for all threads
_ONLY_SAMPLING = ('temperature', 'top_p', 'top_k')


def kind_of(step: dict) -> str:
    """Name of a transform, without a scope."""
    return str(step['type']).rsplit('.', 1)[-1]


class TextInferencer(BaseInferencer):
    """Base of the inferencers of a model that writes text.

    Keyword arguments of a call that are not named in its signature are settings of the language model's ``generate``
    and replace those of the model's config:

    - beam search and greedy: ``num_beams``, ``length_penalty``, ``max_new_tokens``, ``min_new_tokens``,
      ``repetition_penalty`` ...
    - sampling: ``do_sample=True`` with ``top_p``, ``top_k``, ``temperature``; without ``num_beams`` it is 1 then.
    - ``seed``: the same seed gives the same text. Row i of a call is sampled alone, from ``seed + i``, so that its text
      does not depend on the batch size (but for rounding), and the global random state stays as it was. Without a
      seed a batch is sampled together, from the global state. Threads sample one after the other.

    Raises:
        ConfigError: The model writes no text.
    """

    def __init__(self, model, pretrained: Any = True, device: str | None = None, **kwargs):
        super().__init__(model, pretrained, device, **kwargs)
        from mmblip2.models.algorithms.text_generation import TextGeneration
        if not isinstance(self.model, TextGeneration):
            from mmblip2.models import BlipNLVR
            other = 'NLVRInferencer' if isinstance(self.model, BlipNLVR) else (
                'a retrieval inferencer or FeatureExtractor')
            raise ConfigError(f'{type(self).__name__} needs a model that writes text (Blip2Generation, '
                              f'BlipGeneration), this is a {type(self.model).__name__}: take {other}')

    def prompt_step(self, name: str) -> dict | None:
        """The transform ``name`` ('CaptionPrompt', 'VQAPrompt') of the config's test pipeline, or None."""
        return next((dict(step) for step in self.pipeline_steps() if kind_of(step) == name), None)

    def steps_with(self, prompt: list[dict]) -> list[dict]:
        """The test pipeline with ``prompt`` in the place of its transforms that make a prompt."""
        steps = self.pipeline_steps()
        kinds = [kind_of(step) for step in steps]
        old = [i for i, kind in enumerate(kinds) if kind in ('CaptionPrompt', 'VQAPrompt')]
        place = old[0] if old else kinds.index('PackInputs') if 'PackInputs' in kinds else len(steps)
        return [*(step for i, step in enumerate(steps[:place]) if i not in old), *prompt,
                *(step for i, step in enumerate(steps[place:], place) if i not in old)]

    def question_steps(self, template: str | None) -> list[dict]:
        """The transforms that make a prompt of a question: the config's VQAPrompt, or else the model's template.

        Args:
            template: In its place; with ``{}`` for the question.

        Raises:
            ConfigError: The model answers no questions.
        """
        step = self.prompt_step('VQAPrompt')
        if step is not None:
            return [step if template is None else dict(step, template=template)]
        if self.model.question_template is None:
            raise ConfigError(f'this {type(self.model).__name__} was not made for questions: take a model of question '
                              'answering, or ImageCaptionInferencer')
        return [dict(type='CleanQuestion'), dict(type='VQAPrompt', template=template or self.model.question_template,
                                                 qformer_text='{}' if self.model.reads_qformer_text else None)]

    def settings(self, generation: dict, count: int = 1, defaults: dict | None = None) -> dict:
        """What is given to ``generate`` of the model.

        Args:
            generation: Of the call.
            count: Texts an image; without sampling they are the best beams, of which there are at least that many.
            defaults: In the place of what the config says.

        Raises:
            ConfigError: A setting is unknown, out of its range, or has no effect.
        """
        from mmblip2.models.hub import refuse
        problems = self.model.generation_problems(generation)
        if 'num_return_sequences' in generation:
            problems['num_return_sequences'] = 'num_return_sequences is called num_captions here'
        merged = {**self.model.generation, **(defaults or {}), **generation}
        for name in _ONLY_SAMPLING:
            if name in generation and not merged.get('do_sample'):
                problems.setdefault(name, f'{name}={generation[name]!r} has an effect only with do_sample=True')
        for name, most in (('temperature', float('inf')), ('top_p', 1)):
            value = generation.get(name)
            if value is not None and not (isinstance(value, (int, float)) and 0 < float(value) <= most):
                problems.setdefault(name, f'{name}={value!r}: expected a number above 0' +
                                    (', at most 1' if most == 1 else '; greedy search is do_sample=False'))
        for name in ('num_beams', 'max_new_tokens', 'top_k'):
            value = generation.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                problems.setdefault(name, f'{name}={value!r}: expected an integer from 1')
        if generation.get('max_length') is not None:
            problems['max_length'] = 'max_length is called max_new_tokens here, and does not count image and prompt'
        shortest, longest = merged.get('min_new_tokens') or 0, merged.get('max_new_tokens')
        if not problems and longest is not None and shortest > longest:
            if generation.get('min_new_tokens') is not None:
                problems['min_new_tokens'] = f'min_new_tokens={shortest} is more than max_new_tokens={longest}'
            merged['min_new_tokens'] = longest  # the config's, of which the caller need not know
        refuse(problems, 'generation')
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(f'num_captions is the number of texts an image, 1 or more, got {count!r}')
        if 'num_beams' not in generation:
            if merged.get('do_sample'):
                merged['num_beams'] = 1
            elif count > 1:
                merged['num_beams'] = max(merged.get('num_beams', 1), count)
        return merged if count == 1 else dict(merged, num_return_sequences=count)

    def texts(self, prefix: Any, prompts: Sequence[str], settings: dict, indices: Sequence[int],
              seed: int | None = None) -> list:
        """New text of each row.

        Args:
            prefix: B rows, of the model's ``visual_prefix``.
            prompts: B.
            settings: Of :meth:`settings`.
            indices: Place of each row in the call, for its random numbers.
            seed: See the class.
        """
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)
                                 or not 0 <= seed < 2**63):
            raise ConfigError(f'seed is an integer from 0, below 2**63, got {seed!r}')
        try:
            if not settings.get('do_sample'):
                return self.model.generate(prefix, prompts, **settings)
            with _SAMPLING:
                if seed is None:
                    return self.model.generate(prefix, prompts, **settings)
                found = []
                for i, index in enumerate(indices):
                    with self._random_numbers(seed + index):
                        found += self.model.generate(prefix[i:i + 1], prompts[i:i + 1], **settings)
                return found
        except ValueError as error:
            raise ConfigError(f'transformers refuses to generate with {settings}: {first_lines(error)}') from error

    @contextlib.contextmanager
    def _random_numbers(self, seed: int) -> Iterator[None]:
        devices = {parameter.device for parameter in self.model.parameters() if parameter.device.type == 'cuda'}
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(seed)
            yield

    def predict(self, rows: list[dict], steps: list[dict], settings: dict, seed: int | None = None) -> list:
        """Data samples with ``pred_text``, a list of texts where several were asked for."""
        batch = self.prepare(rows, steps)
        samples = batch['data_samples']
        prefix = self.model.visual_prefix(batch['images'], samples)
        found = self.texts(prefix, [sample.prompt for sample in samples], settings,
                           [row['sample_idx'] for row in rows], seed)
        for sample, text in zip(samples, found, strict=True):
            sample.pred_text = text
        return samples


def check_question(question, index: int = 0) -> str:
    """The question, if it is one.

    Raises:
        DataError: It is no text, or an empty one.
    """
    from mmblip2.datasets.transforms.text import is_empty
    if not isinstance(question, str):
        raise DataError(f'question {index} is {question!r}: expected a text')
    if is_empty(question):
        raise DataError(f'question {index} is empty ({question!r}): expected a text with at least one word')
    return question


