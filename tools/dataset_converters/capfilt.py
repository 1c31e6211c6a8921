"""Bootstrap a web image-text set: CapFilt (BLIP, section 3.3).

    python tools/dataset_converters/capfilt.py ANN --images DIR --captioner MODEL --filter MODEL --out OUT.jsonl

The captioner writes a text for every image. The filter gives each of the web's texts and of the written ones its
probability of matching the image, and those from --threshold on are kept. OUT is read by ImageTextPairs: a row an
image that has a text left, {"image", "caption", "origin", "score"}, the last three lists of the same length, and
"image_id" where ANN has one. OUT.report.json says what was kept and dropped, with examples, and lists broken images.

Finished shards lie in OUT.parts until the end: after a kill the same command with --resume goes on there. Several
processes (torchrun ... capfilt.py ...) share the shards and write the same OUT as one.
"""
import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mmblip2.utils import cli

ENDINGS = ('.jsonl', '.json')
ORIGINS = ('web', 'synthetic')
INTERVAL = 10  # seconds between two lines of progress
#: BLIP, section 3.3: nucleus sampling, whose captions are more diverse than those of beam search
SAMPLING = dict(do_sample=True, top_p=0.9)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('ann', help='the web set: .json, .jsonl, .csv, .tsv or .parquet, as ImageTextPairs reads them')
    parser.add_argument('--images', default='', help='folder in front of the image paths of ANN')
    parser.add_argument('--image-key', default='image', help='key or column of the image path')
    parser.add_argument('--caption-key', nargs='+', default=['caption'], help='key(s) or column(s) of the web texts')
    for name, what in (('captioner', 'writes captions'), ('filter', 'has an image-text matching head')):
        parser.add_argument(f'--{name}', required=True, metavar='MODEL', help=f'model that {what}: a name of '
                            'list_models, a config, a checkpoint or a work directory')
        parser.add_argument(f'--{name}-weights', metavar='CHECKPOINT', help='its checkpoint, for a config')
    parser.add_argument('--out', type=Path, required=True, help='file to write, .jsonl or .json')
    parser.add_argument('--threshold', type=float, default=0.5, help='least probability of a text that is kept; '
                        'default: %(default)s')
    parser.add_argument('--num-captions', type=int, default=1, help='texts written an image; default: %(default)s')
    parser.add_argument('--prompt', help="what the captions continue; default: as in the captioner's config")
    parser.add_argument('--generation', nargs='+', default=[], metavar='KEY=VALUE', help='settings of generation, '
                        "beside those of the captioner's config; default: do_sample=True top_p=0.9, nucleus sampling; "
                        'do_sample=False num_beams=3 is beam search')
    parser.add_argument('--seed', type=int, default=0, help='of sampling')
    parser.add_argument('--batch-size', type=int, default=32, help='images a batch; default: %(default)s')
    parser.add_argument('--shard-size', type=int, default=1000, help='images a shard: what a kill may cost; default: '
                        '%(default)s')
    parser.add_argument('--max-broken', type=int, default=100, help='stop when more images than that cannot be read; '
                        'default: %(default)s')
    parser.add_argument('--examples', type=int, default=10, help='of each kind in the report; default: %(default)s')
    parser.add_argument('--workers', type=int, default=4, help='images read at a time; default: %(default)s')
    parser.add_argument('--device', help='default: the GPU (of several processes one each), otherwise the CPU')
    parser.add_argument('--dtype', help='float16, bfloat16 or float32; default: as in the configs')
    parser.add_argument('--resume', action='store_true', help='go on with the finished shards of the same command')
    parser.add_argument('--overwrite', action='store_true', help='replace OUT and drop finished shards')
    args = parser.parse_args(argv)
    for name, least in (('num_captions', 1), ('batch_size', 1), ('shard_size', 1), ('workers', 1), ('max_broken', 0),
                        ('examples', 0), ('seed', 0)):
        if getattr(args, name) < least:
            parser.error(f'--{name.replace("_", "-")} is {getattr(args, name)}, expected at least {least}')
    if not 0 <= args.threshold <= 1:
        parser.error(f'--threshold is {args.threshold}, expected a probability, 0 to 1')
    if args.resume and args.overwrite:
        parser.error('--resume keeps what --overwrite drops: give one of them')
    if args.out.suffix not in ENDINGS:
        parser.error(f'--out {args.out}: expected a file that ends with {" or ".join(ENDINGS)}')
    return args


