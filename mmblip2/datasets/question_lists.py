"""Questions with their answers in one file: A-OKVQA, GQA, TextVQA and Visual Genome (for VQAv2 and OK-VQA: ``vqa``)."""
import os
from abc import abstractmethod

from mmblip2.errors import ConfigError
from mmblip2.registry import DATASETS

from .base import ImageTextDataset
from .files import are_objects, check_ids, read_json, wrong_layout
from .vqa import answered_rows, are_full, are_texts, image_name, read_question_list


class QuestionList(ImageTextDataset):
    """Base: a subclass turns the content of ``ann_file`` into rows; LAVIS's lists are read by all of them.

    A row has ``question``, ``question_id``, ``image_id`` and, where annotated, ``gt_answer`` (list[str], raw),
    ``question_type``, ``answer_type``.

    Args:
        ann_file (str): See the subclass.
        **kwargs: See ``ImageTextDataset``.

    Raises:
        DataError: Another layout, questions without answers in training, and what ``ImageTextDataset`` raises.
    """

    #: The layout of the benchmark, for messages.
    layout: str

    @abstractmethod
    def rows(self, content) -> list[dict] | None:
        """Rows of the benchmark's own layout; None if ``content`` is something else."""

    def load_data_list(self):
        """Returns:
            list[dict]: One row a question.
        """
        content = read_json(self.ann_file)
        rows = read_question_list(self, content) if are_objects(content, 'image', 'question') else self.rows(content)
        if rows is None or any(not isinstance(row['question'], str) or not are_texts(row['gt_answer']) for row in rows):
            raise wrong_layout(self.ann_file, content, [
                self.layout, 'the list of LAVIS [{"image", "question", "answer", "question_id"}, ...]'])
        for row in rows:
            if not are_full(row['gt_answer']):
                del row['gt_answer']
        return answered_rows(rows, self.ann_file, self.ann_file, self.test_mode, False)


@DATASETS.register_module()
class GQA(QuestionList):
    """GQA (Hudson and Manning 2019): one answer a question.

    ``question_type`` is GQA's structural type ('query', 'verify', ...); ``answer_type`` is 'open' for 'query' and
    'binary' for the others, as the official program groups them.

    Args:
        ann_file (str): ``testdev_balanced_questions.json`` and its kind, ``{question_id: {"imageId", "question",
            "answer", "types"}}``, or a list of LAVIS. Images are ``<imageId>.jpg`` below ``data_prefix``.
        **kwargs: See ``ImageTextDataset``.
    """

    layout = 'the official layout {question id: {"imageId", "question", "answer"}, ...}'

    def rows(self, content):
        if not isinstance(content, dict) or not are_objects(list(content.values()), 'imageId', 'question'):
            return None
        rows = []
        for question_id, item in content.items():
            types = item['types'] if isinstance(item.get('types'), dict) else {}
            row = dict(question=item['question'], question_id=question_id, image_id=item['imageId'],
                       img_path=self.image_path(f'{item["imageId"]}.jpg'),
                       gt_answer=[item['answer']] if 'answer' in item else [])
            if 'structural' in types:
                row.update(question_type=types['structural'],
                           answer_type='open' if types['structural'] == 'query' else 'binary')
            rows.append(row)
        return rows


@DATASETS.register_module()
class AOKVQA(QuestionList):
    """A-OKVQA (Schwenk et al. 2022), direct answers: ten a question.

    Args:
        ann_file (str): ``aokvqa_v1p0_val.json`` and its kind, or a list of LAVIS.
        image_template (str): File name below ``data_prefix`` of a COCO image id.
        skip_difficult (bool): Leave out the questions marked ``difficult_direct_answer``, which the official program
            does not score as direct answers.
        **kwargs: See ``ImageTextDataset``.
    """

    layout = 'the official layout [{"image_id", "question_id", "question", "direct_answers"}, ...]'

    def __init__(self, ann_file, image_template='{:012d}.jpg', skip_difficult=False, **kwargs):
        self.image_template = image_template
        self.skip_difficult = skip_difficult
        super().__init__(ann_file=ann_file, **kwargs)

    def rows(self, content):
        if not are_objects(content, 'image_id', 'question_id', 'question'):
            return None
        check_ids(self.ann_file, content, 'image_id', 'question_id')
        kept = [item for item in content if not (self.skip_difficult and item.get('difficult_direct_answer'))]
        if len(kept) < len(content):
            self._warn(f'{len(content) - len(kept)} of {len(content)} questions are difficult to answer directly: left '
                       'out, as skip_difficult says')
        return [dict(question=item['question'], question_id=item['question_id'], image_id=item['image_id'],
                     img_path=self.image_path(image_name(self, item['image_id'])),
                     gt_answer=item.get('direct_answers') or []) for item in kept]


