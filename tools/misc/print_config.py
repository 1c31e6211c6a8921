"""Print a config as the tools see it: python tools/misc/print_config.py CONFIG [--cfg-options key=value ...]"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description='Print the whole config, its bases and options resolved')
    parser.add_argument('config', help='config file, or the name of one that comes with mmblip2')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=cli.CFG_OPTIONS_HELP)
    parser.add_argument('--out', help='write it to this .py file as well')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from mmblip2.utils import run_config
    cfg = run_config.load_config(args.config, args.cfg_options)
    print(cfg.pretty_text)
    if args.out:
        cfg.dump(args.out)


if __name__ == '__main__':
    cli.run(main)
