"""Arrange VQAv2: questions and answers; the images are those of COCO (prepare_coco.py).

    python tools/dataset_converters/prepare_vqav2.py --source DIR [--out data/coco]

DIR holds the files as downloaded, packed or not; docs/dataset_prepare.md says from where. Can be run again, fetches
and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli
from mmblip2.utils.prepare_data import Annotations, run

URL = 'https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/'
QUESTION, ANSWERS = ('question_id', 'image_id', 'question'), ('question_id', 'answers')


def questions(split, archive, number, needed=True):
    """The part of a question file."""
    file = f'v2_OpenEnded_mscoco_{split}_questions.json'
    return Annotations(file, f'annotations/{file}', QUESTION, number, URL + archive, 'questions', archive,
                       needed=needed)


def answers(split, archive, number):
    """The part of an answer file."""
    file = f'v2_mscoco_{split}_annotations.json'
    return Annotations(file, f'annotations/{file}', ANSWERS, number, URL + archive, 'annotations', archive)


PARTS = [
    questions('train2014', 'v2_Questions_Train_mscoco.zip', 443757),
    answers('train2014', 'v2_Annotations_Train_mscoco.zip', 443757),
    questions('val2014', 'v2_Questions_Val_mscoco.zip', 214354),
    answers('val2014', 'v2_Annotations_Val_mscoco.zip', 214354),
    questions('test2015', 'v2_Questions_Test_mscoco.zip', 447793, needed=False),
    questions('test-dev2015', 'v2_Questions_Test_mscoco.zip', 107394, needed=False),
    *(Annotations(f'{name}.json', f'annotations/{name}.json', ('image', 'question'), None,
                  f'https://storage.googleapis.com/sfr-vision-language-research/LAVIS/datasets/vqav2/{name}.json',
                  needed=False) for name in ('vqa_train', 'vqa_val', 'vqa_val_eval', 'vqa_test')),
    # what BLIP ranks
    Annotations('answer_list.json', 'annotations/answer_list.json', (), 3128,
                'https://storage.googleapis.com/sfr-vision-language-research/datasets/answer_list.json', needed=False),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'VQAv2', 'data/coco', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
