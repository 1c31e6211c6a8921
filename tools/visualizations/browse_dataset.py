"""Look at what the training sees: python tools/visualizations/browse_dataset.py CONFIG --out samples.html

Writes one HTML page, with the pictures inside: samples of a data set before and after its pipeline, pictures and texts.
"""
import argparse
import base64
import html
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli

STYLE = ('body{font:14px sans-serif;margin:2em}'
         '.row{display:flex;align-items:flex-start;gap:1em;border-top:1px solid #ccc;padding:1em 0}'
         'img{max-height:260px;max-width:360px}th{text-align:left}td{vertical-align:top}th,td{padding:0 1em 0.3em 0}'
         'td:first-child{color:#666}')
LARGEST = 720  # pixels of a side on the page; the table says the real size


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or the name of one that comes with mmblip2')
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train', help='default: %(default)s')
    parser.add_argument('--number', '-n', type=int, default=20, help='samples; default: %(default)s')
    parser.add_argument('--seed', type=int, default=0, help='of the choice and of random transforms, 0 or more')
    parser.add_argument('--first', action='store_true', help='the first samples instead of random ones')
    parser.add_argument('--out', '-o', default='samples.html', help='HTML file; default: %(default)s')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help=cli.CFG_OPTIONS_HELP)
    args = parser.parse_args(argv)
    if args.number < 1:
        parser.error(f'--number is {args.number}, expected at least 1')
    if args.seed < 0:
        parser.error(f'--seed is {args.seed}, expected 0 or more')
    return args


def picture(image):
    """An ``<img>`` with the picture inside."""
    image = image.convert('RGB')
    image.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=85)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def pixels(images):
    """Sizes of images, in words."""
    return ', '.join(f'{image.width} x {image.height}' for image in images)


def section(number, dataset, index, seed):
    """HTML of one sample.

    Args:
        number (int): Place on the page, the position of the draw.
        dataset: The data set.
        index (int): Of the row.
        seed (int): Of the random transforms.
    """
    from PIL import Image

    from mmblip2.datasets import Draw
    from mmblip2.datasets.base import image_files
    from mmblip2.datasets.transforms import LoadImage
    before = dict(dataset.get_data_info(index))
    packed = dataset[Draw(index, seed, number)]
    after = dict(packed['data_samples'].all_items())
    images = []
    if 'img_path' in before:
        images += [LoadImage()(dict(img_path=path, sample_idx=index))['image'] for path in image_files(before)]
        before['pixels'] = pixels(images)
    if 'inputs' in packed:
        height, width = packed['inputs'].shape[-2:]
        made = [Image.fromarray(image.permute(1, 2, 0).numpy())
                for image in packed['inputs'].reshape(-1, 3, height, width)]  # one image, or several
        after['pixels'] = pixels(made)
        images += made
    lines = ''.join('<tr>' + ''.join(f'<td>{html.escape(str(text))}</td>' for text in (
        key, before.get(key, ''), after.get(key, ''))) + '</tr>' for key in sorted({*before, *after}))
    return (f'<div class="row">{"".join(map(picture, images))}<table><tr><th></th><th>before</th><th>after</th></tr>'
            f'{lines}</table></div>')


def described(step):
    """A transform in words, with those that are inside it."""
    inside = step.get('transforms') if step['type'] == 'EachImage' else None
    return step['type'] + (f' ({", ".join(map(described, inside))})' if inside else '')


def main(argv=None):
    args = parse_args(argv)
    import numpy as np
    from mmengine.registry import DefaultScope

    import mmblip2.datasets  # noqa: F401
    from mmblip2.errors import ConfigError
    from mmblip2.registry import DATASETS
    from mmblip2.utils.run_config import innermost_datasets, load_config
    cfg = load_config(args.config, args.cfg_options)
    loader = cfg.get(f'{args.split}_dataloader')
    if not loader:
        raise ConfigError(f'{cfg.filename} has no {args.split}_dataloader: choose another --split')
    parts = []
    for name, config in innermost_datasets(loader['dataset'], f'{args.split}_dataloader.dataset'):
        with DefaultScope.overwrite_default_scope('mmblip2'):
            dataset = DATASETS.build(config)
        count = min(args.number, len(dataset))
        chosen = range(count) if args.first else np.random.default_rng(args.seed).choice(
            len(dataset), count, replace=False).tolist()
        steps = ' &rarr; '.join(html.escape(described(step)) for step in config.get('pipeline', ()))
        parts.append(f'<h2>{html.escape(name)}: {config["type"]}, {len(dataset)} rows</h2><p>{steps}</p>')
        parts += [section(number, dataset, index, args.seed) for number, index in enumerate(chosen)]
        print(f'{name}: {count} of {len(dataset)} samples')
    path = Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    title = html.escape(f'{args.split} samples of {args.config}')
    path.write_text(f'<!DOCTYPE html><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>'
                    + '\n'.join(parts), encoding='utf-8')
    print(f'written to {path}')


if __name__ == '__main__':
    cli.run(main)