# ------------------------------------------------------------------------------------------------ the web set
class WebImage(NamedTuple):
    """An image, as the annotations call it, its id where they have one, its different texts, and how many were empty.
    """
    image: str
    image_id: int | str | None
    texts: list[str]
    empty: int


def read_web(args):
    """The images of the set, in the order in which they first appear; the texts of all rows of an image together.

    Returns:
        list[WebImage]: One an image.

    Raises:
        ConfigError, DataError: See ``ImageTextPairs``; there is no image.
    """
    from mmblip2.datasets import ImageTextPairs
    from mmblip2.datasets.transforms.text import is_empty
    from mmblip2.errors import DataError
    rows = ImageTextPairs(ann_file=str(args.ann), image_key=args.image_key, caption_key=args.caption_key,
                          lazy_init=True).load_data_list()
    found: dict = {}
    for row in rows:
        image = row['img_path']
        found.setdefault(image, WebImage(image, None if row['image_id'] == image else row['image_id'], [], []))
        for text in row['captions']:
            (found[image].empty if is_empty(text) else found[image].texts).append(text)
    if not found:
        raise DataError(f'{args.ann} has no images')
    return [item._replace(texts=list(dict.fromkeys(item.texts)), empty=len(item.empty)) for item in found.values()]


# ------------------------------------------------------------------------------------------------ what is written
class Output:
    """The files of a run: OUT, its report, and the shards that are finished.

    Args:
        path (Path): OUT.
    """

    def __init__(self, path):
        self.path = path
        self.report = path.with_name(f'{path.name}.report.json')
        self.parts = path.with_name(f'{path.name}.parts')

    def check(self, args):
        """Before the work: nothing is overwritten unasked, and the folder can be written.

        Raises:
            ConfigError: Says what is there and which option is meant for it.
        """
        from mmblip2.errors import ConfigError
        if self.path.exists() and self.path.samefile(args.ann):
            raise ConfigError(f'--out {self.path} is the web set itself: give another file')
        if self.path.is_dir():
            raise ConfigError(f'--out {self.path} is a folder: give a file')
        there = [path for path in (self.path, self.report, self.parts) if path.exists()]
        if there and not (args.resume or args.overwrite):
            raise ConfigError(f'{there[0]} is there already: --resume goes on, --overwrite begins anew')
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path.parent):
                pass
        except OSError as error:
            raise ConfigError(f'--out {self.path} cannot be written: {error}') from None

    def begin(self, args, settings):
        """Take over the finished shards of the same settings, or begin anew.

        Returns:
            bool: Whether OUT itself is finished.

        Raises:
            ConfigError: What is there was made with other settings; says which.
        """
        from mmblip2.errors import ConfigError
        if args.overwrite:
            shutil.rmtree(self.parts, ignore_errors=True)
        made = self.parts / 'settings.json'  # the first that goes at the end
        finished = not made.exists() and self.path.exists() and not args.overwrite
        file = self.report if finished else made
        if finished or self.parts.exists():
            try:
                before = json.loads(file.read_text(encoding='utf-8'))
            except (OSError, ValueError) as error:
                raise ConfigError(f'{file} does not say how {self.path} was made ({error}): --overwrite begins anew'
                                  ) from None
            now = dict(settings, threshold=args.threshold) if finished else settings
            before = before.get('settings', before)
            other = [key for key in now if before.get(key) != now[key]]
            if other:
                raise ConfigError(f'{file.parent / self.path.name if finished else self.parts} was made with other '
                                  'settings: ' + '; '.join(f'{key} {before.get(key)!r}, now {now[key]!r}'
                                                           for key in other) + '. --overwrite begins anew')
            if finished:  # it was killed while it removed them
                shutil.rmtree(self.parts, ignore_errors=True)
            return finished
        self.parts.mkdir()
        _write(file, json.dumps(settings, indent=1))
        return False

    def shard(self, number):
        """Path of a finished shard."""
        return self.parts / f'{number:06d}.jsonl'

    def write_shard(self, number, records):
        """Keep a finished shard."""
        _write(self.shard(number), ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records))

    def records(self, numbers):
        """The records of finished shards, one after the other.

        Raises:
            DataError: A shard is not what was written.
        """
        from mmblip2.errors import DataError
        for number in numbers:
            try:
                with open(self.shard(number), encoding='utf-8') as file:
                    yield from map(json.loads, file)
            except ValueError as error:
                raise DataError(f'{self.shard(number)} is broken ({error}): delete it and go on with --resume'
                                ) from None

    def finish(self, args, numbers, settings):
        """Write OUT and its report from the shards, and remove them.

        Returns:
            dict: The report.

        Raises:
            DataError: Too many images are broken, or no text is left. The shards stay.
        """
        from mmblip2.errors import DataError
        counts = {origin: dict(kept=0, dropped=0, empty=0) for origin in ORIGINS}
        examples: dict = {f'{origin}_{fate}': [] for origin in ORIGINS for fate in ('kept', 'dropped')}
        report = dict(images=0, images_with_text=0, broken=0, same_as_web=0, **counts, examples=examples,
                      broken_images=[], settings=dict(settings, threshold=args.threshold))
        with _whole(self.path) as file:
            for record in self.records(numbers):
                report['images'] += 1
                if 'error' in record:
                    report['broken_images'].append([record['image'], record['error']])
                    continue
                kept = []
                for text, origin, score in record['texts']:
                    fate = 'kept' if score >= args.threshold else 'dropped'
                    counts[origin][fate] += 1
                    if fate == 'kept':
                        kept.append((text, origin, round(score, 4)))
                    if len(examples[f'{origin}_{fate}']) < args.examples:
                        examples[f'{origin}_{fate}'].append(dict(image=record['image'], text=text,
                                                                 score=round(score, 4)))
                for origin in ORIGINS:
                    counts[origin]['empty'] += record['empty'][origin]
                report['same_as_web'] += record['same_as_web']
                if kept:
                    row = {key: record[key] for key in ('image', 'image_id') if key in record}
                    row.update(zip(('caption', 'origin', 'score'), map(list, zip(*kept))))
                    first = '' if self.path.suffix == '.jsonl' else ',\n' if report['images_with_text'] else '[\n'
                    last = '\n' if self.path.suffix == '.jsonl' else ''
                    file.write(first + json.dumps(row, ensure_ascii=False) + last)
                    report['images_with_text'] += 1
            if self.path.suffix == '.json':
                file.write('\n]\n')
            report['broken'] = len(report['broken_images'])
            whole = report['images'] - report['broken']
            refuse_broken(report['broken_images'], args.max_broken)
            if not whole:
                image, why = report['broken_images'][0]
                raise DataError(f'none of the {report["images"]} images can be read, the first is {image} ({why}): '
                                'check --images, and begin anew with --overwrite')
            if not report['images_with_text']:
                raise DataError(f'no text of {whole} images reaches --threshold {args.threshold}: lower it '
                                'and go on with --resume, or take another filter')
        _write(self.report, json.dumps(report, indent=1, ensure_ascii=False) + '\n')
        (self.parts / 'settings.json').unlink()
        shutil.rmtree(self.parts)
        return report


