"""Train a model: python tools/train.py CONFIG [--resume] [--cfg-options key=value ...]."""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mmblip2.utils import cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument('config', help='config file, or the name of one that comes with mmblip2')
    parser.add_argument('--work-dir',
                        help='folder of logs and checkpoints; default: ./work_dirs/<config name>')
    parser.add_argument('--resume', nargs='?', const='auto',
                        help='go on from this checkpoint; without a path: from the newest whole one')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast where the hardware has it')
    parser.add_argument('--no-validate', action='store_true', help='no validation during training')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate by batch size / auto_scale_lr.base_batch_size')
    parser.add_argument('--no-pin-memory', action='store_true', help='pin_memory=False in all dataloaders')
    parser.add_argument('--no-persistent-workers', action='store_true',
                        help='persistent_workers=False in all dataloaders')
    cli.add_run_options(parser)
    return cli.parse_run_args(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    from mmblip2.errors import ConfigError
    from mmblip2.utils import config_check as check
    from mmblip2.utils import run_config
    cfg = run_config.load_run_config(args)
    if args.resume:
        cfg.resume = True if args.resume == 'auto' else args.resume
    if args.amp:
        run_config.use_amp(cfg)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        (cfg.get('default_hooks') or {}).get('checkpoint', {}).pop('save_best', None)
    if args.auto_scale_lr:
        if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
            raise ConfigError(f'--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    run_config.adjust_dataloaders(cfg, args.no_pin_memory, args.no_persistent_workers)
    check.check_config(cfg, training=True)
    from mmblip2.engine import Runner
    Runner.from_cfg(cfg).train()


if __name__ == '__main__':
    cli.run(main)