@DATASETS.register_module()
class TextVQA(QuestionList):
    """TextVQA (Singh et al. 2019): questions about text in images, ten answers each.

    Args:
        ann_file (str): ``TextVQA_0.5.1_val.json`` and its kind. Images are ``<image_id>.jpg`` below ``data_prefix``
            ('train_images' for train and val, 'test_images').
        **kwargs: See ``ImageTextDataset``.
    """

    layout = 'the official layout {"data": [{"question_id", "image_id", "question", "answers"}, ...]}'

    def rows(self, content):
        questions = content.get('data') if isinstance(content, dict) else None
        if not are_objects(questions, 'question_id', 'image_id', 'question'):
            return None
        return [dict(question=item['question'], question_id=item['question_id'], image_id=item['image_id'],
                     img_path=self.image_path(f'{item["image_id"]}.jpg'), gt_answer=item.get('answers') or [])
                for item in questions]


class GenomeImages:
    """Paths of Visual Genome's images, which come in the folders VG_100K and VG_100K_2, or in one.

    Args:
        folder (str): What holds the two, or the images.
    """

    def __init__(self, folder):
        self.folder = folder
        self.first, self.second = (set(os.listdir(path)) if os.path.isdir(path) else set() for path in (
            os.path.join(folder, name) for name in ('VG_100K', 'VG_100K_2')))
        self.two = bool(self.second) or os.path.isdir(os.path.join(folder, 'VG_100K'))

    def find(self, image):
        """str: The path of an image that a list of LAVIS names with a folder of its authors: in the two folders by its
        name alone where they have it, else below ``folder`` as written."""
        name = os.path.basename(image)
        for folder, names in (('VG_100K_2', self.second), ('VG_100K', self.first)):
            if name in names:
                return os.path.join(self.folder, folder, name)
        return os.path.join(self.folder, image)

    def path(self, image_id):
        """str: Below ``folder``."""
        name = f'{image_id}.jpg'
        if not self.two:
            return os.path.join(self.folder, name)
        return os.path.join(self.folder, 'VG_100K_2' if name in self.second else 'VG_100K', name)


@DATASETS.register_module()
class VisualGenomeQA(QuestionList):
    """Question-answer pairs of Visual Genome (Krishna et al. 2017): one answer each.

    Args:
        ann_file (str): ``question_answers.json``, or LAVIS's ``vg_qa.json``. Images are ``<image_id>.jpg`` in the
            folders VG_100K and VG_100K_2 below ``data_prefix``, or there directly; those of LAVIS's list are found in
            the two folders by their name, else where the list says.
        answer_weight (float): What an answer counts where all of VQAv2's answers of a question together count 1
            (``VQAPrompt(every_answer=True)``): 0.2 in BLIP's code, 1 in LAVIS.
        **kwargs: See ``ImageTextDataset``.

    Raises:
        ConfigError: ``answer_weight`` is not above 0.
    """

    layout = 'the official layout [{"id", "qas": [{"qa_id", "image_id", "question", "answer"}, ...]}, ...]'

    def __init__(self, ann_file, answer_weight=0.2, **kwargs):
        if answer_weight <= 0:
            raise ConfigError(f'answer_weight of VisualGenomeQA is {answer_weight}, expected a number above 0')
        self.answer_weight = answer_weight
        super().__init__(ann_file=ann_file, **kwargs)

    def load_data_list(self):
        """Returns:
            list[dict]: One row a question, with ``answer_weight``.
        """
        self.images = GenomeImages(self.data_prefix['img_path'])
        return [dict(row, answer_weight=self.answer_weight) for row in super().load_data_list()]

    def image_path(self, image):
        super().image_path(image)  # refuses what is no text
        return self.images.find(image)

    def rows(self, content):
        if not are_objects(content, 'qas') or not all(
                are_objects(item['qas'], 'qa_id', 'image_id', 'question', 'answer') for item in content):
            return None
        return [dict(question=qa['question'], question_id=qa['qa_id'], image_id=qa['image_id'],
                     img_path=self.images.path(qa['image_id']), gt_answer=[qa['answer']])
                for item in content for qa in item['qas']]
