"""Arrange OK-VQA 1.1: questions and answers; the images are those of COCO (prepare_coco.py).

    python tools/dataset_converters/prepare_okvqa.py --source DIR [--out data/okvqa]

DIR holds the files as downloaded, packed or not; docs/dataset_prepare.md says from where. Can be run again, fetches
and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli
from mmblip2.utils.prepare_data import Annotations, run

URL = 'https://okvqa.allenai.org/static/data/'


def part(file, key, fields, number):
    """A file, each of which has an archive of its own."""
    return Annotations(file, f'annotations/{file}', fields, number, f'{URL}{file}.zip', key, f'{file}.zip',
                       needed='val' in file)


QUESTION, ANSWERS = ('question_id', 'image_id', 'question'), ('question_id', 'answers')
PARTS = [
    part('OpenEnded_mscoco_val2014_questions.json', 'questions', QUESTION, 5046),
    part('mscoco_val2014_annotations.json', 'annotations', ANSWERS, 5046),
    part('OpenEnded_mscoco_train2014_questions.json', 'questions', QUESTION, 9009),
    part('mscoco_train2014_annotations.json', 'annotations', ANSWERS, 9009),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'OK-VQA', 'data/okvqa', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
