"""Open every image of a config's data sets: python tools/analysis_tools/verify_dataset.py CONFIG

Reads the annotations of each data set of the config, then opens its images as the training does, several at a time.
Images that are missing or broken are listed, the first on the screen and all in --out. Exit status 1 if there are any.
Of shards (WebShards) the texts are read, too, and an index is made of those that have none.
"""
import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli

SPLITS = ('train', 'val', 'test')
SHOWN = 10


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or the name of one that comes with mmblip2')
    parser.add_argument('--split', nargs='+', choices=SPLITS, default=SPLITS, help='default: all that the config has')
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='images opened at a time; default: '
                        'the number of processors')
    parser.add_argument('--out', help='text file for the list of missing and broken images')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=cli.CFG_OPTIONS_HELP)
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error(f'--workers is {args.workers}, expected at least 1')
    return args


def images_of(cfg, splits):
    """Images of the data sets of a config.

    Args:
        cfg (Config): The config.
        splits (Sequence[str]): Of 'train', 'val', 'test'; those that the config lacks are left out.

    Returns:
        dict[str, list]: Name of a data set to its different images, paths or (WebShards, number).

    Raises:
        ConfigError: The config has none of the splits.
        DataError: Annotations that cannot be read.
    """
    from mmengine.registry import DefaultScope

    from mmblip2.datasets import WebShards
    from mmblip2.datasets.base import image_files
    from mmblip2.errors import ConfigError
    from mmblip2.registry import DATASETS
    from mmblip2.utils.run_config import innermost_datasets
    found = {}
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if not loader:
            continue
        for name, dataset in innermost_datasets(loader['dataset'], f'{split}_dataloader.dataset'):
            with DefaultScope.overwrite_default_scope('mmblip2'):
                built = DATASETS.build({**dataset, 'pipeline': [], 'lazy_init': True})
            if isinstance(built, WebShards):
                built.full_init()
                found[name] = [(built, index) for index in range(len(built))]
                print(f'{name} (WebShards): {len(built)} samples in {len(built.shards)} shards', flush=True)
                continue
            rows = built.load_data_list()
            found[name] = list(dict.fromkeys(path for row in rows for path in image_files(row)))
            print(f'{name} ({dataset["type"]}): {len(rows)} rows, {len(found[name])} images', flush=True)
    if not found:
        raise ConfigError(f'{cfg.filename} has no {", ".join(splits)} data set: choose another --split')
    return found


def problem_of(image):
    """What is wrong with an image file, or a sample of shards, or None."""
    from mmblip2.datasets.transforms.image import read_image
    from mmblip2.errors import DataError
    sample = isinstance(image, tuple)
    if not sample and not os.path.isfile(image):
        return f'{image}: there is no such file'
    try:
        if sample:
            return image[0].problem(image[1])
        read_image(image)
    except DataError as error:
        return f'{image}: {error}'
    except Exception as error:  # whatever a decoder does with a broken file, the other images are still to be opened
        return f'{image[0].sample_name(image[1]) if sample else image}: {type(error).__name__}: {error}'
    return None


def main(argv=None):
    args = parse_args(argv)
    from mmblip2.utils.run_config import load_config
    found = images_of(load_config(args.config, args.cfg_options), args.split)
    paths = list(dict.fromkeys(path for images in found.values() for path in images))
    from rich.console import Console
    from rich.progress import track
    pool = ThreadPoolExecutor(args.workers)  # Pillow decodes without Python's lock
    try:
        checked = track(pool.map(problem_of, paths), 'images', len(paths), console=Console(stderr=True))
        problems = [problem for problem in checked if problem]
    finally:  # interrupted: the rest is not waited for
        pool.shutdown(cancel_futures=True)
    for problem in problems[:SHOWN]:
        print(problem)
    if len(problems) > SHOWN:
        print(f'... and {len(problems) - SHOWN} more' + ('' if args.out else ': --out FILE lists all'))
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(''.join(f'{problem}\n' for problem in problems), encoding='utf-8')
    print(f'{len(paths)} images, {len(problems)} of them missing or broken')
    if problems:
        sys.exit(1)


if __name__ == '__main__':
    cli.run(main)
