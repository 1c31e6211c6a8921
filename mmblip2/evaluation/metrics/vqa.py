"""Answers of a data set: VQA accuracy and the scores of its relatives."""
import importlib.util
import logging
from abc import abstractmethod
from collections.abc import Callable

from mmengine.logging import print_log

from mmblip2.errors import ConfigError, DataError
from mmblip2.evaluation.functional.answers import (
    ANLS_VARIANTS,
    GQA_VARIANTS,
    anls,
    aokvqa_accuracy,
    gqa_accuracy,
    textvqa_accuracy,
)
from mmblip2.evaluation.functional.vqa import VARIANTS, vqa_accuracy
from mmblip2.registry import METRICS

from .base import GatheredMetric, plain_id, required


class AnswerMetric(GatheredMetric):
    """Mean score of the answers in percent, over all questions and for each kind of question.

    Predictions are written in the format of the VQA server, ``[{"question_id": ..., "answer": ...}]``. A
    split without published answers is only written: the result is then empty and the log says so.

    Args:
        prefix (str, optional): First part of the metric keys.
        out_file (str, optional): See :class:`GatheredMetric`.
    """

    #: Key of the mean over all questions.
    main = 'accuracy'
    known_keys = ('accuracy', )
    #: Whether the result has a key for each question type.
    question_types = True

    @abstractmethod
    def score(self, prediction: str, answers: list[str]) -> float:
        """Score of one answer, 0 to 1."""

    def read(self, sample) -> dict:
        answers = sample.get('gt_answer')
        return dict(question_id=plain_id(required(sample, 'question_id')),
                    answer=required(sample, 'pred_text'),
                    gt_answer=None if answers is None else list(answers),
                    answer_type=sample.get('answer_type'), question_type=sample.get('question_type'))

    def to_predictions(self, results: list) -> list | dict:
        return [dict(question_id=row['question_id'], answer=row['answer']) for row in results]

    def compute_metrics(self, results: list) -> dict:
        """Percent: the mean, one key an answer type (``yes_no``, ``number``, ``other``) and one a question type
        (``question_type/what is the``); empty when no question has answers."""
        ids = {row['question_id'] for row in results}
        if len(ids) < len(results):
            raise DataError(f'{len(results)} questions have only {len(ids)} different question ids: the '
                            'question file lists some twice')
        without = [row['question_id'] for row in results if not row['gt_answer']]
        if len(without) == len(results):
            print_log(f'{type(self).__name__}: no ground truth, accuracy is not computed; predictions: '
                      f'{self._path()}', 'current')
            return {}
        if without:
            raise DataError(f'{len(without)} of {len(results)} questions have no answers, for example '
                            f'{without[:5]}: question_file and ann_file do not belong together')
        groups: dict[str, list[float]] = {self.main: []}
        kinds: dict[str, list[float]] = {}
        for row in results:
            score = self.score(row['answer'], row['gt_answer'])
            groups[self.main].append(score)
            if row['answer_type']:
                groups.setdefault(row['answer_type'].replace('/', '_'), []).append(score)
            if row['question_type'] and self.question_types:
                kinds.setdefault(f'question_type/{row["question_type"]}', []).append(score)
        groups.update(sorted(kinds.items()))
        return {name: 100 * sum(values) / len(values) for name, values in groups.items()}


@METRICS.register_module()
class VQAMetric(AnswerMetric):
    """VQA accuracy of VQAv2, OK-VQA and VizWiz in percent, over all questions, by answer type and by question type.

    Args:
        variant (str): 'official' or 'pre2021', see :func:`~mmblip2.evaluation.functional.vqa.vqa_accuracy`.
        question_types (bool): False leaves the accuracies by question type out, of which VQAv2 has dozens, all in the
            log of every validation.
        lemmatise (bool): Replace nouns and verbs of the predictions by their lemmas before scoring, as LAVIS does for
            OK-VQA; needs spaCy and its model en_core_web_sm. What is written stays as generated.
        prefix (str): First part of the metric keys.
        out_file (str, optional): See :class:`GatheredMetric`.

    Raises:
        ConfigError: ``variant`` is unknown, or spaCy or its model is missing: at once, not after the inference.
    """

    default_prefix = 'vqa'

    def __init__(self, variant: str = 'official', lemmatise: bool = False, question_types: bool = True,
                 prefix: str = 'vqa', out_file: str | None = None):
        super().__init__(prefix=prefix, out_file=out_file)
        if variant not in VARIANTS:
            raise ConfigError(f'VQAMetric: unknown variant {variant!r}, expected one of '
                              f'{", ".join(VARIANTS)}')
        self.variant = variant
        self.question_types = question_types
        self.lemmatiser = _lemmatiser() if lemmatise else None

    def read(self, sample):
        row = super().read(sample)
        annotators = sample.get('gt_annotator')
        if row['gt_answer'] and annotators is not None:
            row['gt_answer'] = [dict(answer=answer, answer_id=number)
                                for answer, number in zip(row['gt_answer'], annotators, strict=True)]
        return row

    def compute_metrics(self, results):
        single = sum(len(row['gt_answer'] or ()) == 1 for row in results)
        if single:
            print_log(f'{single} of {len(results)} questions have one answer only, which scores 0 by the rule of '
                      'VQAv2: GQAMetric compares with one answer', 'current', logging.WARNING)
        return super().compute_metrics(results)

    def score(self, prediction, answers):
        if self.lemmatiser is not None:
            prediction = self.lemmatiser(prediction)
        return vqa_accuracy(prediction, answers, self.variant)


