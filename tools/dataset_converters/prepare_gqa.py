"""Arrange GQA 1.2: images and the balanced questions.

    python tools/dataset_converters/prepare_gqa.py --source DIR [--out data/gqa]

DIR holds the files as downloaded, packed or not; docs/dataset_prepare.md says from where. Images that are unpacked
already are linked. Can be run again, fetches and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli
from mmblip2.utils.prepare_data import Annotations, Images, run

URL = 'https://downloads.cs.stanford.edu/nlp/data/gqa/'
PARTS = [
    Images('images.zip', 'images', 'images', None, f'{URL}images.zip'),
    *(Annotations(f'{split}_balanced_questions.json', f'annotations/{split}_balanced_questions.json',
                  ('imageId', 'question'), number, f'{URL}questions1.2.zip', archive='questions1.2.zip',
                  needed=split == 'testdev')
      for split, number in (('testdev', 12578), ('val', 132062), ('train', 943000))),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'GQA', 'data/gqa', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
