"""Arrange VQAv2: questions and answers; the images are those of COCO (prepare_coco.py).

    python tools/dataset_converters/prepare_vqav2.py --source DIR [--out data/coco]

DIR holds the files as downloaded (docs/dataset_prepare.md says from where), packed or not; images that are unpacked
already are linked. Can be run again, fetches and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.datasets.prepare import Annotations, run
from mmblip2.utils import cli

PARTS = [
    Annotations('v2_OpenEnded_mscoco_train2014_questions.json',
                'annotations/v2_OpenEnded_mscoco_train2014_questions.json', 'v2_Questions_Train_mscoco.zip', rows=('questions', 443757)),
    Annotations('v2_OpenEnded_mscoco_val2014_questions.json',
                'annotations/v2_OpenEnded_mscoco_val2014_questions.json', 'v2_Questions_Val_mscoco.zip', rows=('questions', 214354)),
    Annotations('v2_OpenEnded_mscoco_test2015_questions.json',
                'annotations/v2_OpenEnded_mscoco_test2015_questions.json', 'v2_Questions_Test_mscoco.zip', rows=('questions', 447793), needed=False),
    Annotations('v2_OpenEnded_mscoco_test-dev2015_questions.json',
                'annotations/v2_OpenEnded_mscoco_test-dev2015_questions.json', 'v2_Questions_Test_mscoco.zip', rows=('questions', 107394), needed=False),
    Annotations('v2_mscoco_train2014_annotations.json', 'annotations/v2_mscoco_train2014_annotations.json',
                'v2_Annotations_Train_mscoco.zip', rows=('annotations', 443757)),
    Annotations('v2_mscoco_val2014_annotations.json', 'annotations/v2_mscoco_val2014_annotations.json',
                'v2_Annotations_Val_mscoco.zip', rows=('annotations', 214354)),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'VQAv2', 'data/coco', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
