"""Print the config of the BLIP-2, InstructBLIP or BLIP in a Hugging Face folder.

    python tools/model_converters/huggingface_to_config.py blip2-opt-2.7b --out blip2-opt-2.7b.py

The config names the folder as it is given here: run from where it will be used, or give the whole path. For training
and tests add the data, the schedule and the evaluation (configs/blip2 has some). For pictures the config is enough:
``inference_model('blip2-opt-2.7b.py', IMAGE, pretrained='blip2-opt-2.7b')``. So is the folder alone.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description='Print the config of the model in a Hugging Face folder')
    parser.add_argument('folder', help='what save_pretrained of transformers wrote, or a published model as downloaded')
    parser.add_argument('--out', help='write it to this .py file as well')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from mmblip2.checkpoints.huggingface_config import config_from_folder
    from mmblip2.errors import ConfigError
    if args.out and not args.out.endswith('.py'):
        raise ConfigError(f'--out {args.out}: a config is a .py file')
    cfg = config_from_folder(args.folder)
    print(cfg.pretty_text)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        cfg.dump(args.out)


if __name__ == '__main__':
    cli.run(main)
