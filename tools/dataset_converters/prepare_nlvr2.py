"""Arrange NLVR2: images and sentences.

    python tools/dataset_converters/prepare_nlvr2.py --source DIR [--out data/nlvr2]

DIR holds the files as downloaded, packed or not; docs/dataset_prepare.md says from where. Images that are unpacked
already are linked. Can be run again, fetches and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli
from mmblip2.utils.prepare_data import Annotations, Images, run

FORM = 'the form at https://github.com/lil-lab/nlvr/tree/master/nlvr2'
URL = 'https://raw.githubusercontent.com/lil-lab/nlvr/master/nlvr2/data/'
LISTS = 'https://storage.googleapis.com/sfr-vision-language-research/datasets/'
PARTS = [
    *(Images(f'{split}_img.zip', split, split, None, FORM, nested=True) for split in ('train', 'dev', 'test1')),
    *(Annotations(f'{split}.json', f'annotations/{split}.json', ('identifier', 'sentence', 'label'), number,
                  f'{URL}{split}.json', lines=True)
      for split, number in (('train', 86373), ('dev', 6982), ('test1', 6967))),
    *(Annotations(f'nlvr_{split}.json', f'annotations/nlvr_{split}.json', ('images', 'sentence', 'label'), number,
                  f'{LISTS}nlvr_{split}.json', needed=False)
      for split, number in (('train', 86373), ('dev', 6982), ('test', 6967))),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'NLVR2', 'data/nlvr2', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