def refuse_broken(broken, limit):
    """Stop when too many images are broken: a list of (image, why).

    Raises:
        DataError: Names the first ones.
    """
    from mmblip2.errors import DataError
    if len(broken) > limit:
        shown = '; '.join(f'{image} ({why})' for image, why in broken[:3])
        raise DataError(f'{len(broken)} images cannot be read, --max-broken allows {limit}: {shown}. Check --images, '
                        'or raise --max-broken and go on with --resume')


@contextmanager
def _whole(path):
    """A text file that gets its name when it is whole."""
    side = path.with_name(path.name + '.side')
    try:
        with open(side, 'w', encoding='utf-8') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(side, path)
    finally:
        with suppress(OSError):
            side.unlink()


def _write(path, text):
    with _whole(path) as file:
        file.write(text)


# ------------------------------------------------------------------------------------------------ the models
class CapFilt:
    """Captioner and filter.

    Args:
        captioner (ImageCaptionInferencer): Writes.
        match (ImageTextMatchingInferencer): Its model compares.
        args (Namespace): Options of the tool.

    Attributes:
        shared (bool): Whether both see with the same encoder, so that an image is encoded once.
    """

    def __init__(self, captioner, match, args):
        from mmblip2.utils.cli import parse_value
        self.captioner, self.match, self.args = captioner, match, args
        given = dict(item.partition('=')[::2] for item in args.generation)
        self.generation = {key: parse_value(value) for key, value in given.items()}
        if self.generation.get('do_sample', True):
            self.generation = {**SAMPLING, **self.generation}
        captioner([], args.prompt, args.num_captions, progress=False, **self.generation)  # a wrong one is said now
        self.shared = same_vision(captioner, match)
        if self.shared:  # one copy, which remembers the images that it saw last
            match.model.vision = captioner.model.vision
            captioner.model.vision.forward = remembering(captioner.model.vision.forward)

    def settings(self, web):
        """What the texts and scores depend on, as plain values; ``web`` is the set (list of WebImage)."""
        from mmblip2.engine.evaluation_blocks import digest_of
        from mmblip2.models.algorithms.base import fingerprint
        args = self.args
        models = {}
        for name, inferencer in (('captioner', self.captioner), ('filter', self.match)):
            models[f'{name}_weights'] = fingerprint(inferencer.model)
            models[f'{name}_config'] = digest_of([inferencer.config.model, inferencer.pipeline_steps(),
                                                  inferencer.autocast_dtype])
        settings = dict(web_set=digest_of(web), images=str(Path(args.images).resolve()), prompt=args.prompt,
                        num_captions=args.num_captions, generation=self.generation, seed=args.seed,
                        batch_size=args.batch_size, shard_size=args.shard_size, **models)
        return json.loads(json.dumps(settings))

    def caption(self, images, index):
        """Texts of images, the first of which has the place ``index`` in the set: all samples of a batch are drawn
        together, from random numbers of their own.

        Returns:
            list[list[str]]: ``--num-captions`` an image.
        """
        import torch
        device = self.captioner.device
        with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
            torch.manual_seed(self.args.seed + index)
            found = self.captioner(images, self.args.prompt, self.args.num_captions, batch_size=len(images),
                                   progress=False, **self.generation)
        texts = [row['pred_caption'] for row in found]
        return [[text] if isinstance(text, str) else text for text in texts]

    def scores(self, images, texts):
        """Probabilities that the texts (list of str) of each image match it, list of list of float."""
        import torch

        from mmblip2.apis.retrieval import pair_logits
        from mmblip2.apis.texts import clean_texts, image_steps
        model = self.match.model
        owner = torch.tensor([i for i, some in enumerate(texts) for _ in some], dtype=torch.int64)
        if not len(owner):
            return [[] for _ in texts]
        with torch.no_grad(), self.match.autocast():
            rows = [dict(image=image, sample_idx=i) for i, image in enumerate(images)]
            encoded = model.encode_image(self.match.prepare(rows, image_steps(self.match))['images'])
            tokens = model.tokenize(clean_texts(self.match, [text for some in texts for text in some]))
            logits = pair_logits(model, lambda index: encoded.rows(index.to(self.match.device)).image_kv, tokens,
                                 owner, torch.arange(len(owner)))
        found = iter(logits.softmax(dim=1)[:, 1].tolist())
        return [[next(found) for _ in some] for some in texts]

    def __call__(self, web, images, index):
        """Records of a batch.

        Args:
            web (list[WebImage]): The batch.
            images (list[PIL.Image | str]): Its images, or why one cannot be read.
            index (int): Place of the first one in the set.

        Returns:
            list[dict]: ``texts``, a list of [text, origin, score], or ``error``.
        """
        from mmblip2.datasets.transforms.text import is_empty
        whole = [(item, image) for item, image in zip(web, images) if not isinstance(image, str)]
        pixels = [image for _, image in whole]
        written = iter(self.caption(pixels, index) if pixels else [])
        records, texts = [], []
        for item, image in zip(web, images):
            record = dict(image=item.image, **({} if item.image_id is None else dict(image_id=item.image_id)))
            records.append(record)
            if isinstance(image, str):
                record['error'] = image
                continue
            synthetic = next(written)
            full = [text for text in dict.fromkeys(synthetic) if not is_empty(text)]
            new = [text for text in full if text not in item.texts]
            record.update(texts=[[text, 'web'] for text in item.texts] + [[text, 'synthetic'] for text in new],
                          empty=dict(web=item.empty, synthetic=sum(map(is_empty, synthetic))),
                          same_as_web=len(full) - len(new))
            texts.append(record['texts'])
        for some, scores in zip(texts, self.scores(pixels, [[text for text, _ in some] for some in texts])):
            for entry, score in zip(some, scores, strict=True):
                entry.append(score)
        return records


