"""Arrange A-OKVQA 1.0; the images are those of COCO 2017 (prepare_coco.py).

    python tools/dataset_converters/prepare_aokvqa.py --source DIR [--out data/aokvqa]

DIR holds the files as downloaded (docs/dataset_prepare.md says from where), packed or not; images that are unpacked
already are linked. Can be run again, fetches and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.datasets.prepare import Annotations, run
from mmblip2.utils import cli

PARTS = [
    Annotations('aokvqa_v1p0_train.json', 'annotations/aokvqa_v1p0_train.json', 'aokvqa_v1p0.tar.gz', rows=(None,
                17056)),
    Annotations('aokvqa_v1p0_val.json', 'annotations/aokvqa_v1p0_val.json', 'aokvqa_v1p0.tar.gz', rows=(None, 1145)),
    Annotations('aokvqa_v1p0_test.json', 'annotations/aokvqa_v1p0_test.json', 'aokvqa_v1p0.tar.gz', rows=(None, 6702)),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'A-OKVQA', 'data/aokvqa', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
