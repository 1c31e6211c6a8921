"""Arrange GQA 1.2: images and the balanced questions.

    python tools/dataset_converters/prepare_gqa.py --source DIR [--out data/gqa]

DIR holds the files as downloaded (docs/dataset_prepare.md says from where), packed or not; images that are unpacked
already are linked. Can be run again, fetches and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.datasets.prepare import Annotations, Images, run
from mmblip2.utils import cli

PARTS = [
    Images('images.zip', 'images', 'images', 148854),
    Annotations('testdev_balanced_questions.json', 'annotations/testdev_balanced_questions.json', 'questions1.2.zip',
                rows=(None, 12578)),
    Annotations('val_balanced_questions.json', 'annotations/val_balanced_questions.json', 'questions1.2.zip',
                rows=(None, 132062), needed=False),
    Annotations('train_balanced_questions.json', 'annotations/train_balanced_questions.json', 'questions1.2.zip',
                rows=(None, 943000), needed=False),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'GQA', 'data/gqa', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
