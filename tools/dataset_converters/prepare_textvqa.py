"""Arrange TextVQA 0.5.1: images and questions.

    python tools/dataset_converters/prepare_textvqa.py --source DIR [--out data/textvqa]

DIR holds the files as downloaded (docs/dataset_prepare.md says from where), packed or not; images that are unpacked
already are linked. Can be run again, fetches and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.datasets.prepare import Annotations, Images, run
from mmblip2.utils import cli

PARTS = [
    Images('train_val_images.zip', 'train_images', 'train_images', 25119),
    Images('test_images.zip', 'test_images', 'test_images', 3289, needed=False),
    Annotations('TextVQA_0.5.1_val.json', 'annotations/TextVQA_0.5.1_val.json', rows=('data', 5000)),
    Annotations('TextVQA_0.5.1_train.json', 'annotations/TextVQA_0.5.1_train.json', rows=('data', 34602), needed=False),
    Annotations('TextVQA_0.5.1_test.json', 'annotations/TextVQA_0.5.1_test.json', rows=('data', 5734), needed=False),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'TextVQA', 'data/textvqa', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
