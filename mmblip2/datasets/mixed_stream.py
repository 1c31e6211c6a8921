"""Several streams as one, each drawn as often as its ratio says."""
import numpy as np
from torch.utils.data import IterableDataset

from mmblip2.errors import ConfigError, DataError
from mmblip2.registry import DATASETS

from .mixed import OTHER_SEED, draws_of_window
from .web_stream import WebStream, slot_of_worker


@DATASETS.register_module()
class MixedStream(IterableDataset):
    """Draw from several streams by ratio. For files on local or mounted disks, ``MixedDataset`` of ``WebShards`` is
    better in everything.

    Of every ``window`` samples that a worker reads the streams get their shares, rounded to whole samples, in random
    order; each goes through its own epochs. A resume is that of each stream: from whole shards.

    Args:
        streams (Sequence): ``WebStream``s, or configs of them.
        ratios (Sequence[float]): How often each is drawn, in any unit.
        window (int): Samples of which the shares are exact.
        seed (int, optional): Defaults to that of the run. Streams without a seed get theirs from it.

    Raises:
        ConfigError: Another number of ratios than streams, a ratio that is not positive or too small for the window,
            or a source that is no ``WebStream``.
    """

    metainfo: dict = {}

    def __init__(self, streams, ratios, window=1000, seed=None):
        self.counts = draws_of_window('MixedStream', 'streams', streams, list(ratios), window)
        self.streams = [DATASETS.build(stream) if isinstance(stream, dict) else stream for stream in streams]
        for number, stream in enumerate(self.streams):
            if not isinstance(stream, WebStream):
                raise ConfigError(f'streams[{number}] of MixedStream is a {type(stream).__name__}: expected a '
                                  'WebStream; to mix data sets use MixedDataset')
        self.samples = sum(stream.samples for stream in self.streams)
        self.rank, self.world_size = self.streams[0].rank, self.streams[0].world_size
        self.seed = seed

    @property
    def seed(self):
        """int | None: Of the mix."""
        return self._seed

    @seed.setter
    def seed(self, seed):
        self._seed = seed
        for number, stream in enumerate(self.streams):
            if stream.seed is None and seed is not None:
                stream.seed = seed + OTHER_SEED * number

    def describe(self):
        """str: For the log."""
        return f'{len(self.streams)} streams by ratio: ' + '; '.join(stream.describe() for stream in self.streams)

    @property
    def turns(self):
        """dict[tuple[int, int], int]: Of each stream and slot: where it is."""
        return {(number, slot): turn for number, stream in enumerate(self.streams)
                for slot, turn in stream.turns.items()}

    def note(self, samples):
        """See ``WebStream.note``."""
        for sample in samples:
            slot, turn, number = sample.stream_at
            self.streams[number].turns[slot] = turn

    def position(self, slots, turns):
        """See ``WebStream.position``."""
        return dict(slots=slots, streams=[
            stream.position(slots, {slot: turn for (owner, slot), turn in turns.items() if owner == number})
            for number, stream in enumerate(self.streams)])

    def seek(self, slots, position=None):
        """See ``WebStream.seek``.

        Raises:
            DataError: The checkpoint is not one of as many streams.
        """
        positions = [None] * len(self.streams) if position is None else position.get('streams', [position])
        if len(positions) != len(self.streams):
            raise DataError(f'the checkpoint has the position of {len(positions)} streams, the config mixes '
                            f'{len(self.streams)}: resume with the streams of then, or start anew with load_from')
        return '; '.join(stream.seek(slots, at) for stream, at in zip(self.streams, positions))

    def __iter__(self):
        slot, _ = slot_of_worker(self.rank, self.world_size)
        rng = np.random.default_rng((self.seed or 0, slot))
        sources = [iter(stream) for stream in self.streams]
        window = np.repeat(np.arange(len(self.counts)), self.counts)
        while True:
            for number in rng.permutation(window).tolist():
                packed = next(sources[number])
                packed['data_samples'].stream_at += (number, )
                yield packed
