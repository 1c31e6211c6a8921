"""Arrange COCO: images of 2014, 2015 and 2017, captions, and the lists of Karpathy's split.

    python tools/dataset_converters/prepare_coco.py --source DIR [--out data/coco]

DIR holds the files as downloaded (docs/dataset_prepare.md says from where), packed or not; images that are unpacked
already are linked. Needed are the images of train2014 and val2014 and LAVIS's lists,
which the configs of configs/blip2 read. Can be run again, fetches and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.datasets.prepare import Annotations, Images, run
from mmblip2.utils import cli

PARTS = [
    Images('train2014.zip', 'train2014', 'train2014', 82783),
    Images('val2014.zip', 'val2014', 'val2014', 40504),
    Images('test2015.zip', 'test2015', 'test2015', 81434, needed=False),
    Images('test2014.zip', 'test2014', 'test2014', 40775, needed=False),
    Images('train2017.zip', 'train2017', 'train2017', 118287, needed=False),
    Images('val2017.zip', 'val2017', 'val2017', 5000, needed=False),
    Annotations('coco_karpathy_train.json', 'annotations/coco_karpathy_train.json', rows=(None, 566747),
                md5='aa31ac474cf6250ebb81d18348a07ed8'),
    Annotations('coco_karpathy_val.json', 'annotations/coco_karpathy_val.json', rows=(None, 5000),
                md5='b273847456ef5580e33713b1f7de52a0'),
    Annotations('coco_karpathy_test.json', 'annotations/coco_karpathy_test.json', rows=(None, 5000),
                md5='3ff34b0ef2db02d01c37399f6a2a6cd1'),
    Annotations('captions_train2014.json', 'annotations/captions_train2014.json', 'annotations_trainval2014.zip',
                rows=('annotations', 414113), needed=False),
    Annotations('captions_val2014.json', 'annotations/captions_val2014.json', 'annotations_trainval2014.zip',
                rows=('annotations', 202654), needed=False),
    Annotations('captions_train2017.json', 'annotations/captions_train2017.json', 'annotations_trainval2017.zip',
                rows=('images', 118287), needed=False),
    Annotations('captions_val2017.json', 'annotations/captions_val2017.json', 'annotations_trainval2017.zip',
                rows=('images', 5000), needed=False),
    Annotations('image_info_test2014.json', 'annotations/image_info_test2014.json', 'image_info_test2014.zip',
                rows=('images', 40775), needed=False),
    Annotations('dataset_coco.json', 'annotations/dataset_coco.json', 'caption_datasets.zip', rows=('images',
                123287), needed=False),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'COCO', 'data/coco', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
