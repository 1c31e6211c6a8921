"""Arrange TextVQA 0.5.1: images and questions.

    python tools/dataset_converters/prepare_textvqa.py --source DIR [--out data/textvqa]

DIR holds the files as downloaded, packed or not; docs/dataset_prepare.md says from where. Images that are unpacked
already are linked. Can be run again, fetches and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli
from mmblip2.utils.prepare_data import Annotations, Images, run

URL = 'https://dl.fbaipublicfiles.com/textvqa/'
PARTS = [
    Images('train_val_images.zip', 'train_images', 'train_images', 25119, f'{URL}images/train_val_images.zip'),
    Images('test_images.zip', 'test_images', 'test_images', 3289, f'{URL}images/test_images.zip', needed=False),
    *(Annotations(f'TextVQA_0.5.1_{split}.json', f'annotations/TextVQA_0.5.1_{split}.json',
                  ('question_id', 'image_id', 'question'), number, f'{URL}data/TextVQA_0.5.1_{split}.json', 'data',
                  needed=split == 'val') for split, number in (('val', 5000), ('train', 34602), ('test', 5734))),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'TextVQA', 'data/textvqa', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
