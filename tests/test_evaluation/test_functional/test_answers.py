import random

import pytest

from mmblip2.errors import ConfigError, DataError
from mmblip2.evaluation.functional import anls, aokvqa_accuracy, gqa_accuracy, textvqa_accuracy

TEN = ['cat'] * 3 + ['dog'] * 7


# ------------------------------------------------------------------------------------------------- GQA

def test_gqa_is_equality_and_normalises_only_where_asked():
    assert gqa_accuracy('yes', 'yes') == 1
    assert gqa_accuracy('Yes.', 'yes') == 0
    assert gqa_accuracy('Yes.', 'yes', variant='normalised') == 1
    assert gqa_accuracy('the dog', 'a dog', variant='normalised') == 1
    assert gqa_accuracy('cat', ['dog'], variant='normalised') == 0
    assert gqa_accuracy('cat', ['cat']) == 1


@pytest.mark.parametrize('prediction, answer, message', [
    (None, 'a', 'GQA prediction must be a string, got None'), ('a', ['b', 'c'], r"one answer .* got \['b', 'c'\]")])
def test_gqa_refuses_other_input(prediction, answer, message):
    with pytest.raises(DataError, match=message):
        gqa_accuracy(prediction, answer)


# --------------------------------------------------------------------------------------------- A-OKVQA

@pytest.mark.parametrize('hits, expected', [(0, 0), (1, 1 / 3), (2, 2 / 3), (3, 1), (10, 1)])
def test_aokvqa_counts_equal_answers_of_all_annotators(hits, expected):
    assert aokvqa_accuracy('cat', ['cat'] * hits + ['dog'] * (10 - hits)) == expected


def test_aokvqa_normalises_nothing():
    assert aokvqa_accuracy('Cat', TEN) == 0
    assert aokvqa_accuracy('cat.', TEN) == 0


# --------------------------------------------------------------------------------------------- TextVQA

@pytest.mark.parametrize('hits, expected', [(0, 0), (1, .3), (2, .6), (3, .9), (4, 1), (10, 1)])
def test_textvqa_leaves_each_annotator_out_once(hits, expected):
    assert textvqa_accuracy('cat', ['cat'] * hits + ['dog'] * (10 - hits)) == pytest.approx(expected)


@pytest.mark.parametrize('prediction, answer', [
    ('Yes', 'yes'),  # also where all agree, unlike VQA accuracy
    ('two', '2'), ('the  dog!', 'dog'), ("joe's pizza", "joe 's pizza"), ('1,000', '1000'), ('dont', "don't"),
    ('what?', 'what'), ('5.5', '5.5')])
def test_textvqa_always_normalises_both_sides(prediction, answer):
    assert textvqa_accuracy(prediction, [answer] * 10) == 1
    assert textvqa_accuracy(answer, [prediction] * 10) == 1


def test_textvqa_needs_ten_answers():
    with pytest.raises(DataError, match='ten answers a question, got 9'):
        textvqa_accuracy('a', ['a'] * 9)


# ------------------------------------------------------------------------------------------------ ANLS

def distance(first, second):
    """Levenshtein distance by its recursive definition."""
    if not first or not second:
        return len(first) + len(second)
    return min(distance(first[1:], second) + 1, distance(first, second[1:]) + 1,
               distance(first[1:], second[1:]) + (first[0] != second[0]))


def test_anls_uses_the_edit_distance():
    draw = random.Random(0)
    for _ in range(60):
        first, second = (''.join(draw.choices('ab', k=draw.randint(1, 5))) for _ in range(2))
        expected = 1 - distance(first, second) / max(len(first), len(second))
        assert anls(first, [second]) == (expected if expected >= .5 else 0)


def test_anls_takes_the_best_answer_and_ignores_case():
    assert anls('Hello', ['xyz', 'hello', 'hell']) == 1
    assert anls('helo', ['hello']) == pytest.approx(.8)
    assert anls('abc', ['xyz']) == 0


def test_anls_variants_differ_where_published_programs_do():
    # exactly one half: the paper's formula drops it
    assert [anls('ab', ['ax'], variant) for variant in ('rrc', 'm4c', 'paper')] == [.5, .5, 0]
    # outer space: the RRC script divides by the lengths of the texts as they are
    assert anls('abcd', ['abcx    '], 'rrc') == 1 - 1 / 8
    assert anls('abcd', ['abcx    '], 'm4c') == anls('abcd', ['abcx    '], 'paper') == 1 - 1 / 4
    # inner space: only the RRC script makes it single
    assert anls('a b', ['a   b'], 'rrc') == 1
    assert anls('a b', ['a   b'], 'm4c') == 1 - 2 / 5


@pytest.mark.parametrize('variant', ['rrc', 'm4c', 'paper'])
def test_anls_of_empty_texts(variant):
    assert anls('', [''], variant) == 1
    assert anls('', ['a'], variant) == 0


# ------------------------------------------------------------------------------------------- bad input

def test_unknown_variants_are_refused():
    with pytest.raises(ConfigError, match="ANLS 'docvqa': expected one of rrc, m4c, paper"):
        anls('a', ['a'], 'docvqa')
    with pytest.raises(ConfigError, match="GQA accuracy 'x': expected one of official, normalised"):
        gqa_accuracy('a', 'a', 'x')


@pytest.mark.parametrize('score', [anls, aokvqa_accuracy, textvqa_accuracy])
@pytest.mark.parametrize('prediction, answers, message', [
    ('a', 'abc', "list of at least one string, got 'abc'"),  # letters are no answers
    ('a', [], r'list of at least one string, got \[\]'),
    ('a', ['a'] * 9 + [3], 'answers must be strings, got 3'),
    (3, ['a'] * 10, r'prediction must be a string, got 3 \(int\)')])
def test_other_input_is_refused(score, prediction, answers, message):
    with pytest.raises(DataError, match=message):
        score(prediction, answers)
