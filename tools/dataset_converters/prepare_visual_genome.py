"""Arrange Visual Genome: images, region descriptions, questions.

    python tools/dataset_converters/prepare_visual_genome.py --source DIR [--out data/visual_genome]

DIR holds the files as downloaded (docs/dataset_prepare.md says from where), packed or not; images that are unpacked
already are linked. vg_caption.json and vg_qa.json are LAVIS's lists. Can be run again, fetches and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.datasets.prepare import Annotations, Images, run
from mmblip2.utils import cli

PARTS = [
    Images('images.zip', 'VG_100K', 'VG_100K', 64346),
    Images('images2.zip', 'VG_100K_2', 'VG_100K_2', 43903),
    Annotations('region_descriptions.json', 'annotations/region_descriptions.json', 'region_descriptions.json.zip',
                rows=(None, 108077)),
    Annotations('question_answers.json', 'annotations/question_answers.json', 'question_answers.json.zip',
                rows=(None, 108077)),
    Annotations('vg_caption.json', 'annotations/vg_caption.json', needed=False),
    Annotations('vg_qa.json', 'annotations/vg_qa.json', needed=False),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'Visual Genome', 'data/visual_genome', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
