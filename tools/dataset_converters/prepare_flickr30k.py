"""Arrange Flickr30k: images, Karpathy's file, LAVIS's lists.

    python tools/dataset_converters/prepare_flickr30k.py --source DIR [--out data/flickr30k]

DIR holds the files as downloaded, packed or not; docs/dataset_prepare.md says from where. Images that are unpacked
already are linked. Can be run again, fetches and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli
from mmblip2.utils.prepare_data import Annotations, Images, run

LAVIS = 'https://storage.googleapis.com/sfr-vision-language-research/datasets/'
PARTS = [
    Images('flickr30k-images.tar.gz', 'flickr30k-images', 'flickr30k-images', 31783,
           'the form at https://shannon.cs.illinois.edu/DenotationGraph/'),
    *(Annotations(f'flickr30k_{split}.json', f'annotations/flickr30k_{split}.json', ('image', 'caption'), number,
                  f'{LAVIS}flickr30k_{split}.json', needed=split == 'test')
      for split, number in (('test', 1000), ('val', 1014), ('train', None))),
    Annotations('dataset_flickr30k.json', 'annotations/dataset_flickr30k.json', ('filename', 'split', 'sentences'),
                31014, 'https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip', 'images',
                'caption_datasets.zip', needed=False),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'Flickr30k', 'data/flickr30k', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
