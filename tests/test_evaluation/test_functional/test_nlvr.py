import pytest

from mmblip2.errors import DataError
from mmblip2.evaluation.functional.nlvr import nlvr_accuracy, nlvr_consistency, sentence_of


def test_accuracy_is_the_share_of_right_ones():
    assert nlvr_accuracy([1, 0, 1, 1], [1, 0, 0, 1]) == 0.75


def test_a_sentence_counts_only_if_all_its_pairs_are_right():
    """Worked by hand: sentence a is right with two pairs, b with one of two, c with its only one."""
    labels = [1, 0, 1, 1, 0]
    predictions = [1, 0, 1, 0, 0]
    assert nlvr_consistency(predictions, labels, ['a', 'a', 'b', 'b', 'c']) == pytest.approx(2 / 3)


def test_identifiers_of_one_sentence_differ_in_the_pair():
    """The official program leaves the third part out."""
    same = {sentence_of(identifier) for identifier in ('dev-850-0-1', 'dev-850-3-1')}
    assert len(same) == 1 and sentence_of('dev-850-0-0') not in same and sentence_of('test1-850-0-1') not in same
    assert sentence_of(3) is None and sentence_of('dev-850-0') is None


@pytest.mark.parametrize('predictions, labels, message', [
    ([], [], 'got 0 predictions for 0 labels'), ([1], [1, 0], 'got 1 predictions for 2 labels'),
    ([2], [1], r'a prediction is 2, expected 0 \(false\) or 1 \(true\)'), ([1], ['True'], "a label is 'True'")])
def test_what_cannot_be_scored_is_said(predictions, labels, message):
    with pytest.raises(DataError, match=message):
        nlvr_accuracy(predictions, labels)