def same_vision(captioner, match):
    """Whether the vision encoders of two inferencers' models are built alike and have the same weights."""
    import torch
    first, second = ({key: value for key, value in dict(inferencer.config.model.vision).items() if key != 'weights'}
                     for inferencer in (captioner, match))
    one, other = captioner.model.vision.state_dict(), match.model.vision.state_dict()
    return (first == second and one.keys() == other.keys()
            and all(tensor.dtype == other[name].dtype and torch.equal(tensor, other[name])
                    for name, tensor in one.items()))


def remembering(forward):
    """``forward`` of an encoder, which is not asked again for the images (B, 3, H, W) that it saw last."""
    import torch
    last: list = []

    def once(images):
        kind = images.device.type
        mode = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        if not (last and last[0] == mode and last[1].shape == images.shape and torch.equal(last[1], images)):
            last[:] = mode, images, forward(images)
        return last[2]

    return once


def read_image(path):
    """An image (PIL.Image), or, as a text, why it cannot be read."""
    from mmblip2.datasets.transforms.image import read_image as read
    from mmblip2.errors import DataError, first_lines
    try:
        return read(path) if os.path.isfile(path) else 'there is no such file'
    except DataError as error:
        return str(error)
    except Exception as error:  # whatever a decoder does with a broken file, the other images are still to be read
        return f'{type(error).__name__}: {first_lines(error)}'


