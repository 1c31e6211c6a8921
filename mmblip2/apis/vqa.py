"""Answers to questions about images."""
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmblip2.errors import DataError

from .generation import TextInferencer, check_question
from .images import count_images, is_several

_END = object()


class VisualQuestionAnsweringInferencer(TextInferencer):
    """Answer questions. See :class:`BaseInferencer` for the arguments.

    A BLIP-2 whose config is not one of question answering answers, too (zero-shot, as in the paper): with the template
    'Question: {} Answer:', five beams, at most ten new tokens and a length penalty of -1. A BLIP without candidates
    answers with three beams and at most nine new tokens; one that has candidates takes the best of them.

    Example:
        >>> VisualQuestionAnsweringInferencer('work_dirs/quickstart/vqa')(
        ...     'data/shapes/test/000000004501.jpg', 'how many stars are there?')
        [{'question': 'how many stars are there?', 'pred_answer': '1'}]
    """

    def __call__(self, images: Any, questions: Any, template: str | None = None, batch_size: int = 1,
                 return_datasamples: bool = False, show: bool = False, wait_time: float = 0,
                 show_dir: str | Path | None = None, resize: int | None = None, progress: bool = True,
                 seed: int | None = None, **generation) -> list:
        """Answer a question about each image.

        Args:
            images: See :class:`ImageCaptionInferencer`.
            questions: One text for all images, or a list (or generator) with one for each image. Several questions for
                a single image (not in a list) are all asked about it.
            template: Prompt with ``{}`` for the question. Default: the VQAPrompt of the model's config, or else
                'Question: {} Answer:', of BLIP the question as it is. A Q-Former that reads text reads the question (at
                most as many tokens as ``max_text_len`` of the config, as in training).
            batch_size, return_datasamples, show, wait_time, show_dir, resize, progress, seed, **generation: See
                :class:`ImageCaptionInferencer`.

        Returns:
            list[dict]: ``{'question', 'pred_answer'}`` of each image (or question).

        Raises:
            ConfigError: The model was not made for questions; the template has not exactly one ``{}``; a setting is
                wrong, or the model has candidates; the question is longer than the language model's context.
            DataError: Another number of questions than of images; an empty question; an image cannot be read.
        """
        steps = self.steps_with(self.question_steps(template))
        settings = self.settings(generation, defaults=None if self.prompt_step('VQAPrompt') else self.model.answering)
        rows, total = self._rows(images, questions)
        samples = self.run(rows, lambda batch: self._answer(batch, steps, settings, seed), total, batch_size, show,
                           show_dir, wait_time, resize, progress)
        if return_datasamples:
            return samples
        return [dict(question=sample.question, pred_answer=sample.pred_text) for sample in samples]

    def lines(self, result) -> list[str]:
        """What is written below the image."""
        return [f'question: {result.question}', f'answer: {result.pred_text}']

    def _answer(self, rows, steps, settings, seed):
        samples = self.predict(rows, steps, settings, seed)
        for row, sample in zip(rows, samples):
            sample.question = row['question']  # as it was asked, the pipeline cleans it
        return samples

    def _rows(self, images, questions) -> tuple[Iterator[dict], int | None]:
        """Rows with their questions, and how many there are if that is known."""
        count = count_images(images)
        if isinstance(questions, str):
            return self._with(self.image_rows(images), itertools.repeat(questions)), count
        if not hasattr(questions, '__iter__'):
            raise DataError(f'questions are a text, or a list of texts, got {questions!r}')
        asked = len(questions) if hasattr(questions, '__len__') else None
        if not is_several(images):
            row = next(self.image_rows(images))
            return self._with((dict(row, sample_idx=i) for i in itertools.count()), questions, asked_alone=True), asked
        if None not in (count, asked) and count != asked:
            raise _unequal(asked, count)
        return self._with(self.image_rows(images), questions), count if asked is None else asked

    @staticmethod
    def _with(rows, questions, asked_alone=False) -> Iterator[dict]:
        questions, one_for_all = iter(questions), isinstance(questions, itertools.repeat)
        for number in itertools.count():
            question = next(questions, _END)
            if question is _END and asked_alone:
                return
            row = next(rows, None)
            if row is None and (question is _END or one_for_all):
                return
            if row is None or question is _END:
                raise _unequal(number + (question is not _END), number + (row is not None))
            yield dict(row, question=check_question(question, number))


def _unequal(asked, count):
    return DataError(f'got {asked} questions for {count} images: give one question for each image, or one text for all '
                     '(of generators the counts are those at which one of them ended)')