def _lemmatiser() -> Callable[[str], str]:
    """Text to text, with the lemmas of its nouns and verbs."""
    if importlib.util.find_spec('spacy') is None:
        raise ConfigError('lemmatise=True needs the package spacy and its model: pip install spacy && python -m spacy '
                          'download en_core_web_sm')
    import spacy  # type: ignore[import-not-found]
    try:
        model = spacy.load('en_core_web_sm')
    except OSError as error:
        raise ConfigError('lemmatise=True needs the model en_core_web_sm of spaCy: python -m spacy download '
                          f'en_core_web_sm ({error})') from error
    return lambda text: ' '.join(token.lemma_ if token.pos_ in ('NOUN', 'VERB') else token.text
                                 for token in model(text))


@METRICS.register_module()
class GQAMetric(AnswerMetric):
    """Exact match on GQA in percent; ``answer_type`` and ``question_type`` where the data set has them.

    Args:
        variant (str): 'official' or 'normalised', see :func:`~mmblip2.evaluation.functional.answers.gqa_accuracy`.
        prefix (str): First part of the metric keys.
        out_file (str, optional): See :class:`GatheredMetric`.

    Raises:
        ConfigError: ``variant`` is unknown.
    """

    default_prefix = 'gqa'

    def __init__(self, variant: str = 'official', prefix: str = 'gqa', out_file: str | None = None):
        super().__init__(prefix=prefix, out_file=out_file)
        if variant not in GQA_VARIANTS:
            raise ConfigError(f'GQAMetric: unknown variant {variant!r}, expected one of {", ".join(GQA_VARIANTS)}')
        self.variant = variant

    def score(self, prediction, answers):
        return gqa_accuracy(prediction, answers, self.variant)

    def to_predictions(self, results: list) -> list:
        """The official program's names: ``questionId`` and ``prediction``."""
        return [dict(questionId=row['question_id'], prediction=row['answer']) for row in results]


@METRICS.register_module()
class AOKVQAMetric(AnswerMetric):
    """Direct-answer accuracy of A-OKVQA in percent, see :func:`~mmblip2.evaluation.functional.answers.aokvqa_accuracy`.

    Predictions are written as the benchmark's server wants them: ``{question_id: {"direct_answer": ...}}``.
    """

    default_prefix = 'aokvqa'

    def __init__(self, prefix: str = 'aokvqa', out_file: str | None = None):
        super().__init__(prefix=prefix, out_file=out_file)

    def score(self, prediction, answers):
        return aokvqa_accuracy(prediction, answers)

    def to_predictions(self, results: list) -> dict:
        return {str(row['question_id']): dict(direct_answer=row['answer']) for row in results}


@METRICS.register_module()
class TextVQAMetric(AnswerMetric):
    """TextVQA accuracy in percent, see :func:`~mmblip2.evaluation.functional.answers.textvqa_accuracy`."""

    default_prefix = 'textvqa'

    def __init__(self, prefix: str = 'textvqa', out_file: str | None = None):
        super().__init__(prefix=prefix, out_file=out_file)

    def score(self, prediction, answers):
        return textvqa_accuracy(prediction, answers)


@METRICS.register_module()
class ANLSMetric(AnswerMetric):
    """Average normalised Levenshtein similarity in percent (ST-VQA, DocVQA).

    Args:
        variant (str): 'rrc', 'm4c' or 'paper', see :func:`~mmblip2.evaluation.functional.answers.anls`.
        prefix (str): First part of the metric keys.
        out_file (str, optional): See :class:`GatheredMetric`.

    Raises:
        ConfigError: ``variant`` is unknown.
    """

    default_prefix = 'anls'
    main = 'anls'
    known_keys = ('anls', )

    def __init__(self, variant: str = 'rrc', prefix: str = 'anls', out_file: str | None = None):
        super().__init__(prefix=prefix, out_file=out_file)
        if variant not in ANLS_VARIANTS:
            raise ConfigError(f'ANLSMetric: unknown variant {variant!r}, expected one of {", ".join(ANLS_VARIANTS)}')
        self.variant = variant

    def score(self, prediction, answers):
        return anls(prediction, answers, self.variant)
