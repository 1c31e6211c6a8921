"""Test a checkpoint: python tools/test.py CONFIG CHECKPOINT [--out metrics.json] [--dump
predictions.json]."""
import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mmblip2.utils import cli


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description='Test a checkpoint')
    parser.add_argument('config', help='config file, or the name of one that comes with mmblip2')
    parser.add_argument('checkpoint', help='file of mmblip2, LAVIS or mmpretrain, work directory of a training, folder '
                        'of transformers, URL, or name on the Hugging Face hub')
    parser.add_argument('--work-dir', help='folder of the log; default: ./work_dirs/<config name>')
    parser.add_argument('--out', help='JSON file for the metrics, or for what --out-item says')
    parser.add_argument('--out-item', choices=['metrics', 'pred'], default='metrics',
                        help='what --out receives')
    parser.add_argument('--dump', metavar='FILE', help='predictions, one record a sample (.json or .pkl)')
    parser.add_argument('--show-dir', help='folder for pictures with predictions')
    parser.add_argument('--interval', type=int, default=1, help='every n-th sample goes to --show-dir')
    parser.add_argument('--shuffle-images', action='store_true',
                        help='exchange the images by a fixed derangement: the score without looking')
    parser.add_argument('--amp', action='store_true', help='bfloat16 autocast where the hardware has it')
    parser.add_argument('--no-pin-memory', action='store_true', help='pin_memory=False in all dataloaders')
    cli.add_run_options(parser)
    args = cli.parse_run_args(parser, argv)
    if args.out_item == 'pred' and not args.out:
        parser.error('--out-item pred needs --out FILE')
    for path in (args.dump, args.out if args.out_item == 'pred' else None):
        if path and Path(path).suffix not in ('.json', '.pkl'):
            parser.error(f'{path}: predictions are written as .json or .pkl')
    return args


def main(argv=None):
    args = parse_args(argv)
    from mmblip2.utils import config_check as check
    from mmblip2.utils import run_config
    cfg = run_config.load_run_config(args)
    cfg.load_from, cfg.resume = args.checkpoint, False
    run_config.require(cfg, ('model', 'test_dataloader', 'test_evaluator', 'test_cfg'))
    if args.amp:
        cfg.test_cfg.setdefault('autocast', 'auto')
    if args.shuffle_images:
        for _, dataset in run_config.innermost_datasets(cfg.test_dataloader.dataset):
            dataset.shuffle_images = True
    for path in (args.dump, args.out if args.out_item == 'pred' else None):
        if path:
            run_config.dump_predictions(cfg, path)
    if args.show_dir:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(
            type='PredictionVisualizationHook', show_dir=args.show_dir, interval=args.interval)]
    run_config.adjust_dataloaders(cfg, args.no_pin_memory, False)
    check.check_config(cfg, checkpoint=args.checkpoint)
    from mmengine.dist import is_main_process

    from mmblip2.checkpoints.parts import without_drawing
    from mmblip2.engine import Runner
    with without_drawing(cfg.model):
        runner = Runner.from_cfg(cfg)
    metrics = runner.test()
    if args.out and args.out_item == 'metrics' and is_main_process():
        path = Path(args.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(metrics, indent=2, default=float) + '\n')


if __name__ == '__main__':
    cli.run(main)
