"""Arrange NoCaps: images of Open Images, captions of val, the list of test.

    python tools/dataset_converters/prepare_nocaps.py --source DIR [--out data/nocaps]

DIR holds the files as downloaded, packed or not; docs/dataset_prepare.md says from where. No archive of the images is
published. docs/dataset_prepare.md has the commands that get them one by one, from the addresses in the lists, into
folders val and test of DIR; these are linked. Can be run again, fetches and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli
from mmblip2.utils.prepare_data import Annotations, Images, run

URL = 'https://nocaps.s3.amazonaws.com/'
ONE_BY_ONE = 'the coco_url of each image in {}, see docs/dataset_prepare.md'
CAPTIONS, TEST = 'nocaps_val_4500_captions.json', 'nocaps_test_image_info.json'
PARTS = [
    Images(None, 'val', 'val', 4500, ONE_BY_ONE.format(CAPTIONS)),
    Images(None, 'test', 'test', 10600, ONE_BY_ONE.format(TEST), needed=False),
    Annotations(CAPTIONS, f'annotations/{CAPTIONS}', ('id', 'file_name'), 4500, URL + CAPTIONS, 'images'),
    Annotations(TEST, f'annotations/{TEST}', ('id', 'file_name'), 10600, URL + TEST, 'images', needed=False),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'NoCaps', 'data/nocaps', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
