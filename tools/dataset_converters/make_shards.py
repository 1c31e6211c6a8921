"""Pack an image-text data set into tar shards, in the layout of WebDataset, for WebShards and WebStream.

    python tools/dataset_converters/make_shards.py CONFIG --out data/web/shards
    python tools/dataset_converters/make_shards.py --index 'data/web/shards/*.tar'

Each image becomes a sample: its file as it is, and JSON with all its captions ("caption") and its "image_id". OUT gets
00000.tar, 00001.tar, ... with their indices, and shards.json, which says what they were made from. A tar has its name
when it is whole: a second call goes on after an interruption. The second form makes the indices of shards that are
there, which a training would do at its start.
"""
import argparse
import hashlib
import io
import json
import os
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli

TEXTS = ('gt_caption', 'captions', 'texts', 'caption', 'text')  # of a row: the first that is there
ENDINGS = ('jpg', 'jpeg', 'png', 'webp')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', help='config file, or the name of one that comes with mmblip2')
    parser.add_argument('--out', type=Path, help='folder of the shards')
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train', help='default: %(default)s')
    parser.add_argument('--dataset', type=int, help='number of the data set, from 0 on, where the config has several')
    parser.add_argument('--samples', type=int, default=1000, help='images a shard; default: %(default)s')
    parser.add_argument('--seed', type=int, help='shuffle the images before they are packed; default: their order')
    parser.add_argument('--workers', type=int, default=4, help='shards made at a time; default: %(default)s')
    parser.add_argument('--index', nargs='+', metavar='TAR', help='only index these shards ({000..119}, * and ?)')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=cli.CFG_OPTIONS_HELP)
    args = parser.parse_args(argv)
    if (args.config is None) == (args.index is None):
        parser.error('give a config, or --index TAR')
    if args.config and args.out is None:
        parser.error('--out is missing: the folder of the shards')
    for name in ('samples', 'workers'):
        if getattr(args, name) < 1:
            parser.error(f'--{name} is {getattr(args, name)}, expected at least 1')
    return args


def build(args):
    """The data set of the config that was chosen, without its pipeline.

    Raises:
        ConfigError: There is none, or several.
    """
    from mmengine.registry import DefaultScope

    import mmblip2.datasets  # noqa: F401
    from mmblip2.errors import ConfigError
    from mmblip2.registry import DATASETS
    from mmblip2.utils.run_config import innermost_datasets, load_config
    cfg = load_config(args.config, args.cfg_options)
    loader = cfg.get(f'{args.split}_dataloader')
    if not loader:
        raise ConfigError(f'{cfg.filename} has no {args.split}_dataloader: choose another --split')
    found = innermost_datasets(loader['dataset'], f'{args.split}_dataloader.dataset')
    if args.dataset is None and len(found) > 1:
        listed = ''.join(f'\n  {number}: {name} ({dataset["type"]}, {dataset.get("data_root", "")})'
                         for number, (name, dataset) in enumerate(found))
        raise ConfigError(f'{cfg.filename} has several data sets, choose one with --dataset NUMBER:{listed}')
    if not 0 <= (args.dataset or 0) < len(found):
        raise ConfigError(f'--dataset {args.dataset}: there are the data sets 0 to {len(found) - 1}')
    with DefaultScope.overwrite_default_scope('mmblip2'):
        return DATASETS.build({**found[args.dataset or 0][1], 'pipeline': []})


def images_of(dataset):
    """Images with their captions, in the order of the rows.

    Returns:
        list[tuple[str, int | str, list[str]]]: Path, id and captions of each.

    Raises:
        DataError: Rows without image or caption, or an image that WebShards does not look for.
    """
    from mmblip2.errors import DataError
    found = {}
    for index in range(len(dataset)):
        row = dataset.get_data_info(index)
        texts = next((row[key] for key in TEXTS if row.get(key)), None)
        if 'img_path' not in row or 'question' in row or texts is None:
            raise DataError(f'row {index} of {dataset.source} has no image with a caption, only {sorted(row)}: '
                            'make_shards packs image-text sets')
        ending = row['img_path'].rpartition('.')[2].lower()
        if ending not in ENDINGS:
            raise DataError(f'{row["img_path"]} does not end with one of {", ".join(ENDINGS)}: convert it first')
        _, captions = found.setdefault(row['img_path'], (row['image_id'], []))
        captions += [texts] if isinstance(texts, str) else texts
    return [(path, image_id, captions) for path, (image_id, captions) in found.items()]


