"""Arrange NoCaps: captions of val, image list of test; images of Open Images.

    python tools/dataset_converters/prepare_nocaps.py --source DIR [--out data/nocaps]

DIR holds the files as downloaded (docs/dataset_prepare.md says from where), packed or not; images that are unpacked
already are linked. The images come one by one, from the coco_url of
the lists: put them into folders val and test. Can be run again, fetches and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.datasets.prepare import Annotations, Images, run
from mmblip2.utils import cli

PARTS = [
    Images('val.zip', 'val', 'val', 4500),
    Images('test.zip', 'test', 'test', 10600, needed=False),
    Annotations('nocaps_val_4500_captions.json', 'annotations/nocaps_val_4500_captions.json', rows=('images', 4500)),
    Annotations('nocaps_test_image_info.json', 'annotations/nocaps_test_image_info.json', rows=('images', 10600),
                needed=False),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'NoCaps', 'data/nocaps', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
