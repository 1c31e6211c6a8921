"""Arrange COCO: images of 2014, 2015 and 2017, captions, and the lists of Karpathy's split.

    python tools/dataset_converters/prepare_coco.py --source DIR [--out data/coco]

DIR holds the files as downloaded, packed or not; docs/dataset_prepare.md says from where. Images that are unpacked
already are linked. Needed are the images of train2014 and val2014 and LAVIS's lists, which configs/blip2 reads;
configs/coco reads 2017 (--only 2017). Can be run again, fetches and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli
from mmblip2.utils.prepare_data import Annotations, Images, run

ZIPS = 'http://images.cocodataset.org/zips/'
FILES = 'http://images.cocodataset.org/annotations/'
LAVIS = 'https://storage.googleapis.com/sfr-vision-language-research/datasets/'
LIST, OFFICIAL = ('image', 'caption'), ('image_id', 'caption')
TRAINVAL2014, TRAINVAL2017, TEST2014 = (f'{name}.zip' for name in (
    'annotations_trainval2014', 'annotations_trainval2017', 'image_info_test2014'))
PARTS = [
    Images('train2014.zip', 'train2014', 'train2014', 82783, f'{ZIPS}train2014.zip'),
    Images('val2014.zip', 'val2014', 'val2014', 40504, f'{ZIPS}val2014.zip'),
    Images('test2014.zip', 'test2014', 'test2014', 40775, f'{ZIPS}test2014.zip', needed=False),
    Images('test2015.zip', 'test2015', 'test2015', 81434, f'{ZIPS}test2015.zip', needed=False),
    Images('train2017.zip', 'train2017', 'train2017', 118287, f'{ZIPS}train2017.zip', needed=False),
    Images('val2017.zip', 'val2017', 'val2017', 5000, f'{ZIPS}val2017.zip', needed=False),
    Images('test2017.zip', 'test2017', 'test2017', 40670, f'{ZIPS}test2017.zip', needed=False),
    Annotations('coco_karpathy_train.json', 'annotations/coco_karpathy_train.json', LIST, 566747,
                f'{LAVIS}coco_karpathy_train.json', md5='aa31ac474cf6250ebb81d18348a07ed8'),
    Annotations('coco_karpathy_val.json', 'annotations/coco_karpathy_val.json', LIST, 5000,
                f'{LAVIS}coco_karpathy_val.json', md5='b273847456ef5580e33713b1f7de52a0'),
    Annotations('coco_karpathy_test.json', 'annotations/coco_karpathy_test.json', LIST, 5000,
                f'{LAVIS}coco_karpathy_test.json', md5='3ff34b0ef2db02d01c37399f6a2a6cd1'),
    Annotations('captions_train2014.json', 'annotations/captions_train2014.json', OFFICIAL, 414113,
                FILES + TRAINVAL2014, 'annotations', TRAINVAL2014, needed=False),
    Annotations('captions_val2014.json', 'annotations/captions_val2014.json', OFFICIAL, 202654,
                FILES + TRAINVAL2014, 'annotations', TRAINVAL2014, needed=False),
    Annotations('captions_train2017.json', 'annotations/captions_train2017.json', OFFICIAL, 591753,
                FILES + TRAINVAL2017, 'annotations', TRAINVAL2017, needed=False),
    Annotations('captions_val2017.json', 'annotations/captions_val2017.json', OFFICIAL, 25014,
                FILES + TRAINVAL2017, 'annotations', TRAINVAL2017, needed=False),
    Annotations('image_info_test2014.json', 'annotations/image_info_test2014.json', ('id', 'file_name'), 40775,
                FILES + TEST2014, 'images', TEST2014, needed=False),
    Annotations('dataset_coco.json', 'annotations/dataset_coco.json', ('filename', 'split', 'sentences'), 123287,
                'https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip', 'images',
                'caption_datasets.zip', needed=False),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'COCO', 'data/coco', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
