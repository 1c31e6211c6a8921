"""Pairs of image and text from a table, as collections from the web have them."""
import csv
import json
import os

from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import DATASETS

from .base import ImageTextDataset
from .caption_file import check_captions_per_image, draw_caption
from .files import are_objects, open_text, parse_image_id, read_json, wrong_layout


@DATASETS.register_module()
class ImageTextPairs(ImageTextDataset):
    """Image-text pairs in JSON, JSON lines, CSV, TSV (with a header line) or Parquet, by the ending of ``ann_file``.

    A row may have several captions: in JSON a list, in a table several columns (blank cells do not count).
    Training draws one of them for each draw (``caption``); test mode keeps all (``gt_caption``). The id of an
    image is its ``image_id`` where the table has that column, else its path as written.

    Args:
        ann_file (str): ``.json`` (a list of objects), ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet`` (needs pyarrow).
        image_key (str): Key or column of the image path.
        caption_key (str | Sequence[str]): Key(s) or column(s) of the captions.
        captions_per_image (int, optional): Training draws so many different captions of an image, as a list, see
            ``COCOCaption``.
        **kwargs: See ``ImageTextDataset``.

    Raises:
        ConfigError: Another file ending, pyarrow is missing, or ``captions_per_image`` is no number from 1 on.
        DataError: A line that cannot be read, a missing column, and what ``ImageTextDataset`` raises.
    """

    def __init__(self, ann_file, image_key='image', caption_key='caption', captions_per_image=None, **kwargs):
        check_captions_per_image(captions_per_image, type(self).__name__)
        self.captions_per_image = captions_per_image
        self.image_key = image_key
        self.caption_keys = [caption_key] if isinstance(caption_key, str) else list(caption_key)
        super().__init__(ann_file=ann_file, **kwargs)

    def load_data_list(self):
        """Returns:
            list[dict]: ``image_id``, ``img_path`` and ``captions`` (``gt_caption`` in test mode).
        """
        readers = {'.json': self._read_json, '.jsonl': self._read_jsonl, '.csv': self._read_table,
                   '.tsv': self._read_table, '.parquet': self._read_parquet}
        ending = os.path.splitext(self.ann_file)[1].lower()
        if ending not in readers:
            raise ConfigError(
                f'ann_file {self.ann_file!r} of ImageTextPairs must end with one of {list(readers)}')
        key = 'gt_caption' if self.test_mode else 'captions'
        return [{'image_id': self._image_id(item), 'img_path': self.image_path(item[self.image_key]),
                 key: self._captions(item)} for item in readers[ending]()]

    def draw(self, results, rng):
        """Draw one of the captions of a training row, or ``captions_per_image`` of them."""
        return draw_caption(results, rng, count=self.captions_per_image)

    def _image_id(self, item):
        image, image_id = item[self.image_key], item.get('image_id')
        return image if image_id in (None, '') else parse_image_id(image_id, image, self.ann_file)

    def _captions(self, item):
        captions: list[str] = []
        for key in self.caption_keys:
            captions += item[key] if isinstance(item[key], list) else [item[key]]
        if not captions or not all(isinstance(caption, str) for caption in captions):
            raise wrong_layout(self.ann_file, item, self._layout())
        return [caption for caption in captions if caption.strip()] or captions[:1]

    def _layout(self):
        return [f'{self.image_key!r} (a path) and {self.caption_keys} (a text or a list of texts) in every '
                'object of a list (set image_key and caption_key)']

    def _read_json(self):
        items = read_json(self.ann_file)
        if not are_objects(items, self.image_key, *self.caption_keys):
            raise wrong_layout(self.ann_file, items, self._layout())
        return items

    def _read_jsonl(self):
        items = []
        with open_text(self.ann_file) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    items.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise DataError(f'line {number} of {self.ann_file} is not JSON: {error}') from None
                if not are_objects(items[-1:], self.image_key, *self.caption_keys):
                    raise wrong_layout(f'line {number} of {self.ann_file}', items[-1], self._layout())
        return items

    def _read_parquet(self):
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise ConfigError(f'{self.ann_file} needs the package pyarrow: pip install pyarrow') from error
        open_text(self.ann_file).close()  # says that it is missing as for the other formats
        columns = [self.image_key, *self.caption_keys]
        try:
            names = parquet.read_schema(self.ann_file).names
            missing = [column for column in columns if column not in names]
            if missing:
                raise DataError(f'{self.ann_file} has no column {missing[0]!r}, only {names}: set image_key and '
                                'caption_key')
            wanted = [*columns, *({'image_id'} & set(names) - set(columns))]
            items = parquet.read_table(self.ann_file, columns=wanted).to_pylist()
        except (ArrowException, OSError) as error:
            raise DataError(f'{self.ann_file} is no Parquet file, or broken: {error}') from None
        for item in items:
            item.update({key: '' for key in self.caption_keys if item[key] is None})
            if not isinstance(item[self.image_key], str):
                raise wrong_layout(self.ann_file, item, self._layout())
        return items

    def _read_table(self):
        with open_text(self.ann_file) as file:
            tabs = self.ann_file.lower().endswith('.tsv')
            reader = csv.DictReader(file, strict=True, delimiter='\t' if tabs else ',',
                                    quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
            columns = [self.image_key, *self.caption_keys]
            missing = [column for column in columns if column not in (reader.fieldnames or [])]
            if missing:
                raise DataError(f'{self.ann_file} has no column {missing[0]!r} in its header line, only '
                                f'{reader.fieldnames}: set image_key and caption_key')
            items = []
            try:
                for item in reader:
                    if any(item[column] is None for column in columns):
                        raise DataError(f'line {reader.line_num} of {self.ann_file} has too few columns')
                    items.append(item)
            except csv.Error as error:
                raise DataError(
                    f'line {reader.line_num} of {self.ann_file} cannot be read: {error}') from None
        return items
