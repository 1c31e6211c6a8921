"""Fill the feature caches of a config before its training: python tools/dataset_converters/cache_features.py CONFIG.

The training would do it itself. Several processes share the work, also on several machines with a shared disk:
torchrun --nproc-per-node 8 tools/dataset_converters/cache_features.py CONFIG --launcher pytorch. Killed, it goes on
from the finished shards when it is started again.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description='Fill the feature caches of a config before its training')
    parser.add_argument('config', help='config file, or the name of one that comes with mmblip2')
    parser.add_argument('checkpoint', nargs='?', help='where the frozen vision encoder comes from, if not from the '
                        "config's own files; default: load_from of the config")
    parser.add_argument('--splits', nargs='+', choices=['train', 'val', 'test'], default=['train', 'val', 'test'],
                        help='whose data sets; default: all')
    parser.add_argument('--work-dir', help='folder of the log; default: ./work_dirs/<config name>')
    parser.add_argument('--amp', action='store_true', help='as of the training: bfloat16 where the hardware has it')
    cli.add_run_options(parser)
    return cli.parse_run_args(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    from mmblip2.errors import ConfigError
    from mmblip2.utils import config_check as check
    from mmblip2.utils import run_config
    cfg = run_config.load_run_config(args)
    run_config.require(cfg, ('model',))
    if args.checkpoint:
        cfg.load_from = args.checkpoint
    if args.amp:
        run_config.use_amp(cfg)
    run_config.adjust_dataloaders(cfg, False, False)
    check.check_config(cfg, checkpoint=args.checkpoint)
    from mmblip2.engine import Runner
    if not Runner.from_cfg(cfg).fill_feature_caches(args.splits):
        raise ConfigError(f'no data set of {args.config} ({", ".join(args.splits)}) has feature_cache: set it, '
                          "feature_cache=dict(dir='data/features')")


if __name__ == '__main__':
    cli.run(main)
