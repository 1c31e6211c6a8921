"""Scores of one answer by the rules of other question answering benchmarks than VQAv2: GQA, A-OKVQA, TextVQA, ANLS."""
from collections.abc import Sequence

from mmblip2.errors import ConfigError, DataError

from .vqa import clean_space, normalise_answer

GQA_VARIANTS = ('official', 'normalised')
ANLS_VARIANTS = ('rrc', 'm4c', 'paper')


def gqa_accuracy(prediction: str, answer: str | Sequence[str], variant: str = 'official') -> float:
    """Exact match with the one answer of GQA.

    Args:
        prediction: The answer of the model. A language model's text should be in lower case and without a final
            period for the official rule, which changes nothing.
        answer: The annotated answer; a list of one is taken, too.
        variant: ``official`` (eval.py of GQA: the strings are equal), or ``normalised`` (LAVIS, mmpretrain: equal after
            the normalisation of VQA).

    Returns:
        float: 1 or 0.

    Raises:
        ConfigError: ``variant`` is unknown.
        DataError: The prediction or the answer is not a string.
    """
    _check_variant(variant, GQA_VARIANTS, 'GQA accuracy')
    if isinstance(answer, (list, tuple)) and len(answer) == 1:
        answer = answer[0]
    _check_prediction(prediction, 'GQA')
    if not isinstance(answer, str):
        raise DataError(f'GQA has one answer a question, a string: got {answer!r}')
    if variant == 'normalised':
        prediction, answer = normalise_answer(clean_space(prediction)), normalise_answer(clean_space(answer))
    return float(prediction == answer)


def aokvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Direct-answer accuracy of A-OKVQA: min(1, equal answers / 3), nothing is normalised, nobody is left out.

    Args:
        prediction: The answer of the model.
        answers: The direct answers, ten of them.

    Returns:
        float: 0 to 1.

    Raises:
        DataError: The prediction or an answer is not a string, or there are no answers.
    """
    _check_prediction(prediction, 'A-OKVQA')
    return min(1., sum(answer == prediction for answer in _checked(answers, 'A-OKVQA')) / 3)


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of TextVQA as Pythia and MMF compute it (``TextVQAAccuracyEvaluator``).

    As VQA accuracy, but prediction and answers are always normalised, and before that commas and question marks are
    deleted and ``'s`` is set apart.

    Args:
        prediction: The answer of the model.
        answers: The ten answers.

    Returns:
        float: 0 to 1.

    Raises:
        DataError: The prediction or an answer is not a string, or there are not ten answers.
    """
    _check_prediction(prediction, 'TextVQA')
    if len(_checked(answers, 'TextVQA')) != 10:
        raise DataError(f'TextVQA accuracy needs ten answers a question, got {len(answers)}')
    prediction = _textvqa_form(prediction)
    hits = sum(_textvqa_form(answer) == prediction for answer in answers)
    # each annotator against the nine others: those who gave this answer count one hit less
    return (hits * min(1., max(hits - 1, 0) / 3) + (10 - hits) * min(1., hits / 3)) / 10


def _textvqa_form(text: str) -> str:
    text = text.lower().replace(',', '').replace('?', '').replace("'s", " 's")
    return normalise_answer(clean_space(text))


def anls(prediction: str, answers: Sequence[str], variant: str = 'rrc') -> float:
    """Normalised Levenshtein similarity to the closest answer, 0 when that is too far (ANLS is its mean).

    The similarity is 1 - edits / length of the longer text; case does not count. The published programs differ:

    ======= ============================================= ========================= ==================
    variant edits between                                 length of                 a similarity of 0.5
    ======= ============================================= ========================= ==================
    rrc     texts with single spaces, stripped            the texts as they are     is kept
    m4c     stripped texts                                the stripped texts        is kept
    paper   stripped texts                                the stripped texts        counts 0
    ======= ============================================= ========================= ==================

    ``rrc`` is the script of the Robust Reading Competition, ``m4c`` MMF's, ``paper`` the formula of
    ST-VQA (arXiv 1905.13648).

    Args:
        prediction: The answer of the model.
        answers: The annotated answers, at least one.
        variant: See above.

    Returns:
        float: 0 to 1. Two empty texts are equal.

    Raises:
        ConfigError: ``variant`` is unknown.
        DataError: The prediction or an answer is not a string, or there are no answers.
    """
    _check_variant(variant, ANLS_VARIANTS, 'ANLS')
    _check_prediction(prediction, 'ANLS')
    best = max(_similarity(prediction, answer, variant) for answer in _checked(answers, 'ANLS'))
    return best if best > 0.5 or (best == 0.5 and variant != 'paper') else 0.


def _similarity(first: str, second: str, variant: str) -> float:
    if variant == 'rrc':
        length = max(len(first.upper()), len(second.upper()))  # upper: of ß, too, as in the script
        first, second = (' '.join(text.lower().split()) for text in (first, second))
    else:
        first, second = first.lower().strip(), second.lower().strip()
        length = max(len(first), len(second))
    return 1 - _edits(first, second) / length if length else 1.


def _edits(first: str, second: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions."""
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, 1):
        corner, row[0] = row[0], number
        for column, other in enumerate(second, 1):
            corner, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, corner + (letter != other))
    return row[-1]


def _check_variant(variant, variants, what):
    if variant not in variants:
        raise ConfigError(f'unknown variant of {what} {variant!r}: expected one of {", ".join(variants)}')


def _check_prediction(prediction, what):
    if not isinstance(prediction, str):
        raise DataError(f'{what} prediction must be a string, got {prediction!r} ({type(prediction).__name__})')


def _checked(answers, what):
    if isinstance(answers, str) or not isinstance(answers, Sequence) or not answers:
        raise DataError(f'{what} answers must be a list of at least one string, got {answers!r}')
    for answer in answers:
        if not isinstance(answer, str):
            raise DataError(f'{what} answers must be strings, got {answer!r} among {list(answers)!r}')
    return answers
