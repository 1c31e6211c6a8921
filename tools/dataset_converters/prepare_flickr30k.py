"""Arrange Flickr30k: images and Karpathy's split.

    python tools/dataset_converters/prepare_flickr30k.py --source DIR [--out data/flickr30k]

DIR holds the files as downloaded (docs/dataset_prepare.md says from where), packed or not; images that are unpacked
already are linked. flickr30k_*.json are LAVIS's lists. Can be run again, fetches and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.datasets.prepare import Annotations, Images, run
from mmblip2.utils import cli

PARTS = [
    Images('flickr30k-images.tar.gz', 'flickr30k-images', 'images', 31783),
    Annotations('dataset_flickr30k.json', 'annotations/dataset_flickr30k.json', 'caption_datasets.zip',
                rows=('images', 31014)),
    Annotations('flickr30k_train.json', 'annotations/flickr30k_train.json', needed=False),
    Annotations('flickr30k_val.json', 'annotations/flickr30k_val.json', rows=(None, 1014), needed=False),
    Annotations('flickr30k_test.json', 'annotations/flickr30k_test.json', rows=(None, 1000), needed=False),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'Flickr30k', 'data/flickr30k', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