# ------------------------------------------------------------------------------------------------ the run
def work(capfilt, output, web, todo, args, broken, shown):
    """Make the shards ``todo`` (list of int) of this process.

    Args:
        broken (list): (image, why) of those that cannot be read in the shards that were finished before.
        shown (bool): Whether this process prints how far it is.
    """
    size = args.shard_size
    spans = {number: (number * size, min((number + 1) * size, len(web))) for number in todo}
    batches = [(number, first, min(first + args.batch_size, stop)) for number, (start, stop) in spans.items()
               for first in range(start, stop, args.batch_size)]
    total, done = sum(stop - start for start, stop in spans.values()), 0
    records, errors, texts = [], list(broken), 0
    begun = said = time.monotonic()
    with ThreadPoolExecutor(args.workers) as pool:  # Pillow decodes without Python's lock

        def read(batch):
            return [pool.submit(read_image, os.path.join(args.images, item.image)) for item in web[batch[1]:batch[2]]]

        coming = read(batches[0]) if batches else []
        for place, (number, first, last) in enumerate(batches):
            images = [future.result() for future in coming]
            coming = read(batches[place + 1]) if place + 1 < len(batches) else []
            found = capfilt(web[first:last], images, first)
            records += found
            errors += [(record['image'], record['error']) for record in found if 'error' in record]
            refuse_broken(errors, args.max_broken)
            if last == spans[number][1]:
                output.write_shard(number, records)
                records = []
            done += last - first
            texts += sum(score >= args.threshold for record in found for _, _, score in record.get('texts', ()))
            now = time.monotonic()
            if shown and (now - said >= INTERVAL or done == total):
                said, left = now, (now - begun) / done * (total - done)
                print(f'{done}/{total} images  {done / (now - begun):.1f} img/s  {texts} texts kept  '
                      f'{len(errors)} broken  left {timedelta(seconds=int(left))}', flush=True)


