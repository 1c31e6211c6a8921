"""Image-text pairs in tar shards that can only be read from their start: pipes, web addresses, object stores."""
import io
import itertools
import math
import warnings
from collections import Counter
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from mmengine.dist import get_dist_info
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmblip2.errors import ConfigError, DataError, first_lines
from mmblip2.registry import DATASETS, FUNCTIONS, TRANSFORMS

from .caption_file import check_captions_per_image, draw_caption
from .files import parse_image_id
from .transforms.image import read_image
from .web_shards import CaptionKeys, expand_braces

_IN_A_ROW = 100  # bad samples, and
_SHARDS_IN_A_ROW = 10  # shards without a sample, before a stream gives up
WITHOUT_PACKAGE = 'WebStream needs the package webdataset: pip install webdataset'


@DATASETS.register_module()
class WebStream(IterableDataset):
    """Endless stream of image-text pairs through the package webdataset. For files on local or mounted disks,
    ``WebShards`` is better in everything.

    Shards come in random order, all of them once an epoch, dealt out to the workers of all processes. Each worker
    keeps ``shuffle`` samples and gives a random one of them. A resume begins with the first shard of each worker that
    is not through, so the samples of it (and of ``shuffle``) that were drawn before come again, and none is left out;
    with another number of workers or processes, with the earliest of these shards.

    A sample is that of a training row of ``WebShards``. Bad samples are left out and noted in the next one's
    ``replaced``; so is a shard that ends with an error.

    Args:
        urls (str | Sequence[str]): ``'pipe:aws s3 cp s3://bucket/{000..119}.tar -'``, ``'https://host/{000..119}.tar'``,
            or what else webdataset opens. A pipe runs its command in a shell.
        samples (int): About how many samples there are, for the log.
        pipeline (Sequence): Transforms: configs or callables.
        image_key, caption_key, max_captions, captions_per_image: See ``WebShards``.
        shuffle (int): Samples among which the next one is drawn.
        seed (int, optional): Defaults to that of the run.

    Raises:
        ConfigError: webdataset is not installed, or an argument is wrong.
        DataError: While it is read: ten shards in a row without a sample, or 100 bad samples in a row.
    """

    metainfo: dict = {}

    def __init__(self, urls, samples, pipeline=(), image_key=('jpg', 'jpeg', 'png', 'webp'),
                 caption_key=('json.caption', 'txt'), max_captions=None, captions_per_image=None, shuffle=1000,
                 seed=None):
        if find_spec('webdataset') is None:
            raise ConfigError(WITHOUT_PACKAGE)
        for name, value in dict(samples=samples, shuffle=shuffle).items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f'{name} of WebStream is {value!r}: expected a whole number from 1 on')
        self.urls = [url for pattern in ([urls] if isinstance(urls, str) else urls) for url in expand_braces(pattern)]
        if not self.urls:
            raise ConfigError('urls of WebStream is empty')
        check_captions_per_image(captions_per_image, 'WebStream')
        self.captions_per_image = captions_per_image
        self.samples = samples
        self.keys = CaptionKeys(image_key, caption_key, max_captions)
        self.pipeline = Compose([TRANSFORMS.build(step) if isinstance(step, dict) else step for step in pipeline])
        self.shuffle = shuffle
        self.seed = seed
        self.rank, self.world_size = get_dist_info()
        self.turns: dict[int, int] = {}  # of each slot (a worker of a process): where it is
        self._first_turns: dict[int, int] = {}
        self._first = 0

    def describe(self):
        """str: For the log."""
        return f'a stream of {len(self.urls)} shards, about {self.samples} samples'

    # ------------------------------------------------------------------------- position, in the main process

    def note(self, samples):
        """Remember how far the samples of a batch, in their order, bring the workers that read them."""
        for sample in samples:
            slot, turn = sample.stream_at
            self.turns[slot] = turn

    def position(self, slots, turns):
        """A position for a checkpoint.

        Args:
            slots (int): Workers of all processes.
            turns (dict[int, int]): ``turns`` of all processes.
        """
        turns = {**self._first_turns, **turns}
        return dict(slots=slots, turns=[turns.get(slot, self._turn_of(slot, slots)) for slot in range(slots)])

    def seek(self, slots, position=None):
        """Begin at a position (None: at the start).

        Args:
            slots (int): Workers of all processes.
            position (dict, optional): Of a checkpoint.

        Returns:
            str: What it means, for the log.

        Raises:
            DataError: It is the position of several streams.
        """
        self.turns, self._first_turns, self._first = {}, {}, 0
        if position is not None and 'turns' not in position:
            raise DataError(f'the checkpoint has the position of {len(position["streams"])} streams, the config has '
                            'one: resume with the streams of then, or start anew with load_from')
        if position is None:
            return f'{self.describe()}: a resume of this run will begin with whole shards, not with single samples'
        before = position['slots']
        numbers = [slot + turn * before for slot, turn in enumerate(position['turns'])]
        if before == slots:
            self._first_turns = dict(enumerate(position['turns']))
            text = f'each of the {slots} workers begins its shard again, the earliest is number {min(numbers)}'
        else:
            self._first = min(numbers)
            text = (f'{before} workers read it before and {slots} do now, so that all shards from number '
                    f'{self._first} on are read again')
        return (f'{self.describe()}, resumed from whole shards: {text}; samples of these shards that were drawn before '
                'come again, none is left out')

    def _turn_of(self, slot, slots):
        """First turn of a slot when everything begins with one shard number."""
        return max(math.ceil((self._first - slot) / slots), 0)

    # ------------------------------------------------------------------------------------ reading, in a worker

    def __iter__(self):
        slot, slots = slot_of_worker(self.rank, self.world_size)
        first = self._first_turns.get(slot, self._turn_of(slot, slots))
        rng = np.random.default_rng((self.seed or 0, slot, first))
        kept: list[tuple] = []
        turns: Counter = Counter()
        bad: list[str] = []
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', ResourceWarning)  # webdataset leaves it to Python to close
            for turn, *raw in self._raw(slot, slots, first, bad):
                kept.append((turn, *raw))
                turns[turn] += 1
                if len(kept) < self.shuffle:
                    continue
                place = int(rng.integers(len(kept)))
                kept[place], kept[-1] = kept[-1], kept[place]
                turn, *raw = kept.pop()
                turns[turn] -= 1
                if not turns[turn]:
                    del turns[turn]
                try:
                    packed = self._pack(*raw)
                except DataError as error:
                    bad.append(f'{raw[2]["__url__"]}/{raw[2]["__key__"]}: {error}')
                    if len(bad) >= _IN_A_ROW:
                        raise DataError(f'{len(bad)} samples in a row are bad; the first: '
                                        f'{"; ".join(bad[:3])}') from None
                    continue
                sample = packed['data_samples']
                sample.stream_at = (slot, min(turns, default=turn))
                if bad:
                    sample.replaced, bad[:] = list(bad), []
                yield packed

    def _raw(self, slot, slots, first, bad):
        """(turn, number of the shard, number in it, raw sample) without end."""
        barren = 0
        for turn in itertools.count(first):
            number = slot + turn * slots
            epoch, place = divmod(number, len(self.urls))
            url = self.urls[np.random.default_rng((self.seed or 0, epoch)).permutation(len(self.urls))[place]]
            count = 0
            try:
                for raw in _read(url):
                    yield turn, number, count, raw
                    count += 1
            except Exception as error:  # whatever the tools behind an address raise
                bad.append(f'{url}: {type(error).__name__}: {first_lines(error)}; what is behind its {count} samples '
                           'is left out')
            barren = 0 if count else barren + 1
            if barren == _SHARDS_IN_A_ROW:
                raise DataError(f'{barren} shards in a row have no sample, the last is {url}: check urls. '
                                + '; '.join(bad[-3:]))

    def _pack(self, number, index, raw):
        """Run the pipeline on a raw sample."""
        members = {key: value for key, value in raw.items() if not key.startswith('__')}
        ending = self.keys.image_ending(members)
        captions, image_id = self.keys.read(members, members.__getitem__)
        path = f'{raw["__url__"]}/{raw["__key__"]}.{ending}'
        rng = np.random.default_rng((self.seed or 0, number, index))
        results = dict(
            sample_idx=index, img_path=path, image=read_image(io.BytesIO(members[ending])), rng=rng,
            image_id=path if image_id in (None, '') else parse_image_id(image_id, path, path),
            captions=captions)
        packed = self.pipeline(draw_caption(results, rng, count=self.captions_per_image))
        if packed is None or 'data_samples' not in packed:
            raise ConfigError('the pipeline of WebStream has to end with PackInputs')
        return packed


