"""Arrange OK-VQA 1.1: questions and answers; the images are those of COCO (prepare_coco.py).

    python tools/dataset_converters/prepare_okvqa.py --source DIR [--out data/okvqa]

DIR holds the files as downloaded (docs/dataset_prepare.md says from where), packed or not; images that are unpacked
already are linked. Can be run again, fetches and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.datasets.prepare import Annotations, run
from mmblip2.utils import cli

PARTS = [
    Annotations('OpenEnded_mscoco_train2014_questions.json', 'annotations/OpenEnded_mscoco_train2014_questions.json',
                'OpenEnded_mscoco_train2014_questions.json.zip', rows=('questions', 9009)),
    Annotations('OpenEnded_mscoco_val2014_questions.json', 'annotations/OpenEnded_mscoco_val2014_questions.json',
                'OpenEnded_mscoco_val2014_questions.json.zip', rows=('questions', 5046)),
    Annotations('mscoco_train2014_annotations.json', 'annotations/mscoco_train2014_annotations.json',
                'mscoco_train2014_annotations.json.zip', rows=('annotations', 9009)),
    Annotations('mscoco_val2014_annotations.json', 'annotations/mscoco_val2014_annotations.json',
                'mscoco_val2014_annotations.json.zip', rows=('annotations', 5046)),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'OK-VQA', 'data/okvqa', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
