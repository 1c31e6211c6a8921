"""Try a config with a tiny model on its own data: python tools/misc/try_config.py CONFIG

Trains for two iterations (or one short epoch), validates and tests on the first samples of each data set, and needs no
weights and no tokenizers: paths, annotation files, pipelines, losses, hooks and metrics show what is wrong with them
in a minute, on any machine. The scores mean nothing.
"""
import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from mmblip2.utils import cli  # noqa: E402

NO_TEXT = ('img_path', 'image_id', 'type')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description='Try a config with a tiny model on the first samples of its data')
    parser.add_argument('config', help='config file')
    parser.add_argument('--samples', type=int, default=8, help='samples used of each data set; default: 8')
    parser.add_argument('--work-dir', help='folder of everything written; default: ./work_dirs/try/<config name>')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=cli.CFG_OPTIONS_HELP)
    args = parser.parse_args(argv)
    if args.samples < 4:
        parser.error(f'--samples is {args.samples}; expected at least 4, which make a batch')
    return args


def strings(value):
    """All texts in nested dicts and lists, without paths, ids and names of classes."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key, item in value.items() if key not in NO_TEXT for text in strings(item)]
    return [text for item in value for text in strings(item)] if isinstance(value, (list, tuple)) else []


def texts_of(datasets):
    """The texts that a model meets: those of the samples, and those that the pipelines put before them."""
    from mmengine.registry import DATASETS, DefaultScope
    texts = []
    with DefaultScope.overwrite_default_scope('mmblip2'):
        for dataset in datasets:
            built = DATASETS.build({**dataset, 'pipeline': []})
            texts += [text for index in range(len(built)) for text in strings(built.get_data_info(index))]
            texts += strings(dataset.get('pipeline', []))
    return texts


def write_tokenizers(texts, out):
    """Train the two tokenizers; returns their folders."""
    sys.path.insert(0, str(ROOT / 'tools' / 'dataset_converters'))
    from train_tokenizers import train_bert, train_opt
    folders = [out / 'bert', out / 'language']
    for folder, train in zip(folders, (train_bert, train_opt)):
        folder.mkdir(parents=True, exist_ok=True)
        train(texts, folder, 1000)
    return folders


def main(argv=None):
    args = parse_args(argv)
    from mmblip2.utils import config_check as check
    from mmblip2.utils import run_config
    cfg = run_config.load_config(args.config, args.cfg_options)
    check.check_config(cfg)
    from mmblip2.engine import Runner
    from mmblip2.utils.shrink import shrink
    datasets = [dataset for split in ('train', 'val', 'test') if cfg.get(f'{split}_dataloader')
                for _, dataset in run_config.innermost_datasets(cfg[f'{split}_dataloader'].dataset)]
    for dataset in datasets:
        dataset.indices = args.samples
    work_dir = Path(args.work_dir or Path('work_dirs', 'try', Path(args.config).stem))
    texts = texts_of(datasets)
    if cfg.model.get('candidates'):
        from mmblip2.models.algorithms.candidates import read_candidates
        texts += read_candidates(cfg.model.candidates)
    cfg = shrink(cfg, *write_tokenizers(texts, work_dir / 'tokenizers'))
    cfg.work_dir = str(work_dir)
    if cfg.get('train_cfg'):
        Runner.from_cfg(cfg).train()
    else:
        Runner.from_cfg(cfg).save_checkpoint(cfg.work_dir, 'iter_0.pth', save_optimizer=False,
                                             save_param_scheduler=False)
    if cfg.get('test_cfg'):
        cfg.load_from = cfg.work_dir
        Runner.from_cfg(cfg).test()
    print(f'{args.config} runs with a tiny model and {args.samples} samples of each data set')


if __name__ == '__main__':
    cli.run(main)
