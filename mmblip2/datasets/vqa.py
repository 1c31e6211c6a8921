"""Questions about images with human answers: VQAv2, OK-VQA, and LAVIS's lists."""
import os
import re

from mmengine.utils import is_abs

from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import DATASETS

from .base import ImageTextDataset
from .files import are_objects, check_ids, parse_image_id, read_json, wrong_layout

_QUESTIONS = ('the official layout {"questions": [{"question_id", "image_id", "question"}, ...]}',
              'the list of LAVIS [{"image", "question", "answer" (a text or a list), "question_id"}, ...]')
_ANSWERS = ('the official layout {"annotations": [{"question_id", "answers": [{"answer"}, ...]}, ...]}', )


@DATASETS.register_module()
class COCOVQA(ImageTextDataset):
    """Questions and answers in the official VQAv2 layout or in LAVIS's lists, recognised from the content.

    A row has ``question``, ``question_id`` and, where annotated, ``gt_answer`` (list[str], raw, ten in
    VQAv2), ``question_type``, ``answer_type``; ``gt_annotator`` where :func:`same_annotators` gives it.

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
            rows = read_question_list(self, content)
            if not all(are_texts([row['question']]) and are_texts(row['gt_answer']) for row in rows):
                raise wrong_layout(self.question_file, content, _QUESTIONS)
            for row in rows:
                if not are_full(row['gt_answer']):
                    del row['gt_answer']
        elif isinstance(content, dict) and are_objects(content.get('questions'), 'question_id', 'image_id',
                                                       'question'):
            rows = self._official_rows(content['questions'])
        else:
            raise wrong_layout(self.question_file, content, _QUESTIONS)
        return answered_rows(rows, self.question_file, self.ann_file or self.question_file, self.test_mode,
                             bool(self.ann_file))

    def _official_rows(self, questions):
        if not self.ann_file and not self.test_mode:
            raise ConfigError(f'training on {self.question_file} needs its answers: set ann_file')
        check_ids(self.question_file, questions, 'question_id', 'image_id')
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
        check_ids(self.ann_file, annotations, 'question_id')
        fields = {}
        for annotation in annotations:
            answers = [answer['answer'] for answer in annotation['answers']] if are_objects(
                annotation['answers'], 'answer') else None
            if not are_texts(answers):
                raise wrong_layout(self.ann_file, annotation, _ANSWERS)
            found = {key: annotation[key] for key in ('question_type', 'answer_type') if key in annotation}
            if are_full(answers):
                found.update(gt_answer=answers, **same_annotators(annotation['answers']))
            fields[annotation['question_id']] = found
        return fields

    def _find_images(self, image_ids):
        """Map image ids to paths.

        Raises:
            DataError: There is no folder, an id matches no file or several.
        """
        if self.image_template:
            return {image_id: self.image_path(image_name(self, image_id)) for image_id in image_ids}
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


def image_name(dataset, image_id):
    """The file name of an image id by the ``image_template`` of a data set; ids that are texts of digits are numbers.

    Raises:
        DataError: The template has a number where the id is a text.
    """
    number = int(image_id) if isinstance(image_id, str) and image_id.isdecimal() else image_id
    try:
        return dataset.image_template.format(number)
    except (ValueError, TypeError):
        raise DataError(f'{dataset.source}: image_id {image_id!r} does not fit image_template '
                        f'{dataset.image_template!r}: expected a whole number, or set another template') from None


def read_question_list(dataset, content):
    """Rows of a list of LAVIS, ``[{"image", "question", "answer", "question_id"}]``.

    Args:
        dataset (ImageTextDataset): Knows where its images are.
        content (list[dict]): The list; the values of an item are not checked.

    Returns:
        list[dict]: ``question``, ``question_id`` (the position where there is none), ``image_id``, ``img_path`` and
        ``gt_answer``, which may be empty.
    """
    rows = []
    for index, item in enumerate(content):
        answers = item.get('answer', [])
        rows.append(dict(question=item['question'], question_id=item.get('question_id', index),
                         image_id=parse_image_id(item.get('image_id'), item['image'], dataset.source),
                         img_path=dataset.image_path(item['image']),
                         gt_answer=[answers] if isinstance(answers, str) else answers))
    return rows


def answered_rows(rows, questions, answers, test_mode, separate):
    """The rows, if every question has an id of its own, and all have answers or, in test mode, none.

    Args:
        rows (list[dict]): With ``question_id`` and, where there are answers, ``gt_answer``.
        questions (str): File of the questions.
        answers (str): File of the answers.
        test_mode (bool): Whether all may be without answers.
        separate (bool): Whether the answers came in a file of their own, so that some are expected.

    Raises:
        DataError: Otherwise.
    """
    check_ids(questions, rows, 'question_id', 'image_id')
    if len({row['question_id'] for row in rows}) < len(rows):
        raise DataError(f'{questions} has question ids that occur twice: each question needs its own')
    without = [row['question_id'] for row in rows if not row.get('gt_answer')]
    if without and (not test_mode or separate or len(without) < len(rows)):
        raise DataError(f'{len(without)} of {len(rows)} questions in {questions} have no answer in {answers}, the '
                        f'first is question_id {without[0]}: ' + (
                            'check that question_file and ann_file are of the same split' if separate else
                            'mend the file; a split without any answer is for test_mode=True'))
    return rows


def same_annotators(answers):
    """Which of the official answer dicts cannot be told apart by anything but their answer (no ``answer_id``).

    The official VQA accuracy compares each dict with those that differ from it, so equal answers of such dicts do not
    count for one another.

    Args:
        answers (list[dict]): Of one question.

    Returns:
        dict: ``gt_annotator`` (list[int], one an answer, equal for such dicts); empty where all differ.
    """
    others = [{key: value for key, value in answer.items() if key != 'answer'} for answer in answers]
    found = [others.index(other) for other in others]
    return dict(gt_annotator=found) if len(set(found)) < len(found) else {}


def are_texts(values):
    """Whether ``values`` is a list of strings."""
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def are_full(answers):
    """Whether there is an answer with something in it."""
    return any(answer.strip() for answer in answers)
