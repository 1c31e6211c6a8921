"""Export a trained model to a folder that transformers loads (4.57 and 5).

    python tools/model_converters/mmblip2_to_huggingface.py CONFIG CHECKPOINT OUT_FOLDER
    -> Blip2ForConditionalGeneration.from_pretrained('OUT_FOLDER'), AutoProcessor.from_pretrained('OUT_FOLDER')
    Of BLIP-2: Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval, InstructBlipForConditionalGeneration; of BLIP:
    BlipForConditionalGeneration, BlipForQuestionAnswering, BlipForImageTextRetrieval.

The folder is whole: frozen parts are read from where the config has them. What transformers has no place for is in
mmblip2_extra.safetensors, which is read when the folder is loaded here.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from convert import add_writing

from mmblip2.utils import cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG', help='config of the model')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='file, or work directory of a training (its newest)')
    parser.add_argument('out', metavar='OUT_FOLDER', help='the new folder')
    add_writing(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from mmblip2.checkpoints.export import export_to_huggingface
    from mmblip2.utils.run_config import load_config
    lines = export_to_huggingface(load_config(args.config), args.checkpoint, args.out, args.shard_size, args.force)
    print('\n'.join(lines))


if __name__ == '__main__':
    cli.run(main)
