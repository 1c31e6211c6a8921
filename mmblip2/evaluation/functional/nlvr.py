"""Scores of NLVR2: is a sentence about two images true?"""
from collections.abc import Sequence

from mmblip2.errors import DataError


def nlvr_accuracy(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """Share of the predictions that are right.

    Args:
        predictions: 0 or 1 each.
        labels: As many, 0 or 1.

    Returns:
        float: 0 to 1.

    Raises:
        DataError: There are none, not as many of both, or one is neither 0 nor 1.
    """
    return sum(_right(predictions, labels)) / len(labels)


def nlvr_consistency(predictions: Sequence[int], labels: Sequence[int], sentences: Sequence) -> float:
    """Share of the sentences that are judged right with every pair of images, as the official ``metrics.py`` has it.

    Args:
        predictions: 0 or 1 each.
        labels: As many, 0 or 1.
        sentences: As many; equal ones are one sentence. See :func:`sentence_of`.

    Returns:
        float: 0 to 1.

    Raises:
        DataError: See :func:`nlvr_accuracy`.
    """
    whole: dict = {}
    for sentence, right in zip(sentences, _right(predictions, labels), strict=True):
        whole[sentence] = whole.get(sentence, True) and right
    return sum(whole.values()) / len(whole)


def sentence_of(identifier) -> tuple | None:
    """What the identifier of an example says of its sentence.

    Args:
        identifier (str): ``split-set-pair-sentence``, as published.

    Returns:
        tuple | None: Without the pair; None for another kind of identifier.
    """
    parts = identifier.split('-') if isinstance(identifier, str) else ()
    return (parts[0], parts[1], parts[3]) if len(parts) == 4 else None


def _right(predictions, labels) -> list[bool]:
    if not len(labels) or len(predictions) != len(labels):
        raise DataError(f'NLVR2: got {len(predictions)} predictions for {len(labels)} labels, expected as many of '
                        'both, at least one')
    for name, values in (('prediction', predictions), ('label', labels)):
        wrong = [value for value in values if value not in (0, 1)]
        if wrong:
            raise DataError(f'NLVR2: a {name} is {wrong[0]!r}, expected 0 (false) or 1 (true)')
    return [prediction == label for prediction, label in zip(predictions, labels)]
