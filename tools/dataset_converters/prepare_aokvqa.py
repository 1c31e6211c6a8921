"""Arrange A-OKVQA 1.0; the images are those of COCO 2017 (prepare_coco.py).

    python tools/dataset_converters/prepare_aokvqa.py --source DIR [--out data/aokvqa]

DIR holds the files as downloaded, packed or not; docs/dataset_prepare.md says from where. Can be run again, fetches
and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli
from mmblip2.utils.prepare_data import Annotations, run

URL = 'https://prior-datasets.s3.us-east-2.amazonaws.com/aokvqa/aokvqa_v1p0.tar.gz'
PARTS = [
    Annotations(f'aokvqa_v1p0_{split}.json', f'annotations/aokvqa_v1p0_{split}.json',
                ('question_id', 'image_id', 'question'), number, URL, archive='aokvqa_v1p0.tar.gz')
    for split, number in (('train', 17056), ('val', 1145), ('test', 6702))
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'A-OKVQA', 'data/aokvqa', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