def check_plan(out, plan):
    """Write what the shards are made from, or compare it with what is there.

    Raises:
        DataError: OUT has shards of something else.
    """
    from mmblip2.errors import DataError
    path = out / 'shards.json'
    if path.is_file():
        if json.loads(path.read_text(encoding='utf-8')) != plan:
            raise DataError(f'{path} says that the shards in {out} were made from other images, or with another '
                            '--samples or --seed: choose another --out, or remove them')
    elif any(out.glob('*.tar')):
        raise DataError(f'{out} has tar files of something else: choose another --out')
    else:
        out.mkdir(parents=True, exist_ok=True)
        side = out / f'shards.json.{os.getpid()}.part'
        side.write_text(json.dumps(plan, indent=2), encoding='utf-8')
        os.replace(side, path)


def pack(path, first, images):
    """Write one shard and its index, if it is not there; whether it was written.

    Raises:
        DataError: An image cannot be read, or the shard cannot be written.
    """
    from mmblip2.datasets.tar_files import index_tars, read_member, split_path
    from mmblip2.errors import DataError
    if path.is_file():
        index_tars([str(path)])
        return False
    side = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
        with open(side, 'wb') as file:
            with tarfile.open(fileobj=file, mode='w') as tar:
                for number, (image, image_id, captions) in enumerate(images, first):
                    try:
                        content = read_member(image) if split_path(image) and not os.path.isfile(image) else Path(
                            image).read_bytes()
                    except OSError as error:
                        raise DataError(f'image {image} cannot be read: {error}') from None
                    text = json.dumps(dict(caption=captions, image_id=image_id), ensure_ascii=False).encode()
                    for ending, data in ((image.rpartition('.')[2].lower(), content), ('json', text)):
                        member = tarfile.TarInfo(f'{number:09d}.{ending}')
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))
            file.flush()
            os.fsync(file.fileno())
        os.replace(side, path)
    except OSError as error:
        raise DataError(f'{path} cannot be written ({error}); the shards that are there are whole: call this again to '
                        'go on') from None
    finally:
        side.unlink(missing_ok=True)
    index_tars([str(path)])
    return True


def main(argv=None):
    args = parse_args(argv)
    from rich.console import Console
    from rich.progress import track
    if args.index:
        from mmblip2.datasets.tar_files import index_tars
        from mmblip2.datasets.web_shards import find_shards
        found = index_tars(find_shards(args.index), args.workers)
        cut = sum(summary.cut is not None for summary in found)
        print(f'{len(found)} shards with {sum(summary.samples for summary in found)} samples are indexed'
              + (f'; {cut} of them are cut off' if cut else ''))
        return
    import logging

    from mmengine.logging import MMLogger
    dataset = build(args)
    images = images_of(dataset)
    if args.seed is not None:
        import numpy as np
        images = [images[number] for number in np.random.default_rng(args.seed).permutation(len(images))]
    digest = hashlib.sha256(json.dumps(images).encode()).hexdigest()
    check_plan(args.out, dict(source=dataset.source, images=len(images), samples=args.samples, sha256=digest))
    MMLogger.get_current_instance().setLevel(logging.WARNING)  # a line for each index would hide the progress
    starts = range(0, len(images), args.samples)
    width = max(5, len(str(len(starts) - 1)))
    pool = ThreadPoolExecutor(args.workers)
    try:
        jobs = [pool.submit(pack, args.out / f'{number:0{width}d}.tar', start, images[start:start + args.samples])
                for number, start in enumerate(starts)]
        new = sum(job.result() for job in track(jobs, 'shards', console=Console(stderr=True)))
    finally:  # interrupted: the rest is not waited for
        pool.shutdown(cancel_futures=True)
    shards = f'{{{"0" * width}..{len(starts) - 1:0{width}d}}}.tar'
    print(f'{len(images)} images with {sum(len(captions) for _, _, captions in images)} captions in {len(starts)} '
          f"shards, {new} of them new: dict(type='WebShards', data_root={str(args.out)!r}, shards={shards!r})")


if __name__ == '__main__':
    cli.run(main)