def start_processes():
    """(rank, number of processes); torchrun's find one another."""
    import torch.distributed as dist

    from mmblip2.utils.dist import world
    if int(os.environ.get('WORLD_SIZE', 1)) > 1:
        dist.init_process_group('gloo', timeout=timedelta(days=30))  # they wait for the slowest at the end
    return world()


def default_device(rank_here):
    """A GPU for each process of a machine, if there are any."""
    import torch
    return f'cuda:{rank_here % torch.cuda.device_count()}' if torch.cuda.is_available() else 'cpu'


def main(argv=None):
    args = parse_args(argv)
    from mmblip2.apis import ImageCaptionInferencer, ImageTextMatchingInferencer
    from mmblip2.utils.dist import gather_objects
    rank, processes = start_processes()
    output = Output(args.out)
    web = read_web(args)
    if rank == 0:
        output.check(args)
    gather_objects(None)
    device = args.device or default_device(int(os.environ.get('LOCAL_RANK', 0)))
    common = dict(device=device, **({} if args.dtype is None else dict(dtype=args.dtype)))
    capfilt = CapFilt(ImageCaptionInferencer(args.captioner, args.captioner_weights or True, **common),
                      ImageTextMatchingInferencer(args.filter, args.filter_weights or True, **common), args)
    settings = capfilt.settings(web) if rank == 0 else {}
    finished = gather_objects(output.begin(args, settings) if rank == 0 else None)[0]
    if finished:
        if rank == 0:
            print(f'{args.out} is finished: --overwrite would begin anew')
        return
    numbers = range(-(-len(web) // args.shard_size))
    before = [number for number in numbers if output.shard(number).exists()]
    broken = [(record['image'], record['error']) for record in output.records(before) if 'error' in record]
    if rank == 0:
        print(f'{len(web)} images, {sum(len(item.texts) for item in web)} texts of the web; {len(before)} of '
              f'{len(numbers)} shards are there; {processes} process{"es" if processes > 1 else ""} on '
              f'{capfilt.captioner.device.type}'
              + ('; captioner and filter have the same encoder, an image is encoded once' if capfilt.shared else ''),
              flush=True)
    gather_objects(None)  # nobody counts the shards of a faster one as finished before
    todo = [number for number in numbers if number not in set(before)]
    work(capfilt, output, web, todo[rank::processes], args, broken, rank == 0)
    gather_objects(None)
    if rank == 0:
        report = output.finish(args, numbers, settings)
        for origin in ORIGINS:
            print(f'{origin} texts: ' + ', '.join(f'{count} {fate}' for fate, count in report[origin].items()))
        print(f'{report["images_with_text"]} of {report["images"]} images have a text, {report["broken"]} are broken: '
              f'{output.path}, {output.report}')


if __name__ == '__main__':
    cli.run(main)
