"""Reading annotation files, and the messages for what can be wrong with them."""
import json
import os
import re
from typing import TypeGuard

from mmblip2.errors import DataError


def open_text(path, setting='ann_file'):
    """Open a UTF-8 text file (a byte order mark is skipped).

    Raises:
        DataError: The file is not there; the message names ``setting``, the config key.
    """
    if not os.path.isfile(path):
        raise DataError(f'annotation file {path!r} not found: check {setting} and data_root')
    return open(path, encoding='utf-8-sig', newline='')


def read_json(path, setting='ann_file'):
    """Parse a JSON file.

    Raises:
        DataError: The file is missing or is not JSON.
    """
    with open_text(path, setting) as file:
        try:
            return json.load(file)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f'{path} is not a JSON file: {error}') from None


def describe(value):
    """Say in a few words what a JSON value is, for messages: "a list of 3 objects with keys [...]"."""
    if isinstance(value, dict):
        return f'an object with keys {list(value)[:8]}'
    if isinstance(value, list):
        if not value:
            return 'an empty list'
        return f'a list of {len(value)}, the first of which is {describe(value[0])}'
    return f'{value!r:.60}' if isinstance(value, (str, int, float)) else str(value)


def wrong_layout(path, value, accepted):
    """The error for a file whose JSON is not what the data set reads.

    Args:
        path (str): The file.
        value: Its content, or the item of it that is wrong.
        accepted (Sequence[str]): The layouts that would have been right.

    Returns:
        DataError: To be raised.
    """
    return DataError(f'{path} has a layout that cannot be read: got {describe(value)}, expected '
                     + ' or '.join(accepted))


def are_objects(value, *required) -> TypeGuard[list[dict]]:
    """Whether ``value`` is a list of dicts that all have the keys ``required``."""
    return isinstance(value, list) and all(
        isinstance(item, dict) and all(key in item for key in required) for item in value)


def check_ids(path, items, *keys):
    """Refuse ids that are neither whole numbers nor texts: lists, objects, null, fractions.

    Args:
        path (str): The file.
        items (Iterable[dict]): Its objects, or rows made from them, in order; an absent key is no fault.
        keys (str): Keys of the ids.

    Raises:
        DataError: Names file, entry, key and what it has.
    """
    for number, item in enumerate(items):
        for key in keys:
            if key in item and (not isinstance(item[key], (int, str)) or isinstance(item[key], bool)):
                raise DataError(f'{path}: {key!r} of entry {number} is {item[key]!r:.60} ({type(item[key]).__name__}), '
                                'expected a whole number or a text')


def parse_image_id(image_id, image, path):
    """The id of an image, such that it equals the official COCO ground truth's where there is one.

    ``'coco_391895'`` (LAVIS) and ``'391895'`` become the integer 391895, any other id stays as it is. Without
    an id, the file name decides: ``COCO_val2014_000000391895.jpg`` and ``000000391895.jpg`` give 391895,
    every other name its stem.

    Args:
        image_id (int | str | None): The annotated id.
        image (str): The path of the image.
        path (str): The annotation file, for the message.

    Returns:
        int | str: The id.

    Raises:
        DataError: One of the two is of another type.
    """
    if not isinstance(image, str) or not isinstance(image_id, (int, str, type(None))):
        raise DataError(f'{path}: an image is named by a text and its id is a text or a whole number: got '
                        f'{image!r:.60} with the image_id {image_id!r:.60}')
    pattern = r'(?:coco_)?(\d+)'
    if image_id is None:
        image_id, pattern = os.path.splitext(os.path.basename(image))[0], r'(?:COCO_\w+_)?(\d+)'
    number = re.fullmatch(pattern, image_id, re.ASCII) if isinstance(image_id, str) else None
    return int(number[1]) if number else image_id
