"""Questions about images with human answers: VQAv2, OK-VQA, and LAVIS's lists."""
import os
import re

from mmengine.utils import is_abs

from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import DATASETS

from .base import ImageTextDataset
from .files import are_objects, parse_image_id, read_json, wrong_layout

_QUESTIONS = ('the official layout {"questions": [{"question_id", "image_id", "question"}, ...]}',
              'the list of LAVIS [{"image", "question", "answer" (a text or a list), "question_id"}, ...]')
_ANSWERS = ('the official layout {"annotations": [{"question_id", "answers": [{"answer"}, ...]}, ...]}', )


@DATASETS.register_module()
class COCOVQA(ImageTextDataset):
    """Questions and answers in the official VQAv2 layout or in LAVIS's lists, recognised from the content.

    A row has ``question``, ``question_id`` and, where annotated, ``gt_answer`` (list[str], raw, ten in
    VQAv2), ``question_type``, ``answer_type``.

    Args:
        question_file (str): Questions, relative to ``data_root`` unless absolute.
        ann_file (str): Answers; '' for a split without published answers, and for LAVIS's lists.
        image_template (str): File name below ``data_prefix`` of an official image id, for instance
            ``'COCO_val2014_{:012d}.jpg'``. '' finds it in the folder: a file whose stem is the id or ends
            with it (``391895.jpg``, ``000000391895.jpg``, ``COCO_val2014_000000391895.jpg``).
        **kwargs: See ``ImageTextDataset``.

    Raises:
        ConfigError: ``image_template`` has no ``{}`` field, or training without answers.
        DataError: Questions without answers or image, and what ``ImageTextDataset`` raises.
    """

    def __init__(self, question_file, ann_file='', image_template='', data_root='', **kwargs):
        if image_template and '{' not in image_template:
            raise ConfigError(f'image_template {image_template!r} has no field for the image id: '
                              "write for instance 'COCO_val2014_{:012d}.jpg'")
        self.question_file = question_file if is_abs(question_file) or not data_root else os.path.join(
            data_root, question_file)
        self.image_template = image_template
        super().__init__(ann_file=ann_file, data_root=data_root, **kwargs)

    @property
    def source(self):
        """str: The question file."""
        return self.question_file

    def load_data_list(self):
        """Returns:
            list[dict]: One row a question.
        """
        content = read_json(self.question_file, 'question_file')
        if isinstance(content, list) and are_objects(content, 'image', 'question'):
            rows = [self._row_of_list(index, item) for index, item in enumerate(content)]
        elif isinstance(content, dict) and are_objects(content.get('questions'), 'question_id', 'image_id',
                                                       'question'):
            rows = self._official_rows(content['questions'])
        else:
            raise wrong_layout(self.question_file, content, _QUESTIONS)
        if len({row['question_id'] for row in rows}) < len(rows):
            raise DataError(
                f'{self.question_file} has question ids that occur twice: each question needs its own')
        without = [row['question_id'] for row in rows if not row.get('gt_answer')]
        if without and (not self.test_mode or self.ann_file or len(without) < len(rows)):
            raise DataError(f'{len(without)} of {len(rows)} questions in {self.question_file} have no answer '
                            f'in {self.ann_file or self.question_file}, the first is question_id '
                            f'{without[0]}: check that question_file and ann_file are of the same split')
        return rows

    def _row_of_list(self, index, item):
        answers = item.get('answer', [])
        answers = [answers] if isinstance(answers, str) else answers
        if not are_texts([item['question']]) or not are_texts(answers):
            raise wrong_layout(self.question_file, item, _QUESTIONS)
        row = dict(question=item['question'], question_id=item.get('question_id', index),
                   image_id=parse_image_id(item.get('image_id'), item['image']),
                   img_path=self.image_path(item['image']))
        return dict(row, gt_answer=answers) if are_full(answers) else row

    def _official_rows(self, questions):
        if not self.ann_file and not self.test_mode:
            raise ConfigError(f'training on {self.question_file} needs its answers: set ann_file')
        answers = self._official_answers() if self.ann_file else {}
        paths = self._find_images({question['image_id'] for question in questions})
        rows = []
        for item in questions:
            if not are_texts([item['question']]):
                raise wrong_layout(self.question_file, item, _QUESTIONS)
            rows.append(dict(question=item['question'], question_id=item['question_id'],
                             image_id=item['image_id'], img_path=paths[item['image_id']],
                             **answers.get(item['question_id'], {})))
        return rows

    def _official_answers(self):
        content = read_json(self.ann_file)
        annotations = content.get('annotations') if isinstance(content, dict) else None
        if not are_objects(annotations, 'question_id', 'answers'):
            raise wrong_layout(self.ann_file, content, _ANSWERS)
        fields = {}
        for annotation in annotations:
            if not are_objects(annotation['answers'], 'answer'):
                raise wrong_layout(self.ann_file, annotation, _ANSWERS)
            answers = [answer['answer'] for answer in annotation['answers']]
            found = {key: annotation[key] for key in ('question_type', 'answer_type') if key in annotation}
            fields[annotation['question_id']] = dict(found, gt_answer=answers) if are_full(answers) else found
        return fields

    def _find_images(self, image_ids):
        """Map image ids to paths.

        Raises:
            DataError: There is no folder, an id matches no file or several.
        """
        if self.image_template:
            return {image_id: self.image_path(self.image_template.format(image_id)) for image_id in image_ids}
        folder = self.data_prefix['img_path'] or '.'
        if not os.path.isdir(folder):
            raise DataError(f'image folder {folder!r} not found: check data_root and data_prefix')
        by_stem: dict[str, list[str]] = {}
        by_number: dict[int, list[str]] = {}
        for name in sorted(os.listdir(folder)):
            stem = os.path.splitext(name)[0]
            by_stem.setdefault(stem, []).append(name)
            number = re.search(r'(?:^|_)(\d+)$', stem, re.ASCII)
            if number:
                by_number.setdefault(int(number[1]), []).append(name)
        paths = {}
        for image_id in image_ids:
            names = by_stem.get(str(image_id)) or by_number.get(image_id, [])
            if len(names) > 1:
                raise DataError(f'image id {image_id!r} of {self.question_file} matches {len(names)} files '
                                f'in {folder}, {names[0]} and {names[1]}: set image_template')
            # A name that is not there: the check of all images reports it together with the others.
            paths[image_id] = os.path.join(folder, names[0] if names else f'*{image_id}.*')
        return paths


def are_texts(values):
    """Whether ``values`` is a list of strings."""
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def are_full(answers):
    """Whether there is an answer with something in it."""
    return any(answer.strip() for answer in answers)
