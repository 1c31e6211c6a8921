"""VQA accuracy as the official evaluation program computes it (github.com/GT-Vision-Lab/VQA).

``official`` is the program since March 2021 (commit a013f00), ``pre2021`` the one before (LAVIS).
"""
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from mmblip2.errors import ConfigError, DataError

VARIANTS = ('official', 'pre2021')

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA_DIGIT = re.compile(r'\d,\d', re.ASCII)
# The official look-behind is mistyped and never excludes anything, so only the look-ahead counts.
_PERIOD = re.compile(r'\.(?!\d)', re.ASCII)
# The official program passes a flag in the place of `count`: at most 32 periods are removed.
_MAX_PERIODS = 32

_NUMBERS = {word: str(number) for number, word in enumerate(
    'zero one two three four five six seven eight nine ten'.split())}
_NUMBERS['none'] = '0'
_ARTICLES = frozenset(('a', 'an', 'the'))

# Written without one of their apostrophes, these words get it back ("dont", "couldn'tve", "couldnt've").
# The official keys with a capital ("Im") are left out: they can never match, the text is lower case by then.
_CONTRACTED = '''
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
'''.split()


def _contractions() -> dict:
    table = {word[:at] + word[at + 1:]: word
             for word in _CONTRACTED for at, letter in enumerate(word) if letter == "'"}
    table["somebody'd"] = 'somebodyd'  # the official table has this pair the wrong way round
    return table


_CONTRACTIONS = _contractions()


@lru_cache(maxsize=1 << 17)
def _strip_punctuation(text: str) -> str:
    join_all = _DIGIT_COMMA_DIGIT.search(text) is not None
    table = {}
    for mark in _PUNCTUATION:
        join = join_all or mark + ' ' in text or ' ' + mark in text
        table[ord(mark)] = '' if join else ' '
    return _PERIOD.sub('', text.translate(table), count=_MAX_PERIODS)


@lru_cache(maxsize=1 << 17)
def normalise_answer(text: str) -> str:
    """The official normal form of an answer: no punctuation, lower case, digits, no articles, contractions.

    Apostrophes and colons stay, periods before a digit stay, numbers above ten stay words.
    """
    words = (_NUMBERS.get(word, word) for word in _strip_punctuation(text).lower().split())
    return ' '.join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def clean_space(text: str) -> str:
    """Line breaks and tabs as spaces, none at the ends: what the official program does to every text first."""
    return text.replace('\n', ' ').replace('\t', ' ').strip()


def vqa_accuracy(prediction: str, answers: Sequence[str | Mapping], variant: str = 'official') -> float:
    """Accuracy of one predicted answer against the answers of the annotators.

    For each annotator, min(1, matches among the *other* annotators / 3); the mean over annotators. With ten
    answers 0, 1, 2, 3 and more than 3 matches give 0, 0.3, 0.6, 0.9 and 1. Nothing is normalised when all
    annotators agree (variant ``official``). One single answer always scores 0, as in the official program.

    Args:
        prediction: The answer of the model.
        answers: Strings (each from another annotator), or the dicts of the official annotations with the keys
            ``answer`` and ``answer_id``. "Other annotators" are those whose dict differs: equal dicts (no
            ``answer_id``) are left out together, as in the official program. Not changed.
        variant: ``official`` (since March 2021), or ``pre2021`` to compare with numbers of LAVIS: the
            prediction is always normalised, of the answers only the punctuation, and that only where
            annotators disagree.

    Returns:
        float: 0 to 1.

    Raises:
        ConfigError: ``variant`` is unknown.
        DataError: The prediction or an answer is not a string, or there are no answers.
    """
    if variant not in VARIANTS:
        raise ConfigError(f'unknown variant of VQA accuracy {variant!r}: expected one of '
                          f'{", ".join(VARIANTS)}')
    if not isinstance(prediction, str):
        raise DataError(f'VQA prediction must be a string, got {prediction!r} ({type(prediction).__name__})')
    annotations = _annotations(answers)
    texts = [annotation['answer'] for annotation in annotations]

    prediction = clean_space(prediction)
    if variant == 'official':
        texts = [clean_space(text) for text in texts]
        if len(set(texts)) > 1:
            texts = [normalise_answer(text) for text in texts]
            prediction = normalise_answer(prediction)
    else:
        prediction = normalise_answer(prediction)
        if len(set(texts)) > 1:
            texts = [_strip_punctuation(text) for text in texts]

    hits = [text == prediction for text in texts]
    if not any(hits):
        return 0.
    annotations = [{**annotation, 'answer': text} for annotation, text in zip(annotations, texts)]
    return sum(
        min(1., sum(hit for hit, other in zip(hits, annotations) if other != annotation) / 3)
        for annotation in annotations) / len(annotations)


def _annotations(answers) -> list:
    """Answers as dicts; strings get the ids 1 to n."""
    if isinstance(answers, (str, Mapping)) or not isinstance(answers, Sequence):
        raise DataError(f'VQA answers must be a list of strings or of official dicts, got {answers!r}')
    if not answers:
        raise DataError('VQA question without answers: ground truth needs at least one answer, ten in VQAv2')
    annotations = [answer if isinstance(answer, Mapping) else {'answer': answer, 'answer_id': number}
                   for number, answer in enumerate(answers, 1)]
    for number, annotation in enumerate(annotations, 1):
        if not isinstance(annotation.get('answer'), str):
            raise DataError(f'answer {number} of {len(annotations)} must be a string or a dict with a string '
                            f"under 'answer', got {answers[number - 1]!r}")
    return annotations
