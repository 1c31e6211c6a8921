"""Arrange Visual Genome 1.2: images, region descriptions, questions.

    python tools/dataset_converters/prepare_visual_genome.py --source DIR [--out data/visual_genome]

DIR holds the files as downloaded, packed or not; docs/dataset_prepare.md says from where. Images that are unpacked
already are linked. vg_caption.json and vg_qa.json are LAVIS's lists, which configs/blip2 reads. Can be run again,
fetches and deletes nothing.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli
from mmblip2.utils.prepare_data import Annotations, Images, run

IMAGES = 'https://cs.stanford.edu/people/rak248/VG_100K_2/'
FILES = 'https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset/'
LAVIS = 'https://storage.googleapis.com/sfr-vision-language-research/LAVIS/datasets/visual_genome/'
PARTS = [
    Images('images.zip', 'VG_100K', 'VG_100K', 64346, f'{IMAGES}images.zip'),
    Images('images2.zip', 'VG_100K_2', 'VG_100K_2', 43903, f'{IMAGES}images2.zip'),
    Annotations('vg_caption.json', 'annotations/vg_caption.json', ('image', 'caption'), None,
                f'{LAVIS}vg_caption.json'),
    Annotations('vg_qa.json', 'annotations/vg_qa.json', ('image', 'question', 'answer'), None, f'{LAVIS}vg_qa.json'),
    Annotations('region_descriptions.json', 'annotations/region_descriptions.json', ('regions', ), 108077,
                f'{FILES}region_descriptions.json.zip', archive='region_descriptions.json.zip', needed=False),
    Annotations('question_answers.json', 'annotations/question_answers.json', ('qas', ), 108077,
                f'{FILES}question_answers.json.zip', archive='question_answers.json.zip', needed=False),
]


def main(argv=None):
    """Exit status."""
    return run(PARTS, 'Visual Genome', 'data/visual_genome', __doc__, argv)


if __name__ == '__main__':
    cli.run(lambda: sys.exit(main()))
