"""Convert a checkpoint of BLIP-2 or BLIP between mmblip2, LAVIS, mmpretrain and transformers.

    python tools/model_converters/convert.py blip2_pretrained_opt2.7b.pth blip2.pth --to mmblip2 --config CONFIG
    python tools/model_converters/convert.py FOLDER blip2.pth --to mmblip2            a folder of transformers
    python tools/model_converters/convert.py work_dirs/X blip2_lavis.pth --to lavis
    python tools/model_converters/convert.py work_dirs/X FOLDER --to huggingface      for from_pretrained
    python tools/model_converters/convert.py model_base_vqa.pth FOLDER --to huggingface --config CONFIG    of BLIP

The layout of SOURCE is recognised from its keys. Values stay as they are. In memory is one file of SOURCE at most, so a
folder in shards may be larger than the memory.
"""
import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli


def parse_size(text):
    """Bytes of '5GB', '500MB' or a number."""
    found = re.fullmatch(r'(\d+(?:\.\d+)?) *(KB|MB|GB|)', text.strip().upper())
    if found is None or float(found.group(1)) <= 0:
        raise argparse.ArgumentTypeError(f'{text!r} is no size above 0 such as 5GB, 500MB or 1000000')
    return max(int(float(found.group(1)) * {'': 1, 'KB': 10**3, 'MB': 10**6, 'GB': 10**9}[found.group(2)]), 1)


def add_writing(parser):
    """Options of every tool that writes weights."""
    parser.add_argument('--shard-size', type=parse_size, default='5GB', metavar='SIZE',
                        help='size of a file of weights in a folder (default: %(default)s)')
    parser.add_argument('--force', action='store_true', help='replace the output if it exists')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SOURCE', help='file, work directory, or folder of transformers')
    parser.add_argument('out', metavar='OUT', help='the new file; with --to huggingface a folder')
    parser.add_argument('--to', required=True, choices=('mmblip2', 'lavis', 'mmpretrain', 'huggingface'))
    parser.add_argument('--config', help='config of the model; default: the one inside SOURCE, if it has one')
    parser.add_argument('--whole', action='store_true',
                        help='to lavis or mmpretrain: the frozen vision encoder too, from where the config has it')
    parser.add_argument('--split', action='store_true',
                        help='to mmblip2: frozen parts of SOURCE into OUT_vision.pth and OUT_language_model.pth; '
                        'default: OUT refers to SOURCE for them')
    add_writing(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from mmblip2.checkpoints.convert import convert
    print('\n'.join(convert(**vars(args))))


if __name__ == '__main__':
    cli.run(main)