def slot_of_worker(rank, world_size):
    """tuple[int, int]: The number of this worker among those of all processes, and how many there are."""
    worker = get_worker_info()
    workers = worker.num_workers if worker else 1
    return rank * workers + (worker.id if worker else 0), world_size * workers


def _read(url):
    """Raw samples of one shard: ``__key__``, ``__url__`` and bytes by ending.

    Raises:
        Exception: Any, when it cannot be opened or read to its end.
    """
    from webdataset.gopen import gopen
    from webdataset.tariterators import group_by_keys, tar_file_expander
    stream = gopen(url)
    try:
        yield from group_by_keys(tar_file_expander([dict(url=url, stream=stream)]))
        while stream.read(1 << 20):  # what is behind the end of a tar; a command that failed says so at its own end
            pass
    except BaseException:
        if hasattr(stream, 'proc'):  # a command: it is not read to its end
            stream.ignore_errors = True
            stream.proc.kill()
        raise
    finally:
        stream.close()


def is_stream(dataset):
    """Whether the config of a data set is that of a stream."""
    kind = dataset.get('type') if isinstance(dataset, dict) else None
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    return isinstance(kind, type) and issubclass(kind, IterableDataset)


class StreamLoader(DataLoader):
    """The data loader of a ``WebStream`` or ``MixedStream``; its length is what the stream says of itself.

    Args:
        config (dict): As ``train_dataloader``; without sampler.
        seed (int, optional): Of the run.

    Raises:
        ConfigError: There is a sampler.
    """

    dataset: Any

    def __init__(self, config, seed=None):
        options = dict(config)
        if options.pop('sampler', None) or options.pop('batch_sampler', None):
            raise ConfigError('a stream has no sampler, it comes in its own order: leave sampler out')
        dataset = DATASETS.build(options.pop('dataset'))
        dataset.seed = dataset.seed if dataset.seed is not None else seed
        collate = dict(options.pop('collate_fn', dict(type='pseudo_collate')))
        function = FUNCTIONS.get(collate.pop('type'))
        super().__init__(dataset, collate_fn=partial(function, **collate), **options)

    def __len__(self):
        return max(self.dataset.samples // ((self.batch_size or 1) * self.dataset.world_size), 1)

    @property
    def slots(self):
        """int: Workers of all processes."""
        return self.dataset.world_size * max(self.num_workers, 1)
