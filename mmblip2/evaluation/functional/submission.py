"""Files of predictions in the formats that evaluation servers take: VQA, COCO captions, NoCaps."""
from collections import Counter
from typing import NamedTuple

from mmblip2.errors import ConfigError, DataError


class _Format(NamedTuple):
    """A list of objects with these two keys; ``size``: rows of the splits that a server scores."""
    id_key: str
    text_key: str
    sizes: dict[str, int]


# VQAv2's test-dev and test-std are scored from one file with all test questions; COCO is of 2014.
FORMATS = {
    'vqa': _Format('question_id', 'answer', {'test': 447793, 'val': 214354}),
    'coco': _Format('image_id', 'caption', {'test': 40775, 'val': 40504}),
    'nocaps': _Format('image_id', 'caption', {'test': 10600, 'val': 4500}),
}


def check_submission(rows, task: str, split: str | None = None) -> list[dict]:
    """Check predictions against what a server takes: it would only say that the submission failed.

    Args:
        rows: The content of the file: a list of ``{"question_id": int, "answer": str}`` for ``task='vqa'``, of
            ``{"image_id": int, "caption": str}`` for ``'coco'`` and ``'nocaps'``.
        task: See above.
        split: 'test' or 'val', whose number of rows is checked; None checks no number.

    Returns:
        list[dict]: ``rows``.

    Raises:
        ConfigError: Another task or split.
        DataError: It is not such a list, ids are repeated or no whole numbers, texts are no strings, or the number of
            rows is not that of the split. Counts and examples of everything that is wrong, at once.
    """
    if task not in FORMATS:
        raise ConfigError(f'task {task!r} is not one of {", ".join(FORMATS)}')
    id_key, text_key, sizes = FORMATS[task]
    if split is not None and split not in sizes:
        raise ConfigError(f'split {split!r} is not one of {", ".join(sizes)}')
    expected = f'expected [{{"{id_key}": 1, "{text_key}": "..."}}, ...]'
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'the predictions are no list of objects, or there are none: {expected}')
    problems = []
    keys = [row for row in rows if set(row) != {id_key, text_key}]
    if keys:
        problems.append(f'{len(keys)} rows have other keys, the first {sorted(map(str, keys[0]))}')
    ids = [row[id_key] for row in rows if id_key in row]
    other = [value for value in ids if not isinstance(value, int) or isinstance(value, bool)]
    if other:
        problems.append(f'{len(other)} ids are no whole numbers, the first {other[0]!r}')
    repeated = [value for value, count in Counter(map(str, ids)).items() if count > 1]
    if repeated:
        problems.append(f'{len(repeated)} ids are repeated, the first {repeated[0]}')
    texts = [row[text_key] for row in rows if text_key in row and not isinstance(row[text_key], str)]
    if texts:
        problems.append(f'{len(texts)} texts are no strings, the first {texts[0]!r}')
    if split is not None and len(rows) != sizes[split]:
        problems.append(f'{len(rows)} rows, {task} {split} has {sizes[split]}')
    if problems:
        raise DataError(f'not a submission for {task}: {"; ".join(problems)}; {expected}')
    return rows
