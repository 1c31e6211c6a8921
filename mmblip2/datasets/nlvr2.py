"""Sentences about two images, true or false: NLVR2."""
import json
import os
from typing import Any, NamedTuple

from mmblip2.errors import DataError
from mmblip2.registry import DATASETS

from .base import ImageTextDataset
from .files import are_objects, check_ids, open_text, wrong_layout

_LAYOUTS = ('lines {"identifier", "sentence", "label"} as published',
            'the list of BLIP [{"images" (two), "sentence", "label"}, ...]')
_LABELS = {'false': 0, 'true': 1}


class Statement(NamedTuple):
    """A sentence about two images.

    Attributes:
        identifier (str | int): As published; the position in a list of BLIP.
        images (tuple[str, str]): Names of the left and the right image, with their folder where the file has it.
        sentence (str): As written.
        label (int | None): 1 if it is true, 0 if it is false; None where this is not published.
    """
    identifier: Any
    images: tuple[str, str]
    sentence: str
    label: int | None


def read_statements(path):
    """Read a file of NLVR2, as published (one object a line) or in the lists of BLIP and LAVIS.

    Args:
        path (str): ``train.json``, ``dev.json``, ``test1.json``; or ``nlvr_train.json`` and its kind.

    Returns:
        list[Statement]: In the order of the file.

    Raises:
        DataError: No such file, another layout, a label that is neither true nor false, an item with one image or
            three, an identifier that occurs twice.
    """
    items, found = _read(path), []
    check_ids(path, items, 'identifier')
    for number, item in enumerate(items):
        label = item.get('label')
        if label is not None and str(label).lower() not in _LABELS:
            raise DataError(f'{path}: label of item {number} is {label!r}, expected "True" or "False"')
        images = item.get('images')
        if images is None:
            # identifier: split, set, pair, sentence. The training images are published in numbered folders.
            pair = item['identifier'].rsplit('-', 1)[0]
            folder = str(item.get('directory', ''))
            images = [os.path.join(folder, f'{pair}-img{side}.png') for side in (0, 1)]
        if not isinstance(images, list) or len(images) != 2 or not all(isinstance(name, str) for name in images):
            raise DataError(f'{path}: images of item {number} are {images!r:.200}, expected the names of two')
        found.append(Statement(item.get('identifier', number), tuple(images), item['sentence'],
                               None if label is None else _LABELS[str(label).lower()]))
    if len({statement.identifier for statement in found}) < len(found):
        raise DataError(f'{path} has identifiers that occur twice: each sentence needs its own')
    return found


def _read(path):
    """The objects of a file: one a line, or a list."""
    try:
        with open_text(path) as file:
            text = file.read()
        content = json.loads(text) if text.lstrip().startswith('[') else [
            json.loads(line) for line in text.splitlines() if line.strip()]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f'{path} is not JSON, and neither are its lines: {error}') from None
    for item in content:
        if not are_objects([item], 'sentence') or not isinstance(item['sentence'], str) or not (
                item.get('images') is not None or str(item.get('identifier', '')).count('-') >= 2):
            raise wrong_layout(path, item, _LAYOUTS)
    return content


@DATASETS.register_module()
class NLVR2(ImageTextDataset):
    """NLVR2 (Suhr et al. 2019): sentences about a left and a right image, which are true or false.

    A row has ``text``, ``img_path`` (both paths), ``image_id`` (both names), ``identifier`` and, where annotated,
    ``gt_label``. The pipeline begins with ``EachImage``.

    Args:
        ann_file (str): ``train.json``, ``dev.json``, ``test1.json`` as published, or a list of BLIP or LAVIS.
            Images are looked for below ``data_prefix``: ``<identifier without its last number>-img0.png`` and
            ``-img1.png``, those of train in the folder of their ``directory``; with the lists, at the names in them. A
            folder that is not there is left out of the path, so that all images may lie in one.
        **kwargs: See ``ImageTextDataset``.

    Raises:
        DataError: What :func:`read_statements` raises, no label in training, some without one, and what
            ``ImageTextDataset`` raises.
    """

    def load_data_list(self):
        """Returns:
            list[dict]: One row a sentence.
        """
        statements = read_statements(self.ann_file)
        without = [statement.identifier for statement in statements if statement.label is None]
        if without and (not self.test_mode or len(without) < len(statements)):
            raise DataError(f'{len(without)} of {len(statements)} sentences in {self.ann_file} have no label, the '
                            f'first is {without[0]!r}: mend the file; a split without any is for test_mode=True')
        there: dict[str, bool] = {}

        def path_of(name):
            path = self.image_path(name)
            folder, base = os.path.split(path)
            if folder not in there:
                there[folder] = os.path.isdir(folder or '.')
            return path if there[folder] else os.path.join(os.path.dirname(folder), base)

        rows = []
        for statement in statements:
            row = dict(text=statement.sentence, identifier=statement.identifier,
                       image_id=' '.join(statement.images), img_path=tuple(map(path_of, statement.images)))
            if statement.label is not None:
                row['gt_label'] = statement.label
            rows.append(row)
        return rows
