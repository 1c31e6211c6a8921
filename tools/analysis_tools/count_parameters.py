"""Count the parameters of a config's model: python tools/analysis_tools/count_parameters.py CONFIG

Prints one line of JSON: trainable, frozen, total, and parts {name: {trainable, frozen}}. Needs no weights, no tokenizer
files, no network and next to no memory.
"""
import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description='Count trainable and frozen parameters from the config alone')
    parser.add_argument('config', help='config file, or the name of one that comes with mmblip2')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=cli.CFG_OPTIONS_HELP)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from mmblip2.utils import run_config
    from mmblip2.utils.meta import build_on_meta, count_parameters
    cfg = run_config.load_config(args.config, args.cfg_options)
    run_config.require(cfg, ('model',))
    print(json.dumps(count_parameters(build_on_meta(cfg.model))))


if __name__ == '__main__':
    cli.run(main)
